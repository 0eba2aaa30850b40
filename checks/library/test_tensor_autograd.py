"""course_lib.autograd.tensor against PyTorch on random graphs of random broadcast shapes."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.autograd.tensor import Tensor, cross_entropy, unbroadcast
from course_lib.numerics import numerical_gradient

SIZES = (2, 3, 4)  # the full shape; each input keeps, drops or shrinks axes of it


def below(full: tuple[int, ...]) -> Any:
    """Shapes that broadcast to `full`."""
    return st.tuples(st.integers(0, len(full)), st.lists(st.booleans(), min_size=3, max_size=3)).map(
        lambda cut: tuple(1 if one else n for n, one in list(zip(full, cut[1], strict=True))[cut[0] :])
    )


def same_gradient(mine: Tensor, theirs: torch.Tensor) -> None:
    assert mine.grad is not None and theirs.grad is not None and mine.grad.shape == mine.shape
    np.testing.assert_allclose(mine.grad, theirs.grad.numpy(), rtol=1e-7, atol=1e-8)


UNARY = [
    "neg",
    "exp",
    "log",
    "tanh",
    "relu",
    "square",
    "inverse",
    "scaled",
    "3minus",
    "2over",
    "norm",
    "index",
]
BINARY = ["add", "sub", "mul", "div", "outer"]
STEPS = st.lists(
    st.tuples(st.sampled_from(UNARY + BINARY * 2), st.integers(0, 30), st.integers(0, 30)),
    min_size=1,
    max_size=12,
)


def run(program: Any, inputs: Any) -> Any:
    """Execute a program on Tensors or on torch tensors; every operator exists on both."""
    arrays = list(inputs)
    for name, i, j in program:
        a, b = arrays[i % len(arrays)], arrays[j % len(arrays)]
        safe = b.tanh() * 0.4 + 1.2  # near 1, for log and division
        flat = a.reshape(-1, 1)
        table: dict[str, Any] = {
            "neg": lambda a=a: -a,
            "exp": lambda a=a: a.tanh().exp(),
            "log": lambda safe=safe: safe.log(),
            "tanh": lambda a=a: a.tanh(),
            "relu": lambda a=a: a.relu(),
            "square": lambda a=a: a.tanh() ** 2,
            "inverse": lambda safe=safe: safe**-1.5,
            "scaled": lambda a=a: 2 * a.tanh() + 1,
            "3minus": lambda a=a: 3 - a.tanh(),
            "2over": lambda safe=safe: 2 / safe,
            "norm": lambda flat=flat: (flat - flat.mean(0, True)) / ((flat * flat).sum() + 1.0) ** 0.5,
            "index": lambda flat=flat: flat[np.array([0, -1, 0])].tanh().sum(0),
            "add": lambda a=a, b=b: a + b,
            "sub": lambda a=a, b=b: a - b,
            "mul": lambda a=a, b=b: a.tanh() * b,
            "div": lambda a=a, safe=safe: a / safe,
            "outer": lambda a=a, b=b: (a.reshape(1, -1, 1) @ b.reshape(1, -1).tanh()).mean(-2),
        }
        new = table[name]()
        try:
            np.broadcast_shapes(tuple(new.shape), SIZES)
        except ValueError:  # `norm` and `outer` make long axes: reduce them to a number
            new = new.mean()
        arrays.append(new)
    total = (arrays[0] * arrays[0]).sum()
    for array in arrays[1:]:
        total = total + array.sum()
    return total


@settings(max_examples=200, deadline=None)
@given(STEPS, st.lists(below(SIZES), min_size=1, max_size=4), st.integers(0, 10**6))
def test_gradients_equal_torchs_on_random_graphs(program, shapes, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=shape) for shape in shapes]
    mine = [Tensor(a) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    got, want = run(program, mine), run(program, theirs)
    got.backward()
    want.backward()
    np.testing.assert_allclose(got.data, want.item(), rtol=1e-9, atol=1e-9)
    for tensor, other in zip(mine, theirs, strict=True):
        same_gradient(tensor, other)


@settings(max_examples=100, deadline=None)
@given(below((5, 2, 3)), below((5, 2, 3)), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_matmul_broadcasts_its_leading_axes_as_torch_does(lead_a, lead_b, m, k, n):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(*lead_a, m, k)), rng.normal(size=(*lead_b, k, n))
    x, y = Tensor(a), Tensor(b)
    tx, ty = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    got, want = x @ y, tx @ ty
    grad = rng.normal(size=want.shape)
    got.backward(grad)
    want.backward(torch.tensor(grad))
    np.testing.assert_allclose(got.data, want.detach(), rtol=1e-9, atol=1e-12)
    same_gradient(x, tx)
    same_gradient(y, ty)


@settings(max_examples=100, deadline=None)
@given(below((4, 3, 2)), st.integers(0, 100))
def test_unbroadcast_is_the_transpose_of_broadcasting(shape, seed):
    """<broadcast(x), g> = <x, unbroadcast(g)> for every x and g."""
    rng = np.random.default_rng(seed)
    x, g = rng.normal(size=shape), rng.normal(size=(4, 3, 2))
    back = unbroadcast(g, shape)
    assert back.shape == shape
    assert (np.broadcast_to(x, g.shape) * g).sum() == pytest.approx((x * back).sum())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([None, 0, 1, -1, (0, 2), (0, 1, 2)]), st.booleans(), st.booleans())
def test_sums_and_means_over_any_axes(axis, keepdims, mean):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 3, 5))
    x, t = Tensor(a), torch.tensor(a, requires_grad=True)
    all_axes = (0, 1, 2) if axis is None else axis
    got = x.mean(axis, keepdims) if mean else x.sum(axis, keepdims)
    want = t.mean(all_axes, keepdims) if mean else t.sum(all_axes, keepdims)
    assert got.shape == tuple(want.shape)
    grad = rng.normal(size=want.shape)
    got.backward(grad)
    want.backward(torch.tensor(grad))
    same_gradient(x, t)


def test_cross_entropy_equals_torchs_also_for_huge_logits():
    rng = np.random.default_rng(0)
    for scale in (1.0, 1e4):
        a, targets = scale * rng.normal(size=(2, 3, 7)), rng.integers(0, 7, size=(2, 3))
        x, t = Tensor(a), torch.tensor(a, requires_grad=True)
        got = cross_entropy(x, targets)
        want = torch.nn.functional.cross_entropy(t.reshape(-1, 7), torch.tensor(targets).reshape(-1))
        got.backward()
        want.backward()
        assert got.shape == ()
        np.testing.assert_allclose(got.data, want.item(), rtol=1e-9)
        same_gradient(x, t)


def test_gradients_equal_finite_differences():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(3, 4)), rng.normal(size=(4, 2))

    def f(x: Tensor) -> Tensor:
        return ((x @ Tensor(b)).tanh().swapaxes(0, 1)[[0, 1, 1]] ** 2).mean()

    x = Tensor(a)
    f(x).backward()
    np.testing.assert_allclose(x.grad, numerical_gradient(lambda z: float(f(Tensor(z)).data), a), rtol=1e-6)  # type: ignore[arg-type]


def test_numbers_and_arrays_are_constants_and_keep_float32():
    x = Tensor(np.ones((2, 3), dtype=np.float32))
    array = np.arange(3.0)
    left = np.ones((1, 2))
    results = (x + 0.5, 0.5 * x, x - array, array - x, 1 / x, x / 3, x**2, x.mean(), left @ x)
    for y in results:
        assert isinstance(y, Tensor) and y.data.dtype == np.float32
        y.backward(np.ones(y.shape))
    assert x.grad is not None and x.grad.dtype == np.float32
    assert len((x + 0.5).parents) == 1


def test_gradients_add_up_over_calls_and_over_uses_and_never_alias():
    x = Tensor([1.0, 2.0])
    y = x * x + x
    y.sum().backward()
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [6.0, 10.0])
    a, b = Tensor([1.0]), Tensor([1.0])
    (a + b).sum().backward()
    assert a.grad is not None and b.grad is not None
    a.grad += 1
    assert b.grad[0] == 1


def test_what_does_not_make_sense_is_refused():
    with pytest.raises(ValueError, match="two axes"):
        Tensor([1.0, 2.0]) @ Tensor([[1.0], [2.0]])
    with pytest.raises(ValueError, match="no single derivative"):
        Tensor([1.0, 2.0]).backward()
    with pytest.raises(ValueError, match="expected"):
        Tensor([1.0, 2.0]).backward(np.ones(3))
    with pytest.raises(TypeError, match="plain number"):
        Tensor([1.0]) ** Tensor([1.0])  # type: ignore[operator]


def test_a_long_chain_neither_recurses_nor_takes_long():
    x = Tensor(np.ones(3))
    y = x
    for _ in range(10_000):
        y = y * 1.0001 + 0.0
    start = time.process_time()
    y.sum().backward()
    assert time.process_time() - start < 5
    np.testing.assert_allclose(x.grad, 1.0001**10_000)  # type: ignore[arg-type]
    del y
