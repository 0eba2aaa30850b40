"""`make check-day N`: the learner's notebook in, a report of the day out.

Exercise cells are collected from the notebook, whatever state it is in; cells without an attempt are told
apart without running anything; the rest is checked by checks/day_NN.ipynb under pytest and nbval. What passed
is kept in course_lib/mine/, so that the engine can run with it.
"""

import ast
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from course_lib import parts
from course_lib.classroom import checking, goldens, kernels
from course_lib.classroom import lesson as lessons
from course_lib.classroom.checking import (
    FAILED,
    NOT_ATTEMPTED,
    NOT_RUN,
    PASSED,
    CheckVerdict,
    ExerciseVerdict,
)
from course_lib.classroom.diagnose import looks_as_if
from course_lib.classroom.examiner import Examiner, serve
from course_lib.classroom.lesson import Exercise, Lesson, load_lesson
from course_lib.classroom.sandbox import Outcome, Sandbox, SandboxError
from course_lib.classroom.sources import part_key, setup_source, strip_magics


class GradeError(Exception):
    """A day that cannot be graded; the message says why and what to do."""


@dataclass(frozen=True)
class ExerciseReport:
    """One line of the scoreboard. `notes` are remarks on the cell ("two cells define it; the last one
    counts").
    """

    name: str
    kind: str
    number: int
    core: bool
    minutes: int
    status: str
    reason: str = ""
    checks: list[CheckVerdict] = field(default_factory=list)
    diagnosis: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    hint: str = ""

    @property
    def first_failure(self) -> CheckVerdict | None:
        return next((c for c in self.checks if c.outcome is not None and not c.outcome.passed), None)


@dataclass(frozen=True)
class DayReport:
    """The result of grading a day.

    `passed`: every core exercise passed, and the parts that passed work together. `exit_status` is 0 only if,
    besides, no extra exercise was tried and failed. `together` is what is wrong when all passed parts run at
    once.
    """

    day: int
    title: str
    notebook: Path
    exercises: list[ExerciseReport]
    seconds: float = 0.0
    together: str = ""
    kept: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.together and all(e.status == PASSED for e in self.exercises if e.core)

    @property
    def exit_status(self) -> int:
        return 0 if self.passed and not any(e.status == FAILED for e in self.exercises) else 1

    def count(self, status: str) -> int:
        return sum(e.status == status for e in self.exercises)


# which notebook


def learners_notebook(day: int) -> Path:
    """days/day_NN_*/lesson.ipynb. GradeError if it isn't there."""
    folder = lessons.find_day(day).name
    path = lessons.root() / "days" / folder / "lesson.ipynb"
    if not path.is_file():
        raise GradeError(f"{path} is not there; `make reset-day {day}` puts the day's notebook in place")
    return path


@dataclass(frozen=True)
class Collected:
    """The cell of an exercise as found: its source, or None with the reason; and remarks."""

    source: str | None
    reason: str = ""
    status: str = NOT_ATTEMPTED
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Cell:
    number: int  # counted from 1, as a reader counts
    type: str
    source: str
    name: str
    kind: str
    id: str


def read_cells(path: Path, day: int | None = None) -> list[_Cell]:
    """The cells of a notebook. GradeError if the file is no notebook, or one of another day."""
    back = f"; `make reset-day {day or 'N'}` brings a fresh one (yours is kept as a copy)"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise GradeError(f"{path} cannot be read ({problem}){back}") from None
    if not text.strip():
        raise GradeError(f"{path} is empty{back}")
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as problem:
        where = (
            f"line {problem.lineno}" if isinstance(problem, json.JSONDecodeError) else "it nests without end"
        )
        raise GradeError(f"{path} is not a notebook: its JSON is broken ({where}){back}") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise GradeError(f"{path} is not a notebook: it has no list of cells{back}")
    course = _mapping(_mapping(notebook.get("metadata")).get("course"))
    if day is not None and isinstance(course.get("day"), int) and course["day"] != day:
        raise GradeError(f"{path} is the notebook of day {course['day']}, not of day {day}")
    cells = []
    for number, cell in enumerate(notebook["cells"], 1):
        cell = _mapping(cell)
        mark = _mapping(_mapping(cell.get("metadata")).get("course"))
        lines = cell.get("source", "")
        source = "".join(map(str, lines)) if isinstance(lines, list) else str(lines)
        fields = [str(value) for value in (mark.get("name", ""), mark.get("kind", ""), cell.get("id", ""))]
        cells.append(_Cell(number, str(cell.get("cell_type")), source, *fields))
    return cells


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _slug(name: str) -> str:
    from course_lib.classroom.build import slug

    return slug(name)


def collect(lesson: Lesson, cells: list[_Cell]) -> dict[str, Collected]:
    """For each exercise the cell that is graded.

    That is the cell with the exercise's mark. Of several (a copy, a split) those that still are as handed out
    are left aside, and the last one that defines the exercise's name counts. If the marked cell was deleted,
    a cell of the learner's own that defines the name takes its place. Of two definitions in one cell the last
    one counts, as in Python.
    """
    return {name: _collect(exercise, cells) for name, exercise in lesson.exercises.items()}


def _collect(exercise: Exercise, cells: list[_Cell]) -> Collected:
    day, name = exercise.day, exercise.name
    kinds = ("exercise", "quiz")
    marked = [
        c for c in cells if (c.name == name and c.kind in kinds) or (not c.kind and c.id == _slug(name))
    ]
    code = [c for c in marked if c.type == "code"]
    others = [
        c
        for c in cells
        if c.type == "code" and not c.kind and c not in marked and _defines(exercise, c.source)
    ]
    if not code:
        if marked:
            kind = "Markdown" if marked[0].type == "markdown" else marked[0].type
            back = "make it a code cell again (press Esc, then Y)"
            return Collected(None, f"cell {marked[0].number} holds it, but as a {kind} cell: {back}", NOT_RUN)
        if not others:
            back = f"`make reset-day {day}` brings it back (your notebook is kept as a copy)"
            reason = f"its cell is gone from the notebook; {back}"
            return Collected(None, reason)
        last = others[-1]
        return Collected(
            last.source, notes=(f"its own cell is gone; cell {last.number}, which defines it, was graded",)
        )
    touched = [c for c in code if not checking.not_attempted(exercise, c.source)]
    if not touched:
        notes: tuple[str, ...] = ()
        if others:
            notes = (
                f"cell {others[-1].number} defines it, too; only its own cell, {code[0].number}, counts",
            )
        return Collected(code[-1].source, notes=notes)
    defining = [c for c in touched if _defines(exercise, c.source)] or touched
    chosen, remarks = defining[-1], []
    if len(defining) > 1:
        numbers = " and ".join(str(c.number) for c in defining)
        remarks.append(f"cells {numbers} are both this exercise's; the last one counts")
    lines = _definitions(exercise, chosen.source)
    if len(lines) > 1:
        remarks.append(f"its cell defines it in lines {' and '.join(map(str, lines))}; the last one counts")
    return Collected(chosen.source, notes=tuple(remarks))


def _definitions(exercise: Exercise, source: str) -> list[int]:
    """Lines on which a cell gives the exercise its answer, at its top level."""
    if exercise.kind == "kernel":
        line = kernels.cell_line(source, exercise)
        return [] if line is None else [line]
    try:
        body = ast.parse(strip_magics(source)).body
    except (SyntaxError, ValueError):
        return []
    if exercise.part is None:
        calls = [n for statement in body for n in ast.walk(statement) if isinstance(n, ast.Call)]
        return [
            c.lineno
            for c in calls
            if ast.unparse(c.func) == "answer" and c.args and _is_text(c.args[0], exercise.name)
        ]
    short = exercise.part.rpartition(".")[2]
    return [
        n.lineno
        for n in body
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and n.name == short
    ]


def _is_text(node: ast.expr, text: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == text


def _defines(exercise: Exercise, source: str) -> bool:
    return bool(_definitions(exercise, source))


# running the checks notebook


def run_checks(day: int, cells: dict[str, str]) -> tuple[list[dict[str, Any]], str]:
    """Run checks/day_NN.ipynb over these cells, under pytest and nbval in a process of their own.

    Returns the verdict records (see examiner.py and nbval_plugin.py) and pytest's own words.
    """
    path = checking.checks_notebook(day)
    if not path.is_file():
        raise GradeError(f"{path} is not there: `make lessons` builds it")
    problems = goldens.lint(path)
    if problems:
        raise GradeError("the checks of this day cannot be trusted: " + "; ".join(problems[:3]))
    exercises = load_lesson(day).exercises
    with tempfile.TemporaryDirectory(prefix="course-grade-") as folder:
        verdicts, cells_file = Path(folder, "verdicts.jsonl"), Path(folder, "cells.json")
        cells_file.write_text(json.dumps(cells), encoding="utf-8")
        package = str(Path(__file__).resolve().parents[2])
        environment = dict(os.environ) | {
            "COURSE_CELLS": str(cells_file),
            "COURSE_VERDICTS": str(verdicts),
            "COURSE_ROOT": str(lessons.root()),
            "PARTS": "reference",
            "IPYTHONDIR": folder,  # no history, no start-up files, no profile of the learner's
            "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")])),
        }
        environment.pop("COURSE_BUILD", None)
        # The checks keep their own time; nbval's limit only ends a kernel that has died.
        longest = max((c.timeout for n in cells for c in checking.checks_of(exercises[n])), default=0.0)
        command = [sys.executable, "-m", "course_lib.classroom.nbval_plugin", str(path)]
        command.append(f"--nbval-cell-timeout={longest + 120:g}")
        with (
            contextlib.closing(Examiner(day, cells, verdicts)) as examiner,
            serve(examiner, Path(folder)) as desk,
        ):
            done = subprocess.run(
                command,
                env=environment | desk,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
            )
        records = []
        if verdicts.is_file():
            records = [json.loads(line) for line in verdicts.read_text(encoding="utf-8").splitlines()]
        words = (done.stdout + done.stderr).strip()
        if not any("nbval" in r and r["exercise"] != "setup" for r in records):
            raise GradeError(f"the checks of day {day} did not run:\n{words[-2000:]}")
        return records, words


def verdicts_of(
    exercise: Exercise, records: Iterable[dict[str, Any]], recorded: dict[Any, Any]
) -> ExerciseVerdict:
    """Join what the magic found out with what nbval made of it: a check has passed only if both say so."""
    found: dict[int, dict[str, Any]] = {}
    for record in records:
        if record["exercise"] == exercise.name:
            found.setdefault(record["index"], {}).update(record)
    checks = []
    for check in checking.checks_of(exercise):
        record = found.get(check.index, {})
        outcome = Outcome(**record["outcome"]) if "outcome" in record else None
        agreed = record.get("nbval") == "passed"
        if outcome is not None and outcome.passed and not agreed:
            want = recorded.get((exercise.name, check.index), ("", ""))[1]
            if "nbval" not in record or outcome.value == want:
                outcome = None  # the checks' own process broke; nothing is known
            else:
                message = f"the value of `{ast.unparse(ast.parse(check.source).body[-1])}` differs"
                got = outcome.value or ""
                mark = f"golden: {got}"
                outcome = replace(
                    outcome,
                    status="failed",
                    kind="golden",
                    message=message,
                    expected=want,
                    got=got,
                    fingerprint=mark,
                )
        checks.append(CheckVerdict(check.index, check.says, outcome))
    return checking.conclude(exercise, checks)


def grade_day(day: int, notebook: Path | None = None, keep: bool = True) -> DayReport:
    """Grade the learner's notebook of a day. GradeError if there is nothing to grade with or it is no
    notebook.

    With `keep`, parts that passed are written to course_lib/mine/ and the report goes to the progress file.
    """
    started = time.perf_counter()
    lesson = load_lesson(day)
    path = notebook or learners_notebook(day)
    collected = collect(lesson, read_cells(path, day))
    verdicts: dict[str, ExerciseVerdict] = {}
    cells: dict[str, str] = {}
    for name, exercise in lesson.exercises.items():
        cell = collected[name]
        idle = [CheckVerdict(c.index, c.says, None) for c in checking.checks_of(exercise)]
        if cell.source is None:
            verdicts[name] = ExerciseVerdict(name, cell.status, cell.reason, idle)
        elif reason := checking.not_attempted(exercise, cell.source):
            verdicts[name] = ExerciseVerdict(name, NOT_ATTEMPTED, reason, idle)
        else:
            cells[name] = cell.source
    together = ""
    if cells:
        records, _ = run_checks(day, cells)
        recorded = checking.recorded_goldens(checking.checks_notebook(day))
        for name in cells:
            verdicts[name] = verdicts_of(lesson.exercises[name], records, recorded)
        together = _together(records)
        failed = [name for name in cells if verdicts[name].status == FAILED]
        if any(lesson.exercises[name].wrongs and lesson.exercises[name].kind != "quiz" for name in failed):
            with Sandbox(day) as sandbox:
                for name in failed:
                    diagnosis = looks_as_if(sandbox, lesson.exercises[name], verdicts[name])
                    verdicts[name] = replace(verdicts[name], diagnosis=diagnosis)
    reports = [_report(e, verdicts[n], collected[n]) for n, e in lesson.exercises.items()]
    report = DayReport(day, lesson.title, path, reports, 0.0, together)
    if keep:
        report = replace(report, kept=keep_parts(lesson, report, cells))
    report = replace(report, seconds=time.perf_counter() - started)
    if keep:
        _record(report)
    return report


def _together(records: list[dict[str, Any]]) -> str:
    """What went wrong with all passed parts in place at once, or ""."""
    for record in records:
        if record["exercise"].rpartition(".")[2] != "together":
            continue
        outcome = record.get("outcome")
        if outcome is not None and outcome["status"] != PASSED:
            return str(outcome["message"])
        if record.get("nbval") == "failed" and "there is nothing to try together" not in record["text"]:
            return str(record["text"]).splitlines()[0]
    return ""


def _report(exercise: Exercise, verdict: ExerciseVerdict, cell: Collected) -> ExerciseReport:
    hint = f'hint("{exercise.name}")' if verdict.status == FAILED and exercise.hints else ""
    return ExerciseReport(
        exercise.name,
        exercise.kind,
        exercise.number,
        exercise.core,
        exercise.minutes,
        verdict.status,
        verdict.reason,
        verdict.checks,
        verdict.diagnosis,
        list(cell.notes),
        verdict.seconds,
        hint,
    )


def keep_parts(lesson: Lesson, report: DayReport, cells: dict[str, str]) -> list[str]:
    """Save the cells of passed parts to course_lib/mine/; returns their public names.

    A warm-up or a repair is kept only where the learner has no version of that part yet: the exercise that
    asked for the part in the first place comes first.
    """
    kept = []
    setup = setup_source(lesson)
    for exercise in (lesson.exercises[e.name] for e in report.exercises if e.status == PASSED):
        if exercise.kind == "kernel" and not exercise.is_repair:
            kept.append(_keep_kernel(exercise, cells[exercise.name]))
        if exercise.part is None:
            continue
        if exercise.kind != "part" and (parts.mine_folder() / f"{exercise.part}.py").is_file():
            continue
        source = strip_magics(cells[exercise.name])
        key = part_key(exercise.part)
        parts.save_mine(exercise.part, source, key=key, day=exercise.day, setup=setup)
        kept.append(exercise.part)
    return kept


def _keep_kernel(exercise: Exercise, cell: str) -> str:
    """Save a passed kernel as a file of course_lib/mine/, in the folder of its language."""
    path = parts.mine_folder() / exercise.file
    text = kernels.without_magic(cell).strip() + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        parts.back_up(path)
    path.write_text(text, encoding="utf-8")
    return exercise.name


def _record(report: DayReport) -> None:
    from course_lib.classroom.progress import record_day

    record_day(report)


def main(day: int) -> int:
    """`check-day N`: print the scoreboard; 0 if everything passed, 1 if not, 2 if there was nothing to
    grade.
    """
    from course_lib.classroom import scoreboard

    try:
        report = grade_day(day)
    except (GradeError, SandboxError, checking.NoChecks, lessons.LessonError) as problem:
        scoreboard.complain(str(problem))
        return 2
    except KeyboardInterrupt:
        scoreboard.complain("stopped before the end; nothing was recorded")
        return 130
    scoreboard.show(report)
    return report.exit_status
