"""Computations that kernels are tried on: seeded inputs, the float64 result, arithmetic and least traffic.

Sizes are as awkward as the caller likes. Nothing here knows a language, a grid or a block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from course_lib.kernels.paged import paged_attention as exact_paged_attention

Array = np.ndarray[Any, Any]
EPS = 1e-5  # of the normalizations


class Tolerance(NamedTuple):
    """How far a number may be from the one wanted: atol + rtol |wanted|."""

    rtol: float
    atol: float


# Against float64: products of halves are exact in float32, and sums round as those of float32 do.
FP32 = Tolerance(2e-5, 2e-5)


@dataclass(frozen=True)
class Problem:
    """Inputs, buffers for the results, and what has to stand in those.

    Attributes:
        inputs, outputs: arrays by name. An output is filled with NaN, unless it is added to, or is an
            input, too, that changes in place.
        want: computes the outputs in float64 (in place: from the inputs as they were).
        flops: additions and multiplications; an exponential or a root counts as one.
        least_bytes: each input read once and each output written once: no kernel moves less.
        sizes: the numbers that a launch passes on, by name.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    want: Callable[[], dict[str, Array]]
    flops: int
    least_bytes: int
    tolerance: Tolerance = FP32

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name] if name in self.outputs else self.inputs[name]

    def wrong(self) -> str | None:
        """A sentence about the first output that is not as wanted, or None."""
        for name, want in self.want().items():
            got = self.outputs[name].astype(np.float64)
            good = np.isclose(got, want, *self.tolerance)
            if not good.all():
                at = tuple(int(i) for i in np.argwhere(~good)[0])
                return (
                    f"{name}{list(at)} is {got[at]:.7g}, not {want[at]:.7g}; "
                    f"{np.count_nonzero(~good)} of {good.size} numbers are wrong."
                )
        return None

    def error(self) -> float:
        """The largest distance of an output from what is wanted, over the largest number wanted (or 1)."""
        return max(
            float(np.abs(self.outputs[name] - want).max() / max(1.0, np.abs(want).max()))
            for name, want in self.want().items()
        )


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def empty(*shape: int) -> Array:
    """A buffer in which a number that no kernel wrote is found."""
    return np.full(shape, np.nan, np.float32)


def total_bytes(*arrays: Array) -> int:
    return sum(array.nbytes for array in arrays)


def vector_add(n: int) -> Problem:
    a, b, c = normal(1, n), normal(2, n), empty(n)
    return Problem({"a": a, "b": b}, {"c": c}, lambda: {"c": a.astype(np.float64) + b}, n, 12 * n)


def transpose(rows: int, columns: int) -> Problem:
    x, out = normal(1, rows, columns), empty(columns, rows)
    return Problem({"in": x}, {"out": out}, lambda: {"out": x.T.astype(np.float64)}, 0, 2 * x.nbytes)


def reduce_sum(n: int) -> Problem:
    x = normal(1, n)
    # The numbers cancel: what rounding costs is measured by their sizes, not by the sum's.
    tolerance = Tolerance(2e-5, 2e-7 * float(np.abs(x).sum()) + 1e-6)
    return Problem(
        {"x": x},
        {"out": np.zeros(1, np.float32)},
        lambda: {"out": x.sum(dtype=np.float64)[None]},
        n,
        4 * n + 4,
        tolerance,
    )


def matmul(rows: int, columns: int, depth: int, dtype: str = "f4") -> Problem:
    a, b = normal(1, rows, depth).astype(dtype), normal(2, depth, columns).astype(dtype)
    c = empty(rows, columns)

    def want() -> dict[str, Array]:
        return {"c": a.astype(np.float64) @ b.astype(np.float64)}

    return Problem({"a": a, "b": b}, {"c": c}, want, 2 * rows * columns * depth, total_bytes(a, b, c))


def softmax(rows: int, columns: int, huge: bool = False) -> Problem:
    """`huge`: numbers whose exponential float32 cannot hold, rising in a row, falling, and all the same."""
    if huge:
        ramp = np.linspace(-1000, 1000, columns, dtype=np.float32)
        x = np.stack([(ramp, ramp[::-1], np.full_like(ramp, 3e38))[row % 3] for row in range(rows)])
    else:
        x = 3 * normal(rows, rows, columns)

    def want() -> dict[str, Array]:
        exponentials = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
        return {"y": exponentials / exponentials.sum(-1, keepdims=True)}

    return Problem({"x": x}, {"y": empty(rows, columns)}, want, 5 * x.size, 2 * x.nbytes)


def layer_norm(rows: int, columns: int, mean: float = -1.0, spread: float = 3.0) -> Problem:
    x = spread * normal(rows, rows, columns) + np.float32(mean)
    weight, bias, y = 1 + normal(1, columns), normal(2, columns), empty(rows, columns)

    def want() -> dict[str, Array]:
        exact = x.astype(np.float64)
        exact -= exact.mean(-1, keepdims=True)
        deviation = np.sqrt((exact**2).mean(-1, keepdims=True) + EPS)
        return {"y": exact / deviation * weight + bias}

    # float32 near 1e4 has steps of 0.001: by that much a mean may be off, and by no more.
    tolerance = FP32 if abs(mean) < 100 else Tolerance(0.0, 5e-7 * abs(mean) / spread)
    inputs = {"x": x, "weight": weight, "bias": bias}
    moved = total_bytes(x, weight, bias, y)
    return Problem(inputs, {"y": y}, want, 8 * x.size, moved, tolerance)


def rms_norm(
    rows: int, columns: int, add: bool = False, fit: Callable[[Array], Array] = np.asarray
) -> Problem:
    """`add`: x is added to a residual stream, which changes in place and is what is normalized.

    `fit` rounds the numbers to those that a smaller type holds.
    """
    x, weight, y = fit(normal(1, rows, columns)), 1 + normal(2, columns), empty(rows, columns)
    residual = fit(normal(3, rows, columns))
    total = x.astype(np.float64) + (residual if add else 0.0)

    def want() -> dict[str, Array]:
        y = total / np.sqrt((total**2).mean(-1, keepdims=True) + EPS) * weight
        return {"y": y, "residual": total} if add else {"y": y}

    inputs, outputs, moved = {"x": x, "weight": weight}, {"y": y}, total_bytes(x, weight, y)
    if add:
        outputs["residual"] = residual
        moved += 2 * residual.nbytes
    return Problem(inputs, outputs, want, (4 + add) * x.size, moved)


def rope(tokens: int, heads: int, d: int, base: float = 10000.0, positions: int = 97) -> Problem:
    """Positions are a shuffle of the first `positions`, of which `tokens` are used."""
    x = normal(1, tokens, heads, d)
    before = x[..., : d // 2] + 1j * x[..., d // 2 :].astype(np.float64)
    order = np.random.default_rng(2).permutation(positions)[:tokens].astype(np.int32)
    angles = np.arange(positions)[:, None] * base ** (-2 * np.arange(d // 2) / d)
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def want() -> dict[str, Array]:
        turned = before * np.exp(1j * angles[order])[:, None]
        return {"x": np.concatenate([turned.real, turned.imag], -1)}

    inputs = {"positions": order, "cosines": cosines, "sines": sines}
    moved = 2 * x.nbytes + order.nbytes + 4 * tokens * d
    return Problem(inputs, {"x": x}, want, 3 * x.size, moved)


def exact_attention(q: Array, k: Array, v: Array, scale: float, causal: bool = True) -> tuple[Array, Array]:
    """Attention in float64, and each row's log-sum-exp; heads of k and v are repeated for their groups."""
    group = q.shape[0] // k.shape[0]
    k, v = np.repeat(k, group, 0).astype(np.float64), np.repeat(v, group, 0).astype(np.float64)
    scores = scale * (q.astype(np.float64) @ k.swapaxes(1, 2))
    if causal:
        scores = np.where(np.tri(*scores.shape[1:]) > 0, scores, -np.inf)
    lse = np.logaddexp.reduce(scores, -1)
    return np.exp(scores - lse[..., None]) @ v, lse


def attention(heads: int, kv_heads: int, n: int, d: int, spread: float = 1.0) -> Problem:
    """Causal, with grouped heads. A `spread` of 60 makes scores whose exponential float32 cannot hold."""
    q, k, v = spread * normal(1, heads, n, d), normal(2, kv_heads, n, d), normal(3, kv_heads, n, d)
    out = empty(heads, n, d)
    seen = heads * n * (n + 1) // 2  # pairs of a query and a key
    return Problem(
        {"q": q, "k": k, "v": v},
        {"out": out},
        lambda: {"out": exact_attention(q, k, v, d**-0.5)[0]},
        4 * seen * d,
        total_bytes(q, k, v, out),
    )


def flash_attention(heads: int, kv_heads: int, n: int, d: int, spread: float = 1.0) -> Problem:
    """`attention`, and with it the logarithm of each row's sum of exp(score)."""
    plain = attention(heads, kv_heads, n, d, spread)
    q, k, v = plain.inputs.values()
    lse = empty(heads, n)

    def want() -> dict[str, Array]:
        return dict(zip(("out", "lse"), exact_attention(q, k, v, d**-0.5), strict=True))

    return replace(
        plain,
        outputs=plain.outputs | {"lse": lse},
        want=want,
        least_bytes=plain.least_bytes + lse.nbytes,
    )


def paged_attention(lengths: Sequence[int], heads: int, kv_heads: int, d: int, size: int) -> Problem:
    """A new token a text; its keys and values lie in blocks of `size` tokens, shuffled over the pool."""
    texts, most = len(lengths), max(-(-length // size) for length in lengths) + 1
    blocks = texts * most
    q, out = normal(1, texts, heads, d), empty(texts, heads, d)
    keys, values = normal(2, blocks, size, kv_heads, d), normal(3, blocks, size, kv_heads, d)
    tables = np.random.default_rng(7).permutation(blocks).reshape(texts, most).astype(np.int32)
    for text, length in enumerate(lengths):  # what is behind a text's last block has no meaning
        tables[text, -(-length // size) :] = -1
    counts = np.array(lengths, np.int32)
    inputs = {"q": q, "keys": keys, "values": values, "tables": tables, "lengths": counts}

    def want() -> dict[str, Array]:
        return {"out": exact_paged_attention(q.astype(np.float64), keys, values, tables, counts)}

    tokens = sum(lengths)
    moved = total_bytes(q, out) + 8 * tokens * kv_heads * d
    return Problem(inputs, {"out": out}, want, 4 * tokens * heads * d, moved)


def gemv_int8(rows: int, columns: int) -> Problem:
    rng = np.random.default_rng(rows)
    x, y = normal(1, columns), empty(rows)
    w = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
    scales = rng.uniform(1e-3, 2e-3, rows).astype(np.float32)

    def want() -> dict[str, Array]:
        return {"y": (w * scales[:, None].astype(np.float64)) @ x}

    inputs: dict[str, Array] = {"w": w, "scales": scales, "x": x}
    return Problem(inputs, {"y": y}, want, 2 * w.size, total_bytes(w, scales, x, y))


def gemv_int4(rows: int, columns: int) -> Problem:
    """Groups of 32 columns; column 2i in the low half of byte i, 2i + 1 in the high half."""
    rng = np.random.default_rng(rows)
    x, y = normal(1, columns), empty(rows)
    numbers = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
    codes = numbers[:, ::2] | numbers[:, 1::2] << 4
    scales = rng.uniform(0.01, 0.02, (rows, columns // 32)).astype(np.float32)

    def want() -> dict[str, Array]:
        return {"y": (numbers.astype(np.float64) - 8) * np.repeat(scales, 32, 1) @ x}

    inputs = {"codes": codes, "scales": scales, "x": x}
    return Problem(inputs, {"y": y}, want, 2 * numbers.size, total_bytes(codes, scales, x, y))


def int4_matmul(tokens: int, outputs: int, depth: int, group: int) -> Problem:
    """As `gemv_int4` packs its codes, with a middle beside each group's scale; `group` columns a group."""
    rng = np.random.default_rng(outputs)
    x, y = normal(1, tokens, depth), empty(tokens, outputs)
    numbers = rng.integers(0, 16, (outputs, depth)).astype(np.uint8)
    codes = numbers[:, ::2] | numbers[:, 1::2] << 4
    scale = rng.uniform(0.01, 0.02, (outputs, depth // group)).astype(np.float32)
    middle = rng.normal(0, 0.02, scale.shape).astype(np.float32)

    def want() -> dict[str, Array]:
        repeated = [np.repeat(each.astype(np.float64), group, 1) for each in (scale, middle)]
        return {"y": x @ ((numbers - 8.0) * repeated[0] + repeated[1]).T}

    inputs: dict[str, Array] = {"x": x, "codes": codes, "scale": scale, "middle": middle}
    return Problem(inputs, {"y": y}, want, 2 * tokens * numbers.size, total_bytes(*inputs.values(), y))
