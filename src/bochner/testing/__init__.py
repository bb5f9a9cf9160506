"""The contract that every feature map passes, for third parties too; needs no test framework.

check_feature_map(SPEC)      returns a ContractReport, or raises ContractError naming the property
"""

from bochner.testing.contract import check_feature_map
from bochner.testing.plan import Plan
from bochner.testing.report import Comparison, ContractError, ContractReport

__all__ = ["Comparison", "ContractError", "ContractReport", "Plan", "check_feature_map"]
