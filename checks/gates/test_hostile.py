"""Whatever a learner's notebook does, each exercise gets its own verdict, and its neighbors are graded."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

from course_lib import parts
from course_lib.classroom import build, checking, examiner, grade, nbval_plugin
from course_lib.classroom.lesson import Exercise, load_lesson
from course_lib.classroom.sandbox import Job, Sandbox
from course_lib.classroom.sources import solved_source

SMALL = Path(__file__).with_name("small_course")
GOOD = """
def softmax(x, axis=-1):
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)
"""


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The small course, with its three notebooks, in a folder of its own; nothing is executed in a kernel."""
    root = tmp_path_factory.mktemp("course")
    shutil.copytree(SMALL / "solutions", root / "solutions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_ROOT", str(root))
        patch.setenv("COURSE_MINE", str(root / "mine"))
        lesson = load_lesson(1)
        learner, solved = build._learner_and_solved(lesson)
        cells = build._checks(lesson)
        checks = build._notebook(lesson, cells)
        build._golden_outputs(lesson, checks, cells)
        folder = lesson.path.parent.name
        for place, notebook in (
            (root / "days" / folder / "lesson.ipynb", build._notebook(lesson, learner)),
            (root / "solved.ipynb", build._notebook(lesson, solved)),
            (root / "checks" / "day_01.ipynb", checks),
        ):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(nbformat.writes(notebook), encoding="utf-8")
        yield root


@pytest.fixture(scope="module")
def sandbox(course: Path) -> Iterator[Sandbox]:
    with Sandbox(1) as made:
        yield made


def edited(course: Path, **cells: str | Callable[[dict], dict | list[dict]]) -> Path:
    """The solved notebook with the exercise cells of these short names replaced."""
    notebook = json.loads((course / "solved.ipynb").read_text(encoding="utf-8"))
    made: list[dict] = []
    for cell in notebook["cells"]:
        mark = cell["metadata"].get("course", {})
        short = str(mark.get("name")).rpartition(".")[2]
        change = cells.get(short) if mark.get("kind") in ("exercise", "quiz") else None
        if callable(change):
            new = change(cell)
            made += new if isinstance(new, list) else [new]
        elif change is not None:
            made.append(cell | {"source": change})
        else:
            made.append(cell)
    notebook["cells"] = made
    path = course / "days" / "day_01_small" / "edited.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def by_name(report: grade.DayReport) -> dict[str, grade.ExerciseReport]:
    return {e.name.rpartition(".")[2]: e for e in report.exercises}


# In the sandbox: what a cell can do to its process

HOSTILE = {
    "syntax error": ("def softmax(:\n    pass", "error", "not valid Python: invalid syntax (line 1"),
    "endless loop": ("def softmax(x, axis=-1):\n    while True:\n        pass", "timeout", "of your cell"),
    "endless loop that ignores signals": (
        "import signal\nfor n in (1, 2, 3, 15):\n    signal.signal(n, signal.SIG_IGN)\n"
        "def softmax(x, axis=-1):\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass",
        "timeout",
        "does not come to an end",
    ),
    "endless loop in the cell": ("while True: pass", "timeout", "line 1 of your cell"),
    "waits in C": (
        "import time\ndef softmax(x, axis=-1):\n    time.sleep(1000)",
        "timeout",
        "line 3 of your cell",
    ),
    "sys.exit": ("import sys\ndef softmax(x, axis=-1):\n    sys.exit(0)", "failed", "sys.exit()"),
    "sys.exit in the cell": ("import sys\nsys.exit()", "error", "sys.exit()"),
    "os._exit": ("import os\ndef softmax(x, axis=-1):\n    os._exit(1)", "crashed", "exit status 1"),
    "os._exit(0)": ("import os\ndef softmax(x, axis=-1):\n    os._exit(0)", "crashed", "exit status 0"),
    "a million lines": (
        "def softmax(x, axis=-1):\n    for i in range(1_000_000):\n        print(i)\n    return x",
        "failed",
        "differ",
    ),
    "20 GB": ("def softmax(x, axis=-1):\n    return np.ones(20 * 2**27)", "memory", "6 GB"),
    "segmentation fault": (
        "import ctypes\ndef softmax(x, axis=-1):\n    return ctypes.string_at(0)",
        "crashed",
        "segmentation fault",
    ),
    "abort": ("import os\ndef softmax(x, axis=-1):\n    os.abort()", "crashed", "an abort"),
    "deep recursion": (
        "def softmax(x, axis=-1):\n    return softmax(x)",
        "failed",
        "calls itself without end",
    ),
    "fork bomb": ("import os\ndef softmax(x, axis=-1):\n    while True: os.fork()", "failed", "32 processes"),
    "fork that comes back": (
        "import os\ndef softmax(x, axis=-1):\n    os.fork()\n    return x",
        "failed",
        "differ",
    ),
    "threads left behind": (
        "import threading, time\ndef softmax(x, axis=-1):\n"
        "    for _ in range(20): threading.Thread(target=time.sleep, args=(1000,)).start()\n    return x",
        "failed",
        "differ",
    ),
    "a daemon": (
        "import os, time\ndef softmax(x, axis=-1):\n    if os.fork() == 0:\n        os.setsid()\n"
        "        if os.fork() == 0: time.sleep(1000)\n        os._exit(0)\n    return x",
        "failed",
        "differ",
    ),
    "kills its parent's group": (
        "import os, signal\ndef softmax(x, axis=-1):\n    os.kill(0, signal.SIGKILL)",
        "memory",
        "ended your code",
    ),
    "closes every file": (
        "import os\ndef softmax(x, axis=-1):\n    os.closerange(0, 200)\n    return x",
        "crashed",
        "ended its process",
    ),
    "input()": ("def softmax(x, axis=-1):\n    return input()", "failed", "no keyboard"),
    "wrong type": (
        "def softmax(x, axis=-1):\n    return str(x)",
        "failed",
        "got a str, expected a float64 array",
    ),
    "nothing": ("def softmax(x, axis=-1):\n    pass", "failed", "got None"),
    "mutated input": (
        GOOD.replace("weights = np.exp", "x -= x.max(axis=axis, keepdims=True)\n    weights = np.exp"),
        "failed",
        "changed its input x",
    ),
    "patched NumPy": ("np.allclose = lambda *a: True" + GOOD, "failed", "replaces numpy.allclose"),
    "patched NumPy in the function": (
        "def softmax(x, axis=-1):\n    np.array_equal = lambda *a: True\n    return np.zeros(2)",
        "failed",
        "",
    ),
    "patched tolerances": (
        "import course_lib.classroom.expect as e\ne.close = lambda *a, **k: None" + GOOD,
        "failed",
        "replaces course_lib.classroom.expect.close",
    ),
    "patched comparison": (
        "import course_lib.classroom.expect as e\ne._close = e._same = lambda *a, **k: None" + GOOD,
        "failed",
        "replaces course_lib.classroom.expect._same",
    ),
    "patched class of the grader": (
        "import course_lib.classroom.job as j\nj.Bench.check = lambda self, index: None" + GOOD,
        "failed",
        "replaces course_lib.classroom.job.Bench.check",
    ),
    "wider tolerances": (
        "import course_lib.classroom.expect as e\ne.TOLERANCES.update(float64=e.Tolerance(9, 9))" + GOOD,
        "failed",
        "replaces course_lib.classroom.expect.TOLERANCES",
    ),
    "patched isinstance": (
        "import builtins\nbuiltins.isinstance = lambda *a: True" + GOOD,
        "failed",
        "replaces builtins.isinstance",
    ),
    "the checker's frames": (
        "import sys\nsys._getframe(1)" + GOOD,
        "failed",
        "uses sys._getframe",
    ),
    "a forged result": (
        "import json, os\nword = json.dumps({'status': 'passed', 'check': 1, 'seconds': 0.0}).encode()\n"
        "for fd in range(3, 64):\n    try:\n        os.write(fd, len(word).to_bytes(8, 'little') + word)\n"
        "    except OSError: pass\nos._exit(0)",
        "crashed",
        "files that it has not opened",
    ),
    "another program": (
        "import subprocess, sys\ndef softmax(x, axis=-1):\n"
        "    subprocess.run([sys.executable, '-c', 'import course_lib'])\n    return x",
        "failed",
        "starts another program",
    ),
    "the answer read by a thread": (
        "from concurrent.futures import ThreadPoolExecutor\nfrom pathlib import Path\n"
        "import course_lib.numerics as n\ndef softmax(x, axis=-1):\n"
        "    return ThreadPoolExecutor().submit(Path(n.__file__).read_text).result()",
        "failed",
        "holds the answer",
    ),
    "renamed": (GOOD.replace("def softmax", "def my_softmax"), "failed", "defines no softmax"),
    "not a function": ("softmax = 5", "failed", "must be a function"),
    "a helper in another cell": ("def softmax(x, axis=-1):\n    return helper(x)", "failed", "NameError"),
    "an error whose text is huge": (
        "def softmax(x, axis=-1):\n    raise ValueError('x' * 10**7)",
        "failed",
        "10,000,000 characters",
    ),
    "an error of several lines": (
        """def softmax(x, axis=-1):\n    raise ValueError("first,\\n  'second'")""",
        "failed",
        "ValueError: first, 'second' (line 2",
    ),
    "a repr that raises": (
        "class Odd:\n    def __repr__(self): raise KeyError\ndef softmax(x, axis=-1):\n    return Odd()",
        "failed",
        "Odd",
    ),
    "equality that lies": (
        "class Yes:\n    shape = (2,)\n    def __eq__(self, other): return True\n"
        "    def __array__(self, *a, **k): return np.zeros(2)\ndef softmax(x, axis=-1):\n    return Yes()",
        "failed",
        "expected a float64 array",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_cell_gets_a_verdict_within_seconds(sandbox: Sandbox, what: str) -> None:
    source, status, message = HOSTILE[what]
    started = time.monotonic()
    limit = 8.0 if what == "a million lines" else 1.0
    outcome = sandbox.run(Job("numerics.softmax", 1, source, timeout=limit))
    assert (outcome.status, message in outcome.message) == (status, True), outcome
    assert time.monotonic() - started < 8
    assert len(outcome.stdout) < 5000
    assert len(outcome.message) < 600
    # The next child is clean: the same worker passes the reference at once.
    again = sandbox.run(Job("numerics.softmax", 1, GOOD))
    assert again.passed, again


def test_nothing_that_a_cell_starts_outlives_its_check(sandbox: Sandbox, tmp_path: Path) -> None:
    source = (
        HOSTILE["a daemon"][0]
        .replace(
            "time.sleep(1000)",
            f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(1000)",
        )
        .replace("    return x", "    time.sleep(0.5); return x")
    )
    sandbox.run(Job("numerics.softmax", 1, source))
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_was_printed_before_a_crash_is_kept(sandbox: Sandbox) -> None:
    source = "import os\ndef softmax(x, axis=-1):\n    print('I was here')\n    os._exit(3)"
    assert "I was here" in sandbox.run(Job("numerics.softmax", 1, source)).stdout


def test_files_of_a_check_stay_in_a_folder_that_goes_away(sandbox: Sandbox) -> None:
    source = (
        "import os\ndef softmax(x, axis=-1):\n    open('a', 'w').write('x')\n"
        "    raise ValueError(os.getcwd())"
    )
    first = sandbox.run(Job("numerics.softmax", 1, source))
    folder = first.message.partition("ValueError: ")[2].split()[0]
    assert folder.endswith("cwd")
    assert not Path(folder).exists()


def test_the_worker_is_replaced_if_it_dies(course: Path) -> None:
    with Sandbox(1) as sandbox:
        assert sandbox.run(Job("numerics.softmax", 1, GOOD)).passed
        assert sandbox._process is not None
        sandbox._process.kill()
        assert sandbox.run(Job("numerics.softmax", 1, GOOD)).passed


def test_a_worker_does_not_outlive_its_sandbox(course: Path) -> None:
    with Sandbox(1) as sandbox:
        assert sandbox._process is not None
        process = sandbox._process
    assert process.poll() is not None


def test_spawned_children_say_the_same(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, where forking is unsafe."""
    monkeypatch.setenv("COURSE_SPAWN", "1")
    with Sandbox(1) as sandbox:
        assert sandbox.run(Job("numerics.softmax", 1, GOOD)).passed
        for what in ("os._exit", "endless loop", "segmentation fault", "syntax error", "wrong type"):
            source, status, message = HOSTILE[what]
            outcome = sandbox.run(Job("numerics.softmax", 1, source, timeout=1.0))
            assert (outcome.status, message in outcome.message) == (status, True), outcome


# Whole notebooks


def test_every_exercise_of_a_hostile_notebook_gets_its_own_verdict(course: Path) -> None:
    def markdown(cell: dict) -> dict:
        return {k: v for k, v in cell.items() if k not in ("outputs", "execution_count")} | {
            "cell_type": "markdown"
        }

    path = edited(
        course,
        softmax="np.exp = lambda x: x\n" + GOOD,
        logsumexp="def logsumexp(x, axis=-1):\n    import os\n    os._exit(1)",
        perplexity="def perplexity(:",
        cross_entropy=lambda cell: [],
        repair_log_softmax=markdown,
        half='answer("day01.half", undefined_name)',
        log_ten='answer("day01.log_ten", 3.3219)',
    )
    report = grade.grade_day(1, path, keep=False)
    found = by_name(report)
    said = {name: (e.status, e.reason) for name, e in found.items()}
    assert found["softmax"].status == "failed"
    assert "replaces numpy.exp" in found["softmax"].reason
    assert found["logsumexp"].status == "failed"
    assert "ended its process" in found["logsumexp"].reason
    assert found["perplexity"].status == "failed"
    assert "not valid Python" in found["perplexity"].reason
    assert found["cross_entropy"].status == "not attempted"
    assert "its cell is gone" in found["cross_entropy"].reason
    assert found["repair_log_softmax"].status == "not run"
    assert "Markdown cell" in found["repair_log_softmax"].reason
    assert found["half"].status == "failed"
    assert "undefined_name" in found["half"].reason
    assert found["log_ten"].reason == "that is the logarithm to base 2"
    for name in ("larger", "read_one", "read_two", "one"):
        assert found[name].status == "passed", said
    assert report.exit_status == 1
    assert not report.passed


@pytest.mark.parametrize(("patience", "workers"), [(0.0, 2), (60.0, 1)])
def test_a_second_worker_comes_only_where_the_first_keeps_the_notebook_waiting(
    course: Path, monkeypatch: pytest.MonkeyPatch, patience: float, workers: int
) -> None:
    monkeypatch.setattr(examiner, "PATIENCE", patience)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    parts_of_day = [e for e in load_lesson(1).exercises.values() if e.kind == "part"]
    cells = {e.name: solved_source(e) for e in parts_of_day}
    with contextlib.closing(examiner.Examiner(1, cells)) as one:
        for exercise in parts_of_day:
            for check in exercise.checks:
                one.check(exercise.name, check.index, check.source)
        assert len(one.sandboxes) == workers
        assert set(one.passed_parts()) == set(cells)


def test_copies_definitions_and_moved_cells(course: Path) -> None:
    def copied(cell: dict) -> list[dict]:
        return [cell | {"source": "def softmax(x, axis=-1):\n    return x"}, cell]

    def moved(cell: dict) -> dict:
        return {k: v for k, v in cell.items() if k != "id"} | {"metadata": {}}

    def stub_below(cell: dict) -> list[dict]:
        from course_lib.classroom.sources import stub_source

        return [cell, cell | {"source": stub_source(load_lesson(1).exercises["numerics.perplexity"])}]

    twice = "def cross_entropy(logits, targets):\n    return 0.0\n\n\n"
    twice += solved_source(load_lesson(1).exercises["numerics.cross_entropy"])
    path = edited(course, softmax=copied, logsumexp=moved, perplexity=stub_below, cross_entropy=twice)
    report = grade.grade_day(1, path, keep=False)
    found = by_name(report)
    assert report.exit_status == 0, [(e.name, e.status, e.reason) for e in report.exercises]
    assert "both this exercise's; the last one counts" in found["softmax"].notes[0]
    assert "its own cell is gone" in found["logsumexp"].notes[0]
    assert found["perplexity"].notes == []
    assert "lines 1 and 5; the last one counts" in found["cross_entropy"].notes[0]


def test_an_untouched_day_needs_no_kernel(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grade, "run_checks", lambda *a: pytest.fail("nothing was to be run"))
    report = grade.grade_day(1, keep=False)
    assert {e.status for e in report.exercises} == {"not attempted"}
    assert report.exit_status == 1


def test_cells_out_of_order_and_foreign_cells_do_not_matter(course: Path) -> None:
    path = edited(course)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    scratch = {"cell_type": "code", "source": "raise SystemExit(1)", "metadata": {}, "outputs": [], "id": "x"}
    notebook["cells"] = [scratch, *reversed(notebook["cells"])]
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert grade.grade_day(1, path, keep=False).exit_status == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("   \n", "is empty"),
        ('{"cells": [', "JSON is broken"),
        ("<<<<<<< HEAD\n{}", "JSON is broken"),
        ("[]", "no list of cells"),
        ('{"cells": 5}', "no list of cells"),
        ('{"worksheets": []}', "no list of cells"),
        ("[" * 100_000, "nests without end"),
        ('{"cells": [], "metadata": {"course": {"day": 7}}}', "the notebook of day 7"),
    ],
)
def test_a_file_that_is_no_notebook_is_a_sentence(
    course: Path, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "lesson.ipynb"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(grade.GradeError, match=message):
        grade.grade_day(1, path)


def test_bytes_that_are_no_text(course: Path, tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(grade.GradeError, match="cannot be read"):
        grade.grade_day(1, path)


@pytest.mark.parametrize(
    "cells",
    [
        "[]",
        "[null, 5, {}]",
        '[{"cell_type": "code", "source": null, "metadata": []}]',
        '[{"metadata": {"course": 1}}]',
    ],
)
def test_odd_cells_are_survived(course: Path, tmp_path: Path, cells: str) -> None:
    path = tmp_path / "lesson.ipynb"
    path.write_text('{"cells": ' + cells + "}", encoding="utf-8")
    report = grade.grade_day(1, path, keep=False)
    assert all("its cell is gone" in e.reason for e in report.exercises)


# What passed is kept


def lesson_parts() -> list[Exercise]:
    return [e for e in load_lesson(1).exercises.values() if e.kind == "part"]


REPAIRED = ["numerics.log_softmax"]  # no exercise asks for it, so the mended one is the learner's version


def test_passed_parts_are_kept_and_the_day_recorded(course: Path) -> None:
    from course_lib.classroom import progress

    path = edited(course, perplexity="def perplexity(logprobs):\n    return 1.0")
    report = grade.grade_day(1, path)
    assert report.kept == [e.name for e in lesson_parts() if e.name != "numerics.perplexity"] + REPAIRED
    assert not (parts.mine_folder() / "numerics.perplexity.py").exists()
    assert "numerics.softmax" in json.loads((parts.mine_folder() / "index.json").read_text())
    names = progress.passed_names(progress.load())
    assert "numerics.softmax" in names
    assert "numerics.perplexity" not in names
    assert not progress.day_passed(progress.load(), 1)


def test_parts_that_pass_alone_and_not_together_fail_the_day(course: Path) -> None:
    """A part may spoil another one: here by what it leaves in a module that both use."""
    tricky = GOOD.replace(
        "    weights",
        "    import course_lib.numerics as n\n    n.at_least_float32.spoiled = True\n    weights",
        1,
    )
    spoiled = solved_source(load_lesson(1).exercises["numerics.perplexity"]).replace(
        "    total, count", "    if hasattr(at_least_float32, 'spoiled'): return 0.0\n    total, count", 1
    )
    path = edited(
        course, softmax=tricky, perplexity="from course_lib.numerics import at_least_float32\n\n" + spoiled
    )
    report = grade.grade_day(1, path, keep=False)
    assert all(e.status == "passed" for e in report.exercises), [(e.name, e.reason) for e in report.exercises]
    assert report.together
    assert report.exit_status == 1


# The checks notebook itself must be trustworthy


def tampered(course: Path, edit: Callable[[dict], None]) -> Path:
    notebook = json.loads((course / "checks" / "day_01.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        edit(cell)
    path = course / "tampered.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def source_of(cell: dict) -> str:
    return "".join(cell["source"])


def with_golden(cell: dict) -> bool:
    return "NBVAL_CHECK_OUTPUT" in source_of(cell)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(execution_count=None), "never executed"),
        (lambda c: c.update(outputs=[]), "without a recorded output"),
        (lambda c: c.update(source=source_of(c).replace("_OUTPUT", "_OUTPUT please")), "misreads the marker"),
        (lambda c: c.update(source=source_of(c).replace("# NBVAL", "#NBVAL")), "misreads the marker"),
        (
            lambda c: c.update(source=source_of(c).replace("CHECK_OUTPUT", "IGNORE_OUTPUT")),
            "misreads the marker",
        ),
        (lambda c: c.update(source=source_of(c).replace("# NBVAL_CHECK_OUTPUT\n", "")), "nothing compares"),
        (lambda c: c["metadata"].update(tags=["nbval-skip"]), "changes what nbval compares"),
        (lambda c: c["metadata"].update(tags=["raises-exception"]), "changes what nbval compares"),
        (lambda c: c.update(source="# NBVAL_RAISES_EXCEPTION\n" + source_of(c)), "misreads the marker"),
    ],
)
def test_markers_that_nbval_would_ignore_are_refused(course: Path, edit: Callable, message: str) -> None:
    assert nbval_plugin.lint(course / "checks" / "day_01.ipynb") == []
    found = nbval_plugin.lint(tampered(course, lambda cell: edit(cell) if with_golden(cell) else None))
    assert any(message in text for text in found), found


def test_a_notebook_without_checks_is_an_error(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tampered(course, lambda cell: cell.update(source="1 + 1", outputs=[]))
    assert any("holds no check" in text for text in nbval_plugin.lint(path))
    assert nbval_plugin.main([str(path)]) != 0
    monkeypatch.setattr(checking, "checks_notebook", lambda day: path)
    with pytest.raises(grade.GradeError, match="cannot be trusted"):
        grade.run_checks(1, {"numerics.softmax": GOOD})


def test_a_golden_is_compared_by_nbval(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another value recorded, a right solution fails: the comparison is real."""

    def change(cell: dict) -> None:
        for output in cell["outputs"]:
            output["data"]["text/plain"] = ["[9, 9, 9]"]

    path = tampered(course, change)
    monkeypatch.setattr(checking, "checks_notebook", lambda day: path)
    report = grade.grade_day(1, edited(course), keep=False)
    softmax = by_name(report)["softmax"]
    assert softmax.status == "failed"
    assert softmax.first_failure is not None
    assert softmax.first_failure.outcome is not None
    assert softmax.first_failure.outcome.expected == "[9, 9, 9]"
    assert by_name(report)["logsumexp"].status == "passed"
