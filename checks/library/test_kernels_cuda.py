"""The CUDA kernels in the kernel lab: results over awkward shapes, and counts that closed formulas give."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from course_lib.kernels import paged as reference
from course_lib.kernels.lab import Module, Report, on_cuda

KERNELS = Path(__file__).resolve().parents[2] / "kernels_cuda"

# Against float64: products of halves are exact in float32, and sums round as those of float32 do.
FP32 = {"rtol": 2e-5, "atol": 2e-5}


def agree(got: np.ndarray, want: np.ndarray, rtol: float = FP32["rtol"], atol: float = FP32["atol"]) -> None:
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def load(name: str) -> Module:
    return Module(KERNELS / f"{name}.cu")


def ceil(a: int, b: int) -> int:
    return -(-a // b)


@pytest.mark.skipif(
    on_cuda.nvrtc() is None and shutil.which("nvcc") is None, reason="there is no CUDA compiler"
)
@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("flash_attention", "attention_online<32>"),
        ("flash_attention", "flash_attention<128>"),
        ("paged_attention", "paged_attention_naive<64>"),
        ("paged_attention", "paged_attention_split<128, 4>"),
    ],
)
def test_templates_compile_for_a_gpu(name: str, kernel: str) -> None:
    source = (KERNELS / f"{name}.cu").read_text()
    for chip in ("sm_80", "sm_90"):
        code, _ = on_cuda.compile_cubin(source, f"{name}.cu", kernel, chip)
        assert code[:4] == b"\x7fELF"


# matmul

MATMUL: dict[str, tuple[tuple[int, int], int | tuple[int, int], type]] = {
    "matmul_naive": ((32, 8), (32, 8), np.float32),
    "matmul_tiled": ((16, 16), (16, 16), np.float32),
    "matmul_register_tiled": ((64, 64), (16, 16), np.float32),
    "matmul_wmma": ((32, 32), 128, np.float16),
}


def multiply(kernel: str, rows: int, columns: int, depth: int) -> Report:
    (width, height), block, dtype = MATMUL[kernel]
    a: np.ndarray = normal(1, rows, depth).astype(dtype)
    b: np.ndarray = normal(2, depth, columns).astype(dtype)
    c = np.full((rows, columns), np.nan, np.float32)
    grid = (ceil(columns, width), ceil(rows, height))
    file = "matmul_tiled" if kernel == "matmul_naive" else kernel
    report = load(file).launch(kernel, grid, block, a, b, c, rows, columns, depth)
    agree(c, a.astype(np.float64) @ b.astype(np.float64))
    return report


@pytest.mark.parametrize("kernel", MATMUL)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 67, 13), (37, 1, 17), (67, 41, 33)])
def test_matmul_multiplies(kernel: str, shape: tuple[int, int, int]) -> None:
    multiply(kernel, *shape)


@pytest.mark.parametrize(
    ("kernel", "across", "down"),
    [
        ("matmul_naive", 1, 1),
        ("matmul_tiled", 16, 16),
        ("matmul_register_tiled", 64, 64),
        ("matmul_wmma", 32, 32),
    ],
)
def test_matmul_reads_each_matrix_once_a_tile(kernel: str, across: int, down: int) -> None:
    rows, columns, depth = 128, 64, 32
    report = multiply(kernel, rows, columns, depth)
    size = np.dtype(MATMUL[kernel][2]).itemsize
    assert report.traffic("a").bytes == size * rows * columns * depth // across
    assert report.traffic("b").bytes == size * rows * columns * depth // down
    assert report.traffic("c").bytes == 4 * rows * columns
    blocks = rows * columns // (across * down)
    barriers = {"matmul_naive": 0, "matmul_wmma": 2 * depth // 16 + 1}
    assert report.barriers == blocks * barriers.get(kernel, 2 * depth // 16)
    assert report.sectors == report.ideal_sectors


def test_a_thread_of_the_register_tiled_matmul_reads_shared_memory_half_as_often_as_it_multiplies() -> None:
    rows, columns, depth = 64, 64, 32
    products = rows * columns * depth
    for kernel, reads in (("matmul_tiled", 2.0), ("matmul_register_tiled", 0.5)):
        report = multiply(kernel, rows, columns, depth)
        tiles = [report.traffic(name, space="shared", kind="read") for name in ("a_tile", "b_tile")]
        assert sum(tile.accesses for tile in tiles) == reads * products
        assert report.bank_conflicts == 0


# softmax

SOFTMAX = {"softmax_two_pass": (12, 19), "softmax_warp": (12, 2), "softmax": (8, 1)}


def soften(kernel: str, x: np.ndarray, threads: int = 256) -> Report:
    rows, columns = x.shape
    y = np.full_like(x, np.nan)
    shared = 4 * threads if kernel == "softmax_two_pass" else 0
    report = load("softmax").launch(kernel, rows, threads, x, y, columns, shared_bytes=shared)
    exponentials = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    agree(y, exponentials / exponentials.sum(-1, keepdims=True))
    return report


@pytest.mark.parametrize("kernel", SOFTMAX)
@pytest.mark.parametrize(
    ("rows", "columns", "threads"), [(1, 1, 32), (3, 31, 64), (2, 257, 256), (5, 1009, 128)]
)
def test_softmax_of_rows(kernel: str, rows: int, columns: int, threads: int) -> None:
    soften(kernel, 3 * normal(rows, rows, columns), threads)


@pytest.mark.parametrize("kernel", SOFTMAX)
def test_softmax_of_large_numbers(kernel: str) -> None:
    rising = np.linspace(-1000, 1000, 301, dtype=np.float32)
    soften(kernel, np.stack([rising, rising[::-1], np.full(301, 3e38, np.float32)]), 64)


@pytest.mark.parametrize("kernel", SOFTMAX)
def test_softmax_counts(kernel: str) -> None:
    rows, columns = 3, 1024
    report = soften(kernel, normal(3, rows, columns))
    read, barriers = SOFTMAX[kernel]
    assert report.traffic("x").bytes == read * rows * columns
    assert report.traffic("y").bytes == 4 * rows * columns
    assert report.barriers == barriers * rows
    assert report.sectors == report.ideal_sectors and report.bank_conflicts == 0


# layer_norm and rms_norm

EPS = 1e-5
LAYER_NORM = {"layer_norm_two_pass": 12, "layer_norm_warp": 8, "layer_norm": 8}


def normalize(kernel: str, x: np.ndarray, threads: int, tolerance: dict[str, float]) -> Report:
    rows, columns = x.shape
    weight, bias, y = 1 + normal(1, columns), normal(2, columns), np.full_like(x, np.nan)
    module = load("layer_norm")
    if kernel == "layer_norm_warp":
        grid = ceil(rows, threads // 32)
        report = module.launch(kernel, grid, threads, x, weight, bias, y, rows, columns, EPS)
    else:
        shared = 4 * threads if kernel == "layer_norm_two_pass" else 0
        arguments = (x, weight, bias, y, columns, EPS)
        report = module.launch(kernel, rows, threads, *arguments, shared_bytes=shared)
    exact = x.astype(np.float64)
    want = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + EPS)
    agree(y, want * weight + bias, **tolerance)
    return report


@pytest.mark.parametrize("kernel", LAYER_NORM)
@pytest.mark.parametrize(
    ("rows", "columns", "threads"), [(1, 1, 32), (3, 31, 64), (7, 257, 128), (2, 509, 256)]
)
def test_layer_norm_of_rows(kernel: str, rows: int, columns: int, threads: int) -> None:
    normalize(kernel, 3 * normal(rows, rows, columns) - 1, threads, FP32)


@pytest.mark.parametrize("kernel", LAYER_NORM)
def test_layer_norm_keeps_the_variance_beside_a_large_mean(kernel: str) -> None:
    # float32 near 1e4 has steps of 0.001: that much the mean may be off, and no more.
    normalize(kernel, 1e4 + normal(4, 3, 257), 128, {"rtol": 0.0, "atol": 5e-3})


@pytest.mark.parametrize("kernel", LAYER_NORM)
def test_layer_norm_counts(kernel: str) -> None:
    rows, columns = 8, 512
    report = normalize(kernel, normal(5, rows, columns), 256, FP32)
    assert report.traffic("x").bytes == LAYER_NORM[kernel] * rows * columns
    for name in ("weight", "bias", "y"):
        assert report.traffic(name).bytes == 4 * rows * columns
    barriers = {"layer_norm_two_pass": 19, "layer_norm_warp": 0, "layer_norm": 1}
    assert report.barriers == barriers[kernel] * rows
    assert report.sectors == report.ideal_sectors


RMS_NORM = ("rms_norm_naive", "rms_norm", "rms_norm_add")


def normalize_rms(kernel: str, rows: int, columns: int) -> Report:
    x, weight, y = (
        normal(1, rows, columns),
        1 + normal(2, columns),
        np.full((rows, columns), np.nan, np.float32),
    )
    total = x.astype(np.float64)
    rest = (weight, y, rows, columns, EPS)
    module, warps = load("rms_norm"), ceil(rows, 4)
    if kernel == "rms_norm_add":
        residual = normal(3, rows, columns)
        total = total + residual
        report = module.launch(kernel, warps, 128, x, residual, *rest)
        agree(residual, total)
    else:
        report = module.launch(
            kernel, ceil(rows, 128) if kernel == "rms_norm_naive" else warps, 128, x, *rest
        )
    want = total / np.sqrt((total**2).mean(-1, keepdims=True) + EPS) * weight
    agree(y, want)
    return report


@pytest.mark.parametrize("kernel", RMS_NORM)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 331), (131, 7), (9, 64)])
def test_rms_norm_of_rows(kernel: str, rows: int, columns: int) -> None:
    normalize_rms(kernel, rows, columns)


def test_rms_norm_counts() -> None:
    rows, columns = 64, 96
    elements = rows * columns
    by_thread, by_warp, fused = (normalize_rms(kernel, rows, columns) for kernel in RMS_NORM)
    for report in (by_thread, by_warp):
        assert report.traffic("x").bytes == 8 * elements
        assert report.traffic("y").bytes == report.traffic("weight").bytes == 4 * elements
    assert by_warp.sectors == by_warp.ideal_sectors == 16 * elements // 32
    for name in ("x", "y"):
        assert by_thread.traffic(name).sectors == 8 * by_warp.traffic(name).sectors
    assert fused.global_bytes == (20 + 4) * elements and fused.sectors == fused.ideal_sectors


# rope

ROPE = ("rope_naive", "rope_table", "rope")


def rotate(kernel: str, tokens: int, heads: int, d: int, base: float = 10000.0) -> Report:
    x = normal(1, tokens, heads, d)
    positions = np.random.default_rng(2).permutation(97)[:tokens].astype(np.int32)
    angles = np.arange(97)[:, None] * base ** (-2 * np.arange(d // 2) / d)
    turned = (x[..., : d // 2] + 1j * x[..., d // 2 :]) * np.exp(1j * angles[positions])[:, None]
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    items = tokens * (1 if kernel == "rope" else heads) * d // 2
    table = () if kernel == "rope_naive" else (cosines, sines)
    sizes = (tokens, heads, d, base) if kernel == "rope_naive" else (tokens, heads, d)
    report = load("rope").launch(kernel, ceil(items, 128), 128, x, positions, *table, *sizes)
    agree(x, np.concatenate([turned.real, turned.imag], -1))
    return report


@pytest.mark.parametrize("kernel", ROPE)
@pytest.mark.parametrize(("tokens", "heads", "d"), [(1, 1, 2), (1, 3, 10), (7, 5, 26), (13, 2, 64)])
def test_rope_turns_pairs(kernel: str, tokens: int, heads: int, d: int) -> None:
    rotate(kernel, tokens, heads, d)


def test_rope_reads_the_table_once_a_token() -> None:
    tokens, heads, d = 16, 4, 64
    for kernel, table in (
        ("rope_naive", 0),
        ("rope_table", 4 * tokens * heads * d),
        ("rope", 4 * tokens * d),
    ):
        report = rotate(kernel, tokens, heads, d)
        assert report.traffic("x").bytes == 8 * tokens * heads * d
        assert report.traffic("x").sectors == report.traffic("x").ideal_sectors
        assert report.global_bytes - report.traffic("positions").bytes - 8 * tokens * heads * d == table


# attention


def exact_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Causal attention in float64, and each row's log-sum-exp; heads repeated for their groups."""
    group = q.shape[0] // k.shape[0]
    k, v = np.repeat(k, group, 0).astype(np.float64), np.repeat(v, group, 0).astype(np.float64)
    scores = np.where(np.tri(q.shape[1], dtype=bool), scale * q @ k.swapaxes(1, 2), -np.inf)
    lse = np.logaddexp.reduce(scores, -1)
    return np.exp(scores - lse[..., None]) @ v, lse


@pytest.mark.parametrize("kernel", ["attention_global", "attention_naive"])
@pytest.mark.parametrize(("heads", "n", "d"), [(1, 1, 1), (2, 37, 13), (1, 131, 24)])
def test_attention_a_row_a_block(kernel: str, heads: int, n: int, d: int) -> None:
    q, k, v = normal(1, 3, heads, n, d)
    out, scores = np.full_like(q, np.nan), np.full((heads, n, n), np.nan, np.float32)
    scale = d**-0.5
    arguments = (q, k, v, scores, out) if kernel == "attention_global" else (q, k, v, out)
    shared = 0 if kernel == "attention_global" else 4 * n
    module = load("attention_naive")
    report = module.launch(kernel, (n, heads), 128, *arguments, n, d, scale, shared_bytes=shared)
    agree(out, exact_attention(q, k, v, scale)[0])
    for name in ("k", "v"):
        assert report.traffic(name, kind="read").bytes == 4 * heads * n * (n + 1) // 2 * d
    for name in ("q", "out"):
        assert report.traffic(name).bytes == 4 * heads * n * d
    if kernel == "attention_global":
        assert report.traffic("scores").bytes == 4 * heads * n * (n + 1) // 2 * (3 + d)
    if d == 24:  # rows of whole sectors
        assert (report.traffic("k").sectors == report.traffic("k").ideal_sectors) == (
            kernel == "attention_naive"
        )


FLASH = ("attention_online", "flash_attention")


def flash(kernel: str, heads: int, kv_heads: int, n: int, d: int, spread: float = 1.0) -> Report:
    q, k, v = spread * normal(1, heads, n, d), normal(2, kv_heads, n, d), normal(3, kv_heads, n, d)
    out, lse = np.full_like(q, np.nan), np.full((heads, n), np.nan, np.float32)
    tiled = kernel == "flash_attention"
    grid, shared = (ceil(n, 32 if tiled else 4), heads), 4 * 32 * (3 * d + 1 + 32) if tiled else 0
    arguments = (q, k, v, out, lse, n, heads, kv_heads, d**-0.5)
    module = load("flash_attention")
    report = module.launch(f"{kernel}<{d}>", grid, 128, *arguments, shared_bytes=shared)
    want, want_lse = exact_attention(q, k, v, d**-0.5)
    agree(out, want)
    agree(lse, want_lse)
    return report


@pytest.mark.parametrize("kernel", FLASH)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "n", "d"),
    [(1, 1, 1, 32), (4, 2, 37, 32), (3, 1, 33, 64), (2, 2, 71, 64), (1, 1, 35, 128)],
)
def test_flash_attention_is_attention(kernel: str, heads: int, kv_heads: int, n: int, d: int) -> None:
    flash(kernel, heads, kv_heads, n, d)


@pytest.mark.parametrize("kernel", FLASH)
def test_flash_attention_with_scores_that_exp_cannot_hold(kernel: str) -> None:
    flash(kernel, 1, 1, 40, 32, spread=60.0)


@pytest.mark.parametrize("n", [64, 96, 101])
def test_flash_attention_reads_and_writes_what_the_formulas_say(n: int) -> None:
    heads, kv_heads, d, tile = 2, 1, 64, 32
    report = flash("flash_attention", heads, kv_heads, n, d)
    for name in ("k", "v"):
        read = sum(min(top + tile, n) for top in range(0, n, tile)) * d
        assert report.traffic(name).bytes == 4 * heads * read
        if n % tile == 0:
            assert 2 * read == n * (n + tile) * d // tile
    assert report.traffic("q").bytes == report.traffic("out").bytes == 4 * heads * n * d
    assert report.traffic("lse").bytes == 4 * heads * n
    written = sum(row.bytes for row in report.rows if row.kind == "write" and row.space == "global")
    assert written == 4 * heads * (n * d + n)
    assert report.bank_conflicts == 0 and report.traffic("k").sectors == report.traffic("k").ideal_sectors


def test_attention_online_reads_every_key_for_every_row() -> None:
    heads, n, d = 2, 45, 32
    report = flash("attention_online", heads, 1, n, d)
    assert report.traffic("k").bytes + report.traffic("v").bytes == 4 * heads * n * (n + 1) * d
    assert report.shared_bytes == 0


# paged_attention


def paged(
    kernel: str, lengths: list[int], heads: int, kv_heads: int, d: int, size: int, parts: int = 1
) -> Report:
    rng = np.random.default_rng(7)
    texts, most = len(lengths), max(ceil(length, size) for length in lengths) + 1
    blocks = texts * most
    q, out = normal(1, texts, heads, d), np.full((texts, heads, d), np.nan, np.float32)
    keys, values = normal(2, blocks, size, kv_heads, d), normal(3, blocks, size, kv_heads, d)
    tables = rng.permutation(blocks).reshape(texts, most).astype(np.int32)
    for text, length in enumerate(lengths):  # what is behind a text's last block has no meaning
        tables[text, ceil(length, size) :] = -1
    counts, scale, group = np.array(lengths, np.int32), d**-0.5, heads // kv_heads
    module, pool = load("paged_attention"), (keys, values, tables, counts)
    arguments: tuple[np.ndarray | float, ...]
    if kernel == "paged_attention_naive":
        arguments = (q, *pool, out, most, size, kv_heads, scale)
        report = module.launch(f"{kernel}<{d}>", (texts, heads), 128, *arguments)
    elif kernel == "paged_attention":
        arguments = (q, *pool, out, most, size, scale)
        report = module.launch(f"{kernel}<{d}, {group}>", (texts, kv_heads), 128, *arguments)
    else:
        outs, lses = zeros(parts, texts, heads, d), zeros(parts, texts, heads)
        arguments = (q, *pool, outs, lses, most, size, scale)
        report = module.launch(f"{kernel}<{d}, {group}>", (texts, kv_heads, parts), 128, *arguments)
        module.launch("merge_parts", (texts, heads), 32, outs, lses, out, parts, d)
        written = report.traffic("outs").bytes + report.traffic("lses").bytes
        assert written == 4 * parts * texts * heads * (d + 1)
    want = reference.paged_attention(q.astype(np.float64), keys, values, tables, counts)
    agree(out, want)
    return report


PAGED = ("paged_attention_naive", "paged_attention", "paged_attention_split")


@pytest.mark.parametrize("kernel", PAGED)
@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "d", "size"),
    [([1], 1, 1, 32, 16), ([17, 1, 5], 4, 2, 32, 4), ([31, 64], 6, 2, 64, 16), ([7, 23], 3, 1, 32, 1)],
)
def test_paged_attention_is_attention_over_the_pool(
    kernel: str, lengths: list[int], heads: int, kv_heads: int, d: int, size: int
) -> None:
    paged(kernel, lengths, heads, kv_heads, d, size, parts=3)


def test_a_group_of_heads_reads_its_keys_once() -> None:
    lengths, heads, kv_heads, d = [37, 64, 5], 6, 2, 64
    for kernel, readers in zip(PAGED, (heads, kv_heads, kv_heads), strict=True):
        report = paged(kernel, lengths, heads, kv_heads, d, 16, parts=4)
        for name in ("keys", "values"):
            assert report.traffic(name).bytes == 4 * sum(lengths) * readers * d
            assert report.traffic(name).sectors == report.traffic(name).ideal_sectors
        parts = 4 if kernel == "paged_attention_split" else 1
        assert report.traffic("q").bytes == 16 * parts * len(lengths) * heads * d  # by four warps
        assert report.bank_conflicts == 0


# gemv_int8 and gemv_int4


def gemv(kernel: str, rows: int, columns: int) -> Report:
    rng = np.random.default_rng(rows)
    x, y = normal(1, columns), np.full(rows, np.nan, np.float32)
    if "int8" in kernel:
        codes: np.ndarray = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
        scales = rng.uniform(1e-3, 2e-3, rows).astype(np.float32)
        exact = codes * scales[:, None].astype(np.float64)
    else:
        weights = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
        codes = weights[:, ::2] | weights[:, 1::2] << 4
        scales = rng.uniform(0.01, 0.02, (rows, columns // 32)).astype(np.float32)
        exact = (weights.astype(np.float64) - 8) * np.repeat(scales, 32, 1)
    per_block = {"naive": 128, "warp": 4}.get(kernel.split("_")[-1], 16)
    arguments = (codes, scales, x, y, rows, columns)
    report = load(kernel[:9]).launch(kernel, ceil(rows, per_block), 128, *arguments)
    agree(y, exact @ x)
    return report


@pytest.mark.parametrize("kernel", ["gemv_int8_naive", "gemv_int8_warp", "gemv_int8"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (1, 1012), (37, 52), (131, 128)])
def test_gemv_int8(kernel: str, rows: int, columns: int) -> None:
    gemv(kernel, rows, columns)


@pytest.mark.parametrize("kernel", ["gemv_int4_naive", "gemv_int4"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (1, 992), (37, 96), (131, 128)])
def test_gemv_int4(kernel: str, rows: int, columns: int) -> None:
    gemv(kernel, rows, columns)


def test_gemv_counts() -> None:
    rows, columns = 32, 256
    weights, best = (
        rows * columns,
        {"gemv_int8": ("w", rows * columns), "gemv_int4": ("codes", rows * columns // 2)},
    )
    for kernel, (codes, size) in best.items():
        naive, fast = gemv(f"{kernel}_naive", rows, columns), gemv(kernel, rows, columns)
        for report, of_x in ((naive, 4), (fast, 1)):
            assert report.traffic(codes).bytes == size
            assert report.traffic("x").bytes == of_x * weights
        assert fast.traffic(codes).sectors == size // 32
        assert naive.traffic(codes).sectors == 32 * fast.traffic(codes).sectors
    by_warp, fast = gemv("gemv_int8_warp", rows, columns), gemv("gemv_int8", rows, columns)
    assert by_warp.traffic("x").bytes == 4 * weights and by_warp.traffic("w").sectors == weights // 32
    assert by_warp.traffic("w").requests == 4 * fast.traffic("w").requests
    # One scale for 32 weights, asked for by the 8 lanes that share it: a warp's four lie in one sector.
    assert gemv("gemv_int4", rows, columns).traffic("scales").sectors == rows * columns // 128
