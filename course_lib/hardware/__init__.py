"""The machine: what it has (`detect`) and what work costs on it (`cost`)."""

from course_lib.hardware.cost import MatmulCost, matmul_cost

__all__ = ["MatmulCost", "matmul_cost"]
