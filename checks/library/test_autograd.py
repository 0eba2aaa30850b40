"""course_lib.autograd.scalar against PyTorch on random expression graphs, and on deep or dense ones."""

import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.autograd import scalar
from course_lib.autograd.scalar import Value, backward, minimize, topological_order
from course_lib.numerics import numerical_gradient

# One step of a random program: an operation, and which of the numbers so far it takes (modulo their count).
UNARY = ["neg", "exp", "log", "tanh", "relu", "square", "inverse", "cube", "times2", "3minus", "2over"]
BINARY = ["add", "sub", "mul", "div"]
STEPS = st.lists(
    st.tuples(st.sampled_from(UNARY + BINARY * 2), st.integers(0, 30), st.integers(0, 30)),
    min_size=1,
    max_size=25,
)


def run(program: Any, inputs: Any) -> Any:
    """Execute a program on Values or on torch tensors; all operators exist on both."""
    numbers = list(inputs)
    for name, i, j in program:
        a, b = numbers[i % len(numbers)], numbers[j % len(numbers)]
        # log and division see numbers near 1 only, exp sees none above 1: the graph stays finite.
        safe = b.tanh() * 0.4 + 1.2
        table: dict[str, Any] = {
            "neg": lambda a=a: -a,
            "exp": lambda a=a: a.tanh().exp(),
            "log": lambda safe=safe: safe.log(),
            "tanh": lambda a=a: a.tanh(),
            "relu": lambda a=a: a.relu(),
            "square": lambda a=a: a.tanh() ** 2,
            "inverse": lambda safe=safe: safe**-1,
            "cube": lambda a=a: 0.5 * a.tanh() ** 3.0,
            "times2": lambda a=a: 2 * a.tanh() + 1,
            "3minus": lambda a=a: 3 - a.tanh(),
            "2over": lambda safe=safe: 2 / safe,
            "add": lambda a=a, b=b: a + b,
            "sub": lambda a=a, b=b: a - b,
            "mul": lambda a=a, b=b: a.tanh() * b,
            "div": lambda a=a, safe=safe: a / safe,
        }
        numbers.append(table[name]())
    total = numbers[-1]
    for number in numbers[:-1]:  # every number reaches the result, so none has a trivial gradient
        total = total + number
    return total


@settings(max_examples=150, deadline=None)
@given(STEPS, st.lists(st.floats(-2, 2), min_size=1, max_size=4))
def test_gradients_equal_torchs_on_random_graphs(program, numbers):
    values = [Value(x) for x in numbers]
    tensors: list[Any] = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers]
    result, want = run(program, values), run(program, tensors)
    backward(result)
    want.backward()
    assert result.data == pytest.approx(want.item(), rel=1e-10, abs=1e-10)
    for value, tensor in zip(values, tensors, strict=True):
        assert value.grad == pytest.approx(float(tensor.grad), rel=1e-8, abs=1e-8)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.lists(st.floats(-2, 2), min_size=1, max_size=4))
def test_the_order_has_every_node_once_and_parents_first(program, numbers):
    result = run(program, [Value(x) for x in numbers])
    order = topological_order(result)
    place = {id(node): i for i, node in enumerate(order)}
    assert len(place) == len(order) and order[-1] is result
    for node in order:
        assert len(node.parents) == len(node.local)
        assert all(place[id(parent)] < place[id(node)] for parent in node.parents)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.2, 2), min_size=3, max_size=3))
def test_gradients_equal_finite_differences(numbers):
    def f(a, b, c):
        return (a * b + c.exp()).tanh() / (a + b * b) - c.log() * a**1.5

    values = [Value(x) for x in numbers]
    backward(f(*values))
    want = numerical_gradient(lambda x: f(*map(Value, x)).data, np.array(numbers))
    np.testing.assert_allclose([v.grad for v in values], want, rtol=1e-6, atol=1e-8)


def test_a_shared_node_gets_the_sum_over_its_uses():
    x = Value(3.0)
    shared = x * x
    backward(shared * shared + shared + x)
    assert x.grad == 4 * 3**3 + 2 * 3 + 1


def test_sixty_doublings_are_sixty_nodes_not_two_to_the_sixty_paths():
    x = Value(1.0)
    y = x
    for _ in range(60):
        y = y + y
    backward(y)
    assert len(topological_order(y)) == 61
    assert x.grad == 2.0**60


@pytest.mark.parametrize("length", [10_000, 50_000])
def test_a_long_chain_neither_recurses_nor_takes_long(length):
    x = Value(1.0)
    y = x
    for _ in range(length):
        y = y + 1e-9
    start = time.process_time()
    backward(y)
    assert x.grad == 1.0
    assert time.process_time() - start < 5
    assert len(topological_order(y)) == 2 * length + 1
    del y  # freeing a deep graph must not exhaust the stack either


def test_two_calls_add_up_as_in_torch():
    t: Any
    x, t = Value(0.7), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y, u = (x * x).tanh(), (t * t).tanh()
    for _ in range(2):
        backward(y * y)
        (u * u).backward(retain_graph=True)
    backward(y)
    u.backward()
    assert x.grad == pytest.approx(float(t.grad), rel=1e-12)


def test_a_lone_input_has_derivative_one():
    x = Value(2.0)
    backward(x)
    assert x.grad == 1.0
    assert topological_order(x) == [x]


def test_edges_of_the_operators():
    zero = Value(0.0)
    backward(zero.relu() + zero**0 + zero**1)
    assert zero.grad == 1.0
    assert (Value(2) ** 0).data == 1.0
    with pytest.raises(TypeError, match="plain number"):
        Value(2.0) ** Value(2.0)  # type: ignore[operator]
    with pytest.raises(ValueError):  # the text is Python's own, and changed in 3.14
        Value(0.0).log()
    assert isinstance(Value(3).data, float)
    assert repr(Value(2)) == "Value(data=2, grad=0)"
    for result, want in ((1 + zero, 1), (1 - zero, 1), (2 * zero, 0), (1 / Value(4), 0.25), (-Value(4), -4)):
        assert result.data == want and type(result) is Value


def test_a_node_alone_says_what_it_lacks():
    for operation in (lambda a: a + 1, lambda a: a * 2, lambda a: a**2):
        with pytest.raises(NotImplementedError, match="Node defines no"):
            operation(scalar.Node(1.0))


def test_minimize_finds_the_bottom_of_a_bowl():
    found = minimize(lambda x, y: (x - 3) ** 2 + 10 * (y + 1) ** 2, [0.0, 0.0], steps=200, learning_rate=0.05)
    assert found == pytest.approx([3, -1], abs=1e-6)
    start = [1.0]
    assert minimize(lambda x: x * x, start, steps=1, learning_rate=0.25) == [0.5]
    assert minimize(lambda x: x * x, start, steps=2, learning_rate=0.25) == [0.25]
    assert minimize(lambda x: x * x, start, steps=0, learning_rate=0.25) == [1.0] and start == [1.0]
    assert math.isfinite(minimize(lambda x: x.exp() - x, [2.0], 500, 0.1)[0])
