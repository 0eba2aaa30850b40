"""`make doctor`: what works on this machine, and the mend for what doesn't.

Each probe tries the real thing (imports it, compiles with it, runs a kernel) and returns a Finding. Only what
every day needs is required; the rest is used where it is there. Exit status 1: something required is broken.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

TOP = Path(__file__).resolve().parents[1]
STYLES = {"ok": "green", "missing": "yellow", "broken": "bold red", "not here": "dim"}


@dataclass(frozen=True)
class Finding:
    """What a probe found; state is "ok", "missing" (can be had), "broken" (mend it first) or "not here"."""

    name: str
    state: str
    found: str
    mend: str = ""


def findings() -> Iterator[Finding]:
    """Probe everything, in the order of the report. A probe that fails unexpectedly is a finding too."""
    for probe in PROBES:
        try:
            result = probe()
        except Exception as problem:
            first_line = (str(problem) or type(problem).__name__).splitlines()[0]
            result = Finding(probe.__name__.replace("_", " "), "broken", first_line, "make setup")
        yield from result if isinstance(result, list) else [result]


def machine() -> Finding:
    from course_lib.hardware.detect import detect

    here = detect()
    return Finding("machine", "ok", f"{here}; {', '.join(here.vector_sets[-3:])}".rstrip("; "))


def python() -> Finding:
    found = f"{platform.python_version()} in {Path(sys.prefix).name}"
    if sys.prefix == sys.base_prefix:
        return Finding(
            "Python", "broken", f"{found}: not the course's own", ".venv/bin/python -m course_lib.doctor"
        )
    return Finding("Python", "ok", found)


def packages() -> Finding:
    """Compare the installed packages with pyproject.toml's pins."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["checks"]
    wrong, count = [], 0
    for wanted in map(Requirement, lines):
        if wanted.marker and not wanted.marker.evaluate():
            continue
        count += 1
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is not installed")
            continue
        if not wanted.specifier.contains(version):
            wrong.append(f"{wanted.name} {version} instead of {wanted.specifier}")
    if wrong:
        return Finding("packages", "broken", "; ".join(wrong[:3]), "make setup")
    return Finding("packages", "ok", f"{count} direct dependencies, as pinned")


def torch() -> list[Finding]:
    import torch

    from course_lib.hardware.detect import detect

    here = detect()
    rows = [Finding("PyTorch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        name = torch.cuda.get_device_name()
        rows.append(Finding("CUDA", "ok", f"{torch.version.cuda} on {name} (compute {major}.{minor})"))
    elif here.nvidia:
        driver = here.nvidia[0].driver
        rows.append(
            Finding(
                "CUDA",
                "missing",
                f"torch does not see the {here.nvidia[0].name}",
                f"a driver newer than {driver}",
            )
        )
    else:
        rows.append(Finding("CUDA", "not here", "no NVIDIA GPU"))
    if torch.backends.mps.is_available():
        total = torch.ones(3, device="mps").sum().item()
        rows.append(Finding("Metal (MPS)", "ok" if total == 3 else "missing", f"{here.apple}"))
    else:
        rows.append(Finding("Metal (MPS)", "not here", "no Apple GPU"))
    return rows


def mlx() -> Finding:
    try:
        version = importlib.metadata.version("mlx")
        import mlx.core as mx
    except ImportError as problem:
        return Finding(
            "MLX", "missing", f"{problem} (on Linux it needs glibc 2.35)", "days name what they leave out"
        )
    assert mx.sum(mx.ones(3)).item() == 3
    return Finding(
        "MLX", "ok", f"{version} on {'the GPU' if 'gpu' in str(mx.default_device()) else 'the CPU'}"
    )


def compiler() -> Finding:
    """Compile and load a shared library, as the kernel lab does."""
    import ctypes

    mend = "xcode-select --install" if sys.platform == "darwin" else "sudo apt-get install g++"
    chosen = next(
        (name for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name and shutil.which(name)),
        None,
    )
    if not chosen:
        return Finding("C++ compiler", "missing", "no g++ and no clang++ on the PATH", mend)
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "probe.cpp"), Path(folder, "probe.so")
        source.write_text(
            '#include <vector>\nextern "C" int probe() { return std::vector<int>(42).size(); }\n'
        )
        command = [chosen, "-std=gnu++20", "-O1", "-fPIC", "-shared", "-o", str(library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            return Finding(
                "C++ compiler", "missing", f"{chosen} can't build C++20: {done.stderr.strip()[:60]}", mend
            )
        assert ctypes.CDLL(str(library)).probe() == 42
    return Finding("C++ compiler", "ok", _first_line(chosen, "--version"))


def nvcc() -> Finding:
    from course_lib.hardware.detect import detect

    if shutil.which("nvcc"):
        release = [line for line in _output("nvcc", "--version").splitlines() if "release" in line]
        return Finding("nvcc", "ok", release[0] if release else "there, but it does not tell its version")
    if detect().nvidia:
        return Finding(
            "nvcc",
            "missing",
            "there is a GPU and no CUDA toolkit",
            "sudo apt-get install nvidia-cuda-toolkit",
        )
    return Finding("nvcc", "not here", "no CUDA toolkit, and no GPU to use it for")


TRITON_PROBE = """
import torch, triton, triton.language as tl

@triton.jit
def double(x, y, n: tl.constexpr):
    at = tl.arange(0, n)
    tl.store(y + at, 2 * tl.load(x + at))

x, y = torch.arange(8.0), torch.zeros(8)
double[(1,)](x, y, 8)
assert (y == 2 * x).all()
print(triton.__version__)
"""


def triton() -> Finding:
    if sys.platform != "linux":
        return Finding("Triton", "not here", "made for Linux only; its days show recorded output")
    # The kernel's source is read back from its file, so the probe has to be in one.
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.py")
        probe.write_text(TRITON_PROBE)
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        done = subprocess.run(
            [sys.executable, str(probe)],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
            check=False,
        )
    if done.returncode:
        return Finding(
            "Triton", "missing", (done.stderr.strip().splitlines() or ["no output"])[-1], "make setup"
        )
    return Finding("Triton", "ok", f"{done.stdout.strip()}: a kernel ran in the interpreter")


def browser() -> Finding:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return Finding("browser", "ok", f"{path} (for the browser test)")
    mac = Path("/Applications/Google Chrome.app")
    if mac.exists():
        return Finding("browser", "ok", f"{mac} (for the browser test)")
    mend = "brew install --cask chromium" if sys.platform == "darwin" else "sudo apt-get install chromium"
    return Finding("browser", "missing", "no Chromium: the browser test is skipped", mend)


def git() -> Finding:
    driver = _output("git", "-C", str(TOP), "config", "merge.course-notebook.driver")
    version = _output("git", "--version").removeprefix("git version ")
    if not version:
        return Finding("git", "missing", "not installed, so `make update` can't work", "install git")
    if not driver:
        mend = "python3 .setup/install.py --force"
        return Finding("git", "missing", f"{version}; notebooks merge as plain text", mend)
    return Finding("git", "ok", f"{version}; notebooks merge cell by cell")


def disk() -> Finding:
    free = shutil.disk_usage(TOP).free
    if free < 1e9:
        return Finding("disk", "broken", f"{free / 1e6:.0f} MB free, at least 1 GB is needed", "make room")
    return Finding("disk", "ok", f"{free / 1e9:.0f} GB free")


def data() -> list[Finding]:
    from course_lib.assets import CATALOG, damaged, data_folder, missing

    rows, root = [], data_folder()
    for asset in CATALOG.values():
        size = sum(file.size for file in asset.files)
        again = f"python -m course_lib.assets {asset.name}"
        if missing(asset, root):
            rows.append(
                Finding(asset.name, "missing", f"{size / 1e6:.1f} MB, fetched when first used", "make data")
            )
        elif wrong := damaged(asset, root):
            rows.append(Finding(asset.name, "broken", f"{wrong[0].path} is not as published", again))
        else:
            rows.append(Finding(asset.name, "ok", f"{size / 1e6:.1f} MB, sha256 verified"))
    return rows


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
    except OSError:
        return ""


def _first_line(*command: str) -> str:
    return (_output(*command).splitlines() or [command[0]])[0]


PROBES: tuple[Callable[[], Finding | list[Finding]], ...] = (
    *(machine, python, packages, torch, mlx, triton),
    *(compiler, nvcc, browser, git, disk, data),
)


def report(console: Console, found: list[Finding]) -> None:
    """Print the findings as a table, 80 columns wide at most."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("what", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found, and the mend", overflow="fold")
    for one in found:
        words = Text(one.found)
        if one.mend:
            words.append("\nmend: ", style="dim").append(one.mend, style="bold")
        table.add_row(one.name, Text(one.state, style=STYLES[one.state]), words)
    console.print(table)


def main() -> int:
    console = Console()
    console = Console(width=min(console.width, 80), highlight=False)
    with console.status("Looking …"):
        found = list(findings())
    report(console, found)
    broken = [one.name for one in found if one.state == "broken"]
    console.print(
        f"\nTo mend first: {', '.join(broken)}." if broken else "\nAll that every day needs is here."
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
