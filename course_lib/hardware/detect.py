"""What this machine is, found out quickly and without importing torch. Standard library only:
.setup/install.py uses it too."""

import functools
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# The instruction sets that decide how fast a kernel can be, as Linux and macOS name them, slowest first.
VECTOR_SETS = {
    "sse4_2": "SSE4.2",
    "avx": "AVX",
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "asimd": "NEON",
    "sve": "SVE",
}


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU: its name, memory in bytes, driver and compute capability, as nvidia-smi gives them."""

    name: str
    memory: int
    driver: str
    capability: str


@dataclass(frozen=True)
class Machine:
    """The machine we run on. `cores` counts those this process may use; `memory` is in bytes, 0 where it
    could not be read."""

    system: str  # "Linux", "macOS" or what Python calls it
    architecture: str  # "x86_64", "arm64"
    cpu: str
    cores: int
    memory: int
    vector_sets: tuple[str, ...]
    nvidia: tuple[Gpu, ...]
    apple: str | None  # the chip, "Apple M3 Pro"
    glibc: tuple[int, int] | None

    @property
    def kind(self) -> str:
        """ "nvidia", "apple" or "cpu": which build of torch suits this machine."""
        return "nvidia" if self.nvidia else "apple" if self.apple else "cpu"

    def __str__(self) -> str:
        memory = f", {self.memory / 2**30:.0f} GB" if self.memory else ""
        gpus = f", {len(self.nvidia)} × {self.nvidia[0].name}" if self.nvidia else ""
        return f"{self.system} {self.architecture}, {self.cpu}, {self.cores} cores{memory}{gpus}"


@functools.cache
def detect() -> Machine:
    """Return what this machine is. Takes a few milliseconds (up to a second where there is an NVIDIA driver
    to ask)."""
    on_mac = sys.platform == "darwin"
    cpu_info = _linux_cpu() if sys.platform == "linux" else {}
    # A Python built for Intel runs translated on an Apple chip and says x86_64: ask the kernel instead.
    apple_chip = on_mac and _sysctl("hw.optional.arm64") == "1"
    cpu = (
        _sysctl("machdep.cpu.brand_string") if on_mac else cpu_info.get("model name")
    ) or platform.processor()
    flags = (cpu_info.get("flags") or cpu_info.get("Features") or ("asimd" if apple_chip else "")).split()
    return Machine(
        system={"darwin": "macOS", "linux": "Linux"}.get(sys.platform, platform.system()),
        architecture={"aarch64": "arm64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine()),
        cpu=" ".join(cpu.split()) or "unknown processor",
        cores=_cores(),
        memory=_memory(on_mac),
        vector_sets=tuple(shown for flag, shown in VECTOR_SETS.items() if flag in flags),
        nvidia=_nvidia(),
        apple=cpu if apple_chip else None,
        glibc=_glibc(),
    )


def _linux_cpu() -> dict[str, str]:
    """Return the first processor's lines of /proc/cpuinfo."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())
    }


def _sysctl(name: str) -> str:
    return _output("sysctl", "-n", name)


def _output(*command: str) -> str:
    """Return what the command prints, or nothing if it is not there, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cores() -> int:
    """Return how many processors this process may use: a container's share counts, not the host's number."""
    try:
        allowed = len(os.sched_getaffinity(0))  # type: ignore[attr-defined,unused-ignore]  # macOS has none
    except AttributeError:
        allowed = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return allowed


def _memory(on_mac: bool) -> int:
    if on_mac:
        return int(_sysctl("hw.memsize") or 0)
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total


def _glibc() -> tuple[int, int] | None:
    name, version = platform.libc_ver()
    if name != "glibc":
        return None
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _nvidia() -> tuple[Gpu, ...]:
    """Return the GPUs that the driver reports; none if there is no driver or it does not answer."""
    if not shutil.which("nvidia-smi"):
        return ()
    query = "--query-gpu=name,memory.total,driver_version,compute_cap"
    return parse_nvidia(_output("nvidia-smi", query, "--format=csv,noheader,nounits"))


def parse_nvidia(listing: str) -> tuple[Gpu, ...]:
    """Return the GPUs in nvidia-smi's CSV. Memory is in MiB there, or "[N/A]" on machines that share it with
    the CPU."""
    gpus = []
    for line in listing.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4:
            name, memory, driver, capability = fields
            gpus.append(Gpu(name, int(memory) * 2**20 if memory.isdigit() else 0, driver, capability))
    return tuple(gpus)
