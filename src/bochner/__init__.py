"""bochner: random features for softmax and Gaussian kernels, with an error you can trust.

K(x, y)  ~  query(x) . key(y)
"""

from bochner import hybrids
from bochner.algebra import Constant, Product, Scaled, Sum
from bochner.attention import AttentionState, linear_attention, step
from bochner.catalog import make, spec, specs
from bochner.diagnostics import describe, measure, predict, recommend
from bochner.exponential import ComplexExponential
from bochner.feature_map import FeatureMap
from bochner.features import Features
from bochner.kernels import Gaussian, Softmax
from bochner.proposals import GaussianProposal
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.switches import GaussianSwitch, SignSwitch, Switch
from bochner.transformed import TransformedFeatures
from bochner.validation import NotFittedError, UnknownNameError

__all__ = [
    "AttentionState",
    "ComplexExponential",
    "Constant",
    "FeatureMap",
    "FeatureMapSpec",
    "Features",
    "Gaussian",
    "GaussianProposal",
    "GaussianSwitch",
    "NotFittedError",
    "Product",
    "RandomFeatures",
    "Request",
    "Scaled",
    "SignSwitch",
    "Softmax",
    "Sum",
    "Switch",
    "TransformedFeatures",
    "UnknownNameError",
    "describe",
    "hybrids",
    "linear_attention",
    "make",
    "measure",
    "predict",
    "recommend",
    "spec",
    "specs",
    "step",
]

__version__ = "0.1.0"
