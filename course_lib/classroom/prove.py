"""Prove that a day's checks can be trusted: `python -m course_lib.classroom prove --day 5`.

For every exercise: the stub is *not attempted*, and fails if it is run all the same; the reference passes;
every wrong solution fails, and not by accident of a typo; handing the work to the library or to a forbidden
function fails; the object checked is the learner's; nothing of a later day is used. And the reference's
syntax tree is mutated: a mutant that passes is shown to be equivalent in
checks/gates/equivalent_mutants.yaml, or the checks are too weak.

All of it runs in one `Sandbox` a day, without a kernel.
"""

import argparse
import ast
import contextlib
import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import yaml

from course_lib.classroom import checking, kernels
from course_lib.classroom import lesson as lessons
from course_lib.classroom.checking import FAILED, NOT_ATTEMPTED, PASSED, check_exercise
from course_lib.classroom.lesson import Exercise, Lesson, load_lesson
from course_lib.classroom.mutate import Mutant, mutants
from course_lib.classroom.sandbox import Job, Outcome, Sandbox
from course_lib.classroom.sources import (
    SourceError,
    locate,
    marked_day,
    part_source,
    solved_source,
    stub_source,
    wrap_answer,
)

COMMAND = "Prove that days can be graded: stubs, references, wrong solutions, mutants. Exit status 1 if not."
SENTINEL = "sentinel: the learner's own object was called"
BUDGET = 40.0  # seconds of mutants a day in CI
_ACCIDENTS = (
    "error: NameError",
    "error: ImportError",
    "error: ModuleNotFoundError",
    "syntax",
    "error: IndentationError",
)


@dataclass(frozen=True)
class Finding:
    """Something that keeps a day from being trusted; `line` is one of its lesson.md."""

    day: int
    line: int
    text: str

    def __str__(self) -> str:
        return f"day {self.day}, line {self.line}: {self.text}"


@dataclass
class Proof:
    """What was shown for a day. `survivors` are mutants that pass and are not listed as equivalent."""

    day: int
    findings: list[Finding] = field(default_factory=list)
    exercises: int = 0
    cells: int = 0
    mutants: int = 0
    possible: int = 0
    equivalent: int = 0
    survivors: list[tuple[str, str]] = field(default_factory=list)
    stale: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        return not (self.findings or self.survivors or self.stale)


# variants of a solution


def delegating(exercise: Exercise) -> list[tuple[str, str]]:
    """Cells that hand the work to the library's version: (how, source)."""
    if exercise.kind == "kernel":
        path = kernels.kernel_file(exercise.file)
        return [(f"including {name}", f'#include "{name}"\n') for name in (str(path), path.name)]
    assert exercise.part is not None
    found = locate(exercise.part)
    tail = f"\n\n\n{exercise.body}" if exercise.kind == "repair" else ""
    steps = found.qualname.split(".")
    name = steps[-1]
    fetch = f"from {found.module.name} import {steps[0]} as _library\n"
    if len(steps) > 1:
        whole = "_library" + "".join(f".{step}" for step in steps[1:])
        head = f"@method_of({'.'.join(['_library', *steps[1:-1]])})\n"
        body = f"def {name}(self, *args, **kwargs):\n    return _kept(self, *args, **kwargs)\n"
        return [("a method that calls it", f"{fetch}_kept = {whole}\n{head}{body}{tail}")]
    if isinstance(found.node, ast.ClassDef):
        wrapper = (
            f"class {name}:\n"
            "    def __init__(self, *args, **kwargs):\n"
            "        self._kept = _library(*args, **kwargs)\n"
            "    def __getattr__(self, attribute):\n"
            "        return getattr(self._kept, attribute)\n"
        )
        return [
            ("an import", f"from {found.module.name} import {name}\n{tail}"),
            ("another name for it", f"{fetch}{name} = _library\n{tail}"),
            ("a subclass", f"{fetch}class {name}(_library):\n    pass\n{tail}"),
            ("a class around it", f"{fetch}{wrapper}{tail}"),
        ]
    signature = ast.unparse(found.node.args)
    passed_on = _passed_on(found.node.args)
    imports = "from typing import *\nfrom collections.abc import *\n"
    bare = f"def {name}(*args, **kwargs):\n    return _library(*args, **kwargs)\n"
    hidden = (
        f"def {name}(*args, **kwargs):\n    try:\n        return _library(*args, **kwargs)\n"
        "    except Exception:\n        return None\n"
    )
    variants = [
        ("an import", f"from {found.module.name} import {name}\n{tail}"),
        ("another name for it", f"{fetch}{name} = _library\n{tail}"),
        ("functools.partial", f"import functools\n{fetch}{name} = functools.partial(_library)\n{tail}"),
        ("a function around it", f"{fetch}{bare}{tail}"),
        ("a function around it that swallows errors", f"{fetch}{hidden}{tail}"),
        ("a lambda around it", f"{fetch}{name} = lambda *args, **kwargs: _library(*args, **kwargs)\n{tail}"),
        (
            "its source, read and executed",
            f"import inspect\n{fetch}exec(inspect.getsource(_library))\n{tail}",
        ),
    ]
    if "jaxtyping" not in signature:
        stripped = _without_annotations(found.node)
        text = f"{fetch}{imports}def {name}({stripped}):\n    return _library({passed_on})\n{tail}"
        variants.append(("a function of the same signature around it", text))
    return variants


def _without_annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    arguments = ast.parse(f"def f({ast.unparse(node.args)}): pass").body[0]
    assert isinstance(arguments, ast.FunctionDef)
    for argument in ast.walk(arguments.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(arguments.args)


def _passed_on(arguments: ast.arguments) -> str:
    parts = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    parts += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    parts += [f"{a.arg}={a.arg}" for a in arguments.kwonlyargs]
    parts += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return ", ".join(parts)


def sentinel(exercise: Exercise) -> str:
    """A cell whose object raises as soon as it is called."""
    if exercise.kind == "kernel":
        return f"__global__ void nothing() {{}}\n#error {SENTINEL}\n"
    assert exercise.part is not None
    found = locate(exercise.part)
    steps = found.qualname.split(".")
    tail = f"\n\n\n{exercise.body}" if exercise.kind == "repair" else ""
    fails = f"(*args, **kwargs):\n    raise RuntimeError({SENTINEL!r})\n"
    if isinstance(found.node, ast.ClassDef):
        return f"class {steps[-1]}:\n" + textwrap.indent(f"def __init__{fails}", "    ") + tail
    head = ""
    if len(steps) > 1:
        owner = ".".join(["_library", *steps[1:-1]])
        head = f"from {found.module.name} import {steps[0]} as _library\n@method_of({owner})\n"
    return f"{head}def {steps[-1]}{fails}{tail}"


def forbidden(exercise: Exercise) -> list[tuple[str, str]]:
    """The reference with a call of each forbidden function added: (name, cell)."""
    made = []
    for name in exercise.forbid:
        module = name.rpartition(".")[0].replace("np.", "numpy.")
        module = "numpy" if module == "np" else module
        fetch = f"import {module}\n" if module and module.split(".")[0] != "numpy" else "import numpy as np\n"
        made.append(
            (name, f"{fetch}{solved_source(exercise)}\n\n\ndef _also(*args):\n    return {name}(*args)\n")
        )
    return made


def _touched(source: str, kernel: bool = False) -> str:
    """The same cell with a statement more, so that it counts as an attempt."""
    if kernel:
        return source + "\n\nconstexpr bool attempted = true;\n"
    return source + "\n\n_attempted = True\n"


# one exercise


def prove_exercise(sandbox: Sandbox, exercise: Exercise) -> tuple[list[str], int]:
    """What is wrong with an exercise's checks, and how many cells were tried."""
    wrong: list[str] = []
    tried = 0

    def verdict(source: str, stop: bool = True) -> checking.ExerciseVerdict:
        nonlocal tried
        tried += 1
        return check_exercise(sandbox, exercise, source, diagnose=False, stop_at_first=stop)

    try:
        stub = verdict(stub_source(exercise))
    except checking.NoChecks:
        return [f"{exercise.name} has no check: anything would pass"], tried
    if stub.status != NOT_ATTEMPTED:
        wrong.append(f"the stub is reported {stub.status!r}, not {NOT_ATTEMPTED!r}")
    if verdict(_touched(stub_source(exercise), exercise.kind == "kernel")).status != FAILED:
        wrong.append("the stub passes when it is run")
    reference = verdict(solved_source(exercise), stop=False)
    if reference.status != PASSED:
        failure = reference.first_failure
        said = f" ({failure.says})" if failure else ""
        wrong.append(f"the reference is reported {reference.status!r}{said}: {reference.reason}")
        return wrong, tried
    if exercise.kind == "warmup":
        return wrong, tried  # the rest is proved on the day that asks for it first
    for mistake in exercise.wrongs:
        source = wrap_answer(exercise.name, mistake.source) if exercise.kind == "quiz" else mistake.source
        found = verdict(source)
        if found.status != FAILED:
            wrong.append(
                f"the wrong solution of line {mistake.line} ({mistake.says}) is reported {found.status!r}"
            )
            continue
        failure = found.first_failure
        if failure and failure.outcome and failure.outcome.fingerprint.startswith(_ACCIDENTS):
            wrong.append(f"the wrong solution of line {mistake.line} does not run: {failure.outcome.message}")
        if exercise.kind == "quiz" and found.reason != mistake.says:
            wrong.append(f"the wrong answer of line {mistake.line} gets another reason: {found.reason}")
    if exercise.kind == "quiz":
        return wrong, tried
    for how, source in delegating(exercise):
        found = verdict(source)
        if found.status != FAILED:
            wrong.append(f"delegation by {how} is reported {found.status!r}")
    for name, source in forbidden(exercise):
        found = verdict(source)
        if found.status != FAILED or "forbids" not in found.reason:
            wrong.append(f"a call of the forbidden {name} is reported {found.status!r}: {found.reason}")
    calls = 0
    for check in exercise.checks:
        outcome = checking.run_check(sandbox, exercise, check, sentinel(exercise))
        tried += 1
        calls += SENTINEL in outcome.message
        if outcome.passed and exercise.kind != "repair":
            wrong.append(f"the check of line {check.line} ({check.says}) never calls the learner's object")
    if not calls:
        wrong.append("no check calls the learner's object")
    return wrong, tried


def later_parts(lesson: Lesson) -> list[tuple[int, str]]:
    """Parts of later days that a day's checks, stubs or wrong solutions import: (line, sentence)."""
    found = []
    for exercise in lesson.exercises.values():
        if exercise.kind in ("quiz", "warmup"):
            continue
        if exercise.part and (day := marked_day(locate(exercise.part))) is not None and day > lesson.day:
            found.append((exercise.line, f"{exercise.name} asks for a part of day {day}"))
        sources = [(c.line, c.source) for c in exercise.checks]
        if exercise.kind != "kernel":  # whose cells are no Python
            sources += [(w.line, w.source) for w in exercise.wrongs]
            sources.append((exercise.line, stub_source(exercise)))
        for line, source in sources:
            for name in _library_names(source):
                try:
                    day = marked_day(locate(name))
                except SourceError:
                    continue
                if day is not None and day > lesson.day:
                    found.append((line, f"uses course_lib.{name}, a part of day {day}"))
    return found


def _library_names(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("course_lib"):
            base = (node.module or "").partition(".")[2]
            for alias in node.names:
                yield ".".join(filter(None, [base, alias.name]))
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if text.startswith("course_lib."):
                yield text.partition(".")[2]


def unseeded(lesson: Lesson) -> list[tuple[int, str]]:
    """Checks that draw numbers without a seed or look at the clock: they would fail now and then."""
    loose = ("np.random.", "random.", "time.time", "time.perf_counter")
    found = []
    for exercise in lesson.exercises.values():
        for check in exercise.checks if exercise.kind != "warmup" else []:
            for node in ast.walk(ast.parse(check.source)):
                text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
                if text.startswith(loose) and not text.endswith((".default_rng", ".Generator", ".Random")):
                    found.append(
                        (check.line, f"the check ({check.says}) uses {text}: draw from rng(seed) instead")
                    )
    return found


# mutants


def allow_list() -> Path:
    return Path(__file__).resolve().parents[2] / "checks" / "gates" / "equivalent_mutants.yaml"


def equivalents(path: Path | None = None) -> dict[str, dict[str, str]]:
    """exercise -> mutant's name -> why nobody could tell it from the reference. ValueError if a reason is
    missing.
    """
    path = path or allow_list()
    listed = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    found: dict[str, dict[str, str]] = {}
    for exercise, entries in (listed or {}).items():
        for entry in entries:
            if not str(entry.get("why", "")).strip() or not entry.get("mutants"):
                raise ValueError(f"{path}: {exercise}: an entry needs `mutants` and `why`, got {entry}")
            for name in entry["mutants"]:
                found.setdefault(exercise, {})[name] = str(entry["why"])
    return found


def mutants_of(exercise: Exercise) -> list[Mutant]:
    """Mutants of the part itself; of a repair exercise the failing input stays as it is."""
    if exercise.kind == "kernel":
        return [Mutant(name, text) for name, text in kernels.mutants(solved_source(exercise), exercise.file)]
    if exercise.part is None or exercise.kind == "warmup":
        return []
    if exercise.kind == "repair":
        tail = f"\n\n\n{exercise.body}"
        return [Mutant(m.name, m.source + tail) for m in mutants(part_source(exercise.part))]
    return mutants(solved_source(exercise))


def run_mutant(sandbox: Sandbox, exercise: Exercise, mutant: Mutant, limits: dict[int, float]) -> Outcome:
    """All checks of an exercise on a mutant, in one child, up to the first that fails.

    `limits`: seconds each check may take, for many mutants never end.
    """
    goldens = {
        c.index: g for c in exercise.checks if (g := checking.golden(sandbox, exercise, c)) is not None
    }
    seconds = sum(limits.values()) + 1.0
    return sandbox.run(
        Job(exercise.name, None, mutant.source, timeout=seconds, goldens=goldens, limits=limits)
    )


def prove_mutants(proof: Proof, lesson: Lesson, budget: float | None, processes: int = 2) -> None:
    """Try mutants of every part of a day; all of them without a `budget`, else a seeded sample within that
    many seconds.
    """
    listed = equivalents()
    work: list[tuple[Exercise, Mutant]] = []
    for exercise in lesson.exercises.values():
        if exercise.kind not in ("part", "repair", "kernel"):
            continue
        found = mutants_of(exercise)
        proof.possible += len(found)
        known = listed.get(exercise.name, {})
        for name in known:
            if name not in {m.name for m in found}:
                proof.stale.append((exercise.name, f"{name}: the reference has no such mutant any more"))
        random.Random(exercise.name).shuffle(found)
        work += [(exercise, m) for m in found if budget is None or m.name not in known]
    if budget is not None:
        # One after the other from each exercise, so that a budget that runs out is felt by all alike.
        order: dict[str, int] = {}
        ranks = []
        for exercise, _ in work:
            order[exercise.name] = order.get(exercise.name, -1) + 1
            ranks.append(order[exercise.name])
        work = [item for _, item in sorted(zip(ranks, work, strict=True), key=lambda pair: pair[0])]
    end = None if budget is None else time.monotonic() + budget
    pool: SimpleQueue[Sandbox] = SimpleQueue()
    sandboxes = [Sandbox(lesson.day) for _ in range(processes)]
    for sandbox in sandboxes:
        sandbox.start()
        pool.put(sandbox)
    limits: dict[str, dict[int, float]] = {}
    for exercise in lesson.exercises.values():
        if exercise.kind in ("part", "repair", "kernel"):
            reference = check_exercise(sandboxes[0], exercise, solved_source(exercise))
            times = {c.index: c.outcome.seconds for c in reference.checks if c.outcome is not None}
            limits[exercise.name] = {index: 0.5 + 5.0 * seconds for index, seconds in times.items()}

    def attempt(item: tuple[Exercise, Mutant]) -> tuple[Exercise, Mutant, Outcome | None]:
        if end is not None and time.monotonic() > end:
            return (*item, None)
        sandbox = pool.get()
        try:
            return (*item, run_mutant(sandbox, *item, limits[item[0].name]))
        finally:
            pool.put(sandbox)

    try:
        with ThreadPoolExecutor(processes) as threads:
            for exercise, mutant, outcome in threads.map(attempt, work):
                if outcome is None:
                    continue
                proof.mutants += 1
                excused = mutant.name in listed.get(exercise.name, {})
                if outcome.passed and excused:
                    proof.equivalent += 1
                elif outcome.passed:
                    proof.survivors.append((exercise.name, mutant.name))
                elif excused:
                    proof.stale.append(
                        (exercise.name, f"{mutant.name}: the checks reject it: it needs no excuse")
                    )
    finally:
        for sandbox in sandboxes:
            sandbox.close()


# a day


def prove_day(day: int, budget: float | None = BUDGET, with_mutants: bool = True) -> Proof:
    """Prove a day; `budget` None tries every mutant."""
    started = time.monotonic()
    lesson = load_lesson(day)
    proof = Proof(day)
    for line, text in [*later_parts(lesson), *unseeded(lesson)]:
        proof.findings.append(Finding(day, line, text))
    with Sandbox(day) as sandbox:
        for exercise in lesson.exercises.values():
            proof.exercises += 1
            try:
                problems, tried = prove_exercise(sandbox, exercise)
            except RuntimeError as problem:  # a golden that the reference itself does not give
                problems, tried = [str(problem)], 0
            proof.cells += tried
            proof.findings += [Finding(day, exercise.line, f"{exercise.name}: {text}") for text in problems]
    if with_mutants and not proof.findings:
        prove_mutants(proof, lesson, budget)
    proof.seconds = time.monotonic() - started
    return proof


def changed_days(run: Callable[[list[str]], str] | None = None, grader: bool = True) -> list[int]:
    """Days whose lesson or library has changed since the branch left origin/main; on main, since HEAD~1.

    With `grader` all days if the grader has changed. All days, too, if git can't tell. `run` asks git.
    """

    def git(arguments: list[str]) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=lessons.root(), capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    run = run or git
    days = lessons.available_days()
    try:
        start = head = run(["rev-parse", "HEAD"])
        with contextlib.suppress(subprocess.CalledProcessError):
            start = run(["merge-base", "HEAD", "origin/main"])
        start = run(["rev-parse", "HEAD~1"]) if start == head else start
        files = run(["diff", "--name-only", start]).splitlines()
        files += run(["ls-files", "--others", "--exclude-standard"]).splitlines()
    except (subprocess.CalledProcessError, OSError):
        return days
    if grader and any(f.startswith(("course_lib/classroom/", "course_lib/parts.py")) for f in files):
        return days
    found = []
    for day in days:
        rooms = {
            locate(e.part).module.name.split(".")[1] for e in load_lesson(day).exercises.values() if e.part
        }
        own = [
            f"solutions/day_{day:02d}_",
            *(f"course_lib/{r}/" for r in rooms),
            *(f"course_lib/{r}.py" for r in rooms),
        ]
        if any(f.startswith(tuple(own)) for f in files):
            found.append(day)
    return found


def report(proof: Proof) -> str:
    """A proof as text."""
    share = f"{len(proof.survivors)} of {proof.mutants} mutants survive unexplained"
    tried = (
        "all"
        if proof.mutants >= proof.possible - proof.equivalent
        else f"{proof.mutants} of {proof.possible}"
    )
    lines = [
        f"day {proof.day} {'holds' if proof.holds else 'does not hold'}: "
        f"{proof.exercises} exercises, {proof.cells} cells tried; "
        f"{share} ({tried} tried, {proof.equivalent} are equivalent); {proof.seconds:.1f} s"
    ]
    lines += [f"  {finding}" for finding in proof.findings]
    lines += [f"  survivor of {name}: {mutant}" for name, mutant in proof.survivors]
    lines += [f"  equivalent_mutants.yaml, {name}: {text}" for name, text in proof.stale]
    return "\n".join(lines)


def main(days: Iterable[int], everything: bool = False) -> int:
    """Prove days and print what was found; 0 if all hold. `everything` tries every mutant."""
    bad = 0
    for day in days:
        proof = prove_day(day, None if everything else BUDGET)
        print(report(proof), flush=True)
        bad += not proof.holds
    return 1 if bad else 0


def command(words: list[str] | None = None) -> int:
    """`python -m course_lib.classroom.prove 5 --mutants`."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.classroom.prove", description=COMMAND)
    days = lessons.available_days()
    parser.add_argument("days", nargs="*", type=int, metavar="DAY", help="one or more; without any, all")
    parser.add_argument(
        "--mutants", action="store_true", help=f"try every mutant; without it, {BUDGET:g} s of them a day"
    )
    given = parser.parse_args(words)
    if unknown := [day for day in given.days if day not in days]:
        parser.error(f"no lesson for day {unknown[0]}; there is one for days {', '.join(map(str, days))}")
    return main(given.days or days, given.mutants)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(command())


__all__ = ["Finding", "Proof", "changed_days", "main", "prove_day", "report"]
