"""scikit-learn estimators on random features: names, parameters and contracts are scikit-learn's own.

Every fit is streamed: memory does not grow with the rows, and the result does not depend on how many
threads or machines took part.
"""

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"bochner.sklearn needs scikit-learn: pip install 'bochner[sklearn]' ({error})"
    ) from error

from bochner.sklearn.binning import RandomBinning
from bochner.sklearn.binning_ridge import BinningRidge
from bochner.sklearn.decorrelation import decorrelation_weights, rf_hsic
from bochner.sklearn.gaussian_process import GaussianProcess
from bochner.sklearn.kernel_classifier import KernelClassifier
from bochner.sklearn.kernel_error import KernelError, NumFeatures
from bochner.sklearn.kernel_pca import KernelPCA
from bochner.sklearn.kernel_ridge import KernelRidge
from bochner.sklearn.kernel_ridge_cv import KernelRidgeCV
from bochner.sklearn.local import LocalGaussianProcess
from bochner.sklearn.mean_embedding import KernelMeanEmbedding, mmd_asymptotic_test, mmd_test
from bochner.sklearn.nadaraya_watson import NadarayaWatson, VanishingDenominatorWarning
from bochner.sklearn.random_features import RandomFeatures
from bochner.sklearn.two_sample import MMDTest
from bochner.sklearn.whitening import KernelWhitening

__all__ = [
    "BinningRidge",
    "GaussianProcess",
    "KernelClassifier",
    "KernelError",
    "KernelMeanEmbedding",
    "KernelPCA",
    "KernelRidge",
    "KernelRidgeCV",
    "LocalGaussianProcess",
    "KernelWhitening",
    "MMDTest",
    "NadarayaWatson",
    "NumFeatures",
    "RandomBinning",
    "RandomFeatures",
    "VanishingDenominatorWarning",
    "decorrelation_weights",
    "mmd_asymptotic_test",
    "mmd_test",
    "rf_hsic",
]
