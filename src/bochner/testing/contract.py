"""`check_feature_map`: everything that a feature map promises, checked."""

from __future__ import annotations

import torch

from bochner.catalog import spec as spec_by_name
from bochner.kernels import Kernel, kernel_from_name
from bochner.projections import Projection, projection_from_name
from bochner.specification import FeatureMapSpec
from bochner.testing.declarations import check_declarations
from bochner.testing.estimates import check_estimates
from bochner.testing.fits import check_fit
from bochner.testing.plan import Plan
from bochner.testing.report import ContractReport
from bochner.testing.subject import Subject


def check_feature_map(
    spec: FeatureMapSpec | str,
    *,
    projection: Projection | str | None = None,
    kernel: Kernel | str | None = None,
    plan: Plan | None = None,
) -> ContractReport:
    """Check one specification with one projection and one kernel.

    Deterministic: sizes, shapes, dtypes, positivity, symmetry, the exact value, log_estimate, seeds,
    resample_, copies and saved states, finiteness at norm 80, errors (`declarations`).
    Statistical: unbiasedness, relative_variance, relative_covariance (`estimates`), each replicate a
    fresh draw of all randomness, with the critical value of `significance`. A specification that says
    random=False has nothing to average: its error is compared with the best constant's (`fits`).

    Arguments:
        spec: a FeatureMapSpec, or the name of one in the catalogue.
        projection: None takes the specification's own default.
        kernel: a name or a Kernel; None takes the specification's first.
        plan: sizes of the statistical part; None takes `Plan.of(projection, spec.columns, kernel)`.
    Raises:     ContractError, an AssertionError whose `failing` names the property.
    Example:
        >>> report = check_feature_map("hyperbolic", plan=Plan(dims=(3,), replicates=10_000))
        >>> report.worst_z < 6.54, report.smallest_bias < 0.06, "resample_" in report.checked
        (True, True, True)
    """
    chosen = spec_by_name(spec) if isinstance(spec, str) else spec
    if projection is not None and not chosen.takes_projection:
        raise ValueError(
            f"projection={projection!r}: {chosen.name!r} draws no random directions; leave it out."
        )
    drawn = chosen.default_projection if projection is None else projection_from_name(projection)
    wanted = chosen.kernels[0] if kernel is None else kernel_from_name(kernel)
    plan = Plan.of(drawn, chosen.columns, wanted) if plan is None else plan
    subject = Subject(chosen, drawn, wanted, plan.seed)
    with torch.no_grad():
        checked, skipped = check_declarations(subject)
        fits = [] if chosen.random else check_fit(subject, plan)
        comparisons, impossible = check_estimates(subject, plan) if chosen.random else ([], [])
    return ContractReport(
        name=chosen.name,
        projection=repr(drawn),
        kernel=repr(wanted),
        num_features=subject.budget(plan.num_features),
        replicates=plan.replicates,
        comparisons=tuple(comparisons),
        checked=(
            *checked,
            *dict.fromkeys(c.failing for c in comparisons),
            *(["fit"] if fits else []),
        ),
        skipped=tuple(dict.fromkeys((*skipped, *impossible))),
        fits=tuple(fits),
    )
