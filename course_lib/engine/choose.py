"""Device, number format and threads: chosen from what the machine is, and said aloud."""

import os
import platform
from dataclasses import dataclass

import torch

from course_lib.hardware.detect import Machine, detect

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Instruction sets with bfloat16 products; without one torch converts every weight on the way.
FAST_BFLOAT16 = ("AMX BF16", "AVX-512 BF16")


@dataclass(frozen=True)
class Choice:
    """What the engine runs on. Each `why` is a phrase for the start line."""

    device: torch.device
    device_why: str
    dtype: torch.dtype
    dtype_why: str
    threads: int | None = None  # None: still to be measured, see `calibrate`
    threads_why: str = ""

    @property
    def pack(self) -> bool:
        """Whether matrices are reordered for oneDNN, the library behind torch's fast paths on x86."""
        on_x86 = platform.machine() in ("x86_64", "AMD64")
        return self.device.type == "cpu" and on_x86 and torch.backends.mkldnn.is_available()

    def reasons(self) -> dict[str, str]:
        """What was chosen and why, for the start lines."""
        reasons = {
            "device": f"{self.device}: {self.device_why}",
            "numbers": f"{str(self.dtype).removeprefix('torch.')}: {self.dtype_why}",
        }
        if self.device.type == "cpu" and self.threads:
            reasons["threads"] = f"{self.threads}: {self.threads_why}"
        return reasons


def choose(
    device: str = "auto", dtype: str = "auto", threads: int | None = None, machine: Machine | None = None
) -> Choice:
    """Fill in what was left to "auto".

    Raises:
        ValueError: an unknown dtype, or a device that is not there.
    """
    machine = machine or detect()
    where, device_why = choose_device(device)
    kind, dtype_why = choose_dtype(dtype, where, machine)
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1.")
    if threads is not None:
        count, threads_why = threads, "as asked"
    elif os.environ.get("OMP_NUM_THREADS", "").isdigit():
        count, threads_why = int(os.environ["OMP_NUM_THREADS"]), "OMP_NUM_THREADS"
    else:
        count, threads_why = None, ""
    return Choice(where, device_why, kind, dtype_why, count, threads_why)


def choose_device(device: str) -> tuple[torch.device, str]:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device != "auto":
        wanted = device.split(":")[0]
        if not available.get(wanted, False):
            there = ", ".join(name for name, here in available.items() if here)
            raise ValueError(f"The device {device!r} is not available here; there is: {there}.")
        return torch.device(device), "as asked"
    if available["cuda"]:
        return torch.device("cuda"), torch.cuda.get_device_name()
    if available["mps"]:
        return torch.device("cpu"), "as a rule; --device mps takes the Apple GPU"
    return torch.device("cpu"), "no GPU that torch can use"


def choose_dtype(dtype: str, device: torch.device, machine: Machine) -> tuple[torch.dtype, str]:
    """A 16-bit format where this device computes in it: decoding is reading weights, so half the bytes count.

    `python -m course_lib.bench` measures both on this machine.
    """
    dtype = SHORT.get(dtype, dtype)
    if dtype in DTYPES:
        return DTYPES[dtype], "as asked"
    if dtype != "auto":
        raise ValueError(f"The dtype {dtype!r} is unknown; choose auto, {', '.join(DTYPES)}.")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "half the bytes, and this GPU computes in it"
        return torch.float16, "half the bytes; this GPU has no bfloat16"
    if device.type == "mps":
        return torch.float16, "half the bytes, on every Apple GPU"
    if fast := [name for name in FAST_BFLOAT16 if name in machine.vector_sets]:
        return torch.bfloat16, f"half the bytes to read, and this processor has {fast[0]}"
    return torch.float32, "this processor has no bfloat16 instructions"
