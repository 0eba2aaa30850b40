"""course_lib.train's NumPy optimizers and schedule against PyTorch and Transformers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.autograd.tensor import Tensor
from course_lib.train import AdamW, adamw_step, clip_grad_norm, cosine_schedule


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("betas", "eps", "decay"), [((0.9, 0.999), 1e-8, 0.01), ((0.8, 0.95), 1e-3, 0.3), ((0.0, 0.9), 1e-8, 0.0)]
)
def test_adamw_equals_torchs_step_for_step_over_50_steps(dtype, betas, eps, decay):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 5)).astype(dtype)
    m, v = np.zeros_like(w), np.zeros_like(w)
    theirs = torch.tensor(w, requires_grad=True)
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=betas, eps=eps, weight_decay=decay)
    tolerance = 1e-11 if dtype is np.float64 else 2e-5
    for step in range(1, 51):
        lr = cosine_schedule(step, 1e-2, 5, 50)
        optimizer.param_groups[0]["lr"] = lr
        grad = (rng.normal(size=w.shape) * 10.0 ** rng.integers(-4, 3)).astype(dtype)
        theirs.grad = torch.tensor(grad)
        optimizer.step()
        w, m, v = adamw_step(w, grad, m, v, step, lr, betas, eps, decay)
        assert w.dtype == m.dtype == v.dtype == dtype
        np.testing.assert_allclose(w, theirs.detach().numpy(), rtol=tolerance, atol=tolerance)


def test_the_first_step_has_the_length_of_the_learning_rate_whatever_the_gradients_size():
    grad = np.array([1e-4, -3.0, 1e4])
    w, _, _ = adamw_step(np.zeros(3), grad, np.zeros(3), np.zeros(3), 1, lr=0.1, weight_decay=0.0)
    np.testing.assert_allclose(w, [-0.1, 0.1, -0.1], rtol=1e-3)


def test_decay_shrinks_a_weight_whose_gradient_is_zero():
    zero = np.zeros(1)
    w, m, v = adamw_step(np.ones(1), zero, zero, zero, 1, lr=0.1, weight_decay=0.5)
    assert (w, m, v) == (pytest.approx(0.95), 0, 0)


def test_the_optimizer_of_tensors_decays_matrices_only():
    params = [Tensor(np.ones((2, 3))), Tensor(np.ones(3))]
    optimizer = AdamW(params, weight_decay=0.5)
    for _ in range(3):
        optimizer.step([np.zeros((2, 3)), np.zeros(3)], lr=0.1)
    np.testing.assert_allclose(params[0].data, 0.95**3)
    np.testing.assert_array_equal(params[1].data, 1.0)
    assert optimizer.steps == 3


ARRAYS = st.lists(
    st.tuples(st.lists(st.integers(0, 4), max_size=3), st.floats(-3, 3)), min_size=1, max_size=5
)


@settings(max_examples=80, deadline=None)
@given(ARRAYS, st.floats(0.01, 100))
def test_clipping_equals_torchs(arrays, max_norm):
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=shape) * 10.0**scale for shape, scale in arrays]
    theirs = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads]
    for tensor, g in zip(theirs, grads, strict=True):
        tensor.grad = torch.tensor(g)
    want = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    got, norm = clip_grad_norm(grads, max_norm)
    assert isinstance(norm, float)
    assert norm == pytest.approx(want.item(), rel=1e-9, abs=1e-12)
    for mine, tensor in zip(got, theirs, strict=True):
        # PyTorch adds 1e-6 to the norm; ours keeps the length exactly.
        np.testing.assert_allclose(mine, tensor.grad.numpy(), rtol=1e-5 + 1e-6 / max_norm, atol=1e-12)  # type: ignore[union-attr]


def test_the_clipped_length_is_max_norm_and_the_direction_stays():
    grads = [np.full((2, 3), 3e30, dtype=np.float32), np.full(5, -4e30, dtype=np.float32)]
    clipped, norm = clip_grad_norm(grads, 1.0)
    assert norm == pytest.approx(math.sqrt(6 * 9 + 5 * 16) * 1e30, rel=1e-6)
    assert all(c.dtype == np.float32 for c in clipped)
    assert clip_grad_norm(clipped, 9.0)[1] == pytest.approx(1.0, rel=1e-6)
    assert clipped[0][0, 0] / clipped[1][0] == pytest.approx(-0.75)
    assert clip_grad_norm([], 1.0) == ([], 0.0)
    kept, norm = clip_grad_norm([np.array([np.inf, 1.0])], 1.0)
    assert norm == math.inf
    np.testing.assert_array_equal(kept[0], [np.inf, 1.0])


def test_the_schedule_meets_its_corners():
    rates = [cosine_schedule(step, 0.3, 10, 110, 0.03) for step in range(1, 151)]
    assert rates[0] == pytest.approx(0.03)
    assert max(rates) == rates[9] == pytest.approx(0.3)
    assert rates[59] == pytest.approx((0.3 + 0.03) / 2)
    assert rates[109] == rates[149] == pytest.approx(0.03)
    assert all(a > b for a, b in pairwise(rates[9:110]))
    assert cosine_schedule(1, 1.0, 0, 4) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    for warmup, total in ((5, 5), (6, 5), (-1, 5)):
        with pytest.raises(ValueError, match="warmup"):
            cosine_schedule(1, 0.1, warmup, total)


def test_the_schedule_equals_transformers():
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    theirs = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=7, num_training_steps=40)
    for step in range(1, 41):
        optimizer.step()
        theirs.step()
        assert theirs.get_last_lr()[0] == pytest.approx(cosine_schedule(step, 0.5, 7, 40), abs=1e-12)
