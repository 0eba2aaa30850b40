"""The CUDA kernels in the kernel lab: results over awkward shapes, and counts that closed formulas give.

What is launched, and the formulas, are in `course_lib.kernels.catalog.cuda`; here is what else must hold.
"""

import functools
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from course_lib.kernels.catalog import Kernel, cuda
from course_lib.kernels.catalog.case import ROOT, traffic_of
from course_lib.kernels.lab import Module, Report, on_cuda


@functools.cache
def load(path: Path) -> Module:
    return Module(path)


def launch(name: str, *shape: Any, counted: bool = True) -> list[Report]:
    """Run a kernel on a problem, and check its result and counts."""
    kernel = cuda.find(name)
    case = kernel.at(*(shape or kernel.counted))
    reports = case.run(load(kernel.path))
    assert case.wrong() is None
    if counted:
        assert case.miscounted(reports) == []
    return reports


CASES = [
    pytest.param(kernel, shape, id=f"{kernel.name}-{shape}".replace(" ", ""))
    for kernel in cuda.KERNELS
    for shape in kernel.shapes
]


@pytest.mark.parametrize(("kernel", "shape"), CASES)
def test_awkward_shapes(kernel: Kernel, shape: tuple[Any, ...]) -> None:
    # Of paged attention's warps, those that find no token in a short text may not have read their query.
    launch(kernel.name, *shape, counted=not kernel.name.startswith("paged"))


@pytest.mark.parametrize("kernel", cuda.KERNELS, ids=lambda kernel: kernel.name)
def test_counts_are_as_the_formulas_say(kernel: Kernel) -> None:
    reports = launch(kernel.name)
    assert sum(report.global_bytes for report in reports) >= kernel.at(*kernel.counted).problem.least_bytes


def test_every_kernel_is_in_the_catalog() -> None:
    listed = {(kernel.path, kernel.name) for kernel in cuda.KERNELS}
    helpers = {"merge_parts"}  # the second launch of paged_attention_split
    for path in sorted((ROOT / "kernels_cuda").glob("*.cu")):
        for name in load(path).kernels:
            base = name.removesuffix("<…>")
            assert (path, base) in listed or base in helpers


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
    source = (ROOT / f"kernels_cuda/{name}.cu").read_text()
    for chip in ("sm_80", "sm_90"):
        code, _ = on_cuda.compile_cubin(source, f"{name}.cu", kernel, chip)
        assert code[:4] == b"\x7fELF"


# What moves, and in which sectors

FULL_SECTORS = (
    "vector_add vector_add4 vector_add_grid_stride transpose_tiled transpose reduce_sum_tree reduce_sum "
    "matmul_naive matmul_tiled matmul_register_tiled matmul_wmma softmax_two_pass softmax_warp softmax "
    "layer_norm_two_pass layer_norm_warp layer_norm rms_norm rms_norm_add attention_online flash_attention"
)
NO_CONFLICTS = (
    "transpose reduce_sum_tree reduce_sum matmul_tiled matmul_register_tiled softmax_two_pass softmax_warp "
    "softmax flash_attention paged_attention_naive paged_attention paged_attention_split"
)


@pytest.mark.parametrize("name", FULL_SECTORS.split())
def test_no_sector_moves_in_vain(name: str) -> None:
    (report,) = launch(name)
    assert report.sectors == report.ideal_sectors


@pytest.mark.parametrize("name", NO_CONFLICTS.split())
def test_no_bank_is_asked_twice(name: str) -> None:
    assert all(report.bank_conflicts == 0 for report in launch(name))


def test_a_transpose_writes_columns_and_then_reads_them_from_one_bank() -> None:
    rows, columns = cuda.find("transpose").counted
    (naive,), (tiled,) = launch("transpose_naive"), launch("transpose_tiled")
    assert naive.traffic("out").sectors == 8 * rows * columns // 8
    assert tiled.bank_conflicts == 31 * tiled.traffic("tile", kind="read").requests


def test_sums_meet_once_a_block() -> None:
    (n,) = cuda.find("reduce_sum").counted
    atomics = {name: launch(f"reduce_sum{name}")[0].atomics for name in ("_atomic", "_tree", "")}
    assert atomics == {"_atomic": n, "_tree": 4, "": 4}


def test_the_matrix_products_read_each_matrix_once_a_tile() -> None:
    rows, columns, depth = cuda.find("matmul_tiled").counted
    for name, reuse, size in (
        ("matmul_naive", 1, 4),
        ("matmul_tiled", 16, 4),
        ("matmul_register_tiled", 64, 4),
        ("matmul_wmma", 32, 2),
    ):
        (report,) = launch(name)
        read = report.traffic("a").bytes + report.traffic("b").bytes
        assert read == 2 * size * rows * columns * depth // reuse


def test_a_thread_of_the_register_tiled_matmul_reads_shared_memory_half_as_often_as_it_multiplies() -> None:
    rows, columns, depth = 64, 64, 32
    products = rows * columns * depth
    for kernel, reads in (("matmul_tiled", 2.0), ("matmul_register_tiled", 0.5)):
        (report,) = launch(kernel, rows, columns, depth)
        tiles = [report.traffic(name, space="shared", kind="read") for name in ("a_tile", "b_tile")]
        assert sum(tile.accesses for tile in tiles) == reads * products


def test_rms_norm_by_thread_touches_a_sector_a_number() -> None:
    (by_thread,), (by_warp,), (fused,) = (launch(f"rms_norm{end}") for end in ("_naive", "", "_add"))
    for name in ("x", "y"):
        assert by_thread.traffic(name).sectors == 8 * by_warp.traffic(name).sectors
    rows, columns = cuda.find("rms_norm").counted
    assert fused.global_bytes == (20 + 4) * rows * columns


def test_rope_reads_the_table_once_a_token() -> None:
    tokens, heads, d = cuda.find("rope").counted
    for name, table in (
        ("rope_naive", 0),
        ("rope_table", 4 * tokens * heads * d),
        ("rope", 4 * tokens * d),
    ):
        (report,) = launch(name)
        assert report.traffic("cosines").bytes + report.traffic("sines").bytes == table
        assert report.traffic("x").sectors == report.traffic("x").ideal_sectors


@pytest.mark.parametrize("name", ["attention_global", "attention_naive"])
def test_a_warp_a_key_reads_its_row_side_by_side(name: str) -> None:
    (report,) = launch(name, 1, 131, 24)  # rows of whole sectors
    side_by_side = report.traffic("k").sectors == report.traffic("k").ideal_sectors
    assert side_by_side == (name == "attention_naive")


@pytest.mark.parametrize("n", [64, 96, 101])
def test_flash_attention_writes_no_more_than_its_result(n: int) -> None:
    heads, d, tile = 2, 64, 32
    (report,) = launch("flash_attention", heads, 1, n, d)
    written = sum(row.bytes for row in report.rows if row.kind == "write" and row.space == "global")
    assert written == 4 * heads * (n * d + n)
    if n % tile == 0:  # as the header says
        assert 2 * report.traffic("k").bytes == 4 * heads * n * (n + tile) * d // tile


def test_attention_online_keeps_nothing_in_shared_memory() -> None:
    (report,) = launch("attention_online", 2, 1, 45, 32)
    assert report.shared_bytes == 0
    assert report.traffic("k").bytes + report.traffic("v").bytes == 4 * 2 * 45 * 46 * 32


def test_a_group_of_heads_reads_its_keys_once() -> None:
    shape = cuda.find("paged_attention").counted
    naive, grouped, split = (launch(f"paged_attention{end}", *shape) for end in ("_naive", "", "_split"))
    group = shape[1] // shape[2]
    for name in ("keys", "values"):
        assert traffic_of(naive, name).bytes == group * traffic_of(grouped, name).bytes
        assert traffic_of(split, name).bytes == traffic_of(grouped, name).bytes
        assert traffic_of(grouped, name).sectors == traffic_of(grouped, name).ideal_sectors


def test_gemv_reads_weights_side_by_side() -> None:
    rows, columns = cuda.find("gemv_int8").counted
    for name, codes, size in (
        ("gemv_int8", "w", rows * columns),
        ("gemv_int4", "codes", rows * columns // 2),
    ):
        (naive,), (fast,) = launch(f"{name}_naive"), launch(name)
        assert naive.traffic("x").bytes == 4 * fast.traffic("x").bytes
        assert fast.traffic(codes).sectors == size // 32
        assert naive.traffic(codes).sectors == 32 * fast.traffic(codes).sectors
    (by_warp,), (fast,), (int4,) = launch("gemv_int8_warp"), launch("gemv_int8"), launch("gemv_int4")
    assert by_warp.traffic("w").sectors == rows * columns // 32
    assert by_warp.traffic("w").requests == 4 * fast.traffic("w").requests
    # One scale for 32 weights, asked for by the 8 lanes that share it: a warp's four lie in one sector.
    assert int4.traffic("scales").sectors == rows * columns // 128


# The catalog's own judgment


def test_a_wrong_number_and_a_wrong_count_are_told() -> None:
    kernel = cuda.find("vector_add")
    source = kernel.path.read_text()
    case = kernel.at(100)
    case.run(Module(source.replace("a[i] + b[i]", "a[i] - b[i]")))
    wrong = case.wrong()
    assert wrong is not None and wrong.startswith("c[0] is ") and wrong.endswith(" of 100 numbers are wrong.")
    case = kernel.at(100)
    twice = source.replace(
        "c[i] = a[i] + b[i]", "c[i] = a[i] + b[i], c[i] = *(volatile const float*)(a + i) + b[i]"
    )
    reports = case.run(Module(twice))
    assert case.wrong() is None
    assert any(text.startswith("a: 800 bytes counted, 400") for text in case.miscounted(reports))


def test_an_output_that_was_never_written_is_wrong() -> None:
    for kernel in cuda.KERNELS:
        if kernel.name.startswith("reduce_sum"):
            continue  # a sum begins at zero
        case = kernel.at(*kernel.shapes[-1])
        assert case.wrong() is not None
        error = case.problem.error()
        assert np.isnan(error) or error > 1e-4


def test_every_shape_makes_the_same_numbers_each_time() -> None:
    for kernel, number in itertools.product(cuda.KERNELS, range(2)):
        first, again = (kernel.at(*kernel.shapes[number]).problem for _ in range(2))
        for name, array in (first.inputs | first.outputs).items():
            np.testing.assert_array_equal(array, again[name])
