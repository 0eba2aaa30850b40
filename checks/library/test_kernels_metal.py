"""The Metal kernels in the kernel lab: results over awkward shapes, counts that closed formulas give, faults.

What is launched, and the formulas, are in `course_lib.kernels.catalog.metal`. No Mac is needed, and none has
run these sources yet: that they keep Metal's rules, which a C++ compiler does not know, is tested here, too.
"""

import functools
import re
from pathlib import Path
from typing import Any

import pytest

from course_lib.classroom.expect import TOLERANCES
from course_lib.kernels.catalog import Kernel, metal
from course_lib.kernels.catalog.case import ROOT
from course_lib.kernels.lab import KernelFault, Module, Report
from course_lib.kernels.lab.text import masked

SOURCES = sorted((ROOT / "kernels_metal").glob("*.metal"))


@functools.cache
def load(path: Path) -> Module:
    return Module(path)


def launch(name: str, *shape: Any, counted: bool = True) -> list[Report]:
    """Run a kernel on a problem, and check its result and counts."""
    kernel = metal.find(name)
    case = kernel.at(*(shape or kernel.counted))
    reports = case.run(load(kernel.path))
    assert case.wrong() is None
    if counted:
        assert case.miscounted(reports) == []
    return reports


CASES = [
    pytest.param(kernel, shape, id=f"{kernel.name}-{shape}".replace(" ", ""))
    for kernel in metal.KERNELS
    for shape in kernel.shapes
]


@pytest.mark.parametrize(("kernel", "shape"), CASES)
def test_awkward_shapes(kernel: Kernel, shape: tuple[Any, ...]) -> None:
    # Each element moves as often as it should at any size, but for matrices that no tile divides and for
    # queries of simdgroups that find no token in a short text.
    launch(kernel.name, *shape, counted=not kernel.name.startswith("paged"))


@pytest.mark.parametrize("kernel", metal.KERNELS, ids=lambda kernel: kernel.name)
def test_counts_are_as_the_formulas_say(kernel: Kernel) -> None:
    reports = launch(kernel.name)
    problem = kernel.at(*kernel.counted).problem
    size = {"float": 4, "half": 2, "bfloat": 2}[metal.type_of(kernel.name)]
    assert sum(report.global_bytes for report in reports) >= problem.least_bytes * size // 4


def test_every_kernel_is_in_the_catalog() -> None:
    listed = {(kernel.path, kernel.name) for kernel in metal.KERNELS}
    for path in SOURCES:
        for name in load(path).kernels:
            base = re.sub(r"(_\d+)+$", "", name)  # without the widths of heads, and heads a group
            assert (path, base) in listed or base.startswith("merge_parts")


def test_the_tolerances_are_those_of_the_one_table() -> None:
    for kind, name in (("half", "float16"), ("bfloat", "bfloat16")):
        assert metal.TOLERANCES[kind] == tuple(TOLERANCES[name])


# What moves, and in which sectors

FULL_SECTORS = (
    "vector_add vector_add4 vector_add_grid_stride transpose_tiled transpose reduce_sum_tree reduce_sum "
    "matmul_naive matmul_tiled matmul_register_tiled matmul_simdgroup_float matmul_simdgroup_half "
    "softmax_two_pass softmax_simd softmax_float softmax_half layer_norm_two_pass layer_norm_simd "
    "layer_norm_float rms_norm_float rms_norm_add_half attention_online_float flash_attention_float "
    "flash_attention_half"
)
NO_CONFLICTS = (
    "transpose reduce_sum_tree reduce_sum matmul_tiled matmul_register_tiled softmax_two_pass softmax_simd "
    "softmax_bfloat paged_attention_naive paged_attention_half paged_attention_split_float"
)


@pytest.mark.parametrize("name", FULL_SECTORS.split())
def test_no_sector_moves_in_vain(name: str) -> None:
    (report,) = launch(name)
    assert report.sectors == report.ideal_sectors


@pytest.mark.parametrize("name", NO_CONFLICTS.split())
def test_no_bank_is_asked_twice(name: str) -> None:
    assert all(report.bank_conflicts == 0 for report in launch(name))


def test_a_transpose_writes_columns_and_then_reads_them_from_one_bank() -> None:
    rows, columns = metal.find("transpose").counted
    (naive,), (tiled,) = launch("transpose_naive"), launch("transpose_tiled")
    assert naive.traffic("out").sectors == 8 * rows * columns // 8
    assert tiled.bank_conflicts == 31 * tiled.traffic("tile", kind="read").requests


def test_sums_meet_once_a_threadgroup() -> None:
    (n,) = metal.find("reduce_sum").counted
    atomics = {name: launch(f"reduce_sum{name}")[0].atomics for name in ("_atomic", "_tree", "")}
    assert atomics == {"_atomic": n, "_tree": 4, "": 4}


def test_the_matrix_products_read_each_matrix_once_a_tile() -> None:
    rows, columns, depth = metal.find("matmul_tiled").counted
    for name, reuse, size in (
        ("matmul_naive", 1, 4),
        ("matmul_tiled", 16, 4),
        ("matmul_register_tiled", 64, 4),
        ("matmul_simdgroup_float", 32, 4),
        ("matmul_simdgroup_half", 32, 2),
    ):
        (report,) = launch(name)
        read = report.traffic("a").bytes + report.traffic("b").bytes
        assert read == 2 * size * rows * columns * depth // reuse


def test_threadgroup_memory_is_what_the_headers_say() -> None:
    sizes = {
        "transpose_tiled": 4096,
        "transpose": 4224,
        "reduce_sum_tree": 1024,
        "reduce_sum": 128,
        "matmul_tiled": 2048,
        "matmul_register_tiled": 8320,
        "matmul_simdgroup_float": 9472,
        "matmul_simdgroup_half": 7040,
        "softmax_two_pass": 1024,
        "softmax_float": 256,
        "layer_norm_float": 384,
        "flash_attention_float": 14336,
        "flash_attention_half": 10240,
    }
    assert {name: launch(name)[0].shared_bytes for name in sizes} == sizes
    # 32 KiB are all that an Apple GPU gives a threadgroup.
    assert launch("flash_attention_float", 1, 1, 35, 128)[0].shared_bytes <= 32 << 10


def test_rms_norm_by_thread_touches_a_sector_a_number() -> None:
    (by_thread,), (by_simdgroup,) = launch("rms_norm_naive"), launch("rms_norm_float")
    for name in ("x", "y"):
        assert by_thread.traffic(name).sectors == 8 * by_simdgroup.traffic(name).sectors


def test_rope_reads_the_table_once_a_token() -> None:
    tokens, heads, d = metal.find("rope_table").counted
    (by_head,), (by_token,), (halves,) = launch("rope_table"), launch("rope_float"), launch("rope_half")
    for report, bytes_read in ((by_head, 4 * tokens * heads * d), (by_token, 4 * tokens * d)):
        assert report.traffic("cosines").bytes + report.traffic("sines").bytes == bytes_read
    assert halves.traffic("x").bytes == 4 * tokens * heads * d


def test_attention_without_scores_in_memory_writes_n_rows_and_no_more() -> None:
    heads, _, n, d = metal.find("flash_attention_float").counted
    for name in ("attention_online_float", "flash_attention_float"):
        (report,) = launch(name)
        written = sum(row.bytes for row in report.rows if row.kind == "write" and row.space == "global")
        assert written == 4 * heads * (n * d + n)
    (flash,), (online,) = launch("flash_attention_float"), launch("attention_online_float")
    tile, read = 32, {name: flash.traffic(name).bytes for name in "kv"}
    assert read["k"] + read["v"] == 4 * heads * n * (n + tile) * d // tile
    assert online.traffic("k").bytes + online.traffic("v").bytes == 4 * heads * n * (n + 1) * d


def test_four_rows_a_simdgroup_read_x_a_quarter_as_often() -> None:
    for naive, fast in (("gemv_int8_naive", "gemv_int8_float"), ("gemv_int4_naive", "gemv_int4_float")):
        codes = "w" if "int8" in naive else "codes"
        (slow,), (quick,) = launch(naive), launch(fast)
        assert slow.traffic("x").bytes == 4 * quick.traffic("x").bytes
        assert quick.traffic(codes).sectors == quick.traffic(codes).bytes // 32
        assert slow.traffic(codes).sectors == 32 * quick.traffic(codes).sectors


# Faults that the lab has to find

BARRIER = re.compile(r"^.*\bthreadgroup_barrier\(.*$", re.MULTILINE)


def found(file: str, source: str, name: str, *shape: Any) -> set[str]:
    """The kinds of what the lab finds in a kernel of a changed source."""
    module = Module(source, "metal", name=f"{file}.metal")
    kernel = metal.find(name)
    try:
        kernel.at(*(shape or kernel.counted)).run(module)
    except KernelFault as fault:
        return {finding.kind for finding in fault.findings}
    return set()


@pytest.mark.parametrize(
    ("file", "name", "which"),
    [
        ("transpose", "transpose", 0),
        ("reduce_sum", "reduce_sum", 1),
        ("matmul_simdgroup", "matmul_simdgroup_half", 2),
        ("layer_norm", "layer_norm_bfloat", 5),
        ("flash_attention", "flash_attention_half", 3),
        ("paged_attention", "paged_attention_half", 0),
    ],
)
def test_a_deleted_barrier_is_found(file: str, name: str, which: int) -> None:
    source = (ROOT / f"kernels_metal/{file}.metal").read_text()
    match = list(BARRIER.finditer(source))[which]
    gone = source[: match.start()] + " " * len(match.group()) + source[match.end() :]
    assert "race" in found(file, gone, name)


@pytest.mark.parametrize(
    ("file", "change", "into", "name", "shape"),
    [
        ("vector_add", "i < n; i += width", "i <= n; i += width", "vector_add_grid_stride", (1003,)),
        ("transpose", "if (i < rows && column < columns)", "if (i < rows)", "transpose", (61, 37)),
        ("reduce_sum", "partial[32]", "partial[7]", "reduce_sum", (5000,)),
        ("matmul_tiled", "k < TILE", "k <= TILE", "matmul_tiled", (37, 1, 17)),
        ("gemv_int4", "top + r < rows", "top + r <= rows", "gemv_int4_float", (37, 96)),
        (
            "flash_attention",
            "start + t / D < n",
            "start + t / D <= n",
            "flash_attention_float",
            (1, 1, 40, 64),
        ),
    ],
)
def test_a_broken_bound_is_found(
    file: str, change: str, into: str, name: str, shape: tuple[Any, ...]
) -> None:
    source = (ROOT / f"kernels_metal/{file}.metal").read_text()
    assert source.count(change)
    assert {"out of bounds", "shared out of bounds"} & found(file, source.replace(change, into), name, *shape)


# What Metal's compiler asks for, and C++'s does not

KERNEL = re.compile(r"(?:\bkernel|\[\[kernel\]\]) void (\w+)\(([^{]*)\)\s*\{")
GRID = [
    f"{what}_{where}"
    for what, where in (
        ("thread_position", "in_grid"),
        ("thread_position", "in_threadgroup"),
        ("threadgroup_position", "in_grid"),
        ("threads", "per_grid"),
        ("threads", "per_threadgroup"),
        ("threadgroups", "per_grid"),
    )
]
TYPES = r"(?:float4?|half|bfloat|u?int(?:8_t)?|u?char4?|u?short|T|O|(?:Shared|vec)<[^<>]*>)"
POINTER = re.compile(rf"(?:^|[(,;{{}}<])\s*((?:const\s+)?{TYPES}(?:\s+const)?\s*\*)\s*\w*", re.MULTILINE)


def test_a_pointer_without_its_memory_is_seen() -> None:
    assert POINTER.findall("float f(const float* p, device T* q, Shared<D, G>* r) { uint* s; a = b * c; }")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_source_keeps_metals_rules(path: Path) -> None:
    code = masked(path.read_text())
    assert code.count("#include <metal_stdlib>") == 1
    kernels = list(KERNEL.finditer(code))
    assert kernels
    for kernel in kernels:
        parameters = re.findall(r"([\w\s*&<>]+?)\s*(\w+)\s*\[\[(\w+)(?:\((\d+)\))?\]\]", kernel.group(2))
        assert len(parameters) == kernel.group(2).count("[[")
        numbers = [int(number) for _, _, attribute, number in parameters if attribute == "buffer"]
        assert numbers == list(range(len(numbers)))
        # Positions and sizes of the grid are all of one type; an index is a number.
        types = {kind.strip() for kind, _, attribute, _ in parameters if attribute in GRID}
        assert len(types) <= 1
        for kind, _, attribute, _ in parameters:
            if attribute in ("buffer", "threadgroup"):
                assert re.match(r"\s*(device|constant|threadgroup)\b", kind) and re.search(r"[*&]$", kind)
            elif attribute not in GRID:
                assert kind.strip() == "uint"
    # A pointer says which memory it points to, a constant of the file that it is one.
    assert POINTER.findall(code) == []
    assert not re.search(r"^(?:static |const )*constexpr", code, re.MULTILINE)
    # Numbers are float: a double is an error in Metal, and slow C++ here.
    assert not re.search(r"\bdouble\b|\d\.\d*(?![\df])", re.sub(r"#include.*", "", code))
