"""Set-up: the right torch for the machine, nothing done twice, and a sentence for whatever goes wrong."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from course_lib import doctor
from course_lib.hardware.detect import Gpu, Machine, detect, parse_nvidia

TOP = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
PLAIN = Machine("Linux", "x86_64", "some processor", 2, 2**34, ("AVX2",), (), None, (2, 36))
NVIDIA = Machine(
    "Linux", "x86_64", "some processor", 2, 2**34, (), (Gpu("H200", 2**37, "580.1", "9.0"),), None, (2, 36)
)
APPLE = Machine("macOS", "arm64", "Apple M3", 8, 2**34, ("NEON",), (), "Apple M3", None)


@pytest.fixture
def install(tmp_path):
    """.setup/install.py, working on a copy of what it reads."""
    for name in (
        "pyproject.toml",
        ".setup/constraints.txt",
        ".setup/install.py",
        "course_lib/hardware/detect.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / name, tmp_path / name)
    (tmp_path / ".course").mkdir()
    spec = importlib.util.spec_from_file_location("install", tmp_path / ".setup" / "install.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dependencies_are_pinned_and_the_lock_agrees():
    locked = {}
    for line in (TOP / ".setup" / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            one = Requirement(line)
            assert re.fullmatch(r"==[\w.]+", str(one.specifier)), line
            locked[canonicalize_name(one.name)] = str(one.specifier)
    assert len(locked) > 150
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    build = tomllib.loads((TOP / "pyproject.toml").read_text())["build-system"]["requires"]
    for line in [*PROJECT["dependencies"], *extras, *build]:
        one = Requirement(line)
        assert str(one.specifier) == locked[canonicalize_name(one.name)], line


def test_the_lock_holds_for_this_machine():
    """What is installed here is what the lock says. (What a person added beside it does not count.)"""
    import importlib.metadata

    wrong = []
    for line in (TOP / ".setup" / "constraints.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        one = Requirement(line)
        try:
            version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not one.specifier.contains(version):
            wrong.append(f"{one.name} {version}, locked {one.specifier}")
    assert not wrong


def test_nothing_is_done_when_nothing_is_to_do(install, tmp_path):
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    made_from = install.fingerprint(detect().kind)
    (venv / ".stamp").write_text(json.dumps({"made_from": made_from}))

    def files() -> list[Path]:
        return sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)

    before = files()
    done = subprocess.run(
        [sys.executable, tmp_path / ".setup" / "install.py"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert files() == before


def test_a_change_of_what_it_is_made_from_is_something_to_do(install, tmp_path):
    keys = {install.fingerprint("cpu"), install.fingerprint("nvidia")}
    project = tmp_path / "pyproject.toml"
    for name, was, becomes in (
        ("pyproject.toml", "torch==2.13.0", "torch==2.14.0"),
        ("pyproject.toml", "ruff==", "ruff==1."),
        (".setup/constraints.txt", "anyio==", "anyio==1."),
    ):
        path = tmp_path / name
        path.write_text(path.read_text().replace(was, becomes, 1))
        keys.add(install.fingerprint("cpu"))
    assert len(keys) == 5
    project.write_text(project.read_text().replace("line-length = 110", "line-length = 100"))
    assert install.fingerprint("cpu") in keys, "the linter's settings are none of set-up's business"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"made_from": null}'])
def test_a_broken_stamp_counts_as_none(install, tmp_path, content):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".stamp").write_text(content)
    assert install.stamp() != install.fingerprint("cpu")


def test_an_old_python_is_told_where_to_get_a_new_one(install, monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 6, "final", 0))
    monkeypatch.setenv("PATH", "")
    assert install.main() == 1
    said = capsys.readouterr().err
    assert "needs Python 3.11 to 3.14" in said
    assert "apt-get install" in said
    assert "brew install" in said


def test_an_old_python_hands_over_to_a_newer_one(install, tmp_path, monkeypatch):
    """Of the names on the PATH, one is a version manager's that only complains; the other is a Python."""
    names = tmp_path / "names"
    names.mkdir()
    (names / "python3.13").write_text("#!/bin/sh\necho 'not installed' >&2\nexit 127\n")
    (names / "python3.12").write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then exit 0; fi\necho "$@" > {tmp_path}/called\nexit 7\n'
    )
    for name in names.iterdir():
        name.chmod(0o755)
    monkeypatch.setattr(sys, "version_info", (3, 9, 6, "final", 0))
    monkeypatch.setattr(sys, "argv", ["install.py", "--force"])
    monkeypatch.setenv("PATH", str(names))
    assert install.main() == 7
    assert (tmp_path / "called").read_text() == "install.py --force\n"


def test_install_can_be_read_by_python_3_8():
    import ast

    ast.parse((TOP / ".setup" / "install.py").read_text(), feature_version=(3, 8))


def test_no_disk_is_said_before_anything_is_made(install, tmp_path, monkeypatch):
    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1e9})())
    with pytest.raises(install.Stop, match=r"needs about 4 GB of disk.* has 1\.0 GB free"):
        install.install(PLAIN, "key")
    assert not (tmp_path / ".venv").exists()


def test_a_python_without_venv_is_told_the_package(install, monkeypatch):
    words = "The virtual environment was not created successfully because ensurepip is not available.\n"
    failed = subprocess.CompletedProcess([], 1, words, "")
    monkeypatch.setattr(install.subprocess, "run", lambda *command, **options: failed)
    with pytest.raises(install.Stop, match=rf"apt-get install python3\.{sys.version_info[1]}-venv"):
        install.make_venv(install.Steps())


def test_no_network_is_said_in_a_sentence(install, tmp_path, monkeypatch):
    """The whole of set-up, for real, with an index that nobody answers for: then again, and it goes on."""
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setattr(install, "TORCH_FOR_CPU", "http://127.0.0.1:1/whl/cpu")
    for _ in range(2):
        with pytest.raises(
            install.Stop, match=r"The package index can't be reached.*what it has fetched is kept"
        ):
            install.install(PLAIN, "key")
        assert (tmp_path / ".venv" / "bin" / "python").exists()
        assert not (tmp_path / ".venv" / ".stamp").exists()
        assert (tmp_path / ".venv" / ".unfinished").exists()
    assert "pip install" in (tmp_path / ".course" / "setup.log").read_text()


def test_a_venv_is_made_anew_only_if_it_does_not_work(install, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(install.Steps, "step", lambda self, title, run: made.append(title))
    python = tmp_path / ".venv" / "bin" / "python"
    stamp = tmp_path / ".venv" / ".stamp"
    for works, place, anew in (
        (None, None, True),  # none there
        (True, None, False),  # made by hand
        (True, str(tmp_path), False),
        (True, "/its/old/place", True),  # moved with its folder
        (False, str(tmp_path), True),  # broken
    ):
        if works is not None:
            python.parent.mkdir(parents=True, exist_ok=True)
            python.write_text(f"#!/bin/sh\n{'echo 3 12' if works else 'exit 1'}\n")
            python.chmod(0o755)
        if place:
            stamp.write_text(json.dumps({"made_from": "key", "place": place}))
        made.clear()
        install.make_venv(install.Steps())
        assert made == (["python"] if anew else []), (works, place)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "about 4 GB",
        ),
        ("WARNING: ... NewConnectionError: Failed to establish a new connection", "can't be reached"),
        ("SSLError: CERTIFICATE_VERIFY_FAILED", "pip config set global.cert"),
        (
            "ERROR: No matching distribution found for torch==2.13.0",
            "No build of torch==2.13.0 was found for Linux",
        ),
        ("ERROR: something else", "pip failed: ERROR: something else"),
    ],
)
def test_pips_words_become_a_sentence(install, said, told):
    noise = "WARNING: Location 'file:///mirror/simple/x/' is ignored: it is neither a file nor a directory.\n"
    sentence = install.meaning([noise, f"{said}\n", noise], PLAIN)
    assert told in sentence
    assert "mirror" not in sentence
    assert "setup.log" in sentence


@pytest.fixture
def chosen(install, monkeypatch):
    """Return the options pip gets for torch, given the machine, what is there and what pip would take."""

    def choose(
        machine: Machine, installed: tuple[str, bool] = ("", False), cuda: bool = True
    ) -> list[str] | None:
        calls = []
        monkeypatch.setattr(
            install, "pip", lambda show, machine, title, *arguments: calls.append(list(arguments))
        )
        monkeypatch.setattr(install, "installed_torch", lambda: installed)
        monkeypatch.setattr(install, "pip_would_take_cuda", lambda wanted: cuda)
        install.install_torch("torch==2.13.0", machine, install.Steps())
        return calls[0] if calls else None

    return choose


def test_a_plain_machine_never_gets_cuda(chosen, capsys):
    assert "https://download.pytorch.org/whl/cpu" in chosen(PLAIN, cuda=True)
    assert not any("http" in argument for argument in chosen(PLAIN, cuda=False))
    assert "for the CPU: no NVIDIA GPU was found" in capsys.readouterr().out


def test_the_installed_torch_stays_only_if_it_fits(chosen):
    assert chosen(PLAIN, ("2.13.0+cpu", False)) is None
    assert chosen(PLAIN, ("2.13.0", True)) is not None
    assert chosen(PLAIN, ("2.12.0+cpu", False)) is not None
    assert chosen(NVIDIA, ("2.13.0", True)) is None
    assert chosen(NVIDIA, ("2.13.0+cpu", False)) is not None
    assert chosen(APPLE, ("2.13.0", False)) is None


def test_nvidia_and_apple_take_the_usual_build(chosen, capsys):
    for machine in (NVIDIA, APPLE):
        assert not any("http" in argument for argument in chosen(machine))
    said = capsys.readouterr().out
    assert "for CUDA: H200, driver 580.1" in said
    assert "with Metal: Apple M3" in said


def fake_torch(folder: Path, version: str, needs: str) -> None:
    """Write a wheel of that name: pip reads its metadata and never installs it."""
    import zipfile

    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        info = f"torch-{version}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n{needs}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_pip_itself_says_which_torch_it_would_take(install, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setattr(install, "PYTHON", Path(sys.executable))
    assert install.pip_would_take_cuda("torch==2.13.0"), "no answer: the CPU's own index is the safe choice"
    needs = 'Requires-Dist: numpy\nRequires-Dist: nvidia-cublas==13.1; platform_system == "Linux"\n'
    fake_torch(tmp_path / "links", "2.13.0", needs)
    assert install.pip_would_take_cuda("torch==2.13.0")
    fake_torch(tmp_path / "links", "2.13.0+cpu", "Requires-Dist: numpy\nRequires-Dist: sympy\n")
    assert not install.pip_would_take_cuda("torch==2.13.0"), "a CPU wheel on disk wins"


def test_the_torch_in_this_venv_is_read_right(install, monkeypatch):
    import torch

    monkeypatch.setattr(install, "PYTHON", Path(sys.executable))
    assert install.installed_torch() == (torch.__version__, torch.version.cuda is not None)
    monkeypatch.setattr(install, "PYTHON", Path(os.environ.get("SHELL", "/bin/sh")))
    assert install.installed_torch() == ("", False)


def test_mlx_is_left_out_where_it_cannot_run(install):
    from dataclasses import replace

    assert install.no_mlx(PLAIN) == ""
    assert install.no_mlx(APPLE) == ""
    assert "glibc 2.35" in install.no_mlx(replace(PLAIN, glibc=(2, 31)))
    assert "glibc 2.35" in install.no_mlx(replace(PLAIN, glibc=None))


def test_an_interrupted_installation_is_mended(install, tmp_path):
    """Of three packages one is whole, one has lost a file, one never got its list of files."""
    python = tmp_path / "bin" / "python"
    place = tmp_path / "packages"
    for name, record in (("whole", "whole.py,,\n"), ("torn", "torn.py,,\nlost.py,,\n"), ("begun", None)):
        info = place / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (place / f"{name}.py").touch()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        if record:
            (info / "RECORD").write_text(record)
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -I -S -c "import sys; sys.path.append(\'{place}\')\n$2"\n'
    )
    python.chmod(0o755)
    install.PYTHON = python
    install.mend_interrupted(install.Steps())
    assert sorted(path.name for path in place.glob("*.dist-info")) == ["whole-1.0.dist-info"]


def test_machines():
    assert [machine.kind for machine in (PLAIN, NVIDIA, APPLE)] == ["cpu", "nvidia", "apple"]
    here = detect()
    assert here.cores >= 1
    assert here.memory > 2**30
    assert here.system in ("Linux", "macOS")
    code = "import sys, course_lib.hardware.detect as d; d.detect(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "torch" not in loaded.split()


def test_nvidia_smi_is_read():
    listing = "NVIDIA H200, 143771, 580.95.05, 9.0\nNVIDIA GB10, [N/A], 580.95.05, 12.1\nNVML failed\n"
    assert parse_nvidia(listing) == (
        Gpu("NVIDIA H200", 143771 * 2**20, "580.95.05", "9.0"),
        Gpu("NVIDIA GB10", 0, "580.95.05", "12.1"),
    )
    assert parse_nvidia("") == ()


def make(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [
        "make",
        "--no-print-directory",
        "-C",
        str(TOP),
        *words,
        *(f"{k}={v}" for k, v in variables.items()),
    ]
    return subprocess.run(command, capture_output=True, text=True)


def test_make_lists_every_command():
    makefile = (TOP / "Makefile").read_text()
    listing = make().stdout
    phony = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    rules = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    assert sorted(phony) == sorted(rules)
    for rule in set(rules) - {"help"}:
        assert re.search(rf"^  {rule} +\S", listing, re.MULTILINE), rule
    assert max(map(len, listing.splitlines())) <= 80


def test_every_command_sets_up_first():
    makefile = (TOP / "Makefile").read_text()
    needs = dict(re.findall(r"^([a-z-]+):([^#\n]*)", makefile, re.MULTILINE))
    for rule in set(needs) - {"help", "setup"}:
        wanted = needs[rule].split()
        assert "setup" in wanted or any("setup" in needs[other] for other in wanted), rule


def test_every_command_names_a_module_that_exists():
    modules = re.findall(r"-m (course_lib[\w.]*)", (TOP / "Makefile").read_text())
    assert len(modules) > 5
    for module in modules:
        spec = importlib.util.find_spec(module)
        assert spec, module
        if spec.submodule_search_locations:  # a package runs by its __main__
            assert importlib.util.find_spec(f"{module}.__main__"), module


@pytest.fixture
def echo(tmp_path) -> dict[str, str]:
    """Let make call a program that prints its arguments, one a line, in place of the venv's Python."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport sys\nprint(*sys.argv[1:], sep='\\n')\n")
    python.chmod(0o755)
    return {"venv": str(tmp_path), "PYTHON": "true"}


@pytest.mark.parametrize("day", ["5", "31", "0", "five", "05", ""])
def test_a_day_is_given_in_either_way(echo, day):
    said = f"-m\ncourse_lib.classroom\ncheck-day\n{day}\n"
    assert make("check-day", N=day, **echo).stdout == said
    assert make("check-day", *day.split(), **echo).stdout == said
    assert make("reset-day", *day.split(), **echo).stdout == said.replace("check-day", "reset-day")


@pytest.mark.parametrize(
    "prompt", ["Hello", 'What\'s "$HOME", $5 & `ls` | #1\\?', "$(shell touch pwned) ${x} %", "é – 你好"]
)
def test_a_prompt_arrives_as_it_was_typed(echo, prompt):
    done = make("engine", PROMPT=prompt, **echo)
    assert done.stdout.rstrip("\n") == f"-m\ncourse_lib.engine\n--prompt\n{prompt}"
    assert not (TOP / "pwned").exists()


def test_without_a_prompt_there_is_a_chat(echo):
    assert make("engine", **echo).stdout.split() == ["-m", "course_lib.engine"]


def test_a_failure_is_a_failing_exit(tmp_path, echo):
    (tmp_path / "python").write_text("#!/bin/sh\nexit 3\n")
    assert make("progress", **echo).returncode == 2


@pytest.mark.parametrize("script", [".ci/run"])
def test_scripts_are_sound(script):
    assert os.access(TOP / script, os.X_OK)
    subprocess.run(["bash", "-n", TOP / script], check=True)


def test_a_wrong_import_fails_with_the_rules_name(tmp_path):
    rooms = {
        "tokenizer": "import course_lib.engine\n",
        "engine": "",
        "classroom": "import course_lib.tokenizer\n",
        "hardware": "",
    }
    for room, source in rooms.items():
        (tmp_path / "course_lib" / room).mkdir(parents=True)
        (tmp_path / "course_lib" / room / "__init__.py").write_text(source)
    (tmp_path / "course_lib" / "__init__.py").touch()
    shutil.copy(TOP / "pyproject.toml", tmp_path)
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r"Arrows go down: .* BROKEN", done.stdout)
    assert re.search(r"The classroom imports nothing of the engine: .* BROKEN", done.stdout)
    assert "course_lib.tokenizer -> course_lib.engine" in done.stdout
    assert "course_lib.classroom -> course_lib.tokenizer" in done.stdout


def test_doctor_finds_this_machine_fit(capsys):
    found = {finding.name: finding for finding in doctor.findings()}
    for name in ("Python", "packages", "PyTorch", "disk", "corpus"):
        assert found[name].state == "ok", found[name]
    assert all(finding.mend for finding in found.values() if finding.state in ("missing", "broken"))


def test_doctors_table_fits_80_columns_and_its_exit_tells(monkeypatch, capsys):
    def fine():
        return doctor.Finding("fine", "ok", "here " * 30)

    def absent():
        return doctor.Finding("absent", "missing", "not to be had", "sudo apt-get install something")

    def wrecked():
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor, "PROBES", (fine, absent))
    assert doctor.main() == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "mend: sudo apt-get install something" in shown

    monkeypatch.setattr(doctor, "PROBES", (fine, wrecked, absent))
    assert doctor.main() == 1
    shown = capsys.readouterr().out
    assert "broken" in shown
    assert "To mend first: wrecked." in shown
    assert "second line" not in shown
