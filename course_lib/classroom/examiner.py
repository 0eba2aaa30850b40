"""Who runs a day's checks: `Examiner`. It works ahead of the checks notebook, and may sit in another process.

`make check-day` opens an examiner's desk (`serve`) before it starts pytest, nbval and their kernel: while
those come up the checks already run, and the notebook's cells find their outcomes waiting (`Visitor`).
"""

import contextlib
import json
import os
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from queue import SimpleQueue

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

    def __init__(self, day: int, cells: dict[str, str] | None = None, record_file: Path | None = None):
        self.lesson: Lesson = load_lesson(day)
        self.cells, self.record_file = cells, record_file
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
            with self.record_file.open("a", encoding="utf-8") as file:
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


@contextlib.contextmanager
def serve(examiner: Examiner, folder: Path) -> Iterator[dict[str, str]]:
    """Open a desk for one visitor; yields the environment variables that lead there."""
    key, address = secrets.token_hex(16), str(folder / "desk")
    with Listener(address, authkey=bytes.fromhex(key)) as listener:
        clerk = threading.Thread(target=_attend, args=(examiner, listener), daemon=True)
        clerk.start()
        try:
            yield {"COURSE_EXAMINER": f"{key}@{address}"}
        finally:
            if clerk.is_alive():  # nobody came: be the visitor, or `accept` waits for ever
                with contextlib.suppress(OSError, EOFError):
                    Client(address, authkey=bytes.fromhex(key)).close()
            clerk.join(10.0)


def _attend(examiner: Examiner, listener: Listener) -> None:
    with contextlib.suppress(EOFError, OSError), listener.accept() as wire:
        while True:
            try:
                question = wire.recv()
                answer = None
                if question == TOGETHER:
                    examiner.together()
                else:
                    answer = examiner.check(*question)
            except CheckFailed as problem:
                wire.send(problem)
            else:
                wire.send(answer)


class Visitor:
    """The notebook's end of a desk: asks, and raises or returns what the examiner said."""

    def __init__(self, where: str):
        key, _, address = where.partition("@")
        self.wire: Connection = Client(address, authkey=bytes.fromhex(key))

    def close(self) -> None:
        self.wire.close()

    def check(self, name: str, index: int, source: str) -> Golden | None:
        return self._ask((name, index, source))

    def together(self) -> None:
        self._ask(TOGETHER)

    def _ask(self, question: object) -> Golden | None:
        self.wire.send(question)
        answer = self.wire.recv()
        if isinstance(answer, CheckFailed):
            raise answer
        assert answer is None or isinstance(answer, Golden)
        return answer
