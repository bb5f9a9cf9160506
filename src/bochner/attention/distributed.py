"""Linear attention over a sequence that is spread over processes.

    state_r = what the keys of rank r leave behind            (computed by each rank alone)
    rank r reads   sum_p state_p    bidirectional,    sum_{p<r} state_p   causal, then its own keys

One all_gather of states of constant size, whatever the length: [m, dv + 2] numbers per head and rank.
States carry their running log-reference and are rescaled when added; nothing is ever subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from bochner.attention.bidirectional import looked_up, summary
from bochner.attention.inputs import AttentionInputs, attention_inputs
from bochner.attention.state import AttentionState, finite, sums_of, with_sums
from bochner.attention.streaming import advance
from bochner.feature_map import FeatureMap, compute_dtype
from bochner.validation import check_finite

if TYPE_CHECKING:
    Group = dist.ProcessGroup | None


def sequence_parallel_attention(
    feature_map: FeatureMap,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    key_mask: Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """`linear_attention` of the whole sequence; each rank gives its slice and gets its rows of the output.

    Every rank of `group` must call it, with the same feature map. The slices follow each other in the
    order of the ranks and may differ in length, not be empty: a rank without tokens passes one that
    key_mask hides.

    Shapes:     q [*b, n, d], k [*b, s, d], v [*b, s, dv] of this rank -> out [*b, n, dv]. n and s may
                differ between ranks, everything else may not.
    Arguments:  causal and key_mask as in `linear_attention`; group: torch.distributed's, the default
                one if None, of any backend (gloo, nccl) that all-gathers tensors of q's device.
    Gradients:  exact, to any order, if every rank calls backward, each on the loss of its own rows: q, k
                and v get the gradient of the sum of all ranks' losses. A parameter of the feature map
                gets this rank's part: all-reduce (sum) it, as DistributedDataParallel does (which
                divides by the number of ranks).
    Cost:       two messages per call, one in the backward pass: a header of 18 integers, by which ranks
                agree before they exchange anything, and the state. Time and memory are those of
                `linear_attention` on the slice; causal computes the features of its keys twice.
    Raises:     what `linear_attention` raises, on the rank that is wrong, and RuntimeError with its
                number on all others; ValueError on all ranks if they disagree in sizes, dtype, causal,
                feature map or in whether gradients are wanted, or if no rank shows a sequence a key. A
                rank that does not call at all is noticed by the group's own timeout.
    Example:
        >>> import tempfile, bochner
        >>> store = "file://" + tempfile.NamedTemporaryFile(delete=False).name
        >>> dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        >>> phi = bochner.make("positive", dim=4, num_features=16)
        >>> q, k, v = (torch.randn(2, 10, 4) for _ in range(3))
        >>> out = sequence_parallel_attention(phi, q, k, v, causal=True)
        >>> bool(torch.allclose(out, bochner.linear_attention(phi, q, k, v, causal=True)))
        True
        >>> dist.destroy_process_group()
    """
    rank, ranks = _place(group)

    def prepare() -> tuple[AttentionInputs, Tensor, list[int]]:
        inputs = attention_inputs(feature_map, q, k, v, key_mask, causal=causal)
        queries = inputs.q.to(compute_dtype(inputs.q))
        check_finite("queries", queries, queries.square().sum(dim=-1))
        state = _packed(summary(feature_map, inputs))
        return inputs, state, _header(feature_map, state, causal)

    inputs, own = _agreed(prepare, group)
    gathered = _Gather.apply(own, group)
    before = _unpacked(feature_map, gathered[: rank if causal else ranks])
    if causal:
        return advance(before, inputs)[0]
    _check_some_key(before)
    return looked_up(before, inputs)


def _place(group: Group) -> tuple[int, int]:
    """(rank, number of ranks) in the group."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "torch.distributed is not initialised: call torch.distributed.init_process_group first"
            " (torchrun sets its environment); for one process use bochner.linear_attention."
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("this process is not in `group`; only its members may call.")
    return rank, dist.get_world_size(group)


# -- states ---------------------------------------------------------------------------------------------
def _packed(state: AttentionState) -> Tensor:
    """One message: numerator, denominator and reference side by side, [*b, m, dv + 2]."""
    assert state.reference is not None
    assert state.numerator is not None
    sums = sums_of(state, state.numerator.dtype)
    reference = state.reference.detach().to(sums.dtype).transpose(-1, -2)
    return torch.cat([sums, reference.expand(*sums.shape[:-1], 1)], dim=-1)


def _unpacked(feature_map: FeatureMap, parts: Tensor) -> AttentionState:
    """The sum of states [ranks, *b, m, dv + 2], rescaled to their common maximum; none: a state of 0."""
    references = parts.detach()[..., -1:]
    nothing = references.new_full((1, *references.shape[1:]), -math.inf)
    reference = torch.cat([nothing, references]).amax(dim=0)
    # the sum over no part is 0 and still hangs on the exchange: rank 0 joins its backward pass
    total = (parts[..., :-1] * torch.exp(references - finite(reference))).sum(dim=0)
    reference = reference.transpose(-1, -2)
    reference = reference if feature_map.positive else reference[..., :1]
    return with_sums(AttentionState(feature_map), reference, total)


def _check_some_key(state: AttentionState) -> None:
    """Raise ValueError, on every rank alike, if a sequence has no visible key on any."""
    assert state.reference is not None
    hidden = int(torch.isinf(state.reference).all(dim=-1).sum())
    if hidden:
        raise ValueError(
            f"key_mask hides every key of {hidden} sequence(s) on every rank; attention is undefined."
        )


class _Gather(torch.autograd.Function):
    """The tensors of all ranks, [ranks, ...]: one all_gather."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Group) -> Tensor:
        """own [...] -> [ranks, ...]."""
        ctx.group = group
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, own, group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """What all ranks want of this rank's tensor, summed."""
        return _Share.apply(gradients[0], ctx.group), None


class _Share(torch.autograd.Function):
    """This rank's part of the sum over ranks of [ranks, ...]: the transpose of `_Gather`.

    One all_reduce; a reduce_scatter would send less, but gloo lacks it in older torch.
    """

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Group) -> Tensor:
        """parts [ranks, ...] -> [...]."""
        ctx.group = group
        total = parts.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total[dist.get_rank(group)].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Every rank's gradient, for the parts that it took."""
        return _Gather.apply(gradients[0], ctx.group), None


# -- agreement before the exchange --------------------------------------------------------------------
_FIELDS = (
    "inputs without an error (0 = no)",
    "causal",
    "gradients wanted (0 = no; of k, v or the feature map)",
    "dtype (64 = float64)",
    "checksum of the feature map",
)
_SIZES = 12  # a header has room for this many sizes of a state


def _agreed(
    prepare: Callable[[], tuple[AttentionInputs, Tensor, list[int]]], group: Group
) -> tuple[AttentionInputs, Tensor]:
    """What `prepare` gives, without its header; raises on all ranks if headers differ or one failed.

    A rank never raises before it has sent its header: the others would wait for it.
    """
    problem: Exception | None = None
    device = _message_device(group)
    header = [0] * (len(_FIELDS) + 1 + _SIZES)
    try:
        inputs, state, header = prepare()
        _check_device(state, device, group)
    except Exception as error:
        problem = error
        header[0] = 0
    own = torch.tensor(header, dtype=torch.int64, device=device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group=group)
    if problem is not None:
        raise problem
    _check_agreement([part.tolist() for part in gathered])
    return inputs, state


def _header(feature_map: FeatureMap, state: Tensor, causal: bool) -> list[int]:
    """What must be the same on all ranks."""
    if state.ndim > _SIZES:
        raise ValueError(
            f"k has {state.ndim} dimensions; at most {_SIZES} can be exchanged between ranks."
        )
    bits = torch.finfo(state.dtype).bits
    fields = [1, int(causal), int(state.requires_grad), bits, _checksum(feature_map)]
    return [*fields, state.ndim, *state.shape, *[0] * (_SIZES - state.ndim)]


def _checksum(feature_map: FeatureMap) -> int:
    """An integer of all bits of the map's parameters and buffers; sums of integers have no rounding."""
    total = 0
    for number, tensor in enumerate([*feature_map.parameters(), *feature_map.buffers()], start=1):
        tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        flat = tensor.detach().contiguous().view(-1)
        bits = flat.to(torch.float64) if flat.is_floating_point() else flat.to(torch.int64)
        bits = bits.view(torch.int64)
        places = torch.arange(1, bits.numel() + 1, device=bits.device)
        total += number * int(((bits ^ (bits >> 29)) * places).sum())
    return total % (1 << 62)


def _check_agreement(headers: list[list[int]]) -> None:
    """Raise the same error on all ranks unless their headers are equal."""
    wrong = [rank for rank, header in enumerate(headers) if not header[0]]
    if wrong:
        raise RuntimeError(
            f"rank(s) {wrong} of the group refused their inputs; the error is raised there."
        )
    for field, name in enumerate(_FIELDS):
        found = [header[field] for header in headers]
        if len(set(found)) > 1:
            fix = ""
            if "checksum" in name:
                fix = " Make the map from one seed, or broadcast its state_dict from rank 0."
            raise ValueError(f"ranks differ in {name}: {found}, by rank.{fix}")
    ndim = len(_FIELDS)
    sizes = [header[ndim + 1 : ndim + 1 + header[ndim]] for header in headers]
    if any(other != sizes[0] for other in sizes):
        raise ValueError(
            "ranks differ in the sizes of k and v, lengths apart; their states are [*b, m, dv + 2] ="
            f" {sizes}, by rank."
        )


def _message_device(group: Group) -> torch.device:
    """Where this group's messages live."""
    backend = str(dist.get_backend(group))
    accelerator = torch.accelerator.current_accelerator()
    if "gloo" in backend or "mpi" in backend or accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, torch.accelerator.current_device_index())


def _check_device(state: Tensor, device: torch.device, group: Group) -> None:
    if state.device.type == "cpu" and device.type != "cpu":
        raise ValueError(
            f"k and v are on cpu; the group's backend {dist.get_backend(group)} exchanges tensors on"
            f" {device}."
        )
