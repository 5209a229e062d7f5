"""The compiled walk through trees against LightGBM itself."""

import lightgbm as lgb
import numpy as np
import pytest

from ridgecast.predict import trees as module
from ridgecast.predict.trees import Trees, compile_walk, slim


@pytest.fixture
def compiled(monkeypatch):
    pytest.importorskip("numba", reason="the walk is compiled by numba")
    monkeypatch.setattr(module, "_walk", [])
    assert compile_walk()


def fitted(x, y):
    settings = {"num_leaves": 31, "min_data_in_leaf": 2, "verbosity": -1, "num_threads": 1}
    return lgb.train(settings, lgb.Dataset(x, y), 12)


def test_compiled_walk_adds_what_lightgbm_adds(compiled):
    rng = np.random.default_rng(0)
    # few distinct values, so that cuts fall between neighbours; both zeros; far exponents
    x = (rng.integers(-6, 7, (3001, 9)) * 10.0 ** rng.integers(-30, 30, 9)).astype(np.float32)
    x[::3, 0] = -0.0
    y = np.sin(rng.integers(0, 9, 3001)) + (x[:, 1] > 0) * (x[:, 2] > x[5, 2])
    trees = Trees.of(slim(fitted(x, y).model_to_string()))
    cuts = np.array(trees.text.split("threshold=")[1].splitlines()[0].split(), float)
    x[: len(cuts), :] = cuts[:, None].astype(np.float32)  # rows that lie on cuts, or a step beside
    assert (trees.predict(x) == trees.booster.predict(x, num_threads=1)).all()


def test_a_tree_without_a_split_and_few_rows(compiled):
    x = np.ones((300, 2), np.float32)
    trees = Trees.of(slim(fitted(x, np.full(300, 2.5)).model_to_string()))
    assert (trees.predict(x) == trees.booster.predict(x, num_threads=1)).all()
    assert trees.predict(x[:3]) == pytest.approx([2.5] * 3)


def test_trees_that_route_missing_values_are_left_to_lightgbm(compiled):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(600, 3)).astype(np.float32)
    x[::2, 0] = np.nan
    trees = Trees.of(slim(fitted(x, np.isnan(x[:, 0]) + x[:, 1]).model_to_string()))
    assert trees._packed is None
    assert (trees.predict(x) == trees.booster.predict(x, num_threads=1)).all()


def test_trees_whose_values_are_averaged_or_columns_are_many_are_left_to_lightgbm(compiled):
    rng = np.random.default_rng(2)
    wide = rng.normal(size=(300, 300)).astype(np.float32)
    for x, kind in ((wide[:, :4].copy(), "rf"), (wide, "gbdt")):
        settings = {"boosting": kind, "bagging_freq": 1, "bagging_fraction": 0.8, "verbosity": -1}
        text = lgb.train(settings, lgb.Dataset(x, x[:, -1]), 5).model_to_string()
        trees = Trees.of(slim(text))
        assert (trees.predict(x) == trees.booster.predict(x, num_threads=1)).all()
