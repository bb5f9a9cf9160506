"""Draws of standard normal directions [*batch, r, d], coupled in different ways.

A projection knows no kernel. Every row is N(0, I_d) on its own (`HadamardProjection` nearly so);
what differs is how the rows of one draw depend on each other, and that is where variance is saved.
"""

from bochner.projections.antithetic import Antithetic
from bochner.projections.hadamard import Hadamard
from bochner.projections.iid import IID
from bochner.projections.orthogonal import Orthogonal, haar_orthogonal
from bochner.projections.projection import Coupling, Projection
from bochner.projections.simplex import Simplex
from bochner.projections.sobol import Sobol
from bochner.validation import unknown_name

PROJECTIONS: dict[str, Projection] = {
    "iid": IID(),
    "orthogonal": Orthogonal(),
    "simplex": Simplex(),
    "hadamard": Hadamard(),
    "sobol": Sobol(),
    "antithetic": Antithetic(IID()),
    "antithetic-orthogonal": Antithetic(Orthogonal()),
    "antithetic-sobol": Antithetic(Sobol()),
}


def projection_from_name(projection: str | Projection) -> Projection:
    """The projection for a name (edges only); a Projection passes through.

    Raises:     UnknownNameError with the nearest names.
    Example:
        >>> projection_from_name("antithetic-orthogonal")
        Antithetic(base=Orthogonal())
    """
    if isinstance(projection, Projection):
        return projection
    if projection not in PROJECTIONS:
        raise unknown_name("projection", str(projection), PROJECTIONS)
    return PROJECTIONS[projection]


__all__ = [
    "IID",
    "PROJECTIONS",
    "Antithetic",
    "Coupling",
    "Hadamard",
    "Orthogonal",
    "Projection",
    "Simplex",
    "Sobol",
    "haar_orthogonal",
    "projection_from_name",
]
