"""`%%check`: the cell magic in which checks/day_NN.ipynb is written.

The kernel only reads the cells and hands each check to a `Sandbox`, which runs it in a child of its own. A
check that passes shows its golden value, if it has one, for nbval to compare; a check that fails raises. What
exactly came of it is appended, as a line of JSON, to the file that COURSE_VERDICTS names. COURSE_CELLS names
a JSON file with the learner's cells by exercise; without it the solutions are checked, which is how the
goldens are recorded.
"""

import ast
import json
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from course_lib.classroom.checking import checks_of, same_everywhere, tree
from course_lib.classroom.lesson import Exercise, Lesson, load_lesson
from course_lib.classroom.sandbox import Job, Outcome, Sandbox
from course_lib.classroom.sources import solved_source

TOGETHER = "together"


class CheckFailed(Exception):
    """A check did not pass. Shown in the notebook as its message alone."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class NotRun(CheckFailed):
    """A check was left out, with the reason."""


class Golden:
    """A recorded value, shown as one line of text."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Examiner:
    """One run through a checks notebook: the day, the cells to check, what came of them so far."""

    def __init__(self, day: int):
        self.lesson: Lesson = load_lesson(day)
        path = os.environ.get("COURSE_CELLS")
        self.cells: dict[str, str] | None = json.loads(Path(path).read_text("utf-8")) if path else None
        self.record_file = os.environ.get("COURSE_VERDICTS")
        # Making a child for a check costs more than most checks: a second worker halves the wait.
        self.sandboxes = [Sandbox(day) for _ in range(min(2, os.cpu_count() or 1))]
        self.outcomes: dict[str, list[Outcome]] = {}
        self._idle: SimpleQueue[Sandbox] = SimpleQueue()
        for sandbox in self.sandboxes:
            self._idle.put(sandbox)
        # The checks begin at once, exercise by exercise, while the notebook hands over its first cells.
        self._pool = ThreadPoolExecutor(len(self.sandboxes))
        self._ahead: dict[tuple[str, int], tuple[str, Future[Outcome]]] = {}
        for exercise in self.lesson.exercises.values():
            if self.cells is None or exercise.name in self.cells:
                promises: list[Future[Outcome]] = []
                for check in checks_of(exercise):
                    promises.append(Future())
                    self._ahead[exercise.name, check.index] = (check.source, promises[-1])
                self._pool.submit(self._run_all, exercise, promises)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for sandbox in self.sandboxes:
            sandbox.close()

    def _run_all(self, exercise: Exercise, promises: list[Future[Outcome]]) -> None:
        """The checks of one exercise in their order, since a check that never ends stops those after it."""
        sandbox = self._idle.get()
        try:
            for check, promise in zip(checks_of(exercise), promises, strict=True):
                try:
                    promise.set_result(self._run(exercise, check.index, check.source, sandbox))
                except BaseException as error:  # told where the check's cell asks for it
                    promise.set_exception(error)
        finally:
            self._idle.put(sandbox)

    def cell(self, exercise: Exercise) -> str:
        if self.cells is None:
            return solved_source(exercise)
        if exercise.name not in self.cells:
            raise NotRun(f"{exercise.name}: there is no cell to check")
        return self.cells[exercise.name]

    def record(self, name: str, index: int, outcome: Outcome) -> None:
        if self.record_file:
            line = json.dumps({"exercise": name, "index": index, "outcome": asdict(outcome)}) + "\n"
            with open(self.record_file, "a", encoding="utf-8") as file:
                file.write(line)

    def check(self, name: str, index: int, source: str) -> Golden | None:
        """Run one check cell. Returns its golden; raises CheckFailed or NotRun."""
        if name.endswith("." + TOGETHER):
            return self.show(name, index, self.run_together(name, index, source))
        exercise = self.lesson.exercises.get(name)
        if exercise is None:
            raise CheckFailed(f"day {self.lesson.day} has no exercise {name}")
        ahead = self._ahead.get((name, index))
        if ahead is not None and tree(ahead[0]) == tree(source):
            return self.show(name, index, ahead[1].result())
        return self.show(name, index, self._run(exercise, index, source, self.sandboxes[0]))

    def _run(self, exercise: Exercise, index: int, source: str, sandbox: Sandbox) -> Outcome:
        done = self.outcomes.setdefault(exercise.name, [])
        for earlier in done:
            if earlier.status == "timeout" or same_everywhere(earlier):
                raise NotRun(f"{exercise.name}: not run, since an earlier check ended so: {earlier.message}")
        timeout = exercise.checks[index].timeout if index < len(exercise.checks) else 10.0
        outcome = sandbox.run(Job(exercise.name, index, self.cell(exercise), source or None, timeout))
        done.append(outcome)
        return outcome

    def show(self, name: str, index: int, outcome: Outcome) -> Golden | None:
        self.record(name, index, outcome)
        if not outcome.passed:
            raise CheckFailed(f"{name}: {outcome.message}")
        return None if outcome.value is None else Golden(outcome.value)

    def passed_parts(self) -> dict[str, str]:
        """The cells of the parts whose checks have all passed so far, in the lesson's order."""
        parts = {n: exercise for n, exercise in self.lesson.exercises.items() if exercise.part}
        passed = {n for n, found in self.outcomes.items() if found and all(o.passed for o in found)}
        return {n: self.cell(exercise) for n, exercise in parts.items() if n in passed}

    def run_together(self, name: str, index: int, source: str) -> Outcome:
        """A check of the lesson's own with all passed parts in place at once."""
        cells = self.passed_parts()
        if not cells:
            raise NotRun("no part has passed: there is nothing to try together")
        check = self.lesson.together[index]
        return self.sandboxes[0].run(Job(name, index, "", source or None, check.timeout, cells))

    def together(self) -> None:
        """The first check of each passed part once more, in one process with all of them in place."""
        cells = self.passed_parts()
        if len(cells) < 2:
            return
        job = Job(f"day{self.lesson.day:02d}.each", None, "", timeout=60.0, together=cells)
        outcome = self.sandboxes[0].run(job)
        self.record(TOGETHER, 0, outcome)
        if not outcome.passed:
            raise CheckFailed(f"your parts pass one by one, but not together: {outcome.message}")


_examiner: Examiner | None = None


def current() -> Examiner:
    if _examiner is None:
        raise CheckFailed("the day isn't known: run the first cell, %course_day N")
    return _examiner


def course_day(line: str) -> None:
    """`%course_day 5`: which day's checks follow."""
    global _examiner
    if _examiner is not None:
        _examiner.close()
    _examiner = Examiner(int(line))


def check(line: str, cell: str = "") -> Golden | None:
    """`%%check tokenizer.merge_pair 0`, with the check's source below."""
    name, _, index = line.strip().partition(" ")
    return current().check(name, int(index or 0), cell if ast.parse(cell).body else "")


def together(line: str) -> None:
    """`%together`: all passed parts at once."""
    current().together()


def load_ipython_extension(shell: Any) -> None:
    """Called by `%load_ext course_lib.classroom.magic`."""
    shell.register_magic_function(course_day, "line", "course_day")
    shell.register_magic_function(check, "cell", "check")
    shell.register_magic_function(together, "line", "together")


def unload_ipython_extension(shell: Any) -> None:
    if _examiner is not None:
        _examiner.close()
    sys.modules.pop(__name__, None)
