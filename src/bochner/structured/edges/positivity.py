"""Which feature maps a structured model can sum over: read from the catalogue, never listed by hand."""

from __future__ import annotations

from bochner.catalog import maps_of, spec
from bochner.kernels import Softmax


def positive_maps() -> list[str]:
    """Names of the catalogue's maps whose estimates of exp(a.b) are never negative.

    Example:
        >>> "positive" in positive_maps(), "trigonometric" in positive_maps()
        (True, False)
    """
    return [name for name in maps_of(Softmax()) if spec(name).positive]


def needs_positivity(what: str) -> ValueError:
    """The error of everything that signed features cannot give."""
    return ValueError(
        f"{what} needs features that are never negative: signed ones leave [0, 1] and have no logarithm."
        f" Positive maps of exp(a.b): {', '.join(positive_maps())}. With signed features SignedChain gives"
        " log |Z| and its sign, and nothing else."
    )


def other_kernel(what: str) -> ValueError:
    """The error for maps that estimate something else than exp(x.y)."""
    return ValueError(
        f"{what} does not estimate exp(a.b). Use a map with kernel='softmax' that trains no kernel of its"
        " own (a lengthscale belongs into a and b), or give the features to LowRankChain(log_left,"
        " log_right, unaries), where they are the model."
    )
