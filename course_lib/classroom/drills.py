"""Endless drills: a new graded question at each call, harder as the streak grows.

A question is a line of NumPy on arrays of known shapes; its answer is what NumPy itself gives, so the key
is never wrong. The n-th question of a learner depends on their seed, the topic and n only.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

ERROR = "error"


@dataclass(frozen=True)
class Question:
    """`answer` is a tuple (a shape), an int (a count) or "error"; `why` says the rule behind it."""

    text: str
    answer: tuple[int, ...] | int | str
    why: str


Maker = Callable[[np.random.Generator], Question]


def _shape(expression: str, shapes: dict[str, tuple[int, ...]], why: str, ask: str = "its shape") -> Question:
    """Ask for the shape of an expression; NumPy is the key."""
    arrays = {name: np.zeros(shape) for name, shape in shapes.items()}
    try:
        answer: Any = np.shape(eval(expression, {"np": np, **arrays}))
    except (ValueError, IndexError) as problem:
        answer = ERROR
        why = f"{why} Here NumPy says: {str(problem).splitlines()[0]}"
    given = "   ".join(f"{name}: {shape}" for name, shape in shapes.items())
    return Question(f"    {given}\n    {expression}", answer, why)


def _sizes(rng: np.random.Generator, count: int) -> list[int]:
    """Different sizes from 2 to 9: an answer shows which axis was meant."""
    return [int(n) for n in rng.choice(np.arange(2, 10), size=count, replace=False)]


def _matmul(rng: np.random.Generator) -> Question:
    m, k, n = _sizes(rng, 3)
    why = "(m, k) @ (k, n) gives (m, n): the inner sizes must agree and disappear."
    if rng.random() < 0.25:
        return _shape("A @ B", {"A": (m, k), "B": (n, k)}, why)
    return _shape("A @ B", {"A": (m, k), "B": (k, n)}, why)


def _linear(rng: np.random.Generator) -> Question:
    batch, d_in, d_out = _sizes(rng, 3)
    why = "A linear layer stores W as (out, in), so x @ W.T maps the last axis from in to out."
    return _shape("x @ W.T", {"x": (batch, d_in), "W": (d_out, d_in)}, why)


def _vector(rng: np.random.Generator) -> Question:
    m, k = _sizes(rng, 2)
    why = "A 1-D array on the right of @ is a column, on the left a row; its axis is summed away."
    if rng.random() < 0.5:
        return _shape("A @ v", {"A": (m, k), "v": (k,)}, why)
    return _shape("v @ A", {"v": (m,), "A": (m, k)}, why)


def _reduce(rng: np.random.Generator) -> Question:
    shape = tuple(_sizes(rng, 3))
    axis = int(rng.integers(-3, 3))
    name = str(rng.choice(["sum", "max", "mean", "argmax"]))
    keep = name != "argmax" and rng.random() < 0.4
    why = "A reduction removes its axis; with keepdims=True the axis stays, with size 1. Axis -1 is the last."
    return _shape(f"x.{name}(axis={axis}{', keepdims=True' if keep else ''})", {"x": shape}, why)


def _transpose(rng: np.random.Generator) -> Question:
    shape = tuple(_sizes(rng, 3))
    if rng.random() < 0.5:
        order = tuple(int(i) for i in rng.permutation(3))
        why = "transpose(p): axis i of the result is axis p[i] of the input."
        return _shape(f"x.transpose{order}", {"x": shape}, why)
    a, b = (int(i) for i in rng.choice([0, 1, 2, -1, -2], size=2, replace=False))
    return _shape(f"x.swapaxes({a}, {b})", {"x": shape}, "swapaxes exchanges two axes and leaves the others.")


def _index(rng: np.random.Generator) -> Question:
    shape = tuple(_sizes(rng, 3))
    start = int(rng.integers(0, shape[1]))
    choices = [
        "x[0]",
        "x[:, 0]",
        "x[..., -1]",
        f"x[:, {start}:]",
        "x[0, :, 1]",
        "x[:, None]",
        "x[..., None, 0]",
    ]
    why = (
        "An integer removes its axis, a slice keeps it, None adds an axis of size 1, ... stands for "
        "all axes between."
    )
    return _shape(str(rng.choice(choices)), {"x": shape}, why)


def _reshape(rng: np.random.Generator) -> Question:
    a, b, c = _sizes(rng, 3)
    why = "reshape keeps the number of elements and their order; one -1 is computed from the rest."
    texts = [
        f"x.reshape({a}, -1)",
        f"x.reshape(-1, {c})",
        "x.reshape(-1)",
        f"x.reshape({b}, -1)",
        f"x.reshape({a * b}, {c}, 1)",
    ]
    return _shape(str(rng.choice(texts)), {"x": (a, b, c)}, why)


def _broadcast(rng: np.random.Generator) -> Question:
    a, b, c = _sizes(rng, 3)
    pairs = [
        ((a, b), (b,)),
        ((a, b), (a, 1)),
        ((a, 1), (1, b)),
        ((a, b), (a,)),
        ((a, b, c), (b, 1)),
        ((a, 1, c), (b, 1)),
        ((a,), (b, 1)),
        ((a, b, c), (a, c)),
    ]
    x, y = pairs[int(rng.integers(len(pairs)))]
    why = "Broadcasting aligns shapes at the right; sizes must be equal or 1, missing axes count as 1."
    return _shape(str(rng.choice(["x + y", "x * y", "np.maximum(x, y)"])), {"x": x, "y": y}, why)


def _batched(rng: np.random.Generator) -> Question:
    b, m, k, n = _sizes(rng, 4)
    pairs = [
        ((b, m, k), (b, k, n)),
        ((b, m, k), (k, n)),
        ((m, k), (b, k, n)),
        ((b, 1, m, k), (n, k, m)),
        ((b, m, k), (n, k, m)),
    ]
    x, y = pairs[int(rng.integers(len(pairs)))]
    why = "@ multiplies the last two axes; all axes before them are broadcast."
    return _shape("A @ B", {"A": x, "B": y}, why)


def _join(rng: np.random.Generator) -> Question:
    a, b, c = _sizes(rng, 3)
    axis = int(rng.integers(0, 2))
    if rng.random() < 0.5:
        why = "stack adds a new axis at the given place, as long as the list."
        return _shape(f"np.stack([x, y, x], axis={axis})", {"x": (a, b), "y": (a, b)}, why)
    other = (c, b) if rng.random() < 0.5 else (a, c)
    why = "concatenate adds the sizes along its axis; all other sizes must agree."
    return _shape(f"np.concatenate([x, y], axis={axis})", {"x": (a, b), "y": other}, why)


def _einsum(rng: np.random.Generator) -> Question:
    b, h, t, s, d = _sizes(rng, 5)
    why = (
        "In an einsum, letters kept on the right are the result's axes; a letter that is missing "
        "there is summed over."
    )
    cases: list[tuple[str, dict[str, tuple[int, ...]]]] = [
        ("np.einsum('ij,jk->ik', x, y)", {"x": (b, t), "y": (t, d)}),
        ("np.einsum('ij,kj->ik', x, y)", {"x": (b, t), "y": (d, t)}),
        ("np.einsum('ij->ji', x)", {"x": (b, t)}),
        ("np.einsum('ij,ij->i', x, y)", {"x": (b, t), "y": (b, t)}),
        ("np.einsum('bij,bjk->bik', x, y)", {"x": (b, t, s), "y": (b, s, d)}),
        ("np.einsum('i,j->ij', x, y)", {"x": (t,), "y": (d,)}),
        ("np.einsum('bhtd,bhsd->bhts', x, y)", {"x": (b, h, t, d), "y": (b, h, s, d)}),
        ("np.einsum('bhts,bhsd->bthd', x, y)", {"x": (b, h, t, s), "y": (b, h, s, d)}),
        ("np.einsum('ii->i', x)", {"x": (t, t)}),
        ("np.einsum('bij->', x)", {"x": (b, t, s)}),
    ]
    expression, shapes = cases[int(rng.integers(len(cases)))]
    return _shape(expression, shapes, why)


def _heads(rng: np.random.Generator) -> Question:
    b, t, h, d = _sizes(rng, 4)
    why = "Split the last axis into heads, then move heads before time: one matrix per batch row and head."
    texts = [
        f"x.reshape({b}, {t}, {h}, {d}).transpose(0, 2, 1, 3)",
        f"x.reshape({b}, {t}, {h}, -1).swapaxes(1, 2)",
        f"x.reshape({b}, {t}, {h}, {d}).transpose(0, 2, 3, 1)",
    ]
    return _shape(str(rng.choice(texts)), {"x": (b, t, h * d)}, why)


def _scores(rng: np.random.Generator) -> Question:
    b, h, t, s, d = _sizes(rng, 5)
    why = (
        "q @ k.swapaxes(-1, -2) compares each of t queries with each of s keys: (t, d) @ (d, s) for "
        "each row and head."
    )
    if rng.random() < 0.5:
        return _shape("q @ k.swapaxes(-1, -2)", {"q": (b, h, t, d), "k": (b, h, s, d)}, why)
    why = "(t, s) @ (s, d) per row and head: each query's weights over s positions mix the values of size d."
    return _shape("p @ v", {"p": (b, h, t, s), "v": (b, h, s, d)}, why)


BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int8": 1, "fp8": 1}


def _bytes(rng: np.random.Generator) -> Question:
    shape = tuple(int(2 ** rng.integers(1, 7)) for _ in range(int(rng.integers(2, 4))))
    dtype = str(rng.choice(list(BYTES)))
    total = int(np.prod(shape)) * BYTES[dtype]
    why = f"{' × '.join(map(str, shape))} elements of {BYTES[dtype]} bytes each."
    return Question(f"    x: {shape}, {dtype}\n    How many bytes?", total, why)


def _flops(rng: np.random.Generator) -> Question:
    m, k, n = (int(2 ** rng.integers(1, 6)) for _ in range(3))
    batch = int(rng.choice([1, 1, 3, 5]))
    lead = () if batch == 1 else (batch,)
    why = "Each of the m·n results takes k multiplications and k additions: 2·m·k·n a matrix product."
    text = f"    A: {(*lead, m, k)}   B: {(*lead, k, n)}\n    A @ B: how many FLOPs?"
    return Question(text, 2 * batch * m * k * n, why)


def _moved(rng: np.random.Generator) -> Question:
    m, k, n = (int(2 ** rng.integers(1, 6)) for _ in range(3))
    dtype = str(rng.choice(["float32", "bfloat16"]))
    why = f"Read m·k + k·n elements, write m·n, {BYTES[dtype]} bytes each."
    text = (
        f"    A: {(m, k)}   B: {(k, n)}, {dtype}\n    A @ B: how many bytes, each input read once and "
        "the result written once?"
    )
    return Question(text, (m * k + k * n + m * n) * BYTES[dtype], why)


# Question makers of a topic, from the first level up; a level is reached at a streak of 4 right answers a
# level.
TOPICS: dict[str, list[list[Maker]]] = {
    "shapes": [
        [_matmul, _vector, _reduce, _transpose],
        [_linear, _index, _reshape, _broadcast],
        [_batched, _join, _einsum, _heads, _scores],
    ],
    "costs": [[_bytes], [_flops], [_moved]],
}


def question(topic: str, seed: int, number: int, streak: int = 0) -> Question:
    """The question `number` of a topic for the learner with this seed; `streak` right answers so far choose
    its level.
    """
    digest = hashlib.sha256(f"{seed}:{topic}:{number}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    levels = TOPICS[topic][: 1 + streak // 4]
    # Half of the questions come from the highest level reached, the others from any.
    pool = levels[-1] if rng.random() < 0.5 else [maker for level in levels for maker in level]
    return pool[int(rng.integers(len(pool)))](rng)


def read_answer(value: Any) -> tuple[int, ...] | int | str | None:
    """A learner's answer in the form of the key; None if it is none: say (3, 4), 12 or "error"."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("error", "none", "no")):
        return ERROR
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, tuple | list | np.ndarray):
        items = list(value)
        if all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in items):
            return tuple(int(i) for i in items)
    return None


def is_right(given: tuple[int, ...] | int | str, key: tuple[int, ...] | int | str) -> bool:
    """A bare number stands for a shape of one axis as well."""
    if isinstance(key, tuple) and isinstance(given, int):
        given = (given,)
    if isinstance(key, int) and isinstance(given, tuple) and len(given) == 1:
        given = given[0]
    return given == key
