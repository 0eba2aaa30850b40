"""The CUDA kernels in the kernel lab: results over awkward shapes, and counts that closed formulas give."""

import math
from pathlib import Path

import numpy as np
import pytest

from course_lib.kernels.lab import Module, Report

KERNELS = Path(__file__).resolve().parents[2] / "kernels_cuda"

# Against float64. Sums of float32 in another order, and of halves that are exact in float32, differ by so much.
FP32 = {"rtol": 2e-5, "atol": 2e-5}


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def load(name: str) -> Module:
    return Module(KERNELS / f"{name}.cu")


def ceil(a: int, b: int) -> int:
    return -(-a // b)


# matmul

MATMUL = {
    "matmul_naive": ((32, 8), (32, 8), np.float32),
    "matmul_tiled": ((16, 16), (16, 16), np.float32),
    "matmul_register_tiled": ((64, 64), (16, 16), np.float32),
    "matmul_wmma": ((32, 32), 128, np.float16),
}


def multiply(kernel: str, rows: int, columns: int, depth: int) -> Report:
    (width, height), block, dtype = MATMUL[kernel]
    a, b = normal(1, rows, depth).astype(dtype), normal(2, depth, columns).astype(dtype)
    c = np.full((rows, columns), np.nan, np.float32)
    grid = (ceil(columns, width), ceil(rows, height))
    report = load("matmul").launch(kernel, grid, block, a, b, c, rows, columns, depth)
    np.testing.assert_allclose(c, a.astype(np.float64) @ b.astype(np.float64), **FP32)
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
    rows, columns, depth = 64, 128, 32
    report = multiply(kernel, rows, columns, depth)
    size = np.dtype(MATMUL[kernel][2]).itemsize
    assert report.traffic("a").bytes == size * rows * columns * depth // across
    assert report.traffic("b").bytes == size * rows * columns * depth // down
    assert report.traffic("c").bytes == 4 * rows * columns
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
    np.testing.assert_allclose(y, exponentials / exponentials.sum(-1, keepdims=True), **FP32)
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
