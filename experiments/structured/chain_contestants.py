"""Who sums over the paths of a chain: bochner, plain torch, and the peers that install with pip.

Every contestant is handed the same tensors, its own form of the transitions made before the clock starts,
and returns log Z, with the marginals of the states where it is asked for them.

    partition    log Z
    marginals    log Z and the posterior of every state at every step [T, X]; torch-struct's marginals are
                 those of edges, [T-1, X, X], from which the posteriors are read
    training     log Z and its gradient by the unaries and by all parameters of the transitions

Where a whole chain would take minutes a contestant does its first steps only, or part of one: `share` says
how much, and its time is divided by it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.structured.chain_problems import Problem, forward, forward_backward

PARTITION, MARGINALS, TRAINING = FORMS = ("partition", "marginals", "training")
FLY_ENTRIES = 1 << 26  # of K made in one piece where it is not stored: 268 MB
FLY_MOST = 1 << 29  # entries of K made in all: beyond, part of a step
EXACT_MOST = 40 * 4096 * 4096  # products X^2 T that the exact recursion does in full, times 33/255


class Missing(Exception):
    """A contestant that cannot take part here, and why."""


@dataclass(frozen=True)
class Result:
    """What a run gives; `marginals` [T, X] where the form has them."""

    log_partition: float
    marginals: Tensor | None = None


@dataclass(frozen=True)
class Prepared:
    """A contestant at one size. `share`: the part of the chain that `run` does."""

    run: Callable[[], Result]
    share: float = 1.0


@dataclass(frozen=True)
class Contestant:
    """One program.

    Arguments:  prepare(problem, form) -> Prepared;  forms: those that it has;
                needs(states, steps, form) -> bytes that it is known to ask for;
                seconds(states, steps, form) -> CPU seconds, roughly, where they grow fast;
                same: whether it computes the chain of `Problem` (not of exp(a.b)).
    """

    name: str
    prepare: Callable[[Problem, str], Prepared]
    forms: tuple[str, ...] = FORMS
    needs: Callable[[int, int, str], float] | None = None
    seconds: Callable[[int, int, str], float] | None = None
    same: bool = True


# -- bochner -------------------------------------------------------------------------------------------
def low_rank(made: Problem, form: str) -> Prepared:
    """LowRankChain of given features: the transitions' values are made inside the clock."""
    from bochner.structured import LowRankChain

    left, right = made.features
    return Prepared(_ours(lambda *x: LowRankChain(*x), (left, right, made.unaries), form))


def exact_chain(made: Problem, form: str) -> Prepared:
    """ExactChain of the stored log-potentials."""
    from bochner.structured import ExactChain

    potentials = made.matrix().log_()
    return Prepared(_ours(lambda *x: ExactChain(*x), (potentials, made.unaries), form))


def embedded(made: Problem, form: str) -> Prepared:
    """LowRankChain.from_embeddings: positive features are drawn inside the clock."""
    from bochner.structured import LowRankChain

    def build(a: Tensor, b: Tensor, unaries: Tensor):
        return LowRankChain.from_embeddings(
            a,
            b,
            unaries,
            num_features=made.setting.num_features,
            generator=torch.Generator().manual_seed(0),
        )

    return Prepared(_ours(build, (*made.embeddings, made.unaries), form))


def hybrid(made: Problem, form: str) -> Prepared:
    """HybridChain.from_embeddings: 64 states at every step exactly, features elsewhere."""
    from bochner.structured import HybridChain

    def build(a: Tensor, b: Tensor, unaries: Tensor):
        return HybridChain.from_embeddings(
            a,
            b,
            unaries,
            num_features=made.setting.num_features,
            beam=min(64, made.states),
            generator=torch.Generator().manual_seed(0),
        )

    return Prepared(_ours(build, (*made.embeddings, made.unaries), form))


def _ours(build: Callable, tensors: tuple[Tensor, ...], form: str) -> Callable[[], Result]:
    """A chain of our own, built anew in every call so that nothing is cached between calls."""

    def partition() -> Result:
        with torch.no_grad():
            return Result(float(build(*tensors).log_partition))

    def marginals() -> Result:
        with torch.no_grad():
            chain = build(*tensors)
            return Result(float(chain.log_partition), chain.marginals)

    def training() -> Result:
        leaves = [x.detach().requires_grad_() for x in tensors]
        value = build(*leaves).log_partition
        gradients = torch.autograd.grad(value, leaves)
        return Result(float(value.detach()), gradients[-1])

    return {PARTITION: partition, MARGINALS: marginals, TRAINING: training}[form]


# -- exact, plain torch --------------------------------------------------------------------------------
def stored_bytes(states: int, steps: int, form: str) -> float:
    """K in float32, and the embeddings' product from which it is made."""
    return 4.0 * states**2


def scaled_products(made: Problem, form: str) -> Prepared:
    """The scaled forward (and backward) recursion on K, stored: what one writes oneself."""
    matrix = made.matrix()
    steps = made.setting.steps
    if made.states**2 * steps > EXACT_MOST * (steps / 33):
        steps = min(steps, 33)
    unaries = made.unaries[:steps]
    share = (steps - 1) / max(made.setting.steps - 1, 1) if steps > 1 else 1.0

    def partition() -> Result:
        return Result(forward(matrix, unaries)[0])

    def marginals() -> Result:
        return Result(*forward_backward(matrix, unaries))

    return Prepared({PARTITION: partition, MARGINALS: marginals}[form], share)


def on_the_fly(made: Problem, form: str) -> Prepared:
    """The scaled forward recursion with rows of exp(a.b) made anew at every step: O(X) memory."""
    states, steps = made.states, made.setting.steps
    wanted = max(1, min(steps - 1, FLY_MOST // states**2))  # edges that are done
    rows = states if wanted * states**2 <= FLY_MOST else max(1, FLY_MOST // states)
    each = max(1, min(rows, FLY_ENTRIES // states))
    weights = torch.exp(made.unaries - made.unaries.amax(dim=-1, keepdim=True))
    made.embeddings  # noqa: B018 - made before the clock starts

    def run() -> Result:
        message = weights[0] / weights[0].sum()
        log_partition = 0.0
        for step in range(1, wanted + 1):
            out = torch.zeros(states)
            for start in range(0, rows, each):
                part = slice(start, min(start + each, rows))
                out += message[part] @ made.kernel_rows(part)
            message = weights[step] * out
            total = message.sum()
            log_partition += float(total.log())
            message = message / total
        return Result(log_partition)

    return Prepared(run, wanted * rows / (states * max(steps - 1, 1)))


# -- peers ---------------------------------------------------------------------------------------------
def torch_struct_bytes(states: int, steps: int, form: str) -> float:
    """Its scan lays T/2 products of X x X matrices out as X x X x X each, in one tensor of float32."""
    return 4.0 * (1 << (steps - 2).bit_length()) / 2 * states**3


def torch_struct(made: Problem, form: str) -> Prepared:
    """torch-struct's LinearChainCRF, potentials [1, T-1, next, previous] as it wants them."""
    try:
        from torch_struct import LinearChainCRF
    except ImportError as error:
        raise Missing(f"not installed ({error}); pip install torch-struct") from error
    unaries = made.unaries
    edges = made.matrix().log_().T + unaries[1:, :, None]
    edges[0] += unaries[0]
    potentials = edges.unsqueeze(0)

    def build():
        with warnings.catch_warnings():  # of torch.distributions, that it declares no constraints
            warnings.simplefilter("ignore")
            return LinearChainCRF(potentials)

    def partition() -> Result:
        with torch.no_grad():
            return Result(float(build().partition))

    def marginals() -> Result:
        chain = build()
        found = chain.marginals[0].detach()
        states = torch.cat([found[:1].sum(1), found.sum(2)])
        return Result(float(chain.partition.detach()), states)

    return Prepared({PARTITION: partition, MARGINALS: marginals}[form])


def pytorch_crf_bytes(states: int, steps: int, form: str) -> float:
    """X x X sums of every step, three copies at a time; autograd keeps two tensors of each step."""
    return 4.0 * states**2 * (3 if form == PARTITION else 2 * steps)


def pytorch_crf(made: Problem, form: str) -> Prepared:
    """pytorch-crf's CRF: its normaliser, and autograd."""
    try:
        from torchcrf import CRF
    except ImportError as error:
        raise Missing(f"not installed ({error}); pip install pytorch-crf") from error
    crf = CRF(made.states)
    with torch.no_grad():
        crf.transitions.copy_(made.matrix().log_())
        crf.start_transitions.zero_()
        crf.end_transitions.zero_()
    mask = torch.ones(made.setting.steps, 1, dtype=torch.bool)

    def partition() -> Result:
        with torch.no_grad():
            return Result(float(crf._compute_normalizer(made.unaries.unsqueeze(1), mask)))

    def training() -> Result:
        unaries = made.unaries.unsqueeze(1).requires_grad_()
        value = crf._compute_normalizer(unaries, mask).sum()
        wanted = [unaries] if form == MARGINALS else [unaries, crf.transitions]
        gradients = torch.autograd.grad(value, wanted)
        return Result(float(value.detach()), gradients[0].squeeze(1))

    return Prepared({PARTITION: partition}.get(form, training))


def hmmlearn(implementation: str) -> Callable[[Problem, str], Prepared]:
    """hmmlearn's forward (and backward) pass with given emission log-probabilities."""

    def prepare(made: Problem, form: str) -> Prepared:
        try:
            import numpy as np
            from hmmlearn.base import BaseHMM
        except ImportError as error:
            raise Missing(f"not installed ({error}); pip install hmmlearn") from error

        class Given(BaseHMM):
            """Its observations are the log-probabilities of every state."""

            def _compute_log_likelihood(self, X):
                return X

            def _check(self) -> None:
                """Nothing to estimate; a transition matrix in float64 that adds up to 1."""

        model = Given(made.states, implementation=implementation)
        model.startprob_ = np.full(made.states, 1 / made.states)
        matrix = made.matrix().double().numpy()
        model.transmat_ = matrix / matrix.sum(1, keepdims=True)
        observed = made.unaries.double().numpy()
        start = float(np.log(made.states))  # the chain of `Problem` begins with weight 1

        def partition() -> Result:
            return Result(float(model.score(observed)) + start)

        def marginals() -> Result:
            value, found = model.score_samples(observed)
            return Result(float(value) + start, torch.from_numpy(found))

        return Prepared({PARTITION: partition, MARGINALS: marginals}[form])

    return prepare


def _grows(per_edge: float) -> Callable[[int, int, str], float]:
    """CPU seconds of a program that spends so many on each of X^2 entries an edge; thrice with a gradient."""

    def seconds(states: int, steps: int, form: str) -> float:
        return per_edge * states**2 * steps * (1 if form == PARTITION else 3)

    return seconds


FORWARD = (PARTITION, MARGINALS)
EXACT = "exact scaled products, K stored"
CONTESTANTS = (
    Contestant("bochner LowRankChain", low_rank),
    Contestant("bochner LowRankChain.from_embeddings", embedded, same=False),
    Contestant("bochner HybridChain, beam 64", hybrid, FORWARD, same=False),
    Contestant("bochner ExactChain, K stored", exact_chain, FORWARD, stored_bytes, _grows(4e-10)),
    Contestant(EXACT, scaled_products, FORWARD, stored_bytes),
    Contestant("exact, K on the fly", on_the_fly, (PARTITION,), same=False),
    Contestant("torch-struct", torch_struct, FORWARD, torch_struct_bytes),
    Contestant("pytorch-crf", pytorch_crf, FORMS, pytorch_crf_bytes, _grows(2.5e-9)),
    Contestant("hmmlearn, log", hmmlearn("log"), FORWARD, None, _grows(1.5e-8)),
    Contestant("hmmlearn, scaling", hmmlearn("scaling"), FORWARD, None, _grows(2e-9)),
)
