"""course_lib.hardware.cost against counting by hand."""

import pytest

from course_lib.hardware import MatmulCost, matmul_cost


def test_counts_what_a_loop_counts():
    m, k, n = 2, 3, 5
    multiplied = sum(1 for _ in range(m) for _ in range(n) for _ in range(k))
    cost = matmul_cost(m, k, n, weight_bytes=4, activation_bytes=4)
    assert cost == MatmulCost(2 * multiplied, 4 * (m * k + k * n + m * n), 60 / 124)
    assert isinstance(cost.flops, int)


def test_one_token_meets_the_memory_first():
    one, many = matmul_cost(1, 4096, 4096), matmul_cost(512, 4096, 4096)
    assert one.intensity == pytest.approx(1, rel=1e-3)
    assert many.intensity == pytest.approx(409.6)
    assert many.flops == 512 * one.flops


def test_four_bit_weights_quarter_the_bytes_of_decode():
    assert matmul_cost(1, 4096, 4096, weight_bytes=0.5).bytes / matmul_cost(1, 4096, 4096).bytes < 0.2504


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, -3)])
def test_refuses_sizes_below_one(sizes):
    with pytest.raises(ValueError, match="1 or more"):
        matmul_cost(*sizes)
