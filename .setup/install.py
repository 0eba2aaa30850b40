"""Make .venv what pyproject.toml says, for the hardware at hand. Every `make` target calls this; mostly
nothing is to do.

Standard library only, in a Python that 3.8 can read too, so that an old Python gets a sentence and not a
syntax error. One line a step is shown; all that pip says goes to .course/setup.log. Interrupt it at will: the
next run goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from course_lib.hardware.detect import Machine

TOP = Path(__file__).resolve().parents[1]
VENV = TOP / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".stamp"
UNFINISHED = VENV / ".unfinished"
PROJECT = TOP / "pyproject.toml"
CONSTRAINTS = TOP / ".setup" / "constraints.txt"
LOG = TOP / ".course" / "setup.log"

OLDEST, NEWEST = (3, 11), (3, 14)
TORCH_FOR_CPU = "https://download.pytorch.org/whl/cpu"
DISK = {"nvidia": 14e9, "apple": 4e9, "cpu": 4e9}  # bytes: while installing, wheels lie beside their contents
MLX_WANTS_GLIBC = (2, 35)
OLDEST_MACOS = 14

# What pip says, and what it means.
TROUBLE = {
    r"No space left on device": (
        "The disk is full: the course needs about {disk:.0f} GB. Make room, then run `make` again."
    ),
    r"after connection broken by|NewConnectionError|Network is unreachable|ProxyError|TimeoutError": (
        "The package index can't be reached. Set-up needs the network, once; what it has fetched is kept. "
        "When there is a network, run `make` again."
    ),
    r"CERTIFICATE_VERIFY_FAILED": (
        "The package index's certificate is not trusted here. Behind a proxy, tell pip its certificate: "
        "`pip config set global.cert FILE`."
    ),
    r"No matching distribution found for (?P<what>\S+)": (
        "No build of {what} was found for {system}. If this machine is offline, that is why."
    ),
}
PIP_STEP = re.compile(
    r"\s*(Collecting|Downloading|Using cached|Building|Installing)\s+(\S*)(?:.*(\([\d.]+ [kMG]B\)))?"
)
PIP_NOISE = "is ignored: it is neither a file nor a directory"


class Stop(Exception):
    """Set-up can't go on; the message says what to do."""


def main() -> int:
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        return with_another_python()
    try:
        set_up(force="--force" in sys.argv[1:])
    except Stop as problem:
        print(f"\nSet-up stopped. {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. What is installed is kept; run `make` again to go on.", file=sys.stderr)
        return 130
    return 0


def with_another_python() -> int:
    """Run again under a Python that will do, if there is one on the PATH."""
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        other = shutil.which(f"python3.{minor}")
        # A version manager may put a name on the PATH that only says "not installed": try before trusting it.
        if other and subprocess.call([other, "-c", "import venv, ensurepip"], stderr=subprocess.DEVNULL) == 0:
            return subprocess.call([other, *sys.argv])
    print(
        f"Set-up stopped. The course needs Python 3.{OLDEST[1]} to 3.{NEWEST[1]}; this is "
        f"{sys.version.split()[0]} ({sys.executable}), and the PATH has no other.\n"
        "  Debian, Ubuntu   sudo apt-get install python3.12 python3.12-venv\n"
        "  macOS            brew install python@3.12\n"
        "Then run `make` again, or `make PYTHON=/path/to/python3.12`.",
        file=sys.stderr,
    )
    return 1


def set_up(force: bool = False) -> None:
    """Bring .venv up to date, unless its stamp says that it is."""
    machine = detect()
    key = fingerprint(machine.kind)
    if not force and stamp() == key:
        return
    import fcntl  # not at the top: Windows has none, and gets a sentence first

    LOG.parent.mkdir(exist_ok=True)
    with LOG.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if force or stamp() != key:  # else another process did it while we waited
            install(machine, key)


def detect() -> Machine:
    """Run course_lib/hardware/detect.py from its path (the package is not installed yet)."""
    from importlib.util import module_from_spec, spec_from_file_location

    if os.name == "nt":
        raise Stop("Windows is not supported: install WSL 2 (`wsl --install`) and run the course inside it.")
    spec = spec_from_file_location("detect", TOP / "course_lib" / "hardware" / "detect.py")
    assert spec
    assert spec.loader
    module = sys.modules["detect"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    machine: Machine = module.detect()
    if machine.system == "macOS" and machine.architecture == "x86_64":
        mend = (
            "This Mac has an Apple chip: `brew install python@3.12` gives the right one."
            if machine.apple
            else ""
        )
        raise Stop(f"This Python is built for Intel Macs, and PyTorch is no longer made for them. {mend}")
    if machine.system == "macOS" and int(platform.mac_ver()[0].split(".")[0]) < OLDEST_MACOS:
        raise Stop(f"PyTorch needs macOS {OLDEST_MACOS} or newer, and this is {platform.mac_ver()[0]}.")
    return machine


def fingerprint(kind: str) -> str:
    """Return a hash of all that .venv is made from: when it changes there is something to do."""
    content = hashlib.sha256(f"{kind} {sys.platform} {TOP} {json.dumps(read_project())}".encode())
    for path in (CONSTRAINTS, Path(__file__)):
        content.update(path.read_bytes())
    return content.hexdigest()


def stamp(entry: str = "made_from") -> str | None:
    """Return what the stamp of the last finished set-up says: the fingerprint, or the "place" of it."""
    try:
        return str(json.loads(STAMP.read_text())[entry]) if PYTHON.exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def install(machine: Machine, key: str) -> None:
    began, show = time.time(), Steps()
    free = shutil.disk_usage(TOP).free
    if not PYTHON.exists() and free < DISK[machine.kind]:
        raise Stop(
            f"While it installs, the course needs about {DISK[machine.kind] / 1e9:.0f} GB of disk, "
            f"and {TOP} has {free / 1e9:.1f} GB free. Make room, then run `make` again."
        )
    show.line("Setting up the course in .venv (once; what pip says is in .course/setup.log)")
    show.line(f"  {'machine':10} {machine}")
    log(f"\n==== {time.strftime('%Y-%m-%d %H:%M:%S')} {machine}\n")
    make_venv(show)
    STAMP.unlink(missing_ok=True)
    if UNFINISHED.exists():
        mend_interrupted(show)
    UNFINISHED.touch()

    project = read_project()
    install_torch(project["torch"], machine, show)
    # torch once more, for the packages that it needs itself.
    wanted = [project["torch"], *project["dependencies"], *project["checks"]]
    wanted += [] if no_mlx(machine) else project["mlx"]
    pip(show, machine, "packages", "install", "-c", str(CONSTRAINTS), *project["build"], *wanted)
    pip(show, machine, "course_lib", "install", "--no-deps", "--no-build-isolation", "-e", str(TOP))
    if (TOP / ".git").exists():
        show.step("notebooks", teach_git)
    show.step("check", lambda: check_torch(machine))
    fit = subprocess.run([str(PYTHON), "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if fit.returncode:
        log(fit.stdout)
        show.line(f"  {'note':10} some packages do not fit together: {fit.stdout.splitlines()[0]}")
    if no_mlx(machine):
        show.line(f"  {'MLX':10} left out: {no_mlx(machine)}")

    STAMP.write_text(json.dumps({"made_from": key, "kind": machine.kind, "place": str(TOP)}))
    UNFINISHED.unlink()
    show.line(f"Done in {spent(time.time() - began)}.")


def read_project() -> dict[str, Any]:
    """Return what pyproject.toml requires, by group: torch apart, since it has a step of its own."""
    import tomllib

    settings = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    everything = settings["project"]["dependencies"]
    torch = [line for line in everything if line.startswith("torch==")]
    return {
        "torch": torch[0],
        "dependencies": [line for line in everything if line not in torch],
        "build": settings["build-system"]["requires"],
        **settings["project"]["optional-dependencies"],
    }


def make_venv(show: Steps) -> None:
    """Create .venv with this Python. One that works stays, whoever made it; one that doesn't is made anew.

    One that was moved with its folder does not work: its programs name the Python of their old place.
    """
    if PYTHON.exists() and stamp("place") in (None, str(TOP)):
        probe = [str(PYTHON), "-c", "import pip, sys; print(*sys.version_info[:2])"]
        found = subprocess.run(probe, capture_output=True, text=True, check=False)
        if found.returncode == 0 and OLDEST <= tuple(int(part) for part in found.stdout.split()) <= NEWEST:
            return

    def create() -> str:
        command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            said = (made.stdout + made.stderr).strip()
            if "ensurepip" in said or "No module named venv" in said:
                package = f"python3.{sys.version_info[1]}-venv"
                raise Stop(
                    f"This Python lacks its venv module: `sudo apt-get install {package}`, then `make`."
                )
            raise Stop(f"`{' '.join(command)}` failed: {said[-400:]}")
        return sys.version.split()[0]

    show.step("python", create)


BROKEN = """
import importlib.metadata, shutil
for package in list(importlib.metadata.distributions()):
    files = [file for file in package.files or [] if "__pycache__" not in str(file)]
    if not files or not all(file.locate().exists() for file in files):
        print(package.name or package._path.name)
        shutil.rmtree(package._path)
"""


def mend_interrupted(show: Steps) -> None:
    """Let pip forget the packages that an interrupted run left in pieces: it would think them installed."""
    found = subprocess.run([str(PYTHON), "-c", BROKEN], capture_output=True, text=True, check=False)
    pieces = ", ".join(found.stdout.split())
    left = f"; it left in pieces: {pieces}" if pieces else ""
    show.line(f"  {'going on':10} where an earlier run stopped{left}")


def no_mlx(machine: Machine) -> str:
    """Return why MLX can't be installed here, or nothing."""
    if machine.system == "Linux" and (machine.glibc or (0, 0)) < MLX_WANTS_GLIBC:
        return "its build for Linux needs glibc {}.{} or newer".format(*MLX_WANTS_GLIBC)
    return ""


def install_torch(wanted: str, machine: Machine, show: Steps) -> None:
    """Install the torch that suits the machine: never CUDA's gigabytes where there is no NVIDIA GPU."""
    options: list[str] = []
    if machine.nvidia:
        choice = f"for CUDA: {machine.nvidia[0].name}, driver {machine.nvidia[0].driver}"
    elif machine.apple:
        choice = f"with Metal: {machine.apple}"
    else:
        choice = "for the CPU: no NVIDIA GPU was found"
    show.line(f"  {'choice':10} PyTorch {choice}")
    version, cuda = installed_torch()
    if wanted == f"torch=={version.split('+')[0]}" and cuda == bool(machine.nvidia):
        return
    if machine.kind == "cpu" and pip_would_take_cuda(wanted):
        options = ["--index-url", TORCH_FOR_CPU]
    # --no-deps: PyTorch's own index has little else; the rest comes in the next step, from the usual place.
    try:
        pip(show, machine, "torch", "install", "--no-deps", "--force-reinstall", *options, wanted)
    except Stop as problem:
        where = f"\nPyTorch for the CPU was asked of {TORCH_FOR_CPU}." if options else ""
        raise Stop(f"{problem}{where}") from None


# torch/version.py says for which CUDA torch was built; importing torch to ask would take seconds.
TORCH_VERSION = """
import importlib.metadata, re
package = importlib.metadata.distribution("torch")
cuda = re.search(r"^cuda\\b.*= *'", package.locate_file("torch/version.py").read_text(), re.MULTILINE)
print(package.version, "cuda" if cuda else "cpu")
"""


def installed_torch() -> tuple[str, bool]:
    """Return the version of the torch in .venv ("" if none) and whether it was built for CUDA."""
    found = subprocess.run([str(PYTHON), "-c", TORCH_VERSION], capture_output=True, text=True, check=False)
    version, kind = found.stdout.split() if found.returncode == 0 else ("", "cpu")
    return version, kind == "cuda"


def pip_would_take_cuda(wanted: str) -> bool:
    """Ask pip which torch its own configuration leads to, and whether that one wants CUDA's packages."""
    dry_run = ["--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-"]
    command = [str(PYTHON), "-m", "pip", "install", *dry_run, wanted]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    log(answer.stderr)
    try:
        needs = json.loads(answer.stdout)["install"][0]["metadata"].get("requires_dist", [])
    except (ValueError, KeyError, IndexError):
        return True  # pip could not say: PyTorch's own index for the CPU is the safe choice
    return any(re.match(r"(nvidia|cuda)\b", need) for need in needs)


def teach_git() -> str:
    """Let a plain `git pull` merge a learner's notebook cell by cell. The course works without it."""
    code = "from course_lib.classroom.update import install_merge_drivers as install; install()"
    done = subprocess.run([str(PYTHON), "-c", code], cwd=TOP, capture_output=True, text=True, check=False)
    if done.returncode:
        log(done.stderr)
        return "git could not be told how to merge them; use `make update`, not `git pull`"
    return "git merges them cell by cell"


TORCH_USES = """
import torch
print(torch.__version__, torch.version.cuda, torch.cuda.is_available(), torch.backends.mps.is_available())
"""


def check_torch(machine: Machine) -> str:
    """Import torch once and return what it can use. Raises Stop if it is not the build that was wanted."""
    found = subprocess.run([str(PYTHON), "-c", TORCH_USES], capture_output=True, text=True, check=False)
    if found.returncode:
        log(found.stderr)
        reason = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Stop(f"torch is installed and can't be imported: {reason}")
    version, cuda, sees_gpu, sees_metal = found.stdout.split()
    if (cuda != "None") != bool(machine.nvidia):
        raise Stop(f"torch {version} is not the build for {machine}. Delete .venv and run `make` again.")
    if machine.nvidia and sees_gpu == "False":
        driver = machine.nvidia[0].driver
        return f"torch {version} does not see the GPU: is driver {driver} too old for CUDA {cuda}?"
    where = f"CUDA {cuda}" if machine.nvidia else "Metal" if sees_metal == "True" else "the CPU"
    return f"torch {version} on {where}"


def pip(show: Steps, machine: Machine, title: str, *arguments: str) -> None:
    """Run pip, showing what it does in one moving line. Raises Stop with what its failure means."""
    # --no-compile: Python compiles what it imports when it first does; all of it now would double the wait.
    options = ["--no-compile", "--disable-pip-version-check", "--no-input"]
    command = [str(PYTHON), "-m", "pip", *arguments, *options]

    def run() -> str:
        log(f"$ {' '.join(command)}\n")
        said: list[str] = []
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout
            try:
                for line in process.stdout:
                    said.append(line)
                    log(line)
                    show.now(title, line)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise Stop(meaning(said, machine))
        done = [line for line in said if line.startswith("Successfully installed")]
        return f"{len(done[-1].split()) - 2} installed" if done else "all there"

    show.step(title, run)


def meaning(said: list[str], machine: Machine) -> str:
    """Turn pip's output into a sentence that says what to do."""
    words = [line.strip() for line in said if line.strip() and PIP_NOISE not in line]
    for pattern, sentence in TROUBLE.items():
        if found := re.search(pattern, "\n".join(words)):
            system = f"{machine.system} {machine.architecture} and Python {sys.version.split()[0]}"
            told = sentence.format(**found.groupdict(), disk=DISK[machine.kind] / 1e9, system=system)
            return f"{told}\n(pip's own words are at the end of .course/setup.log.)"
    errors = [line for line in words if line.startswith("ERROR")] or words[-2:]
    return f"pip failed: {' '.join(errors[:3])}\n(All of its words are at the end of .course/setup.log.)"


def log(text: str) -> None:
    with LOG.open("a", encoding="utf-8") as stream:
        stream.write(text)


class Steps:
    """One line a step: its name, what came of it, how long it took. In a terminal the line moves
    meanwhile."""

    def __init__(self) -> None:
        self.moving = sys.stdout.isatty()
        self.width = min(shutil.get_terminal_size().columns, 100) - 1
        self.shown = 0.0

    def line(self, text: str) -> None:
        print(text, flush=True)

    def move(self, title: str, text: str) -> None:
        if self.moving:
            print(f"\r\033[K{f'  {title:10} {text}'[: self.width]}", end="", flush=True)

    def now(self, title: str, said: str) -> None:
        """Show a line of pip's, if it tells of progress."""
        found = PIP_STEP.match(said)
        if found and time.time() - self.shown > 0.05:
            self.shown = time.time()
            doing, what, size = found.groups(default="")
            text = f"{doing.lower()} {what.split('/')[-1]} {size}"
            self.move(title, "installing" if doing == "Installing" else text)

    def step(self, title: str, run: Callable[[], str]) -> None:
        began = time.time()
        self.move(title, "…")
        try:
            result = run()
        finally:
            self.move(title, "")
        self.line(f"{chr(13) if self.moving else ''}  {title:10} {result} ({spent(time.time() - began)})")


def spent(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else "{} min {:02} s".format(*divmod(round(seconds), 60))


if __name__ == "__main__":
    sys.exit(main())
