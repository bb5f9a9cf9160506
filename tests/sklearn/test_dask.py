"""Every estimator on Dask collections: the fit of numpy to the bit, answers computed when asked for."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

dask = pytest.importorskip("dask", reason="dask is an extra")
import dask.array as da  # noqa: E402
import dask.dataframe as dd  # noqa: E402
import pandas as pd  # noqa: E402
from sklearn.base import clone  # noqa: E402

from bochner.sklearn import (  # noqa: E402
    GaussianProcess,
    KernelClassifier,
    KernelMeanEmbedding,
    KernelPCA,
    KernelRidge,
    KernelWhitening,
    NadarayaWatson,
    RandomFeatures,
)
from tests.gram.rows_problem import same_bits  # noqa: E402

ROWS, DIM, CHUNK = 20_000, 4, 6_789
SMALL = {"n_components": 32, "random_state": 0}
REGRESSORS = [
    KernelRidge(alpha=1.0, **SMALL),
    KernelRidge(alpha="loo", gamma="median", **SMALL),
    NadarayaWatson(**SMALL | {"n_components": 256}, gamma=0.05),
]
CLASSIFIERS = [
    KernelClassifier(alpha=1.0, **SMALL),
    KernelClassifier(loss="logistic", class_weight="balanced", **SMALL),
]
TRANSFORMERS = [
    RandomFeatures(**SMALL),
    KernelPCA(n_components=3, n_random_features=32, random_state=0),
    KernelWhitening(random_state=0),
]


@pytest.fixture(autouse=True)
def _in_this_process():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(ROWS, DIM)) + 2).astype(np.float32)
    y = np.sin(X[:, 0]) + X[:, 1] + 0.1 * rng.normal(size=ROWS)
    return X, y, np.array(["left", "middle", "right"])[np.digitize(y, [2, 4])], rng.random(ROWS)


def cut(array):
    return da.from_array(array, chunks=(CHUNK,) + (2,) * (array.ndim - 1))


@pytest.mark.parametrize("estimator", REGRESSORS, ids=lambda e: type(e).__name__)
def test_regressors(data, estimator):
    X, y, _, weight = data
    ours = clone(estimator).fit(cut(X), cut(y), sample_weight=cut(weight))
    theirs = clone(estimator).fit(X, y, sample_weight=weight)
    lazy = ours.predict(cut(X))
    assert isinstance(lazy, da.Array)
    assert lazy.chunks == (cut(X).chunks[0],)
    assert lazy.dtype == theirs.predict(X[:1]).dtype
    assert_array_equal(lazy.compute(), np.concatenate([theirs.predict(x) for x in _chunks(X)]))
    assert_array_equal(ours.predict(X), theirs.predict(X))
    assert ours.n_features_in_ == DIM


def _chunks(X):
    return np.split(X, range(CHUNK, ROWS, CHUNK))


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda e: e.loss)
def test_classifiers(data, estimator):
    X, _, labels, _ = data
    ours, theirs = clone(estimator).fit(cut(X), cut(labels)), clone(estimator).fit(X, labels)
    assert_array_equal(ours.classes_, theirs.classes_)
    assert_array_equal(ours.coef_, theirs.coef_)
    lazy = ours.predict(cut(X))
    assert isinstance(lazy, da.Array)
    assert lazy.dtype == labels.dtype
    assert_array_equal(lazy.compute(), theirs.predict(X))
    scores = ours.decision_function(cut(X))
    assert scores.shape == (ROWS, 3)
    assert_array_equal(
        scores.compute(), np.concatenate([theirs.decision_function(x) for x in _chunks(X)])
    )
    if estimator.loss == "logistic":
        assert ours.predict_proba(cut(X)).compute().sum(axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("estimator", TRANSFORMERS, ids=lambda e: type(e).__name__)
def test_transformers(data, estimator):
    X, *_ = data
    ours, theirs = clone(estimator).fit(cut(X)), clone(estimator).fit(X)
    lazy = ours.transform(cut(X))
    assert isinstance(lazy, da.Array)
    expected = np.concatenate([theirs.transform(x) for x in _chunks(X)])
    assert lazy.shape == expected.shape
    assert lazy.dtype == expected.dtype
    assert_array_equal(lazy.compute(), expected)


def test_mean_embedding(data):
    X, *_ = data
    ours, theirs = (KernelMeanEmbedding(**SMALL).fit(x) for x in (cut(X), X))
    assert_array_equal(ours.embedding_, theirs.embedding_)


@pytest.mark.filterwarnings("ignore:.*the data determine")
@pytest.mark.parametrize("posterior", ["exact", "nystrom", "features"])
def test_gaussian_process(data, posterior):
    X, y, *_ = data
    count = 2000 if posterior == "exact" else ROWS
    given = {"hyperparameters": "fixed", "posterior": posterior, "n_landmarks": 32} | SMALL
    rows, targets = cut(X[:count]), cut(y[:count])
    ours = GaussianProcess(**given).fit(rows, targets)
    theirs = GaussianProcess(**given).fit(X[:count], y[:count])
    mean, std = ours.predict(rows[:900], return_std=True)
    interval = ours.predict_interval(rows[:900])
    assert all(isinstance(lazy, da.Array) for lazy in (mean, std, interval))
    assert_array_equal(mean.compute(), theirs.predict(X[:900]))
    assert_array_equal(std.compute(), theirs.predict(X[:900], return_std=True)[1])
    assert interval.compute() == pytest.approx(theirs.predict_interval(X[:900]), rel=1e-12)
    with pytest.raises(ValueError, match="return_cov"):
        ours.predict(rows, return_cov=True)


def test_dataframes_keep_the_names_of_their_columns(data):
    X, y, *_ = data
    table = pd.DataFrame(X, columns=list("abcd"))
    frame = dd.from_pandas(table.assign(y=y), npartitions=3)
    ours = KernelRidge(alpha=1.0, **SMALL).fit(frame[list("abcd")], frame["y"])
    theirs = KernelRidge(alpha=1.0, **SMALL).fit(table, y)
    assert_array_equal(ours.feature_names_in_, list("abcd"))
    assert same_bits(ours.statistics_, theirs.statistics_)
    lazy = ours.predict(frame[list("abcd")])
    assert isinstance(lazy, da.Array)
    assert lazy.compute() == pytest.approx(theirs.predict(table), abs=1e-5)
    with pytest.raises(ValueError, match="feature names"):
        ours.predict(frame[list("dabc")]).compute()


def test_rows_come_in_parts(data):
    X, y, *_ = data
    ours, theirs = KernelRidge(alpha=1.0, **SMALL), KernelRidge(alpha=1.0, **SMALL)
    for part in (slice(0, 9000), slice(9000, None)):
        ours.partial_fit(cut(X[part]), cut(y[part]))
        theirs.partial_fit(X[part], y[part])
    assert same_bits(ours.statistics_, theirs.statistics_)


def test_predictions_for_chunks_of_unknown_size(data):
    X, y, *_ = data
    model = KernelRidge(alpha=1.0, **SMALL).fit(X, y)
    rows = cut(X)
    lazy = model.predict(rows[rows[:, 0] > 5])
    assert np.isnan(lazy.shape[0])
    assert lazy.compute() == pytest.approx(model.predict(X[X[:, 0] > 5]), abs=1e-5)


def test_fit_takes_chunks_of_unknown_size(data):
    X, y, *_ = data
    rows, targets = cut(X), cut(y)
    some = rows[:, 0] > 1
    ours = KernelRidge(alpha=1.0, **SMALL).fit(rows[some], targets[some])
    keep = X[:, 0] > 1
    assert same_bits(
        ours.statistics_, KernelRidge(alpha=1.0, **SMALL).fit(X[keep], y[keep]).statistics_
    )


def test_score(data):
    X, y, *_ = data
    model = KernelRidge(alpha=1.0, **SMALL).fit(cut(X), cut(y))
    assert model.score(cut(X), cut(y)) == pytest.approx(model.score(X, y), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": lambda X, y: X[:, 0]}, "X has 1 dimensions; expected 2"),
        ({"X": lambda X, y: X.astype("S3")}, "expected numbers"),
        ({"y": lambda X, y: y[1:]}, "19999 rows; X has 20000"),
        ({"X": lambda X, y: da.where(X > 5, np.nan, X)}, "contains NaN"),
    ],
)
def test_refusals(data, change, message):
    X, y, *_ = data
    given = {"X": cut(X), "y": cut(y)}
    given |= {name: function(cut(X), cut(y)) for name, function in change.items()}
    with pytest.raises(ValueError, match=message):
        KernelRidge(alpha=1.0, **SMALL).fit(**given)


def test_another_number_of_columns(data):
    X, y, *_ = data
    model = KernelRidge(alpha=1.0, **SMALL).fit(cut(X), cut(y))
    with pytest.raises(ValueError, match="3 features"):
        model.predict(cut(X[:, :3]))


def test_on_a_cluster_of_two_processes(cluster, data):
    X, y, labels, weight = data
    with cluster.as_current(), dask.config.set(scheduler=None):
        ours = KernelRidge(alpha=1.0, **SMALL).fit(cut(X), cut(y), sample_weight=cut(weight))
        lazy = ours.predict(cut(X)).compute()
        classifier = KernelClassifier(**SMALL).fit(cut(X), cut(labels))
    theirs = KernelRidge(alpha=1.0, **SMALL).fit(X, y, sample_weight=weight)
    assert same_bits(ours.statistics_, theirs.statistics_)
    assert_array_equal(ours.coef_, theirs.coef_)
    assert_array_equal(lazy, np.concatenate([theirs.predict(x) for x in _chunks(X)]))
    assert_array_equal(classifier.coef_, KernelClassifier(**SMALL).fit(X, labels).coef_)


def test_a_column_of_targets_stays_a_column(data):
    """As in memory: the shape of the coefficients is that of the targets."""
    X, y, _, _ = data
    theirs = KernelRidge(alpha=1.0, **SMALL).fit(X, y[:, None])
    for column in (y[:, None], cut(y)[:, None]):
        ours = KernelRidge(alpha=1.0, **SMALL).fit(cut(X), column)
        assert_array_equal(ours.coef_, theirs.coef_)


def test_a_dataframe_of_bool_beside_float(data):
    """pandas calls their common array one of objects; in memory, scikit-learn takes it as numbers."""
    X, y, _, _ = data
    frame = pd.DataFrame({"number": X[:, 0].astype(float), "flag": X[:, 1] > 2})
    ours = KernelRidge(alpha=1.0, **SMALL).fit(dd.from_pandas(frame, npartitions=3), y)
    assert_array_equal(ours.coef_, KernelRidge(alpha=1.0, **SMALL).fit(frame, y).coef_)
    words = dd.from_pandas(frame.assign(flag="yes"), npartitions=3)
    with pytest.raises(ValueError, match="expected numbers"):
        KernelRidge(**SMALL).fit(words, y)
