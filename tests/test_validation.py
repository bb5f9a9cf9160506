"""Bad input at every public entry: the error names the argument, what came, and what was expected."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bochner
from bochner import (
    AttentionState,
    Gaussian,
    NotFittedError,
    Request,
    UnknownNameError,
    describe,
    linear_attention,
    make,
    measure,
    predict,
    recommend,
    step,
)
from bochner.feature_map import FeatureMap
from bochner.feature_maps.dark import trained_kernel, whitening_start
from bochner.nonlinearities import Trigonometric
from bochner.proposals import GaussianProposal
from bochner.random_features import RandomFeatures
from bochner.transforms import Centring, LinearPair, SharedLinear
from tests.maps import FITTED, budget, fitted, normal, seeded

PHI = make("positive", dim=4, num_features=8, generator=seeded(0))
HEADS = make("positive", dim=4, num_features=8, batch_shape=(3,), generator=seeded(0))
UNFITTED = make("gerf", dim=4, num_features=8, generator=seeded(0))


def points(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Good points to stand beside a bad argument."""
    return normal(*(shape or (6, 4)), seed=1, dtype=dtype)


def spoiled(value: float) -> Tensor:
    """Good points with two bad entries."""
    x = points()
    x[2, 1] = x[4, 0] = value
    return x


# Every entry as a function of its queries and of its keys, with the names that its errors use.
ENTRIES: list[tuple[str, str, Callable[[Any], object]]] = [
    ("query", "queries", lambda x: PHI.query(x)),
    ("key", "keys", lambda x: PHI.key(x)),
    ("estimate x", "queries", lambda x: PHI.estimate(x, points())),
    ("estimate y", "keys", lambda x: PHI.estimate(points(), x)),
    ("log_estimate", "keys", lambda x: PHI.log_estimate(points(), x)),
    ("forward", "queries", lambda x: PHI(x, points())),
    ("fit queries", "queries", lambda x: UNFITTED.fit(x, points())),
    ("fit keys", "keys", lambda x: UNFITTED.fit(points(), x)),
    ("linear_attention q", "q", lambda x: linear_attention(PHI, x, points(), points())),
    ("linear_attention k", "k", lambda x: linear_attention(PHI, points(), x, points())),
    ("causal q", "q", lambda x: linear_attention(PHI, x, points(), points(), causal=True)),
    ("step q", "q", lambda x: step(AttentionState(PHI), x, points(), points())),
    ("step k", "k", lambda x: step(AttentionState(PHI), points(), x, points())),
    ("measure q", "q", lambda x: measure(PHI, x, points())),
    ("measure k", "k", lambda x: measure(PHI, points(), x, points())),
    ("predict q", "q", lambda x: predict(PHI, x, points(), points())),
    ("predict k", "k", lambda x: predict(PHI, points(), x, points())),
]
DATA_ENTRIES: list[tuple[str, str, Callable[[Any], object]]] = [
    ("describe q", "q", lambda x: describe(x, points())),
    ("describe k", "k", lambda x: describe(points(), x)),
    ("recommend q", "q", lambda x: recommend(x, points(), points(), 8)),
    ("recommend k", "k", lambda x: recommend(points(), x, points(), 8)),
    (
        "recommend calibration queries",
        "calibration queries",
        lambda x: recommend(points(), points(), points(), 8, calibration=(x, points())),
    ),
    (
        "recommend calibration keys",
        "calibration keys",
        lambda x: recommend(points(), points(), points(), 8, calibration=(points(), x)),
    ),
]


def measure_values(x: Any) -> object:
    """The one entry whose values are optional."""
    return measure(PHI, points(), points(), x)


VALUE_ENTRIES: list[tuple[str, str, Callable[[Any], object]]] = [
    ("linear_attention v", "v", lambda x: linear_attention(PHI, points(), points(), x)),
    ("step v", "v", lambda x: step(AttentionState(PHI), points(), points(), x)),
    ("measure v", "v", measure_values),
    ("predict v", "v", lambda x: predict(PHI, points(), points(), x)),
    ("recommend v", "v", lambda x: recommend(points(), points(), x, 8)),
]
ALL = ENTRIES + DATA_ENTRIES + VALUE_ENTRIES


def over(entries: list[tuple[str, str, Callable[[Any], object]]]) -> pytest.MarkDecorator:
    """One test per entry."""
    return pytest.mark.parametrize(
        ("name", "call"), [e[1:] for e in entries], ids=[e[0] for e in entries]
    )


# -- one bad tensor ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@over(ALL)
def test_nan_and_infinity(name: str, call: Callable[[Any], object], value: float) -> None:
    """Attention checks its points as they become features: there q and k are queries and keys."""
    name = {"q": "(q|queries)", "k": "(k|keys)"}.get(name, name)
    message = rf"^{name} holds 2 NaN or infinite entries out of 24; expected finite values\.$"
    with pytest.raises(ValueError, match=message):
        call(spoiled(value))


@over(ENTRIES)
def test_wrong_last_dimension(name: str, call: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError, match=rf"^{name} has last dimension 5; expected dim=4\.$"):
        call(points(6, 5))


def test_wrong_last_dimension_of_data() -> None:
    for call in (
        lambda: describe(points(), points(6, 5)),
        lambda: recommend(points(), points(6, 5), points(), 8),
    ):
        with pytest.raises(ValueError, match=r"^k has last dimension 5; expected dim=4\.$"):
            call()


@over(ALL)
def test_wrong_rank(name: str, call: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError, match=rf"^{name} has shape \[4\]; expected \[\*batch, n, 4\]"):
        call(points(4))
    with pytest.raises(ValueError, match=rf"^{name} has shape \[\]; expected \[\*batch, n, \d\]"):
        call(torch.tensor(1.0))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
@over(ALL)
def test_wrong_dtype(name: str, call: Callable[[Any], object], dtype: torch.dtype) -> None:
    message = rf"^{name} has dtype {dtype}; expected float16, bfloat16, float32 or float64\.$"
    with pytest.raises(TypeError, match=message):
        call(points().to(dtype))


@pytest.mark.parametrize("thing", [None, [[1.0, 2.0, 3.0, 4.0]], np.ones((6, 4))])
@over(ALL)
def test_no_tensor_at_all(name: str, call: Callable[[Any], object], thing: object) -> None:
    if thing is None and call is measure_values:
        call(thing)
        return
    with pytest.raises(
        TypeError, match=rf"^{name} must be a torch\.Tensor, got {type(thing).__name__}\.$"
    ):
        call(thing)


@over(ALL)
def test_empty_sequence(name: str, call: Callable[[Any], object]) -> None:
    with pytest.raises(
        ValueError, match=rf"^{name} has shape \[0, 4\]: an empty sequence; expected n >= 1\.$"
    ):
        call(points(0, 4))


@over(ALL)
def test_empty_batch(name: str, call: Callable[[Any], object]) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^{name} has shape \[0, 6, 4\]: an empty batch; expected at least one\.$",
    ):
        call(points(0, 6, 4))


def test_norms_that_overflow() -> None:
    x = torch.full((3, 4), 1e20)
    with pytest.raises(
        ValueError, match=r"^queries holds points whose squared norm overflows torch"
    ):
        PHI.query(x)
    assert torch.isfinite(PHI.query(x.double()).log_values).all()


# -- tensors that do not go together -----------------------------------------------------------------------
def _raises(message: str, call: Callable[[], object], error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message):
        call()


def test_mismatched_heads() -> None:
    x, v = points(2, 6, 4), points(2, 6, 4)
    message = (
        r"leading dimensions \[2\], the feature map has batch_shape=\[3\] \(one map per head\)"
    )
    for name, call in (
        ("queries", lambda: HEADS.query(x)),
        ("keys", lambda: HEADS.key(x)),
        ("q", lambda: linear_attention(HEADS, x, x, v)),
        ("q", lambda: step(AttentionState(HEADS), x, x, v)),
        ("keys", lambda: measure(HEADS, x, x, v)),
    ):
        _raises(rf"^{name} has {message}", call)
    _raises(
        r"^queries has leading dimensions \[2\]; fitting per head with batch_shape=\[3\]",
        lambda: make("gerf", dim=4, num_features=8, batch_shape=(3,)).fit(x, x),
    )
    _raises(
        r"^calibration queries has leading dimensions \[3\]; fitting per head",
        lambda: recommend(x, x, v, 8, calibration=(points(3, 6, 4), points(3, 6, 4))),
    )


def test_mismatched_leading_dimensions() -> None:
    two, three = points(2, 6, 4), points(3, 6, 4)
    message = r"q, k, v have leading dimensions \[2\], \[3\], \[3\]; they must broadcast"
    _raises(message, lambda: linear_attention(PHI, two, three, three))
    _raises(message, lambda: step(AttentionState(PHI), two, three, three))
    message = r"q and k have leading dimensions \[2\] and \[3\]; diagnostics want the same"
    _raises(message, lambda: measure(PHI, two, three, three))
    _raises(message, lambda: predict(PHI, two, three, three))
    _raises(message, lambda: describe(two, three))
    _raises(message, lambda: recommend(two, three, three, 8))
    _raises(
        r"queries and keys have leading dimensions \[2\] and \[3\]; calibration data want the same",
        lambda: UNFITTED.fit(two, three),
    )


def test_mismatched_lengths() -> None:
    long, short = points(7, 4), points()
    _raises(
        r"v has length 7, k has length 6; they must agree",
        lambda: linear_attention(PHI, short, short, long),
    )
    for call in (
        lambda: linear_attention(PHI, long, short, short, causal=True),
        lambda: step(AttentionState(PHI), long, short, short),
    ):
        _raises(r"causal=True needs one query per key; q has length 7, k 6.*AttentionState", call)
    for call in (
        lambda: measure(PHI, short, short, long),
        lambda: predict(PHI, short, short, long),
        lambda: recommend(short, short, long, 8),
    ):
        _raises(r"v has shape \[7, 4\]; .* must be those of k, \[6\]", call)
    _raises(
        r"causal=True needs equal lengths; q has 7, k 6",
        lambda: measure(PHI, long, short, causal=True),
    )


def test_mismatched_dtypes() -> None:
    x = points()
    message = r"q has dtype torch.float64, k has dtype torch.float32; cast one"
    _raises(message, lambda: linear_attention(PHI, x.double(), x, x))
    _raises(message, lambda: step(AttentionState(PHI), x.double(), x, x))


def test_a_state_of_other_sequences() -> None:
    state = step(AttentionState(PHI), *(points(2, 6, 4) for _ in range(3)))[1]
    _raises(
        r"v has last dimension 3; the state holds values of dimension 4",
        lambda: step(state, points(2, 1, 4), points(2, 1, 4), points(2, 1, 3)),
    )
    _raises(
        r"k and v have leading dimensions \[3\] and \[3\]; the state holds \[2\]",
        lambda: step(state, *(points(3, 1, 4) for _ in range(3))),
    )
    _raises(
        r"state must be an AttentionState, got RandomFeatures",
        lambda: step(PHI, *(points() for _ in range(3))),
        TypeError,
    )


# -- masks -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("causal", [False, True])
def test_masks(causal: bool) -> None:
    x = points(2, 6, 4)

    def attend(key_mask: Any) -> object:
        return linear_attention(PHI, x, x, x, causal=causal, key_mask=key_mask)

    for mask in (torch.ones(6), torch.ones(6, dtype=torch.int64)):
        _raises(
            rf"key_mask has dtype {mask.dtype}; expected torch.bool, True where a key takes part",
            lambda mask=mask: attend(mask),
            TypeError,
        )
    _raises(r"key_mask must be a torch.Tensor, got list", lambda: attend([True] * 6), TypeError)
    for shape in ((5,), (3, 6), (2, 1, 6), (6, 1)):
        _raises(
            rf"key_mask has shape \[{', '.join(map(str, shape))}\]; expected one that broadcasts to"
            r" \[2, 6\]",
            lambda shape=shape: attend(torch.ones(shape, dtype=torch.bool)),
        )
    hidden = torch.ones(2, 6, dtype=torch.bool)
    hidden[1] = False
    _raises(r"key_mask hides every key of 1 sequence\(s\)", lambda: attend(hidden))
    _raises(r"key_mask hides every key of 2 sequence\(s\)", lambda: attend(hidden[1]))


# -- names -------------------------------------------------------------------------------------------------
def test_unknown_names_list_the_nearest() -> None:
    size = {"dim": 4, "num_features": 8}
    _raises(
        r"unknown feature map 'positiv'; did you mean 'positive'\? Known: aderf, ",
        lambda: make("positiv", **size),
        UnknownNameError,
    )
    _raises(
        r"unknown feature map 'data-aware-abs'; did you mean 'data-aware-absolute' or ",
        lambda: make("data-aware-abs", **size),
        UnknownNameError,
    )
    _raises(
        r"unknown feature map 'Performer'\. Known: ",
        lambda: make("Performer", **size),
        UnknownNameError,
    )
    _raises(r"unknown feature map 'None'", lambda: make(None, **size), UnknownNameError)
    _raises(
        r"unknown kernel 'gausian'; did you mean 'gaussian' or 'laplacian'\? Known: gaussian, lap",
        lambda: make("positive", kernel="gausian", **size),
        UnknownNameError,
    )
    _raises(
        r"unknown projection 'ortogonal'; did you mean 'orthogonal'",
        lambda: make("positive", projection="ortogonal", **size),
        UnknownNameError,
    )
    _raises(
        r"unknown feature map 'gerff'; did you mean 'gerf'",
        lambda: bochner.spec("gerff"),
        UnknownNameError,
    )
    assert issubclass(UnknownNameError, ValueError)


# -- sizes and parts -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True, None])
@pytest.mark.parametrize("argument", ["dim", "num_features"])
def test_sizes(argument: str, value: object) -> None:
    size: dict[str, Any] = {"dim": 4, "num_features": 8} | {argument: value}
    _raises(
        rf"^{argument}={value!r} must be an integer of at least 1\.$",
        lambda: make("positive", **size),
    )


def test_counts_of_diagnostics() -> None:
    x = points()
    _raises(r"num_redraws=0 must be an integer", lambda: measure(PHI, x, x, num_redraws=0))
    _raises(r"num_queries=0 must be an integer", lambda: predict(PHI, x, x, x, num_queries=0))
    _raises(r"num_features=0 must be an integer", lambda: recommend(x, x, x, 0))
    _raises(
        r"q has length 3 and k 3; splitting .* needs at least 4 positions. Pass calibration=",
        lambda: recommend(x[:3], x[:3], x[:3], 8),
    )


def test_numbers_of_features_that_do_not_fit() -> None:
    _raises(
        r"num_features=7 must be a multiple of 2 for 'trigonometric' .*; use 6 or 8",
        lambda: make("trigonometric", dim=4, num_features=7),
    )
    _raises(
        r"num_features=1 must be a multiple of 2 for 'hyperbolic' .*; use 2\.",
        lambda: make("hyperbolic", dim=4, num_features=1),
    )
    _raises(
        r"num_features=6 must be a multiple of 4 for 'hyperbolic' .*; use 4 or 8",
        lambda: make("hyperbolic", dim=4, num_features=6, projection="antithetic"),
    )
    _raises(
        r"num_features=7 must be a multiple of 2 for 'positive' with Antithetic.*; use 6 or 8",
        lambda: make("positive", dim=4, num_features=7, projection="antithetic"),
    )
    _raises(
        r"num_features=7 must be a multiple of 2 for 'data-aware' with Antithetic.*; use 6 or 8",
        lambda: make("data-aware", dim=4, num_features=7),
    )
    _raises(
        r"num_features=7 must be a multiple of 2 for Trigonometric\(\) .*; use 6 or 8",
        lambda: RandomFeatures(Request(dim=4, num_features=7), Trigonometric()),
    )


def test_parts_of_the_wrong_kind() -> None:
    size: dict[str, Any] = {"dim": 4, "num_features": 8}
    for argument, value, message in (
        ("batch_shape", 3, r"batch_shape=3 must be a tuple of sizes, for example \(heads,\)"),
        ("generator", 0, r"generator must be a Generator, got int"),
    ):
        _raises(message, lambda a=argument, v=value: make("positive", **size, **{a: v}), TypeError)
    _raises(
        r"batch_shape entry=0 must be an integer of at least 1",
        lambda: make("positive", batch_shape=(2, 0), **size),
    )
    _raises(
        r"dtype=torch.bfloat16 must be torch.float32 or torch.float64",
        lambda: make("positive", dtype=torch.bfloat16, **size),
    )
    _raises(
        r"kernel must be a Kernel, got str\. Names as strings are for bochner\.make",
        lambda: Request(dim=4, num_features=8, kernel="softmax"),
        TypeError,
    )
    _raises(
        r"feature_map must be a bochner.FeatureMap, got str; for example bochner.make",
        lambda: linear_attention("positive", points(), points(), points()),
        TypeError,
    )
    _raises(r"generator must be a torch.Generator, got int", lambda: PHI.resample_(0), TypeError)


def test_transforms_and_proposals() -> None:
    lengths: list[Any] = [
        0.0,
        -1.0,
        float("nan"),
        float("inf"),
        torch.tensor([1.0, -2.0, 1.0, 1.0]),
    ]
    for value in lengths:
        _raises(
            r"^lengthscale=.* must be positive and finite",
            lambda value=value: bochner.transforms.Lengthscale(value, dim=4),
        )
    _raises(
        r"lengthscale has last dimension 3; expected dim=4",
        lambda: bochner.transforms.Lengthscale(torch.ones(3), dim=4),
    )
    _raises(
        r"query_centre \[4\] and key_centre \[3\] must share one shape",
        lambda: Centring(torch.ones(4), torch.ones(3)),
    )
    _raises(
        r"matrix has shape \[2, 3\]; expected \[\*batch, d, d\]",
        lambda: LinearPair(torch.ones(2, 3)),
    )
    _raises(r"matrix is singular", lambda: LinearPair(torch.zeros(2, 2)))
    _raises(r"matrix has shape \[4\]; expected", lambda: SharedLinear(torch.ones(4)))
    _raises(
        r"covariance must be positive definite; smallest eigenvalue -1",
        lambda: GaussianProposal(torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0]))),
    )
    _raises(
        r"covariance must be symmetric",
        lambda: GaussianProposal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
    )
    _raises(
        r"mean \[3\] and covariance \[2, 2\] must have shapes",
        lambda: GaussianProposal(torch.zeros(3), torch.eye(2)),
    )
    _raises(
        r"rank=5 must lie between 1 and dim=4",
        lambda: trained_kernel(Request(dim=4, num_features=8), rank=5),
    )
    _raises(
        r"whitening_start needs calibration data: pass queries= and keys=",
        lambda: trained_kernel(Request(dim=4, num_features=8), start=whitening_start),
    )


# -- maps that have seen no data -----------------------------------------------------------------------------
def _uses(phi: FeatureMap) -> list[Callable[[], object]]:
    x = points()
    return [
        lambda: phi.query(x),
        lambda: phi.key(x),
        lambda: phi.estimate(x, x),
        lambda: phi.log_estimate(x, x),
        lambda: phi(x, x),
        lambda: phi.log_exact(x, x),
        lambda: phi.relative_variance(x, x),
        lambda: phi.relative_covariance(x, x),
        lambda: phi.resample_(seeded(0)),
        lambda: phi.draws(),
        lambda: linear_attention(phi, x, x, x),
        lambda: linear_attention(phi, x, x, x, causal=True),
        lambda: step(AttentionState(phi), x, x, x),
        lambda: measure(phi, x, x, x),
        lambda: predict(phi, x, x, x),
    ]


@pytest.mark.parametrize("name", FITTED)
def test_unfitted_use(name: str) -> None:
    phi = make(name, dim=4, num_features=budget(name, 8), generator=seeded(0))
    message = (
        rf"feature map '{name}' is data-aware and has seen no data; call phi = phi\.fit\(queries"
    )
    for use in _uses(phi):
        _raises(message, use, NotFittedError)
    assert issubclass(NotFittedError, ValueError)
    phi = phi.fit(*(points(9, 4) for _ in range(2)))
    for use in _uses(phi):
        use()


def test_fitted_maps_check_their_inputs_like_all_others() -> None:
    for name in FITTED:
        phi = fitted(name, dim=4, num_features=8)
        _raises(
            r"queries has last dimension 5; expected dim=4", lambda phi=phi: phi.query(points(6, 5))
        )
        _raises(r"keys holds 2 NaN", lambda phi=phi: phi.key(spoiled(float("nan"))))


def test_the_exact_kernel_takes_any_points() -> None:
    """Half precision is computed in float32."""
    x = points(dtype=torch.bfloat16)
    assert Gaussian()(x, x).dtype == torch.float32
    assert torch.equal(Gaussian()(x, x).diagonal(), torch.ones(6))
