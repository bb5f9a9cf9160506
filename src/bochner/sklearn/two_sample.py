"""Whether two samples come from one law: the maximum mean discrepancy in feature space, and its threshold.

    MMD^2 = |mu_P - mu_Q|^2,   mu_P = E phi(x),     T = |mean phi(x_i) - mean phi(y_j)|^2

T takes O(n m), where the kernel's own statistic takes O(n^2). Two laws of T under P = Q:

- permutations of the labels: exact for any n, m, kernel; bins of rows are permuted, so that the cost stays
  linear;
- a weighted sum of chi-squares: for n -> infinity, T (1/n + 1/n')^-1 -> sum_j lambda_j z_j^2, with lambda
  the eigenvalues of Cov phi. One pass and one eigendecomposition, and p-values as small as they come.

Reference:  Gretton et al., A kernel two-sample test, 2012, Theorem 12; Zhao and Meng, FastMMD, 2015
            (random features); Domingo-Enrich, Dwivedi and Mackey, Cheap permutation testing, 2025 (bins).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bochner.gram.accumulate import RowFeatures, accumulate
from bochner.gram.feature_sums import FeatureSums
from bochner.gram.grid import BLOCK_ROWS
from bochner.gram.statistics import Precision
from bochner.sklearn.weighted_chi_square import upper_quantile, upper_tail

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class MMDTest:
    """A two-sample test.

    mmd2:           unbiased estimate of MMD^2 (of the features' kernel): negative where it is 0 by luck.
    statistic:      T = |mean phi(x) - mean phi(y)|^2, what is compared.
    threshold:      equal laws are rejected if statistic > threshold.
    p_value:        the smallest level at which they are.
    level:          the share of false alarms among equal laws.
    num_rows:       of both samples.
    Example:
        >>> test = MMDTest(0.01, 0.03, threshold=0.02, p_value=0.001, level=0.05, num_rows=(80, 90))
        >>> print(test)
        MMD^2 0.01, statistic 0.03 > threshold 0.02 at level 0.05, p = 0.001: the samples differ
    """

    mmd2: float
    statistic: float
    threshold: float
    p_value: float
    level: float
    num_rows: tuple[int, int]

    @property
    def rejected(self) -> bool:
        """Whether the samples differ, at this level."""
        return self.p_value <= self.level

    def __str__(self) -> str:
        sign, verdict = (">", "differ") if self.rejected else ("<=", "may be of one law")
        return (
            f"MMD^2 {self.mmd2:.4g}, statistic {self.statistic:.4g} {sign} threshold"
            f" {self.threshold:.4g} at level {self.level:g}, p = {self.p_value:.3g}:"
            f" the samples {verdict}"
        )


def mmd2(first: FeatureSums, second: FeatureSums) -> float:
    """The unbiased estimate of MMD^2 from the sums of two samples under one map.

    Raises:     ValueError if one has fewer than two rows.
    Example:
        >>> one = FeatureSums.of(np.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> mmd2(one, one)         # pairs of two rows: 0 + 0 - 2 * 1/2
        -1.0
    """
    cross = float(first.mean @ second.mean)
    return first.mean_product() + second.mean_product() - 2.0 * cross


def permutation_test(
    features: RowFeatures,
    samples: tuple[Any, Any],
    *,
    level: float = 0.05,
    num_permutations: int = 999,
    num_bins: int = 2048,
    rng: np.random.Generator,
) -> MMDTest:
    """T against its values after permutations of bins of rows between the samples.

    The rows of each sample are shuffled into bins of one size; rows that fill no bin, and those of a much
    larger sample beyond num_bins, stay where they are. Bins that change places are a subgroup of all
    permutations, and all rows count in T: the level is exact whatever the sizes.

    Shapes:     samples [n, d] and [n', d], dense or CSR.
    Arguments:  features: chosen without regard to which row is of which sample (drawn, or fitted to both
                together); num_permutations: B; num_bins: of both samples together.
    Error:      P(p_value <= level) <= level under equal laws, with equality for continuous laws and
                level (B + 1) an integer.
    Cost:       O((n + n') m) for the features, O(B num_bins m) for the permutations.
    Raises:     ValueError for a level outside (0, 1), or below 1 / (B + 1); fewer than 2 rows.
    """
    counts = _row_counts(samples)
    allowed = math.floor(_checked_level(level) * (num_permutations + 1) * (1 + 1e-12))
    if allowed < 1:
        raise ValueError(
            f"num_permutations={num_permutations} gives no p-value below"
            f" {1 / (num_permutations + 1):.2g}, and level={level}; use"
            f" {math.ceil(1 / level) - 1} or more."
        )
    if num_bins < 4:
        raise ValueError(f"num_bins={num_bins} must be 4 or more: two of each sample.")
    size, plan = _bins(counts, num_bins)
    parts = [_binned(features, rows, size, n, rng) for rows, n in zip(samples, plan, strict=True)]
    sums, bins = [part[0] for part in parts], np.concatenate([part[1] for part in parts])
    own = len(parts[0][1])
    total = sums[0].feature_sum + sums[1].feature_sum
    fixed = sums[0].feature_sum - bins[:own].sum(axis=0)
    labels = np.zeros((num_permutations + 1, len(bins)))
    labels[0, :own] = 1.0  # as they are
    for row in labels[1:]:
        row[rng.choice(len(bins), own, replace=False)] = 1.0
    group = fixed + labels @ bins
    statistics = np.square(group / counts[0] - (total - group) / counts[1]).sum(axis=1)
    observed, permuted = float(statistics[0]), np.sort(statistics[1:])
    # a permutation that changes nothing gives T itself, up to the order of the sums
    as_large = int(np.sum(permuted >= observed * (1.0 - 1e-9)))
    return MMDTest(
        mmd2(*sums),
        observed,
        threshold=float(permuted[-allowed]),
        p_value=(1 + as_large) / (num_permutations + 1),
        level=level,
        num_rows=counts,
    )


def asymptotic_test(
    features: RowFeatures,
    samples: tuple[Any, Any],
    *,
    level: float = 0.05,
    precision: Precision = Precision.SINGLE,
) -> MMDTest:
    """T against a weighted sum of chi-squares, with the eigenvalues of the pooled covariance of phi.

    Shapes:     samples [n, d] and [n', d], dense or CSR.
    Error:      the level holds for n, n' -> infinity; samples should have several times as many rows as
                Cov phi has large eigenvalues, (sum lambda)^2 / sum lambda^2. Too few make it conservative.
    Numerics:   eigenvalues below the rounding of the Gram matrix, sqrt(m) eps times the largest, count as 0.
    Cost:       O((n + n') m^2 + m^3).
    Raises:     ValueError for a level outside (0, 1), fewer than 2 rows, or features that are constant.
    """
    counts = _row_counts(samples)
    _checked_level(level)
    both = [accumulate(features, rows, precision=precision) for rows in samples]
    means = [s.feature_sum / s.weight for s in both]
    pooled = (both[0].centred().gram + both[1].centred().gram) / (sum(counts) - 2)
    spread = np.linalg.eigvalsh(pooled)
    eps = np.finfo(np.float32 if both[0].precision is Precision.SINGLE else np.float64).eps
    scale = float(both[0].gram.trace() + both[1].gram.trace()) / sum(counts)
    spread = np.where(spread > math.sqrt(len(spread)) * eps * max(spread[-1], 0.0), spread, 0.0)
    if not spread[-1] > eps * scale:
        raise ValueError(
            "all rows have the same features: the samples hold one point, or gamma is so small that the"
            " kernel is constant on them."
        )
    factor = 1.0 / counts[0] + 1.0 / counts[1]
    statistic = float(np.square(means[0] - means[1]).sum())
    within = [s.gram.trace() / s.num_rows for s in both]
    unbiased = [
        (s.num_rows * float(mean @ mean) - trace) / (s.num_rows - 1)
        for s, mean, trace in zip(both, means, within, strict=True)
    ]
    return MMDTest(
        sum(unbiased) - 2.0 * float(means[0] @ means[1]),
        statistic,
        threshold=factor * upper_quantile(spread, level),
        p_value=upper_tail(spread, statistic / factor),
        level=level,
        num_rows=counts,
    )


def _bins(counts: tuple[int, int], num_bins: int) -> tuple[int, tuple[int, int]]:
    """Rows of a bin, and bins of each sample.

    As many rows a bin as num_bins asks for, but some 32 bins of the smaller sample, all of whose bins can
    change places: rows of the larger one that stay hardly move its mean.
    """
    smaller = min(counts)
    fewest = min(32, num_bins // 2)
    size = max(1, min(-(-sum(counts) // num_bins), smaller // fewest))
    own = smaller // size
    other = min(max(counts) // size, max(num_bins - own, own))
    return size, (own, other) if counts[0] == smaller else (other, own)


def _binned(
    features: RowFeatures, rows: Any, size: int, num_bins: int, rng: np.random.Generator
) -> tuple[FeatureSums, Matrix]:
    """All sums of a sample, and the sums of features over bins of `size` random rows each."""
    count = rows.shape[0]
    bin_of = np.full(count, num_bins)
    bin_of[rng.permutation(count)[: num_bins * size]] = np.repeat(np.arange(num_bins), size)
    sums: FeatureSums | None = None
    bins = np.zeros((num_bins + 1, features.num_features))
    for start in range(0, count, BLOCK_ROWS):
        block = features(rows[start : start + BLOCK_ROWS]).astype(np.float64, copy=False)
        own = bin_of[start : start + BLOCK_ROWS]
        places = (np.ones(len(own)), (own, np.arange(len(own))))
        bins += sparse.csr_array(places, shape=(num_bins + 1, len(own))) @ block
        sums = FeatureSums.of(block) if sums is None else sums + FeatureSums.of(block)
    assert sums is not None
    return sums, bins[:num_bins]


def _row_counts(samples: tuple[Any, Any]) -> tuple[int, int]:
    counts = (samples[0].shape[0], samples[1].shape[0])
    if min(counts) < 2:
        raise ValueError(
            f"the samples have {counts[0]} and {counts[1]} rows; each needs 2 or more."
        )
    return counts


def _checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1, for example 0.05.")
    return level
