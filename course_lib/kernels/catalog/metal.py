"""How the kernels of kernels_metal/ are launched, and what they move. Their headers explain the formulas.

A name that ends in _float, _half or _bfloat is an instance of a template: its arrays are of that type.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from course_lib.kernels.catalog import problems
from course_lib.kernels.catalog.case import Case, Kernel, Launch
from course_lib.kernels.catalog.problems import EPS, Array, Problem, Tolerance, empty
from course_lib.kernels.catalog.sizes import SIZES, Shapes, Sizes
from course_lib.numerics import round_to_bfloat16

Arguments = tuple[Array | int | float, ...]
TYPES = ("float", "half", "bfloat")

# What rounding to 11 and to 8 bits costs: those of classroom.expect's table.
TOLERANCES = {"half": Tolerance(2e-3, 1e-3), "bfloat": Tolerance(1.6e-2, 8e-3)}


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def type_of(kernel: str) -> str:
    last = kernel.rsplit("_", 1)[-1]
    return last if last in TYPES else "float"


def narrow(x: Array, kind: str) -> Array:
    """float32 as the type's own array; a bfloat is held as its bits."""
    if kind == "bfloat":
        return (round_to_bfloat16(x).view(np.uint32) >> 16).astype(np.uint16)
    return x.astype({"float": np.float32, "half": np.float16}[kind])


def widen(x: Array) -> Array:
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x.astype(np.float32)


@dataclass(frozen=True)
class Typed(Case):
    """A case whose kernel works on arrays of another type, `held`, by the names of the problem's."""

    held: dict[str, Array] = field(default_factory=dict)

    def wrong(self) -> str | None:
        for name, array in self.held.items():
            if name in self.problem.outputs:
                self.problem.outputs[name][...] = widen(array)
        return super().wrong()


def typed(problem: Problem, kernel: str, names: Sequence[str]) -> tuple[Problem, dict[str, Array]]:
    """The problem with inputs that the kernel's type holds exactly, and its arrays in that type."""
    kind = type_of(kernel)
    if kind == "float":
        return problem, {name: problem[name] for name in names}
    held = {name: narrow(problem[name], kind) for name in names}
    for name in set(names) & set(problem.inputs):
        problem.inputs[name][...] = widen(held[name])  # in place: `want` is computed from them
    return replace(problem, tolerance=TOLERANCES[kind]), held


def vector_add(kernel: str, n: int) -> Case:
    problem = problems.vector_add(n)
    each = {"vector_add": 1, "vector_add4": 4, "vector_add_grid_stride": 2}[kernel]  # elements a thread
    arrays = (problem["a"], problem["b"], problem["c"])
    arguments: Arguments = arrays if kernel == "vector_add" else (*arrays, n)
    launch = Launch(kernel, None, 256, arguments, threads=ceil(n, each))
    return Case(problem, (launch,), {"a": 4 * n, "b": 4 * n, "c": 4 * n})


def transpose(kernel: str, rows: int, columns: int) -> Case:
    problem = problems.transpose(rows, columns)
    grid = (ceil(columns, 32), ceil(rows, 32))
    launch = Launch(kernel, grid, (32, 8), (problem["in"], problem["out"], rows, columns))
    barriers = 0 if kernel == "transpose_naive" else grid[0] * grid[1]
    return Case(problem, (launch,), {"in": 4 * rows * columns, "out": 4 * rows * columns}, barriers)


def reduce_sum(kernel: str, n: int, groups: int = 4) -> Case:
    problem = problems.reduce_sum(n)
    x, out = problem["x"], problem["out"]
    if kernel == "reduce_sum_atomic":
        launch = Launch(kernel, None, 256, (x, out), threads=n)
        return Case(problem, (launch,), {"x": 4 * n, "out": 4 * n})
    tree = kernel == "reduce_sum_tree"
    launch = Launch(kernel, groups, 256, (x, out, n), 1024 if tree else 0)
    return Case(problem, (launch,), {"x": 4 * n, "out": 4 * groups}, groups * (8 if tree else 1))


def matmul(kernel: str, rows: int, columns: int, depth: int) -> Case:
    problem, held = typed(problems.matmul(rows, columns, depth), kernel, "abc")
    a, b, c = held.values()
    moved = {"a": a.nbytes * columns, "b": b.nbytes * rows, "c": c.nbytes}
    if kernel == "matmul_naive":
        launch = Launch(kernel, None, (32, 8), (a, b, c, depth), threads=(columns, rows))
        return Case(problem, (launch,), moved)
    simdgroups = kernel.startswith("matmul_simdgroup")
    tile = 32 if simdgroups else 64 if kernel == "matmul_register_tiled" else 16
    grid, steps = (ceil(columns, tile), ceil(rows, tile)), ceil(depth, 16)
    launch = Launch(kernel, grid, 128 if simdgroups else (16, 16), (a, b, c, rows, columns, depth))
    moved |= {"a": a.nbytes * grid[0], "b": b.nbytes * grid[1]}
    return Typed(problem, (launch,), moved, grid[0] * grid[1] * (2 * steps + simdgroups), held)


def softmax(kernel: str, rows: int, columns: int, threads: int = 256, huge: bool = False) -> Case:
    huge = huge and type_of(kernel) != "half"  # whose largest number is 65504
    problem, held = typed(problems.softmax(rows, columns, huge), kernel, "xy")
    x, y = held.values()
    tree, simd = kernel == "softmax_two_pass", kernel == "softmax_simd"
    launch = Launch(kernel, rows, threads, (x, y, columns), 4 * threads if tree else 0)
    barriers = 2 * (threads - 1).bit_length() + 3 if tree else 2 if simd else 1
    moved = {"x": (3 if tree or simd else 2) * x.nbytes, "y": y.nbytes}
    return Typed(problem, (launch,), moved, barriers * rows, held)


def layer_norm(kernel: str, rows: int, columns: int, threads: int = 256, mean: float = -1.0) -> Case:
    mean = mean if type_of(kernel) == "float" else -1.0  # 1e4 and its digits need float32
    problem, held = typed(problems.layer_norm(rows, columns, mean), kernel, ("x", "weight", "bias", "y"))
    tree, simd, y = kernel == "layer_norm_two_pass", kernel == "layer_norm_simd", held["y"]
    if simd:
        arguments: Arguments = (*held.values(), rows, columns, EPS)
        launch = Launch(kernel, ceil(rows, threads // 32), threads, arguments)
    else:
        shared = 4 * threads if tree else 0
        launch = Launch(kernel, rows, threads, (*held.values(), columns, EPS), shared)
    barriers = 0 if simd else 2 * (threads - 1).bit_length() + 3 if tree else 1
    moved = {"x": (3 if tree else 2) * y.nbytes, "weight": y.nbytes, "bias": y.nbytes, "y": y.nbytes}
    return Typed(problem, (launch,), moved, barriers * rows, held)


def rms_norm(kernel: str, rows: int, columns: int) -> Case:
    add = kernel.startswith("rms_norm_add")
    names = ("x", "residual", "weight", "y") if add else ("x", "weight", "y")
    plain = problems.rms_norm(rows, columns, add, lambda x: widen(narrow(x, type_of(kernel))))
    problem, held = typed(plain, kernel, names)
    size = held["y"].nbytes
    moved = {"x": 2 * size, "weight": size, "y": size} | ({"x": size, "residual": 3 * size} if add else {})
    if kernel == "rms_norm_naive":
        launch = Launch(kernel, None, 128, (*held.values(), columns, EPS), threads=rows)
    else:
        launch = Launch(kernel, ceil(rows, 4), 128, (*held.values(), rows, columns, EPS))
    return Typed(problem, (launch,), moved, 0, held)


def rope(kernel: str, tokens: int, heads: int, d: int) -> Case:
    plain = problems.rope(tokens, heads, d, 10000.0, max(97, tokens))
    problem, held = typed(plain, kernel, "x")
    x, positions, table = held["x"], plain["positions"], (plain["cosines"], plain["sines"])
    if kernel in ("rope_naive", "rope_table"):
        items, threads = tokens * heads * d // 2, (d // 2, heads, tokens)
        rest: Arguments = (10000.0,) if kernel == "rope_naive" else table
    else:
        items, threads = tokens * d // 2, (d // 2, tokens, 1)
        rest = (*table, heads)
    moved = {"x": 2 * x.nbytes, "positions": 4 * items}
    if kernel != "rope_naive":
        moved |= {"cosines": 4 * items, "sines": 4 * items}
    launch = Launch(kernel, None, (32, 4), (x, positions, *rest), threads=threads)
    return Typed(problem, (launch,), moved, 0, held)


def attention(kernel: str, heads: int, n: int, d: int) -> Case:
    problem = problems.attention(heads, heads, n, d)
    q, k, v, out = (problem[name] for name in ("q", "k", "v", "out"))
    pairs = heads * n * (n + 1) // 2  # of a row and what it sees
    moved = {"q": 4 * heads * n * d, "k": 4 * pairs * d, "v": 4 * pairs * d, "out": 4 * heads * n * d}
    if kernel == "attention_naive":
        launch = Launch(kernel, (n, heads), 128, (q, k, v, out, n, d, d**-0.5), 4 * n)
        return Case(problem, (launch,), moved, 4 * n * heads)
    scores = empty(heads, n, n)
    launch = Launch(kernel, (n, heads), 128, (q, k, v, scores, out, n, d, d**-0.5))
    return Case(problem, (launch,), moved | {"scores": 4 * pairs * (3 + d)}, 3 * n * heads)


def flash_attention(kernel: str, heads: int, kv_heads: int, n: int, d: int, spread: float = 1.0) -> Case:
    plain = problems.flash_attention(heads, kv_heads, n, d, spread)
    problem, held = typed(plain, kernel, ("q", "k", "v", "out"))
    tiled, tile = kernel.startswith("flash"), 32
    grid = (ceil(n, tile if tiled else 4), heads)
    arguments = (*held.values(), plain["lse"], n, kv_heads, d**-0.5)
    launch = Launch(f"{kernel}_{d}", grid, 128, arguments)
    # A tile of rows ends with the last key that its last row sees.
    seen = sum(min(top + tile, n) for top in range(0, n, tile)) if tiled else n * (n + 1) // 2
    read, size = held["k"].itemsize * heads * seen * d, held["q"].nbytes
    moved = {"q": size, "k": read, "v": read, "out": size, "lse": 4 * heads * n}
    barriers = sum(1 + 4 * (top // tile + 1) for top in range(0, n, tile)) if tiled else 0
    return Typed(problem, (launch,), moved, heads * barriers, held)


def paged_attention(
    kernel: str, lengths: tuple[int, ...], heads: int, kv_heads: int, d: int, size: int, parts: int = 3
) -> Case:
    plain = problems.paged_attention(lengths, heads, kv_heads, d, size)
    problem, held = typed(plain, kernel, ("q", "keys", "values", "out"))
    q, keys, values, out = held.values()
    texts, most, group = len(lengths), plain["tables"].shape[1], heads // kv_heads
    naive, split = kernel == "paged_attention_naive", "split" in kernel
    readers = heads if naive else kv_heads  # threadgroups that read a text's keys and values
    groups = texts * readers * (parts if split else 1)
    moved = {name: q.itemsize * sum(lengths) * readers * d for name in ("keys", "values")}
    # All four simdgroups read the query; all lanes read the table for each token, all threads the length.
    moved |= {"q": 4 * q.itemsize * groups * heads // readers * d, "out": out.nbytes}
    moved |= {"tables": 128 * sum(lengths) * readers, "lengths": 512 * groups}
    pool = (q, keys, values, plain["tables"], plain["lengths"])
    sizes = (most, size, kv_heads, d**-0.5) if naive else (most, size, d**-0.5)
    instance = f"{kernel}_{d}" if naive else f"{kernel}_{d}_{group}"
    if not split:
        launch = Launch(instance, (texts, readers), 128, (*pool, out, *sizes))
        return Typed(problem, (launch,), moved, groups, held)
    outs, lses = empty(parts, texts, heads, d), empty(parts, texts, heads)
    attend = Launch(instance, (texts, readers, parts), 128, (*pool, outs, lses, *sizes))
    merge = Launch(f"merge_parts_{type_of(kernel)}", (texts, heads), 32, (outs, lses, out, parts, d))
    # Written once and read back; of lses, 32 threads read each number twice, and once more an element.
    moved |= {"outs": 2 * outs.nbytes, "lses": (1 + 2 * 32 + d) * lses.nbytes}
    return Typed(problem, (attend, merge), moved, groups, held)


def gemv(kernel: str, rows: int, columns: int) -> Case:
    int8 = "int8" in kernel
    plain: Problem = (problems.gemv_int8 if int8 else problems.gemv_int4)(rows, columns)
    problem, held = typed(plain, kernel, "xy")
    codes = "w" if int8 else "codes"
    arguments = (plain[codes], plain["scales"], held["x"], held["y"])
    by_thread, by_row = kernel.endswith("naive"), kernel.endswith("simd")
    if by_thread:
        launch = Launch(kernel, None, 128, (*arguments, columns), threads=rows)
    else:
        launch = Launch(kernel, ceil(rows, 4 if by_row else 16), 128, (*arguments, rows, columns))
    size = rows * columns
    scales = 4 * rows if int8 else 4 * size // (2 if by_thread else 4)  # a read for 2 or 4 columns
    readers = rows if by_thread or by_row else 4 * ceil(rows, 16)  # of x: each row, or each simdgroup
    moved = {codes: plain[codes].nbytes, "scales": scales, "x": held["x"].nbytes * readers}
    return Typed(problem, (launch,), moved | {"y": held["y"].nbytes}, 0, held)


def versions(
    file: str,
    names: Sequence[str],
    build: Callable[..., Case],
    sizes: Sizes,
) -> Iterator[Kernel]:
    """The kernels of one source; `T` at a name's end stands for each of the types."""
    for name in names:
        for one in [name[:-1] + kind for kind in TYPES] if name.endswith("_T") else [name]:
            some = sizes.shapes if type_of(one) == "float" else sizes.shapes[1::2]
            yield Kernel(f"kernels_metal/{file}.metal", one, build, some, sizes.counted, sizes.large)


HEADS: Shapes = ((1, 1, 1, 64), (3, 1, 33, 64), (1, 1, 35, 128), (2, 2, 71, 64), (4, 2, 37, 64))
PAGES: Shapes = (
    ((1,), 1, 1, 64, 16),
    ((17, 1, 5), 6, 2, 64, 4),
    ((31, 64), 4, 2, 128, 16),
    ((7, 23), 3, 1, 64, 1),
)

# Each source with its versions from naive to fast; the shapes are arguments of the functions above.
KERNELS = (
    *versions(
        "vector_add",
        ("vector_add", "vector_add4", "vector_add_grid_stride"),
        vector_add,
        SIZES["vector_add"],
    ),
    *versions(
        "transpose",
        ("transpose_naive", "transpose_tiled", "transpose"),
        transpose,
        SIZES["transpose"],
    ),
    *versions(
        "reduce_sum",
        ("reduce_sum_atomic", "reduce_sum_tree", "reduce_sum"),
        reduce_sum,
        SIZES["reduce_sum"],
    ),
    *(
        kernel
        for file, names in (
            ("matmul_tiled", ("matmul_naive", "matmul_tiled")),
            ("matmul_register_tiled", ("matmul_register_tiled",)),
            ("matmul_simdgroup", ("matmul_simdgroup_T",)),
        )
        for kernel in versions(file, names, matmul, SIZES["matmul"])
    ),
    *versions(
        "softmax",
        ("softmax_two_pass", "softmax_simd", "softmax_T"),
        softmax,
        SIZES["softmax"],
    ),
    *versions(
        "layer_norm",
        ("layer_norm_two_pass", "layer_norm_simd", "layer_norm_T"),
        layer_norm,
        SIZES["layer_norm"],
    ),
    *versions(
        "rms_norm",
        ("rms_norm_naive", "rms_norm_T", "rms_norm_add_T"),
        rms_norm,
        SIZES["rms_norm"],
    ),
    *versions(
        "rope",
        ("rope_naive", "rope_table", "rope_T"),
        rope,
        SIZES["rope"],
    ),
    *versions(
        "attention_naive",
        ("attention_global", "attention_naive"),
        attention,
        SIZES["attention_naive"],
    ),
    *versions(
        "flash_attention",
        ("attention_online_T", "flash_attention_T"),
        flash_attention,
        Sizes((*HEADS, (1, 1, 40, 64, 60.0)), counted=(2, 1, 96, 64), large=(16, 4, 4096, 64)),
    ),
    *versions(
        "paged_attention",
        ("paged_attention_naive", "paged_attention_T", "paged_attention_split_T"),
        paged_attention,
        Sizes(PAGES, counted=((37, 64, 5), 6, 2, 64, 16), large=((4096,) * 64, 32, 8, 128, 16, 4)),
    ),
    *versions(
        "gemv_int8",
        ("gemv_int8_naive", "gemv_int8_simd", "gemv_int8_T"),
        gemv,
        SIZES["gemv_int8"],
    ),
    *versions(
        "gemv_int4",
        ("gemv_int4_naive", "gemv_int4_T"),
        gemv,
        SIZES["gemv_int4"],
    ),
)


def find(name: str) -> Kernel:
    """The kernel of this name. KeyError lists them."""
    known = {kernel.name: kernel for kernel in KERNELS}
    if name not in known:
        raise KeyError(f"there is no Metal kernel {name!r} in the catalog; it has {', '.join(known)}")
    return known[name]
