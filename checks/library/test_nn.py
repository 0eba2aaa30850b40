"""course_lib.nn: every hand-written gradient against finite differences and against PyTorch."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import nn
from course_lib.numerics import cross_entropy, numerical_gradient

LEADING = st.lists(st.integers(0, 4), min_size=0, max_size=3).map(tuple)
SIZE = st.integers(1, 6)
SEED = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=40, deadline=None)


def grad(tensor: torch.Tensor) -> np.ndarray:
    assert tensor.grad is not None
    return tensor.grad.numpy()


def with_grad(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.tensor(a, requires_grad=True) for a in arrays]


@FEW
@given(LEADING, SIZE, SIZE, st.sampled_from([np.float32, np.float64]), SEED)
def test_linear_equals_torch(leading, fan_in, fan_out, dtype, seed):
    rng = np.random.default_rng(seed)
    shapes = ((*leading, fan_in), (fan_in, fan_out), (fan_out,), (*leading, fan_out))
    x, w, b, dy = (rng.normal(size=s).astype(dtype) for s in shapes)
    tx, tw, tb = with_grad(x, w, b)
    y = torch.nn.functional.linear(tx, tw.T, tb)
    y.backward(torch.tensor(dy))
    tol = 1e-4 if dtype is np.float32 else 1e-12
    np.testing.assert_allclose(nn.linear(x, w, b), y.detach().numpy(), rtol=tol, atol=tol)
    for got, want in zip(nn.linear_backward(dy, x, w), (tx, tw, tb), strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, grad(want), rtol=tol, atol=tol)


@FEW
@given(LEADING, st.sampled_from([np.float32, np.float64]), SEED)
def test_gelu_equals_torch(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    x, dy = ((4 * rng.normal(size=shape)).astype(dtype) for _ in range(2))
    x, dy = np.asarray(x, dtype), np.asarray(dy, dtype)
    (tx,) = with_grad(x)
    y = torch.nn.functional.gelu(tx, approximate="tanh")
    y.backward(torch.tensor(dy))
    tol = 3e-6 if dtype is np.float32 else 1e-12
    assert nn.gelu(x).dtype == nn.gelu_backward(dy, x).dtype == dtype
    np.testing.assert_allclose(nn.gelu(x), y.detach().numpy(), rtol=tol, atol=tol)
    np.testing.assert_allclose(nn.gelu_backward(dy, x), grad(tx), rtol=10 * tol, atol=10 * tol)


def test_gelu_is_near_the_normal_distribution_and_safe_far_out():
    x = np.linspace(-8, 8, 4001)
    assert np.abs(nn.gelu(x) - x * scipy.special.ndtr(x)).max() < 5e-4
    far = np.array([-1e4, 1e4], dtype=np.float32)
    np.testing.assert_array_equal(nn.gelu(far), [0, 1e4])
    np.testing.assert_array_equal(nn.gelu_backward(np.ones(2, np.float32), far), [0, 1])


@FEW
@given(LEADING, SIZE, SIZE, SEED)
def test_embedding_equals_torch(shape, vocab, width, seed):
    rng = np.random.default_rng(seed)
    ids, dy = rng.integers(0, vocab, size=shape), rng.normal(size=(*shape, width))
    (table,) = with_grad(rng.normal(size=(vocab, width)))
    torch.nn.functional.embedding(torch.tensor(ids), table).backward(torch.tensor(dy))
    np.testing.assert_allclose(nn.embedding_backward(dy, np.asarray(ids), vocab), grad(table), rtol=1e-12)


@FEW
@given(LEADING.filter(lambda s: 0 not in s), SIZE, st.floats(0.1, 1e4), SEED)
def test_cross_entropy_equals_torch(shape, vocab, scale, seed):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(*shape, vocab))
    targets = np.asarray(rng.integers(0, vocab, size=shape))
    (tz,) = with_grad(logits)
    torch.nn.functional.cross_entropy(tz.reshape(-1, vocab), torch.tensor(targets).reshape(-1)).backward()
    got = nn.cross_entropy_backward(logits, targets)
    np.testing.assert_allclose(got, grad(tz), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(got.sum(axis=-1), 0, atol=1e-14)


def small_model(seed: int, hidden: int = 5) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    params = {k: v.astype(np.float64) for k, v in nn.mlp_init(7, 3, 2, hidden, seed=seed).items()}
    # The output layer starts near zero: at that point much of the gradient is, too.
    params["output.weight"] = rng.normal(size=params["output.weight"].shape)
    return params, rng.integers(0, 7, size=(11, 3)), rng.integers(0, 7, size=11)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_train_step_follows_the_numerical_gradient(seed):
    params, contexts, targets = small_model(seed)
    before = {k: v.copy() for k, v in params.items()}
    loss = nn.mlp_train_step(params, contexts, targets, 0.25)
    assert loss == cross_entropy(nn.mlp_logits(before, contexts), targets)
    for name, p in before.items():

        def f(a: np.ndarray, name: str = name) -> float:
            return cross_entropy(nn.mlp_logits(before | {name: a}, contexts), targets)

        np.testing.assert_allclose((p - params[name]) / 0.25, numerical_gradient(f, p), rtol=1e-6, atol=1e-9)


def test_ten_train_steps_equal_torch():
    params, contexts, targets = small_model(2, hidden=13)
    theirs = dict(zip(params, with_grad(*params.values()), strict=True))
    sgd = torch.optim.SGD(theirs.values(), lr=0.5)
    for _ in range(10):
        e = theirs["embedding"][torch.tensor(contexts)].flatten(1)
        h = torch.nn.functional.gelu(e @ theirs["hidden.weight"] + theirs["hidden.bias"], approximate="tanh")
        logits = h @ theirs["output.weight"] + theirs["output.bias"]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        assert nn.mlp_train_step(params, contexts, targets, 0.5) == pytest.approx(loss.item(), rel=1e-12)
    for name, p in params.items():
        np.testing.assert_allclose(p, theirs[name].detach().numpy(), rtol=1e-10, atol=1e-13)


def test_a_fresh_model_knows_nothing_and_float32_stays():
    params = nn.mlp_init(70, 8, 16, 128, seed=3)
    assert {v.dtype for v in params.values()} == {np.dtype(np.float32)}
    rng = np.random.default_rng(0)
    contexts, targets = rng.integers(0, 70, size=(64, 8)), rng.integers(0, 70, size=64)
    assert nn.mlp_train_step(params, contexts, targets, 0.1) == pytest.approx(math.log(70), abs=0.05)
    assert {v.dtype for v in params.values()} == {np.dtype(np.float32)}
    again = nn.mlp_init(70, 8, 16, 128, seed=3)
    assert not any(np.array_equal(params[k], again[k]) for k in params)
    np.testing.assert_array_equal(again["embedding"], nn.mlp_init(70, 8, 16, 128, seed=3)["embedding"])


def test_sgd_changes_nothing_when_it_refuses():
    params = {"a": np.ones((2, 3)), "b": np.ones(3)}
    for grads in (
        {"a": np.ones((2, 3)), "b": np.ones(1)},
        {"a": np.ones((2, 3))},
        {"a": np.ones((2, 3)), "b": np.ones(3), "c": np.ones(3)},
    ):
        with pytest.raises(ValueError, match="b"):
            nn.sgd_step(params, grads, 0.5)
    assert all((p == 1).all() for p in params.values())
    held = params["a"]
    nn.sgd_step(params, {"a": np.full((2, 3), 2.0), "b": np.zeros(3)}, 0.25)
    assert held is params["a"] and (held == 0.5).all() and (params["b"] == 1).all()


def test_gradients_of_pieces_make_the_gradient_of_the_whole():
    rng = np.random.default_rng(4)
    logits, targets = rng.normal(size=(11, 5)), rng.integers(0, 5, size=11)
    x, w = rng.normal(size=(11, 3)), rng.normal(size=(3, 5))
    whole = nn.linear_backward(nn.cross_entropy_backward(logits, targets), x, w)[1]
    pieces, counts = [], []
    for rows in (slice(0, 2), slice(2, 9), slice(9, 11)):
        dlogits = nn.cross_entropy_backward(logits[rows], targets[rows])
        pieces.append({"w": nn.linear_backward(dlogits, x[rows], w)[1]})
        counts.append(len(targets[rows]))
    np.testing.assert_allclose(nn.average_gradients(pieces, counts)["w"], whole, rtol=1e-12)
    for bad in ([], [0, 0, 0], [1, 2]):
        with pytest.raises(ValueError):
            nn.average_gradients(pieces, bad)
