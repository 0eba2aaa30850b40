"""course_lib.nn.norm against PyTorch and finite differences."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.nn import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward
from course_lib.numerics import numerical_gradient

SHAPES = st.lists(st.integers(1, 4), max_size=3).flatmap(
    lambda lead: st.integers(2, 9).map(lambda width: (*lead, width))
)


def leaf(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x, requires_grad=True)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 1000), st.sampled_from([1e-5, 1e-2]))
def test_layer_norm_and_its_gradients_equal_torchs(shape, seed, eps):
    rng = np.random.default_rng(seed)
    x, dy = 3 * rng.normal(size=shape) + rng.normal(), rng.normal(size=shape)
    w, b = rng.normal(size=shape[-1]), rng.normal(size=shape[-1])
    tx, tw, tb = leaf(x), leaf(w), leaf(b)
    want = F.layer_norm(tx, shape[-1:], tw, tb, eps)
    want.backward(torch.tensor(dy))
    np.testing.assert_allclose(layer_norm(x, w, b, eps), want.detach().numpy(), rtol=1e-9, atol=1e-9)
    for got, tensor in zip(layer_norm_backward(dy, x, w, eps), (tx, tw, tb), strict=True):
        assert got.shape == tuple(tensor.shape)
        np.testing.assert_allclose(got, tensor.grad.numpy(), rtol=1e-7, atol=1e-9)  # type: ignore[union-attr]


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 1000), st.sampled_from([1e-6, 1e-2]))
def test_rms_norm_and_its_gradients_equal_torchs(shape, seed, eps):
    rng = np.random.default_rng(seed)
    x, dy, w = 3 * rng.normal(size=shape) + 1, rng.normal(size=shape), rng.normal(size=shape[-1])
    tx, tw = leaf(x), leaf(w)
    want = F.rms_norm(tx, shape[-1:], tw, eps)
    want.backward(torch.tensor(dy))
    np.testing.assert_allclose(rms_norm(x, w, eps), want.detach().numpy(), rtol=1e-9, atol=1e-9)
    for got, tensor in zip(rms_norm_backward(dy, x, w, eps), (tx, tw), strict=True):
        assert got.shape == tuple(tensor.shape)
        np.testing.assert_allclose(got, tensor.grad.numpy(), rtol=1e-7, atol=1e-9)  # type: ignore[union-attr]


def test_gradients_equal_finite_differences():
    rng = np.random.default_rng(0)
    x, dy, w, b = (rng.normal(size=s) for s in ((2, 3, 5), (2, 3, 5), (5,), (5,)))
    dx, dw, db = layer_norm_backward(dy, x, w)
    near = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
    for got, at, f in (
        (dx, x, lambda z: (dy * layer_norm(z, w, b)).sum()),
        (dw, w, lambda z: (dy * layer_norm(x, z, b)).sum()),
        (db, b, lambda z: (dy * layer_norm(x, w, z)).sum()),
    ):
        near(got, numerical_gradient(f, at))
    dx, dw = rms_norm_backward(dy, x, w)
    near(dx, numerical_gradient(lambda z: (dy * rms_norm(z, w)).sum(), x))
    near(dw, numerical_gradient(lambda z: (dy * rms_norm(x, z)).sum(), w))


def test_the_gradient_is_blind_to_shift_and_stretch():
    rng = np.random.default_rng(1)
    x, dy, w = rng.normal(size=(7, 11)), rng.normal(size=(7, 11)), rng.normal(size=11)
    dx, _, _ = layer_norm_backward(dy, x, w, eps=0.0)
    np.testing.assert_allclose(dx.sum(axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose((dx * x).sum(axis=-1), 0, atol=1e-12)
    dx, _ = rms_norm_backward(dy, x, w, eps=0.0)
    np.testing.assert_allclose((dx * x).sum(axis=-1), 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_vector_and_the_dtype_survive(dtype):
    x, w = np.full((2, 4), 3, dtype=dtype), np.ones(4, dtype=dtype)
    assert layer_norm(x, w, w).dtype == rms_norm(x, w).dtype == dtype
    np.testing.assert_array_equal(layer_norm(x, w, w), np.ones((2, 4)))
    for array in (*layer_norm_backward(x, x, w), *rms_norm_backward(x, x, w)):
        assert array.dtype == dtype and np.isfinite(array).all()


def test_a_mean_of_ten_thousand_costs_no_digits_of_a_variance_of_one():
    x = (1e4 + np.random.default_rng(2).normal(size=(3, 64))).astype(np.float32)
    w, b = np.ones(64, dtype=np.float32), np.zeros(64, dtype=np.float32)
    wide = x.astype(np.float64)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer_norm(x, w, b), want, atol=2e-3)
