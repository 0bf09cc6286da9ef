"""Moments against float64 NumPy."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from dropbn.nn.kernels import moments

_of = jax.jit(moments.of, static_argnums=1)


def _float64(m):
    return moments.Moments(*(np.asarray(part, np.float64) for part in m))


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e5])
@hypothesis.settings(max_examples=10)
@hypothesis.given(
    cuts=st.lists(st.sampled_from([1, 7, 30, 31, 90]), unique=True).map(sorted), seed=st.integers(0, 99)
)
def test_any_split_merges_to_the_whole(mean, cuts, seed):
    rng = np.random.default_rng(seed)
    # Means that differ between examples: averaging the parts' variances would be wrong.
    x = rng.normal(mean, 2, (100, 4, 3)) + rng.normal(0, 5, (100, 1, 3))
    x = x.astype(np.float32)
    parts = [_float64(_of(part, -1)) for part in np.split(x, cuts)]
    merged = functools.reduce(moments.merge, parts)
    whole = x.astype(np.float64)
    assert merged.count == 400
    np.testing.assert_allclose(merged.mean, whole.mean((0, 1)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(merged.variance, whole.var((0, 1)), rtol=1e-5)


def test_merging_in_float32_keeps_the_variance_of_a_large_mean():
    x = np.random.default_rng(0).normal(1e5, 3, (64, 8, 5)).astype(np.float32)
    merged = moments.merge(_of(x[:10], -1), _of(x[10:], -1))
    assert merged.m2.dtype == np.float32
    np.testing.assert_allclose(merged.variance, x.astype(np.float64).var((0, 1)), rtol=1e-5)


def test_an_odd_first_example_costs_little():
    x = np.random.default_rng(0).normal(0, 1, (256, 3)).astype(np.float32)
    x[0] = 1e4
    np.testing.assert_allclose(_of(x, -1).variance, x.astype(np.float64).var(0), rtol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("axes", [(), (0,), (1, 2), (0, 2), (0, 1, 2)])
def test_both_sums(axes, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, y = np.random.default_rng(0).normal(1, 2, (2, 20, 5, 7)).astype(np.float32)
    for found, part in zip(moments.both_sums(x, y, axes), (x, y), strict=True):
        np.testing.assert_allclose(found, part.sum(axes, dtype=np.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("axis", "reduced"), [(1, (0, 2)), (-1, (0, 1)), ((1, 2), (0,))])
def test_channels_on_other_axes(axis, reduced):
    x = np.random.default_rng(0).normal(1, 2, (20, 5, 7)).astype(np.float32)
    found = _of(x, axis)
    np.testing.assert_allclose(found.mean, x.mean(reduced), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.variance, x.astype(np.float64).var(reduced), rtol=1e-5)
