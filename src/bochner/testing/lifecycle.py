"""From seed to saved state: a map is what its seed, its data and its state say, and nothing else."""

from __future__ import annotations

import copy
import pickle

import torch

from bochner.testing.requirement import NUM_FEATURES, points, require, same
from bochner.testing.subject import Subject


def seeded(subject: Subject, dim: int) -> str | None:
    """One seed gives one map."""
    a, b = subject.build(dim, NUM_FEATURES), subject.build(dim, NUM_FEATURES)
    require(same(a, b, dim), "generator", f"{subject}: one seed gave two different maps.")
    return None


def resample(subject: Subject, dim: int) -> str | None:
    """resample_ draws anew, returns the map, leaves the exact value alone and is seeded."""
    phi, twin = subject.build(dim, NUM_FEATURES), subject.build(dim, NUM_FEATURES)
    if not phi.draws():
        return "resample_: the map draws nothing"
    if dim == 1:
        return None
    x, y = points(dim)
    before, draws = phi.log_exact(x, y).log_abs, [t.clone() for t in phi.draws()]
    returned = phi.resample_(subject.generator(5))
    changed = [not torch.equal(a, b) for a, b in zip(draws, phi.draws(), strict=True)]
    require(
        all(changed) and not same(phi, twin, dim),
        "resample_",
        f"{subject}: resample_ left draws unchanged (changed: {changed}).",
    )
    require(returned is phi, "resample_", f"{subject}: resample_ must return the map itself.")
    require(
        torch.equal(before, phi.log_exact(x, y).log_abs),
        "resample_",
        f"{subject}: resample_ changed the exact value.",
    )
    require(
        same(phi, twin.resample_(subject.generator(5)), dim),
        "resample_",
        f"{subject}: resample_ with one seed gave two different maps.",
    )
    return None


def round_trips(subject: Subject, dim: int) -> str | None:
    """deepcopy, pickle and state_dict keep the map; a loaded state replaces draws and fitted parts."""
    phi = subject.build(dim, NUM_FEATURES)
    copies = {
        "deepcopy": copy.deepcopy(phi),
        "pickle": pickle.loads(pickle.dumps(phi)),
        "state_dict": subject.build(dim, NUM_FEATURES, draw=3, data=17),
    }
    if phi.draws() and dim > 1:
        require(
            not same(phi, copies["state_dict"], dim),
            "generator",
            f"{subject}: two seeds gave one and the same map.",
        )
    copies["state_dict"].load_state_dict(phi.state_dict())
    for name, other in copies.items():
        require(same(phi, other, dim), name, f"{subject}: not the same map after {name}.")
    copies["deepcopy"].resample_(subject.generator(4))
    require(
        dim == 1 or not phi.draws() or not same(phi, copies["deepcopy"], dim),
        "deepcopy",
        f"{subject}: the copy shares its draws with the original.",
    )
    return None
