"""The grader can be trusted: for every exercise of every day, and because the proof is seen to fail."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_lib import parts
from course_lib.classroom import checking, expect, grade, nbval_plugin, prove, quiz, substitute
from course_lib.classroom.diagnose import looks_as_if
from course_lib.classroom.expect import CheckFailure, close, golden_text, has_golden, plain, same, show
from course_lib.classroom.lesson import Exercise, available_days, load_lesson
from course_lib.classroom.sandbox import Job, Sandbox
from course_lib.classroom.sources import solved_source, stub_source, wrap_answer

SMALL = Path(__file__).with_name("small_course")
REAL_ROOT = Path(__file__).resolve().parents[2]
DAYS = available_days(REAL_ROOT) if os.environ.get("PROVE") == "all" else prove.changed_days()


# Every day


@pytest.mark.parametrize("day", DAYS)
def test_the_checks_of_the_day_can_be_trusted(day: int) -> None:
    """Stub, reference, wrong, delegating, forbidden and sentinel variants of each exercise; see prove.py."""
    proof = prove.prove_day(day, with_mutants=False)
    assert proof.exercises == len(load_lesson(day).exercises)
    assert proof.findings == [], "\n".join(map(str, proof.findings))


@pytest.mark.parametrize("day", DAYS)
def test_the_checks_notebook_of_the_day_is_sound(day: int) -> None:
    path = checking.checks_notebook(day)
    assert nbval_plugin.lint(path) == []
    lesson = load_lesson(day)
    import json

    heads = [
        nbval_plugin.check_head("".join(cell["source"]))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    wanted = [(name, check.index) for name, e in lesson.exercises.items() for check in checking.checks_of(e)]
    assert [head for head in heads if head in wanted] == wanted
    assert heads[-1] == ("together", 0)


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real course in a folder of its own, for the learner's files."""
    for name in ("solutions", "checks", "days"):
        shutil.copytree(REAL_ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("gates", "library"))
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    monkeypatch.setenv("COURSE_MINE", str(tmp_path / "mine"))
    return tmp_path


def check_day(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "course_lib.classroom", "check-day", *arguments]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REAL_ROOT), os.environ.get("PYTHONPATH", "")])
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("day", DAYS)
def test_a_day_untouched_fails_and_solved_passes(copied: Path, day: int) -> None:
    lesson = load_lesson(day)
    folder = lesson.path.parent.name
    done = check_day(str(day))
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("not attempted") == len(lesson.exercises)
    solved = copied / "solutions" / folder / "lesson.ipynb"
    shutil.copy(solved, copied / "days" / folder / "lesson.ipynb")
    done = check_day(str(day))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Day {day} passed" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout  # plain where it is no terminal
    kept = {path.stem for path in (copied / "mine").glob("*.py")}
    assert {e.part for e in lesson.exercises.values() if e.kind == "part"} <= kept


@pytest.mark.parametrize("text", ["0", "31", "five"])
def test_a_bad_day_is_a_sentence(text: str) -> None:
    done = check_day(text)
    assert done.returncode == 2
    assert "day" in done.stderr
    assert "Traceback" not in done.stderr


# The proof can fail: weak, broken and leaking lessons are found out


WEAK = """---
jupyter:
  day: 1
  title: Weak
  minutes: 10
  summary: A lesson whose checks prove too little.
---
## 6. Exercises

```python exercise="numerics.softmax" difficulty=1 minutes=5 core forbid="scipy.special.softmax"
```

CHECKS

WRONGS
"""
WRONG = """```python wrong="numerics.softmax" says="it is the identity"
def softmax(x, axis=-1):
    return x
```
"""


def check_block(source: str) -> str:
    return f'```python check="numerics.softmax" says="a check"\n{source}\n```\n'


def weak_course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checks: str, wrongs: str = WRONG) -> None:
    folder = tmp_path / "solutions" / "day_01_weak"
    folder.mkdir(parents=True)
    text = WEAK.replace("CHECKS", checks).replace("WRONGS", wrongs)
    (folder / "lesson.md").write_text(text, encoding="utf-8")
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))


ROWS = (
    "expect(softmax, rng(0).normal(size=(3, 5))).satisfies(lambda p: np.allclose(p.sum(-1), 1), 'sums to 1')"
)


@pytest.mark.parametrize(
    ("checks", "wrongs", "finding"),
    [
        ("", WRONG, "has no check"),
        (check_block("that(True, 'anything goes')"), WRONG, "the stub passes when it is run"),
        (check_block("that(True, 'anything goes')"), WRONG, "(it is the identity) is reported 'passed'"),
        (check_block("that(True, 'anything goes')"), WRONG, "never calls the learner's object"),
        (check_block(ROWS) + check_block("that(np.e > 2, 'e')"), WRONG, "never calls the learner's object"),
        (check_block(ROWS.replace("1)", "2)")), WRONG, "the reference is reported 'failed'"),
        (check_block(ROWS.replace("rng(0)", "np.random")), WRONG, "draw from rng(seed)"),
        (check_block("expect(softmax, np.zeros(3))"), WRONG, "the reference is reported"),
        (check_block(ROWS), WRONG.replace("return x", "return y"), "does not run: NameError"),
        (
            check_block(ROWS),
            WRONG.replace("return x", "return np.exp(x) / np.exp(x).sum(axis, keepdims=True)"),
            "passed",
        ),
    ],
)
def test_a_weak_lesson_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checks: str, wrongs: str, finding: str
) -> None:
    weak_course(tmp_path, monkeypatch, checks, wrongs)
    proof = prove.prove_day(1, with_mutants=False)
    assert not proof.holds
    assert any(finding in str(found) for found in proof.findings), proof.findings


def test_a_sound_lesson_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weak_course(tmp_path, monkeypatch, check_block(ROWS))
    assert prove.prove_day(1, with_mutants=False).findings == []


def test_parts_of_later_days_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = "from course_lib.tokenizer import merge_pair\n" + ROWS
    weak_course(tmp_path, monkeypatch, check_block(late))
    assert [text for _, text in prove.later_parts(load_lesson(1))] == [
        "uses course_lib.tokenizer.merge_pair, a part of day 5"
    ]


# The object that is checked


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    root = tmp_path_factory.mktemp("small")
    shutil.copytree(SMALL / "solutions", root / "solutions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_ROOT", str(root))
        sandbox = Sandbox(1)
    with sandbox:
        yield sandbox


def exercise(name: str) -> Exercise:
    return load_lesson(SMALL / "solutions" / "day_01_small").exercises[name]


def test_the_library_uses_the_learners_part(small: Sandbox) -> None:
    """The reference of cross_entropy calls logsumexp: while logsumexp is checked, that is the learner's."""
    source = "def logsumexp(x, axis=-1):\n    raise RuntimeError('here I am')"
    check = "cross_entropy(np.zeros((2, 3)), np.zeros(2, dtype=int))"
    outcome = small.run(Job("numerics.logsumexp", 0, source, check))
    assert "here I am" in outcome.message


def test_the_other_parts_are_the_references(small: Sandbox) -> None:
    """One broken part never fails another one's checks."""
    assert checking.check_exercise(
        small, exercise("numerics.cross_entropy"), solved_source(exercise("numerics.cross_entropy"))
    ).passed


@pytest.mark.parametrize(("how", "source"), prove.delegating(exercise("numerics.softmax")))
def test_delegation_is_no_solution(small: Sandbox, how: str, source: str) -> None:
    verdict = checking.check_exercise(small, exercise("numerics.softmax"), source)
    assert verdict.status == "failed", how
    assert "softmax" in verdict.reason or "source" in verdict.reason


@pytest.mark.parametrize(
    "source",
    [
        # through another part of the library that uses it
        "from course_lib.numerics import log_softmax\ndef logsumexp(x, axis=-1):\n"
        "    return (x - log_softmax(x, axis)).max(axis)",
        # in a thread, where the learner's function is not on the stack
        "import threading\nfrom course_lib.numerics import logsumexp as _r\n"
        "def logsumexp(x, axis=-1):\n    out = []\n"
        "    t = threading.Thread(target=lambda: out.append(_r(x, axis)))\n"
        "    t.start(); t.join()\n    return out[0]",
        # the code object, kept before the checks begin
        "import types, course_lib.numerics as n\n_code = n.logsumexp.__code__\n"
        "def logsumexp(x, axis=-1):\n    return types.FunctionType(_code, vars(n))(x, axis)",
        # the registry of parts
        "from course_lib import parts\ndef logsumexp(x, axis=-1):\n"
        "    return parts.REGISTRY['course_lib.numerics:logsumexp'].reference(x, axis)",
        # a fresh copy of the module
        "import importlib.util, sys\ndef logsumexp(x, axis=-1):\n"
        "    spec = importlib.util.find_spec('course_lib.numerics')\n"
        "    m = importlib.util.module_from_spec(spec)\n"
        "    spec.loader.exec_module(m)\n    return m.logsumexp(x, axis)",
        # the lesson's own text
        "import course_lib.classroom.lesson as l\ndef logsumexp(x, axis=-1):\n"
        "    text = (l.find_day(1) / 'lesson.md').read_text()\n    return 0.0",
        # another process that imports the library is none of ours; its answer comes back as text
        "from course_lib.classroom.sources import part_source\nexec(part_source('numerics.logsumexp'))",
    ],
)
def test_detours_to_the_reference_are_closed(small: Sandbox, source: str) -> None:
    assert checking.check_exercise(small, exercise("numerics.logsumexp"), source).status == "failed"


def test_forbidden_functions_are_caught_however_they_are_reached(small: Sandbox) -> None:
    setup = "import numpy as np"
    tail = "\ndef softmax(x, axis=-1):\n    return {}\n"
    for head, call in [
        ("import scipy.special", "scipy.special.softmax(x, axis)"),
        ("import scipy.special as sp", "sp.softmax(x, axis)"),
        ("from scipy import special", "special.softmax(x, axis)"),
        ("from scipy.special import softmax as s", "s(x, axis)"),
        ("import scipy.special\ns = scipy.special.softmax", "s(x, axis)"),
        ("import scipy.special as sp", "getattr(sp, 'soft' + 'max')(x, axis)"),
        ("import functools, scipy.special as sp\ns = functools.partial(sp.softmax)", "s(x, axis)"),
    ]:
        verdict = checking.check_exercise(small, exercise("numerics.softmax"), head + tail.format(call))
        assert "forbids" in verdict.reason, (head, verdict)
    for source in (
        "softmax = 1",
        "def f(softmax):\n    return softmax(1)",
        "x.softmaxes()",
        "# scipy.special.softmax",
    ):
        assert substitute.forbidden_use(source, setup, ["scipy.special.softmax"]) == ""
    assert substitute.forbidden_use("sorted([2, 1])", setup, ["sorted"])
    assert substitute.forbidden_use("def sorted(x):\n    return x\nsorted([2, 1])", setup, ["sorted"]) == ""
    assert substitute.forbidden_use(
        "F.scaled_dot_product_attention(q)", setup, ["scaled_dot_product_attention"]
    )
    assert substitute.forbidden_use("np.linalg.norm(x)", setup, ["np.linalg"])


class _Library:
    """A class with everything that a part may have: stands in for one of a later day."""

    default = 3

    def __init__(self, value: int):
        self.value = value

    def double(self) -> int:
        return 2 * self.value

    @property
    def half(self) -> float:
        return self.value / 2

    @classmethod
    def make(cls) -> "_Library":
        return cls(7)

    @staticmethod
    def name() -> str:
        return "library"


class _Below(_Library):
    def triple(self) -> int:
        return self.double() + self.value


def test_classes_and_methods_are_replaced_in_place() -> None:
    """In a process of its own, since what is replaced stays so."""
    source = f"""
import sys
sys.path.insert(0, {str(REAL_ROOT)!r})
import importlib.util
spec = importlib.util.spec_from_file_location("test_grader", {__file__!r})
m = importlib.util.module_from_spec(spec); sys.modules["test_grader"] = m; spec.loader.exec_module(m)
m.replaced_in_place()
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def replaced_in_place() -> None:
    kept_double, kept_make, kept_class = _Library.double, _Library.make, _Library
    substitution = substitute.Substitution.__new__(substitute.Substitution)
    substitution.name, substitution.filename, substitution.short = "x._Library", "<your _Library>", "_Library"
    substitution.part = parts.Part("m:_Library", "m", "_Library", 1, _Library, None, _Library)
    substitution.target, substitution.calls, substitution.is_method = None, 0, False
    substitution.install()
    with pytest.raises(substitute.DelegationError):
        _Library(1)
    source = (
        "class _Library:\n    def __init__(self, value): self.value = 10 * value\n"
        "    def double(self): return 'mine'\n    @property\n    def half(self): return 'my half'\n"
        "    @classmethod\n    def make(cls): return cls(1)\n"
        "    @staticmethod\n    def name(): return 'me'\n"
    )
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<your _Library>", "exec"), namespace)
    substitution.adopt(namespace)
    assert kept_class(2).value == 20
    assert kept_class(2).double() == "mine"
    assert kept_class(2).half == "my half"
    assert kept_make().value == 10
    assert kept_class.name() == "me"
    assert kept_double(kept_class(1)) == "mine"
    below = _Below(3)  # a subclass keeps its type and uses the learner's methods
    assert type(below) is _Below
    assert (below.value, below.double()) == (30, "mine")


# Verdicts and diagnosis


def test_a_stub_is_told_apart_without_running() -> None:
    e = exercise("numerics.softmax")
    stub = stub_source(e)
    for same_tree in (
        stub,
        stub + "\n\n# a comment\n",
        stub.replace("    raise", "\n    raise"),
        "%time\n" + stub,
    ):
        assert checking.not_attempted(e, same_tree) == "the cell is as it was handed out"
    assert checking.not_attempted(e, "  \n# nothing\n") == "the cell is empty"
    for other in (stub + "\nx = 1", "def softmax(", solved_source(e)):
        assert checking.not_attempted(e, other) == ""
    q = exercise("day01.half")
    assert checking.not_attempted(q, stub_source(q))
    assert not checking.not_attempted(q, 'answer("day01.half", 3)')


def test_each_wrong_solution_is_recognised(small: Sandbox) -> None:
    for name in ("numerics.softmax", "numerics.logsumexp", "numerics.perplexity", "numerics.cross_entropy"):
        e = exercise(name)
        for mistake in e.wrongs:
            with_library = "course_lib" in mistake.source
            verdict = checking.check_exercise(small, e, mistake.source)
            # One that hands its work to the library has a reason of its own.
            assert verdict.diagnosis == mistake.says or with_library, (name, mistake.says, verdict)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("raise ValueError('no')", "raise ValueError(f'{n}: give 1 or more') from None", True),
        ("raise ValueError('no')", "raise TypeError('no')", False),
        ("assert n, 'no'", "assert n", True),
        ("[7][n + 1]", "[7][1]", True),
        ("{}[n]", "{}[n + 1]", False),
        ("math.sqrt(n - 1)", "raise ValueError('no')", False),
    ],
)
def test_errors_are_alike_by_their_kind_whatever_words_the_learner_chose(
    one: str, other: str, alike: bool
) -> None:
    """A library's words tell mistakes apart; the learner's own say nothing about the mistake."""

    def marks(statement: str) -> list[str]:
        names: dict[str, Any] = {}
        source = f"def f(n):\n    import math\n    {statement}\n"
        exec(compile(source, expect.CELL_PREFIX + "f>", "exec"), names)
        called = expect.expect(names["f"], 0)
        found = []
        for ask in (lambda: called.value, lambda: called.raises(Exception, match="a word nobody says")):
            with pytest.raises(CheckFailure) as failure:
                ask()
            found.append(failure.value.fingerprint)
        expect.begin_check()
        return found

    first, second = marks(one), marks(other)
    assert (first[0] == second[0]) is alike
    assert first[1] == second[1]  # only that the words are missing counts there, not which there are


def test_another_mistake_with_the_same_failing_check_is_not_misnamed(small: Sandbox) -> None:
    e = exercise("numerics.perplexity")
    source = "def perplexity(logprobs):\n    return float(np.exp(-sum(d.sum() for d in logprobs)))"
    verdict = checking.check_exercise(small, e, source)
    assert verdict.status == "failed"
    assert verdict.diagnosis == ""


def test_after_a_timeout_the_exercise_stops(small: Sandbox) -> None:
    e = exercise("numerics.softmax")
    slow = load_lesson(SMALL / "solutions" / "day_01_small").exercises["numerics.softmax"]
    from dataclasses import replace

    quick = replace(slow, checks=[replace(c, timeout=0.5) for c in slow.checks])
    verdict = checking.check_exercise(small, quick, "def softmax(x, axis=-1):\n    while True: pass")
    assert [c.outcome and c.outcome.status for c in verdict.checks] == ["timeout", None, None]
    assert looks_as_if(small, e, verdict) == ""


def test_without_checks_there_is_no_verdict(small: Sandbox) -> None:
    from dataclasses import replace

    with pytest.raises(checking.NoChecks, match="anything would pass"):
        checking.check_exercise(small, replace(exercise("numerics.softmax"), checks=[]), "x = 1")


# Questions


@pytest.mark.parametrize(
    ("name", "given_", "passes", "reason"),
    [
        ("day01.log_ten", "2.303", True, ""),
        ("day01.log_ten", "np.float32(2.30)", True, ""),
        ("day01.log_ten", "np.array(2.30)", True, ""),
        ("day01.log_ten", "3.32193", False, "that is the logarithm to base 2"),
        ("day01.log_ten", "2.4", False, "that is not it"),
        ("day01.log_ten", "'2.3'", False, "the answer is a number"),
        ("day01.log_ten", "True", False, "the answer is a number"),
        ("day01.log_ten", "float('nan')", False, "finite"),
        ("day01.log_ten", "None", False, "the answer is a number"),
        ("day01.log_ten", "...", False, "not answered yet"),
        ("day01.read_one", "2", True, ""),
        ("day01.read_one", "2.0", True, ""),
        ("day01.read_one", "2.5", False, "whole number"),
        ("day01.read_one", "3", False, "one too many"),
        ("day01.larger", "'b'", True, ""),
        ("day01.larger", "' B '", True, ""),
        ("day01.larger", "'a'", False, "exp of a negative number is below 1"),
        ("day01.larger", "'z'", False, "not among the options"),
        ("day01.larger", "[]", False, "not among the options"),
    ],
)
def test_answers(small: Sandbox, name: str, given_: str, passes: bool, reason: str) -> None:
    source = "import numpy as np\n" + wrap_answer(name, given_)
    verdict = checking.check_exercise(small, exercise(name), source)
    if given_ == "...":
        assert verdict.status == "failed"
    assert verdict.passed == passes, verdict
    assert reason in verdict.reason
    assert "2.302" not in verdict.reason  # the key is never told


def test_the_tolerance_of_a_number_has_two_sides() -> None:
    e = SimpleNamespace(
        name="q", tolerance={"kind": "number", "rtol": 0.02}, body="100", wrongs=[], options={}
    )
    for value in (98.1, 100, 101.9):
        quiz.judge(e, value, eval)
    for value in (97.9, 102.1, -100):
        with pytest.raises(CheckFailure):
            quiz.judge(e, value, eval)


# What a check may say


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (1, 1),
        (np.int64(1), 1),
        ([1, [2]], [1, [2]]),
        ({"a": (1, 2)}, {"a": (1, 2)}),
        (np.arange(3), np.arange(3)),
        (float("nan"), float("nan")),
        ("a", "a"),
        (None, None),
        ({1, 2}, {2, 1}),
    ],
)
def test_same_accepts(got: Any, want: Any) -> None:
    same(got, want)


@pytest.mark.parametrize(
    ("got", "want", "message"),
    [
        (True, 1, "got True, expected 1"),
        (1, True, "expected True"),
        (1.0, 1, "a float"),
        ((1, 2), [1, 2], "a tuple of 2, expected a list of 2"),
        ([1, 2], [1, 3], r"at \[1\]: got 2, expected 3"),
        ([1], [1, 2], "got 1 items, expected 2"),
        (np.array([1]), [1], "expected a list"),
        ([1], np.array([1]), "expected an int64 array"),
        (np.zeros(3), np.zeros(3, dtype=int), "got dtype float64, expected int64"),
        (np.zeros((3, 1), int), np.zeros((3, 3), int), r"got shape \(3, 1\), expected \(3, 3\)"),
        (
            np.array([1, 2, 4]),
            np.array([1, 2, 3]),
            r"1 of 3 values differ; the first at \[2\]: got 4, expected 3",
        ),
        ({"a": 1}, {"a": 1, "b": 2}, "the key 'b' is missing"),
        ({"a": 1, "b": 2}, {"a": 1}, "the key 'b' should not be there"),
        ("a", b"a", "expected"),
        (None, 0, "got None"),
        (0, None, "expected None"),
    ],
)
def test_same_refuses(got: Any, want: Any, message: str) -> None:
    with pytest.raises(CheckFailure, match=message):
        same(got, want)


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (np.float32(0.1) + np.float32(0.2), np.float32(0.3)),
        (0.1 + 0.2, 0.3),
        (np.float64(0.3), 0.3),
        (np.array([0.0, np.inf, np.nan]), [0.0, np.inf, np.nan]),
        ((np.ones(2), {"a": 1.0}), (np.ones(2), {"a": 1.0})),
        (np.zeros((2, 3)), [[0, 0, 0], [0, 0, 0]]),
        (np.ones(3, np.float64), np.ones(3, np.float32)),
    ],
)
def test_close_accepts(got: Any, want: Any) -> None:
    close(got, want)


@pytest.mark.parametrize(
    ("got", "want", "message"),
    [
        (np.ones((3, 1)), np.ones((3, 3)), "shape"),
        (np.ones(3), np.ones((3, 1)), "shape"),
        (1, 1.0, "dtype int64, expected float64"),
        (np.ones(2, np.float16), np.ones(2, np.float32), "precision was lost"),
        (np.float32(0.3), np.float64(0.3), "precision was lost"),
        ([1.0, 2.0], np.array([1.0, 2.0]), "expected a float64 array"),
        (np.nan, 1.0, "got nan"),
        (np.inf, 1.0, "got inf"),
        (1.0, np.inf, "expected inf"),
        (1e-5, 1.2e-5, "expected 1.2e-05"),  # small probabilities do not hide below the absolute tolerance
        (np.array([1e-5], np.float32), np.array([1.001e-5], np.float32), "expected"),
        (np.array([-1e9, 0.5]), np.array([-1e9, 0.6]), r"at \[1\]"),  # a mask does not excuse the rest
        (None, 1.0, "expected"),
        ("1.0", 1.0, "dtype"),
        (object(), 1.0, "expected"),
        ((1.0,), (1.0, 2.0), "got shape"),
        ({"a": 1.0}, {"b": 1.0}, "keys"),
    ],
)
def test_close_refuses(got: Any, want: Any, message: str) -> None:
    with pytest.raises(CheckFailure, match=message):
        close(got, want)


def test_close_takes_a_dtype_or_a_tolerance_of_its_own() -> None:
    close(np.ones(2, np.float16), np.ones(2), dtype=np.float16)
    with pytest.raises(CheckFailure, match="got dtype float64, expected float16"):
        close(np.ones(2), np.ones(2), dtype="float16")
    close(1.05, 1.0, rtol=0.1)
    with pytest.raises(CheckFailure):
        close(1.05, 1.0, rtol=0.01)


def test_close_knows_tensors() -> None:
    torch = pytest.importorskip("torch")
    close(torch.ones(2, dtype=torch.bfloat16) * 1.01, torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(CheckFailure, match="precision was lost"):
        close(torch.ones(2, dtype=torch.bfloat16), torch.ones(2))
    with pytest.raises(CheckFailure, match="expected a float32 tensor"):
        close(np.ones(2, np.float32), torch.ones(2))
    with pytest.raises(CheckFailure, match="differ"):
        close(torch.ones(2) + 1e-3, torch.ones(2))
    same(torch.arange(3), torch.arange(3))


def run(source: str, **names: Any) -> Any:
    from course_lib.classroom.job import run_source

    expect.begin_check()
    value = run_source(source, {**expect.NAMES, **names}, "<check>")
    expect.end_check()
    return value


def test_expect_reports_the_input() -> None:
    def merge(ids: list[int], pair: tuple[int, int]) -> list[int]:
        if pair == (0, 0):
            raise ValueError("no such pair")
        return [9]

    with pytest.raises(CheckFailure) as caught:
        run("expect(merge, [1, 2], (1, 2)).equals([3])", merge=merge)
    assert caught.value.given == "merge([1, 2], (1, 2))"
    assert (caught.value.expected, caught.value.got) == ("[3]", "[9]")
    with pytest.raises(CheckFailure, match="ValueError: no such pair"):
        run("expect(merge, [1], (0, 0)).equals([3])", merge=merge)
    run("expect(merge, [1], (0, 0)).raises(ValueError, match='such')", merge=merge)
    with pytest.raises(CheckFailure, match="no error was raised"):
        run("expect(merge, [1], (1, 1)).raises(ValueError)", merge=merge)
    with pytest.raises(CheckFailure, match="expected KeyError, got ValueError"):
        run("expect(merge, [1], (0, 0)).raises(KeyError)", merge=merge)
    with pytest.raises(CheckFailure, match="should mention 'pears'"):
        run("expect(merge, [1], (0, 0)).raises(ValueError, match='pears')", merge=merge)


def test_a_check_that_expects_nothing_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="expects nothing"):
        run("expect(len, [1])")
    with pytest.raises(CheckFailure):
        run("expect(len, 1)")


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (lambda x: x.append(1), [1]),
        (lambda x: x[0].append(1), [[1]]),
        (lambda x: x.update(a=1), {}),
        (lambda x: x.__setitem__(0, 5.0), np.zeros(2)),
        (lambda x: x.__setitem__(0, np.nan), np.zeros(2)),
        (lambda x: x.sort(), [2, 1]),
        (lambda x: x.add(3), {1}),
    ],
)
def test_changed_inputs_are_noticed(function: Any, argument: Any) -> None:
    import copy

    with pytest.raises(CheckFailure, match="changed its input"):
        run("expect(f, x).value", f=function, x=copy.deepcopy(argument))
    run("expect.mutating(f, x).value", f=function, x=copy.deepcopy(argument))


def test_inputs_that_cannot_be_copied_are_let_be() -> None:
    run("expect(list, x).equals([0, 1])", x=(i for i in range(2)))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=20,
    )
)
def test_goldens_are_read_back(value: Any) -> None:
    import ast

    assert plain(ast.literal_eval(golden_text(value))) == plain(value)
    assert "\n" not in golden_text(value)


def test_goldens_hold_no_floats() -> None:
    for value in (1.0, np.float32(1), np.zeros(2), [1, 2.0], {"a": 1.0}, 1j, object()):
        with pytest.raises(TypeError, match="close"):
            plain(value)
    assert plain((np.int64(1), np.bool_(True), np.dtype("float32"))) == [1, True, "float32"]
    assert plain({(1, np.int64(2)): {3, 1}}) == {(1, 2): [1, 3]}
    assert plain(np.zeros((2, 3)).shape) == [2, 3]


def test_which_checks_have_a_golden() -> None:
    for source in ("f(1)", "x", "len(x)", "[1, 2]", "expect(f, 1).value", "expect(f, 1).value.shape"):
        assert has_golden("a = 1\n" + source), source
    for source in (
        "x = 1",
        "expect(f, 1).equals(2)",
        "same(1, 1)",
        "that(True, 'x')",
        "assert x",
        "import os",
        "",
    ):
        assert not has_golden(source), source


@given(st.lists(st.floats() | st.text() | st.binary(), max_size=500))
def test_values_are_shown_briefly(value: Any) -> None:
    assert len(show(value)) < 2500
    assert len(show(np.zeros((100, 100)))) < 120


def test_the_real_course_is_the_one_that_is_proved() -> None:
    assert available_days(REAL_ROOT) == available_days()
    assert set(DAYS) <= set(available_days())


def test_which_days_have_changed() -> None:
    def git(files: str) -> Any:
        answers = {"rev-parse": "abc", "merge-base": "def", "diff": files, "ls-files": ""}
        return lambda arguments: answers[arguments[0]]

    days = available_days()
    assert prove.changed_days(git("README.md\ncourse_lib/bench/kernels.py")) == []
    assert prove.changed_days(git("course_lib/classroom/worker.py")) == days
    assert prove.changed_days(git("course_lib/parts.py")) == days
    assert prove.changed_days(git("course_lib/classroom/worker.py"), grader=False) == []
    if 1 in days:
        assert prove.changed_days(git("solutions/day_01_math_fluency/lesson.md")) == [1]
        assert 1 in prove.changed_days(git("course_lib/numerics.py"))

    def broken(arguments: list[str]) -> str:
        raise OSError("no git")

    assert prove.changed_days(broken) == days


def test_the_exit_status() -> None:
    def report(*statuses: tuple[str, bool]) -> grade.DayReport:
        made = [
            grade.ExerciseReport(f"e{i}", "part", i, core, 5, status)
            for i, (status, core) in enumerate(statuses)
        ]
        return grade.DayReport(1, "t", Path("x"), made)

    passed, failed, idle = "passed", "failed", "not attempted"
    for statuses, day_passed, status in [
        ([(passed, True), (passed, False)], True, 0),
        ([(passed, True), (idle, False)], True, 0),
        ([(passed, True), (failed, False)], True, 1),
        ([(passed, True), (idle, True)], False, 1),
        ([(failed, True)], False, 1),
        ([("not run", True)], False, 1),
    ]:
        made = report(*statuses)
        assert (made.passed, made.exit_status) == (day_passed, status)


def test_values_that_say_themselves_what_they_are_equal_to() -> None:
    lies = {"__eq__": lambda self, other: True, "__ne__": lambda self, other: False, "__hash__": None}
    for want in (3, 3.0, "abc", b"abc"):
        with pytest.raises(CheckFailure, match="says itself"):
            same(type("Liar", (type(want),), lies)(), want)
    hides = {"__iter__": lambda self: iter(()), "__len__": lambda self: 2}
    for kind in (list, tuple):
        with pytest.raises(CheckFailure):
            same(type("Liar", (kind,), hides)([1, 2, 4]), kind([1, 2]))
    same([np.float64(2.0), True, np.int64(3)], [2.0, True, 3])
