"""What a launch may ask of a chip: the limits that its driver enforces.

Source: CUDA C++ Programming Guide 13.0, "Technical Specifications per Compute Capability"; Apple, Metal
Feature Set Tables (2025), "Implementation limits".
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Limits of one block (threadgroup), in threads and bytes.

    `static_shared` bounds what the source declares; with dynamic memory `shared` bounds all of it, beyond 48
    KiB only after the host opts in (cudaFuncAttributeMaxDynamicSharedMemorySize).
    """

    name: str
    title: str
    threads: int
    static_shared: int
    shared: int


_KIB = 1024
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("sm_75", "T4, RTX 20", 1024, 48 * _KIB, 64 * _KIB),
        Chip("sm_80", "A100", 1024, 48 * _KIB, 163 * _KIB),
        Chip("sm_86", "RTX 30, A10", 1024, 48 * _KIB, 99 * _KIB),
        Chip("sm_89", "RTX 40, L4, L40S", 1024, 48 * _KIB, 99 * _KIB),
        Chip("sm_90", "H100, H200", 1024, 48 * _KIB, 227 * _KIB),
        Chip("sm_100", "B200", 1024, 48 * _KIB, 227 * _KIB),
        Chip("sm_120", "RTX 50", 1024, 48 * _KIB, 99 * _KIB),
        Chip("apple", "Apple M1 to M4", 1024, 32 * _KIB, 32 * _KIB),
    )
}
DEFAULT = {"cuda": "sm_80", "metal": "apple"}


def chip_of(name: str) -> Chip:
    """The chip of that name. ValueError, with the names there are."""
    if name not in CHIPS:
        raise ValueError(f"no chip is called {name!r}: the lab knows {', '.join(CHIPS)}")
    return CHIPS[name]
