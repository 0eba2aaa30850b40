"""How the kernels of kernels_cuda/ are launched, and what they move. Their headers explain the formulas."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from course_lib.kernels.catalog import problems
from course_lib.kernels.catalog.case import Case, Kernel, Launch
from course_lib.kernels.catalog.problems import EPS, Array, Problem, empty
from course_lib.kernels.catalog.sizes import SIZES, Shapes, Sizes

Arguments = tuple[Array | int | float, ...]


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def versions(
    file: str,
    names: Sequence[str],
    build: Callable[..., Case],
    sizes: Sizes,
) -> Iterator[Kernel[Case]]:
    """The kernels of one source."""
    for name in names:
        yield Kernel(f"kernels_cuda/{file}.cu", name, build, sizes.shapes, sizes.counted, sizes.large)


def vector_add(kernel: str, n: int) -> Case:
    problem = problems.vector_add(n)
    each = {"vector_add": 1, "vector_add4": 4, "vector_add_grid_stride": 2}[kernel]  # elements a thread
    arguments = (problem["a"], problem["b"], problem["c"], n)
    launch = Launch(kernel, ceil(n, 256 * each), 256, arguments)
    return Case(problem, (launch,), {"a": 4 * n, "b": 4 * n, "c": 4 * n})


def transpose(kernel: str, rows: int, columns: int) -> Case:
    problem = problems.transpose(rows, columns)
    grid = (ceil(columns, 32), ceil(rows, 32))
    launch = Launch(kernel, grid, (32, 8), (problem["in"], problem["out"], rows, columns))
    barriers = 0 if kernel == "transpose_naive" else grid[0] * grid[1]
    return Case(problem, (launch,), {"in": 4 * rows * columns, "out": 4 * rows * columns}, barriers)


def reduce_sum(kernel: str, n: int, blocks: int = 4) -> Case:
    problem = problems.reduce_sum(n)
    atomic, tree = kernel == "reduce_sum_atomic", kernel == "reduce_sum_tree"
    grid = ceil(n, 256) if atomic else blocks
    launch = Launch(kernel, grid, 256, (problem["x"], problem["out"], n), 1024 if tree else 0)
    barriers = 0 if atomic else blocks * (8 if tree else 1)
    return Case(problem, (launch,), {"x": 4 * n, "out": 4 * (n if atomic else blocks)}, barriers)


def matmul(kernel: str, rows: int, columns: int, depth: int) -> Case:
    # The tile of c that a block computes, its threads, and the tile whose elements share what they read.
    tile, block, sharing = {
        "matmul_naive": ((32, 8), (32, 8), (1, 1)),
        "matmul_tiled": ((16, 16), (16, 16), (16, 16)),
        "matmul_register_tiled": ((64, 64), (16, 16), (64, 64)),
        "matmul_wmma": ((32, 32), (128, 1), (32, 32)),
    }[kernel]
    problem = problems.matmul(rows, columns, depth, "f2" if kernel == "matmul_wmma" else "f4")
    a, b, c = (problem[name] for name in "abc")
    grid = (ceil(columns, tile[0]), ceil(rows, tile[1]))
    launch = Launch(kernel, grid, block, (a, b, c, rows, columns, depth))
    across, down = ceil(columns, sharing[0]), ceil(rows, sharing[1])
    moved = {"a": a.nbytes * across, "b": b.nbytes * down, "c": c.nbytes}
    steps = ceil(depth, 16)
    barriers = {"matmul_naive": 0, "matmul_wmma": 2 * steps + 1}.get(kernel, 2 * steps)
    return Case(problem, (launch,), moved, grid[0] * grid[1] * barriers)


def softmax(kernel: str, rows: int, columns: int, threads: int = 256, huge: bool = False) -> Case:
    problem = problems.softmax(rows, columns, huge)
    read, shared = {
        "softmax_two_pass": (12, 4 * threads),
        "softmax_warp": (12, 0),
        "softmax": (8, 0),
    }[kernel]
    steps = (threads - 1).bit_length()  # of a tree over the block
    barriers = {"softmax_two_pass": 2 * steps + 3, "softmax_warp": 2, "softmax": 1}[kernel]
    launch = Launch(kernel, rows, threads, (problem["x"], problem["y"], columns), shared)
    size = rows * columns
    return Case(problem, (launch,), {"x": read * size, "y": 4 * size}, barriers * rows)


def layer_norm(kernel: str, rows: int, columns: int, threads: int = 256, mean: float = -1.0) -> Case:
    problem = problems.layer_norm(rows, columns, mean)
    x, weight, bias, y = (problem[name] for name in ("x", "weight", "bias", "y"))
    two_pass, by_warp = kernel == "layer_norm_two_pass", kernel == "layer_norm_warp"
    if by_warp:
        arguments: Arguments = (x, weight, bias, y, rows, columns, EPS)
        launch = Launch(kernel, ceil(rows, threads // 32), threads, arguments)
    else:
        shared = 4 * threads if two_pass else 0
        launch = Launch(kernel, rows, threads, (x, weight, bias, y, columns, EPS), shared)
    steps = (threads - 1).bit_length()
    barriers = 0 if by_warp else 2 * steps + 3 if two_pass else 1
    size = rows * columns
    moved = {"x": (12 if two_pass else 8) * size, "weight": 4 * size, "bias": 4 * size, "y": 4 * size}
    return Case(problem, (launch,), moved, barriers * rows)


def rms_norm(kernel: str, rows: int, columns: int) -> Case:
    problem = problems.rms_norm(rows, columns, add=kernel == "rms_norm_add")
    x, weight, y, size = problem["x"], problem["weight"], problem["y"], rows * columns
    grid = ceil(rows, 128 if kernel == "rms_norm_naive" else 4)
    moved = {"x": 8 * size, "weight": 4 * size, "y": 4 * size}
    stream: tuple[Array, ...] = ()
    if kernel == "rms_norm_add":
        stream, moved = (problem["residual"],), moved | {"x": 4 * size, "residual": 12 * size}
    launch = Launch(kernel, grid, 128, (x, *stream, weight, y, rows, columns, EPS))
    return Case(problem, (launch,), moved)


def rope(kernel: str, tokens: int, heads: int, d: int) -> Case:
    problem = problems.rope(tokens, heads, d, 10000.0, max(97, tokens))
    items = tokens * (1 if kernel == "rope" else heads) * d // 2
    moved = {"x": 8 * tokens * heads * d, "positions": 4 * items}
    x, positions = problem["x"], problem["positions"]
    arguments: Arguments = (x, positions, tokens, heads, d, 10000.0)
    if kernel != "rope_naive":
        arguments = (x, positions, problem["cosines"], problem["sines"], tokens, heads, d)
        moved |= {"cosines": 4 * items, "sines": 4 * items}
    return Case(problem, (Launch(kernel, ceil(items, 128), 128, arguments),), moved)


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
    problem = problems.flash_attention(heads, kv_heads, n, d, spread)
    tiled, tile = kernel == "flash_attention", 32
    grid = (ceil(n, tile if tiled else 4), heads)
    shared = 4 * tile * (3 * d + 1 + tile) if tiled else 0
    arrays = tuple(problem[name] for name in ("q", "k", "v", "out", "lse"))
    launch = Launch(f"{kernel}<{d}>", grid, 128, (*arrays, n, heads, kv_heads, d**-0.5), shared)
    # A tile of rows ends with the last key that its last row sees.
    seen = sum(min(top + tile, n) for top in range(0, n, tile)) if tiled else n * (n + 1) // 2
    row = 4 * heads * n * d
    moved = {"q": row, "k": 4 * heads * seen * d, "v": 4 * heads * seen * d, "out": row, "lse": 4 * heads * n}
    tiles = sum(top // tile + 1 for top in range(0, n, tile))
    return Case(problem, (launch,), moved, 2 * heads * tiles if tiled else 0)


def paged_attention(
    kernel: str, lengths: tuple[int, ...], heads: int, kv_heads: int, d: int, size: int, parts: int = 3
) -> Case:
    problem = problems.paged_attention(lengths, heads, kv_heads, d, size)
    texts, most, group = len(lengths), problem["tables"].shape[1], heads // kv_heads
    q, out = problem["q"], problem["out"]
    pool = tuple(problem[name] for name in ("keys", "values", "tables", "lengths"))
    naive, split = kernel == "paged_attention_naive", kernel == "paged_attention_split"
    readers = heads if naive else kv_heads  # blocks that read a text's keys and values
    blocks = texts * readers * (parts if split else 1)
    moved = {name: 4 * sum(lengths) * readers * d for name in ("keys", "values")}
    # All four warps read the query; all 32 lanes read the table for each token, all threads the length.
    moved |= {"q": 16 * blocks * heads // readers * d, "out": 4 * texts * heads * d}
    moved |= {"tables": 128 * sum(lengths) * readers, "lengths": 512 * blocks}
    sizes = (most, size, kv_heads, d**-0.5) if naive else (most, size, d**-0.5)
    instance = f"{kernel}<{d}>" if naive else f"{kernel}<{d}, {group}>"
    if not split:
        launch = Launch(instance, (texts, readers), 128, (q, *pool, out, *sizes))
        return Case(problem, (launch,), moved, blocks)
    outs, lses = empty(parts, texts, heads, d), empty(parts, texts, heads)
    attend = Launch(instance, (texts, readers, parts), 128, (q, *pool, outs, lses, *sizes))
    merge = Launch("merge_parts", (texts, heads), 32, (outs, lses, out, parts, d))
    # Written once and read back; of lses, 32 threads read each number twice, and once more an element.
    moved |= {"outs": 2 * outs.nbytes, "lses": (1 + 2 * 32 + d) * lses.nbytes}
    return Case(problem, (attend, merge), moved, blocks)


def gemv(kernel: str, rows: int, columns: int) -> Case:
    int8 = "int8" in kernel
    problem: Problem = (problems.gemv_int8 if int8 else problems.gemv_int4)(rows, columns)
    codes = "w" if int8 else "codes"
    by_thread, by_warp = kernel.endswith("naive"), kernel.endswith("warp")
    arguments = tuple(problem[name] for name in (codes, "scales", "x", "y"))
    grid = ceil(rows, 128 if by_thread else 4 if by_warp else 16)
    launch = Launch(kernel, grid, 128, (*arguments, rows, columns))
    size = rows * columns
    scales = 4 * rows if int8 else 4 * size // (2 if by_thread else 4)  # a read for 2 or 4 columns
    readers = rows if by_thread or by_warp else 4 * grid  # of x: each row, or each warp for its four
    moved = {codes: problem[codes].nbytes, "scales": scales, "x": 4 * columns * readers, "y": 4 * rows}
    return Case(problem, (launch,), moved)


HEADS: Shapes = ((1, 1, 1, 32), (4, 2, 37, 32), (3, 1, 33, 64), (2, 2, 71, 64), (1, 1, 35, 128))
PAGES: Shapes = (
    ((1,), 1, 1, 32, 16),
    ((17, 1, 5), 4, 2, 32, 4),
    ((31, 64), 6, 2, 64, 16),
    ((7, 23), 3, 1, 32, 1),
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
        replace(SIZES["reduce_sum"], large=(1 << 26, 1056)),  # blocks that fill an H100
    ),
    *(
        kernel
        for file, names in (
            ("matmul_tiled", ("matmul_naive", "matmul_tiled")),
            ("matmul_register_tiled", ("matmul_register_tiled",)),
            ("matmul_wmma", ("matmul_wmma",)),
        )
        for kernel in versions(file, names, matmul, SIZES["matmul"])
    ),
    *versions(
        "softmax",
        ("softmax_two_pass", "softmax_warp", "softmax"),
        softmax,
        SIZES["softmax"],
    ),
    *versions(
        "layer_norm",
        ("layer_norm_two_pass", "layer_norm_warp", "layer_norm"),
        layer_norm,
        SIZES["layer_norm"],
    ),
    *versions(
        "rms_norm",
        ("rms_norm_naive", "rms_norm", "rms_norm_add"),
        rms_norm,
        SIZES["rms_norm"],
    ),
    *versions(
        "rope",
        ("rope_naive", "rope_table", "rope"),
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
        ("attention_online", "flash_attention"),
        flash_attention,
        Sizes((*HEADS, (1, 1, 40, 32, 60.0)), counted=(2, 1, 96, 64), large=(16, 4, 4096, 64)),
    ),
    *versions(
        "paged_attention",
        ("paged_attention_naive", "paged_attention", "paged_attention_split"),
        paged_attention,
        Sizes(PAGES, counted=((37, 64, 5), 6, 2, 64, 16), large=((4096,) * 16, 32, 8, 128, 16, 4)),
    ),
    *versions(
        "gemv_int8",
        ("gemv_int8_naive", "gemv_int8_warp", "gemv_int8"),
        gemv,
        SIZES["gemv_int8"],
    ),
    *versions(
        "gemv_int4",
        ("gemv_int4_naive", "gemv_int4"),
        gemv,
        SIZES["gemv_int4"],
    ),
)


def find(name: str) -> Kernel[Case]:
    """The kernel of this name. KeyError lists them."""
    known = {kernel.name: kernel for kernel in KERNELS}
    if name not in known:
        raise KeyError(f"there is no CUDA kernel {name!r} in the catalog; it has {', '.join(known)}")
    return known[name]
