"""Who runs a day's checks: `Examiner`. It works ahead of the checks notebook, and may sit in another process.

`make check-day` opens an examiner's desk (`serve`) before it starts pytest, nbval and their kernel: while
those come up the checks already run, and the notebook's cells find their outcomes waiting (visitor.py).
"""

import contextlib
import json
import os
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing.connection import Client, Listener
from pathlib import Path
from queue import Empty, SimpleQueue

from course_lib.classroom.checking import checks_of, same_everywhere, tree
from course_lib.classroom.lesson import Exercise, Lesson, load_lesson
from course_lib.classroom.sandbox import Job, Outcome, Sandbox
from course_lib.classroom.sources import solved_source
from course_lib.classroom.visitor import TOGETHER, CheckFailed, Golden, NotRun

PATIENCE = 0.5  # seconds that the notebook waits for a check before a second worker is brought in


class Examiner:
    """One run through a checks notebook: the day, the cells to check, what came of them so far."""

    def __init__(self, day: int, cells: dict[str, str] | None = None, record_file: Path | None = None):
        self.lesson: Lesson = load_lesson(day)
        self.cells, self.record_file = cells, record_file
        self.outcomes: dict[str, list[Outcome]] = {}
        # The checks begin at once, exercise by exercise, while the notebook's kernel starts.
        self._ahead: dict[tuple[str, int], tuple[str, Future[Outcome]]] = {}
        self._waiting: SimpleQueue[tuple[Exercise, list[Future[Outcome]]]] = SimpleQueue()
        for exercise in self.lesson.exercises.values():
            if self.cells is None or exercise.name in self.cells:
                promises: list[Future[Outcome]] = [Future() for _ in checks_of(exercise)]
                for check, promise in zip(checks_of(exercise), promises, strict=True):
                    self._ahead[exercise.name, check.index] = (check.source, promise)
                self._waiting.put((exercise, promises))
        self.sandboxes: list[Sandbox] = []
        self._pool = ThreadPoolExecutor(2)
        self._start_worker()

    def _start_worker(self) -> None:
        self.sandboxes.append(Sandbox(self.lesson.day))
        self._pool.submit(self._work, self.sandboxes[-1])

    def close(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._waiting.get_nowait()
        self._pool.shutdown()
        for sandbox in self.sandboxes:
            sandbox.close()

    def _work(self, sandbox: Sandbox) -> None:
        """Run exercises until none waits: each one's checks in their order, since one that never ends stops
        those after it.
        """
        with contextlib.suppress(Empty):
            while True:
                exercise, promises = self._waiting.get_nowait()
                for check, promise in zip(checks_of(exercise), promises, strict=True):
                    try:
                        promise.set_result(self._run(exercise, check.index, check.source, sandbox))
                    except BaseException as error:  # told where the check's cell asks for it
                        promise.set_exception(error)

    def _wait(self, promise: Future[Outcome]) -> Outcome:
        """A second worker pays only where the checks are slow: it imports all that the first one did."""
        if len(self.sandboxes) < min(2, os.cpu_count() or 1):
            with contextlib.suppress(TimeoutError):
                return promise.result(PATIENCE)
            if not self._waiting.empty():
                self._start_worker()
        return promise.result()

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
            return self.show(name, index, self._wait(ahead[1]))
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
