"""What every linear model on features needs of n rows: m^2 sums, streamed, mergeable, and solved.

    grid         how rows are cut: a function of their number alone
    features     rows of an array -> features, block by block
    statistics   the sums: Phi'Phi, Phi'Y, Phi'1, Y'Y, and how they merge
    accumulate   the pass over the rows, with the same result on any number of threads
    solve        ridge regression from the sums, and how small a penalty they can bear
    spectrum     the whole path of penalties from one eigendecomposition

Nothing here knows scikit-learn; `bochner.sklearn` and `bochner.gp` are built on it.
"""

from bochner.gram.accumulate import accumulate, group_statistics
from bochner.gram.features import BlockFeatures
from bochner.gram.grid import BlockGrid
from bochner.gram.solve import PrecisionError, RidgeSolution, lowest_alpha, ridge
from bochner.gram.spectrum import Spectrum
from bochner.gram.statistics import GramStatistics, Precision

__all__ = [
    "BlockFeatures",
    "BlockGrid",
    "GramStatistics",
    "Precision",
    "PrecisionError",
    "RidgeSolution",
    "Spectrum",
    "accumulate",
    "group_statistics",
    "lowest_alpha",
    "ridge",
]
