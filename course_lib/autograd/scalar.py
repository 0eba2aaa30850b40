"""Reverse-mode automatic differentiation of single numbers.

A `Value` remembers the values it was computed from and its derivative with respect to each of them; a
formula written with values is therefore a graph. `backward` walks that graph once, from the result to
the inputs, and finds the derivative with respect to every number in it.

After Karpathy's micrograd, with one difference: an edge of the graph carries its local derivative as a
number, where micrograd's operators close over a function.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from course_lib.parts import exercise


class Node:
    """What a number in a computation graph carries, and the arithmetic that follows from +, * and **.

    Attributes:
        data: the number, a Python float.
        grad: the derivative of the result with respect to this number; 0.0 until `backward` adds to it.
        parents: the nodes it was computed from, () for an input.
        local: for each parent, the derivative of this number with respect to that parent.
    """

    __slots__ = ("__weakref__", "data", "grad", "local", "parents")

    def __init__(self, data: float, parents: tuple[Self, ...] = (), local: tuple[float, ...] = ()) -> None:
        self.data = float(data)
        self.grad = 0.0
        self.parents = parents
        self.local = local

    def __repr__(self) -> str:
        return f"{type(self).__name__}(data={self.data:.4g}, grad={self.grad:.4g})"

    @classmethod
    def lift(cls, number: Any) -> Self:
        """`number` itself if it is a node, else a new input that holds it."""
        return number if isinstance(number, Node) else cls(number)  # type: ignore[return-value]

    # A subclass says what these three do; the operators below are written with them.
    def __add__(self, other: Any) -> Self:
        raise NotImplementedError(f"{type(self).__name__} defines no addition")

    def __mul__(self, other: Any) -> Self:
        raise NotImplementedError(f"{type(self).__name__} defines no multiplication")

    def __pow__(self, exponent: float) -> Self:
        raise NotImplementedError(f"{type(self).__name__} defines no power")

    def __neg__(self) -> Self:
        return self * -1.0

    def __sub__(self, other: Any) -> Self:
        return self + -self.lift(other)

    def __truediv__(self, other: Any) -> Self:
        return self * self.lift(other) ** -1.0

    # Python asks the right operand when the left one, a plain number, does not know what to do.
    def __radd__(self, other: Any) -> Self:
        return self.lift(other) + self

    def __rmul__(self, other: Any) -> Self:
        return self.lift(other) * self

    def __rsub__(self, other: Any) -> Self:
        return self.lift(other) - self

    def __rtruediv__(self, other: Any) -> Self:
        return self.lift(other) / self


@exercise(day=2)
class Value(Node):
    """A number that remembers how it was computed.

    Each operator returns `Value(result, parents, local)`: the number, the values it came from, and
    the derivative of the result with respect to each of those, in the same order. The operators -
    and /, and plain numbers on the left, come from `Node`.
    """

    __slots__ = ()

    def __add__(self, other: "Value | float") -> "Value":
        """a + b; b may be a plain number (`self.lift` makes a Value of it)."""
        other = self.lift(other)
        return Value(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other: "Value | float") -> "Value":
        """a * b; b may be a plain number."""
        other = self.lift(other)
        return Value(self.data * other.data, (self, other), (other.data, self.data))

    def __pow__(self, exponent: float) -> "Value":
        """a ** n for a plain number n; TypeError if n is a Value. The derivative of a ** 0 is 0."""
        if isinstance(exponent, Node):
            raise TypeError("the exponent must be a plain number; write (b * a.log()).exp()")
        slope = exponent * self.data ** (exponent - 1) if exponent != 0 else 0.0
        return Value(self.data**exponent, (self,), (slope,))

    def exp(self) -> "Value":
        """e ** a."""
        result = math.exp(self.data)
        return Value(result, (self,), (result,))  # the derivative of exp is exp

    def log(self) -> "Value":
        """The natural logarithm; ValueError for a <= 0, as from math.log."""
        return Value(math.log(self.data), (self,), (1 / self.data,))

    def tanh(self) -> "Value":
        """The hyperbolic tangent, between -1 and 1; its derivative is 1 - tanh(a) ** 2."""
        result = math.tanh(self.data)
        return Value(result, (self,), (1 - result**2,))

    def relu(self) -> "Value":
        """a if a > 0, else 0. At 0, where there is no derivative, it counts as 0, as in PyTorch."""
        above = self.data > 0
        return Value(self.data if above else 0.0, (self,), (1.0 if above else 0.0,))


N = TypeVar("N", bound=Any)  # whatever has `parents`


@exercise(day=2)
def topological_order(root: N) -> list[N]:
    """Every node that `root` was computed from, each once, parents before children, `root` last.

    Works on anything with an attribute `parents`, a tuple of nodes of the same kind. Nodes are told
    apart by identity, not by value. Does not recurse: a chain of 10,000 nodes is deeper than the
    stack of Python's calls. Takes time in proportion to the nodes and edges.
    """
    order: list[N] = []
    seen: set[int] = set()
    # Each node is met twice: first to push its parents on top of it, then, when they are all in the
    # order and it comes to light again, to be put there itself.
    stack: list[tuple[N, bool]] = [(root, False)]
    while stack:
        node, parents_done = stack.pop()
        if parents_done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((parent, False) for parent in node.parents)
    return order


@exercise(day=2)
def backward(root: Value) -> None:
    """Add the derivative of `root` with respect to each node below it to that node's `grad`.

    The root's own derivative is 1. A node that is used in several places gets the sum of what
    arrives from all of them. What `grad` held before stays in: two calls add up, as in PyTorch.
    Whoever wants fresh gradients sets `grad` to 0.0 first. What an earlier call left there does not
    flow on to the parents.
    """
    order = topological_order(root)
    arrived = {id(node): 0.0 for node in order}
    arrived[id(root)] = 1.0
    for node in reversed(order):
        # All children of this node have been visited: what has arrived is complete.
        flow = arrived[id(node)]
        node.grad += flow
        for parent, slope in zip(node.parents, node.local, strict=True):
            arrived[id(parent)] += flow * slope


@exercise(day=2)
def minimize(
    f: Callable[..., Value], start: Sequence[float], steps: int, learning_rate: float
) -> list[float]:
    """Walk downhill: `steps` times, move each number by -learning_rate * df/d(number).

    Args:
        f: takes as many Values as `start` has numbers, returns one Value.
        start: where to begin; left as it was.
        steps: 0 or more.
        learning_rate: above 0.

    Returns:
        The numbers where the walk ends.

    Source: Cauchy (1847), "Méthode générale pour la résolution des systèmes d'équations
    simultanées".
    """
    point = [Value(number) for number in start]
    for _ in range(steps):
        for value in point:
            value.grad = 0.0  # backward adds: without this, old gradients would push along
        backward(f(*point))
        for value in point:
            value.data -= learning_rate * value.grad
    return [value.data for value in point]
