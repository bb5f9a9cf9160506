"""Random and hard weights that mix estimators: the lambda of hybrid random features."""

from bochner.switches.gaussian import GaussianSwitch
from bochner.switches.membership import MembershipSwitch
from bochner.switches.signs import BucketedSignSwitch, SignSwitch
from bochner.switches.switch import Complement, Damped, Switch

__all__ = [
    "BucketedSignSwitch",
    "Complement",
    "Damped",
    "GaussianSwitch",
    "MembershipSwitch",
    "SignSwitch",
    "Switch",
]
