"""Reverse-mode automatic differentiation of NumPy arrays.

A `Tensor` is to an array what Day 2's `Value` is to a number: it remembers what it was computed from. One
thing changes. The derivative of an array with respect to an array is a table far too large to write down,
so an edge of the graph carries a function in its place, the *pullback*: it takes the gradient of the result
and returns the gradient of that parent. `Tensor.backward` walks the graph as `scalar.backward` does.

Numbers and plain arrays take part in a formula as constants: no gradient is computed for them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from course_lib.autograd.scalar import topological_order
from course_lib.parts import exercise

Pullback = Callable[[np.ndarray], np.ndarray]


@exercise(day=4)
def unbroadcast(grad: Float[np.ndarray, "..."], shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Undo a broadcast on the way back: sum `grad` over every axis that was stretched.

    Where an array of shape `shape` was broadcast to grad's shape, each of its entries was used many
    times, and its gradient is the sum over all uses.

    Args:
        grad: the gradient of the stretched array.
        shape: the shape before stretching; it broadcasts to grad's.

    Returns:
        An array of exactly that shape and of grad's dtype. grad is left as it was.
    """
    if grad.shape == shape:
        return grad  # nothing was stretched, and nothing needs to be copied
    added = grad.ndim - len(shape)  # axes that broadcasting put in front
    stretched = (added + i for i, n in enumerate(shape) if n == 1)
    return grad.sum(axis=(*range(added), *stretched)).reshape(shape)


class Tensor:
    """An array that remembers how it was computed.

    Attributes:
        data: the array, of floats; integers become float64.
        grad: after `backward`, the derivative of the result with respect to each entry, of data's shape.
            Kept for leaves only, tensors that nothing was computed for; None until then.
        parents: the tensors it was computed from, () for a leaf.
        local: for each parent its pullback, from this tensor's gradient to that parent's.
    """

    __slots__ = ("__weakref__", "data", "grad", "local", "parents")
    __array_ufunc__ = None  # NumPy, finding a Tensor at its right, leaves the operation to the Tensor

    def __init__(
        self, data: Any, parents: tuple["Tensor", ...] = (), local: tuple[Pullback, ...] = ()
    ) -> None:
        data = np.asarray(data)
        self.data = data if data.dtype.kind == "f" else data.astype(np.float64)
        self.grad: np.ndarray | None = None
        self.parents = parents
        self.local = local

    def __repr__(self) -> str:
        return f"Tensor(shape={self.shape}, dtype={self.data.dtype}, parents={len(self.parents)})"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def backward(self, grad: np.ndarray | None = None) -> None:
        """Add the derivative of this tensor to `grad` of every leaf below it.

        Args:
            grad: the gradient that arrives here, of this tensor's shape; may be left out, and is 1 then,
                if the tensor holds a single number.

        Raises:
            ValueError: `grad` is left out for a tensor of several numbers, or has another shape.
        """
        if grad is None and self.data.size != 1:
            raise ValueError(f"a tensor of shape {self.shape} has no single derivative: sum it, or give grad")
        start = np.ones_like(self.data) if grad is None else np.asarray(grad, self.data.dtype)
        if start.shape != self.shape:
            raise ValueError(f"grad has shape {start.shape}, expected {self.shape}")
        order = topological_order(self)
        arrived = {id(self): start}
        while order:
            node = order.pop()
            flow = arrived.pop(id(node))
            if not node.parents:
                node.grad = flow.copy() if node.grad is None else node.grad + flow
            for parent, pull in zip(node.parents, node.local, strict=True):
                share = pull(flow)
                known = arrived.get(id(parent))
                arrived[id(parent)] = share if known is None else known + share

    def constant(self, other: Any) -> np.ndarray:
        """The array that `other` stands for: a tensor's data, or a number in this tensor's precision."""
        if isinstance(other, Tensor):
            return other.data
        # A plain 0.5 is float64 to NumPy; taken as it is, it would widen a float32 network.
        return np.asarray(other, dtype=self.data.dtype)

    def __add__(self, other: Any) -> "Tensor":
        a, b = self.data, self.constant(other)
        return _record(
            a + b,
            (self, lambda grad: unbroadcast(grad, a.shape)),
            (other, lambda grad: unbroadcast(grad, b.shape)),
        )

    def __mul__(self, other: Any) -> "Tensor":
        a, b = self.data, self.constant(other)
        return _record(
            a * b,
            (self, lambda grad: unbroadcast(grad * b, a.shape)),
            (other, lambda grad: unbroadcast(grad * a, b.shape)),
        )

    def __pow__(self, exponent: float) -> "Tensor":
        if isinstance(exponent, Tensor):
            raise TypeError("the exponent must be a plain number; write (b * a.log()).exp()")
        a = self.data
        if exponent == 0:
            return Tensor(a**0, (self,), (np.zeros_like,))
        return Tensor(a**exponent, (self,), (lambda grad: grad * exponent * a ** (exponent - 1),))

    @exercise(day=4)
    def matmul(self, other: "Tensor") -> "Tensor":
        """The matrix product over the last two axes; the axes before them broadcast, as in NumPy.

        Args:
            self: (..., m, k).
            other: (..., k, n). The leading axes may be missing, or 1, on either side.

        Returns:
            A Tensor of shape (..., m, n), whose parents are (self, other), and whose pullbacks give
            gradients of exactly their shapes.

        Raises:
            ValueError: one of the two has fewer than two axes, or the shapes don't fit.
        """
        a, b = self.data, other.data
        if a.ndim < 2 or b.ndim < 2:
            raise ValueError(f"matmul of {a.shape} and {b.shape}: both need at least two axes")

        def to_self(grad: np.ndarray) -> np.ndarray:
            return unbroadcast(grad @ b.swapaxes(-1, -2), a.shape)  # (..., m, n) @ (..., n, k)

        def to_other(grad: np.ndarray) -> np.ndarray:
            return unbroadcast(a.swapaxes(-1, -2) @ grad, b.shape)  # (..., k, m) @ (..., m, n)

        return Tensor(a @ b, (self, other), (to_self, to_other))

    def exp(self) -> "Tensor":
        result = np.exp(self.data)
        return Tensor(result, (self,), (lambda grad: grad * result,))

    def log(self) -> "Tensor":
        a = self.data
        return Tensor(np.log(a), (self,), (lambda grad: grad / a,))

    def tanh(self) -> "Tensor":
        result = np.tanh(self.data)
        return Tensor(result, (self,), (lambda grad: grad * (1 - result * result),))

    def relu(self) -> "Tensor":
        above = self.data > 0  # at 0 the slope counts as 0, as in PyTorch
        return Tensor(self.data * above, (self,), (lambda grad: grad * above,))

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> "Tensor":
        """Sum over `axis`, one or several, or over all of them if it is None."""
        a = self.data
        kept = a.sum(axis=axis, keepdims=True).shape

        def spread(grad: np.ndarray) -> np.ndarray:
            return np.broadcast_to(grad.reshape(kept), a.shape)  # each entry counted once

        return Tensor(a.sum(axis=axis, keepdims=keepdims), (self,), (spread,))

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> "Tensor":
        """Mean over `axis`, one or several, or over all of them if it is None."""
        total = self.sum(axis, keepdims)
        return total * (total.data.size / self.data.size)

    def reshape(self, *shape: int) -> "Tensor":
        before = self.shape
        return Tensor(self.data.reshape(shape), (self,), (lambda grad: grad.reshape(before),))

    def swapaxes(self, first: int, second: int) -> "Tensor":
        return Tensor(
            self.data.swapaxes(first, second), (self,), (lambda grad: grad.swapaxes(first, second),)
        )

    def __getitem__(self, index: Any) -> "Tensor":
        """Whatever NumPy's indexing takes. With an array of row numbers it is an embedding."""
        a = self.data

        def scatter(grad: np.ndarray) -> np.ndarray:
            full = np.zeros_like(a)
            np.add.at(full, index, grad)  # an entry taken twice gets both gradients
            return full

        return Tensor(a[index], (self,), (scatter,))

    def __neg__(self) -> "Tensor":
        return self * -1.0

    def __sub__(self, other: Any) -> "Tensor":
        return self + (-other if isinstance(other, Tensor) else -self.constant(other))

    def __truediv__(self, other: Any) -> "Tensor":
        return self * (other**-1.0 if isinstance(other, Tensor) else 1 / self.constant(other))

    def __matmul__(self, other: Any) -> "Tensor":
        return self.matmul(other if isinstance(other, Tensor) else Tensor(self.constant(other)))

    # Python asks the right operand when the left one, a number or an array, does not know what to do.
    def __radd__(self, other: Any) -> "Tensor":
        return self + other

    def __rmul__(self, other: Any) -> "Tensor":
        return self * other

    def __rsub__(self, other: Any) -> "Tensor":
        return -self + other

    def __rtruediv__(self, other: Any) -> "Tensor":
        return self**-1.0 * other

    def __rmatmul__(self, other: Any) -> "Tensor":
        return Tensor(self.constant(other)).matmul(self)


def _record(result: np.ndarray, *edges: tuple[Any, Pullback]) -> Tensor:
    """A tensor with an edge to each parent that is one itself: constants get no gradient."""
    kept = [(parent, pull) for parent, pull in edges if isinstance(parent, Tensor)]
    return Tensor(result, tuple(parent for parent, _ in kept), tuple(pull for _, pull in kept))


def cross_entropy(logits: Tensor, targets: Int[np.ndarray, "..."]) -> Tensor:
    """Mean of -log softmax(logits)[target] over all positions, in nats: Day 1's, with a way back.

    Args:
        logits: (..., vocab).
        targets: (...), integers.

    Returns:
        A Tensor of shape ().
    """
    shifted = logits - logits.data.max(axis=-1, keepdims=True)  # a constant: it cancels in the result
    lse = shifted.exp().sum(axis=-1).log()  # (...)
    flat = shifted.reshape(-1, logits.shape[-1])
    chosen = flat[np.arange(targets.size), targets.reshape(-1)]
    return (lse.reshape(-1) - chosen).mean()
