"""What grading costs beside the same checks run as a plain script, and how soon `check(part)` answers.

    python checks/gates/bench_grading.py [day ...]

The plain script runs a day's set-up, solutions and checks one after the other in one process, with nothing
around them. Grading is everything that `make check-day` does with the solution notebook. The two are run in
turn, three times; the smallest of each counts, for the rest is what else the machine was doing.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from course_lib.classroom import checking
from course_lib.classroom.lesson import Lesson, available_days, load_lesson, root
from course_lib.classroom.sandbox import Sandbox
from course_lib.classroom.sources import check_setup_source, solved_source

ROUNDS = 3
BAR_GRADING, BAR_CHECK = 3.0, 1.0  # seconds


def plain_script(lesson: Lesson) -> str:
    """All the day's checks as one Python program."""
    parts = ["from course_lib.classroom import expect", "answer = lambda *given: None"]
    for exercise in lesson.exercises.values():
        cells = [check_setup_source(lesson, exercise), solved_source(exercise)]
        cells += [check.source for check in exercise.checks]
        if exercise.kind == "repair":
            broken = repr(exercise.skeleton)
            name = (exercise.part or "").rpartition(".")[2]
            cells.insert(1, f"_kept = dict(globals()); exec({broken}, _kept); broken = _kept[{name!r}]")
        body = "\n".join(f"exec({cell!r}, space)" for cell in cells if cell.strip())
        parts.append(f"space = dict(expect.NAMES, answer=answer, __name__='plain')\n{body}")
    return "\n".join(parts)


def timed(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure(day: int) -> tuple[float, float, float, float]:
    """Seconds: the plain script, grading, what the slowest and the median exercise pay besides its checks."""
    lesson = load_lesson(day)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for name in ("solutions", "checks", "days"):
            shutil.copytree(root() / name, here / name, ignore=shutil.ignore_patterns("gates", "library"))
        at = lesson.path.parent.name
        shutil.copy(here / "solutions" / at / "lesson.ipynb", here / "days" / at / "lesson.ipynb")
        script = here / "plain.py"
        script.write_text(plain_script(lesson), encoding="utf-8")
        environment = os.environ | {"COURSE_ROOT": folder, "COURSE_MINE": str(here / "mine")}
        environment["PYTHONPATH"] = os.pathsep.join([str(root()), os.environ.get("PYTHONPATH", "")])
        plain, graded = [], []
        for _ in range(ROUNDS):
            plain.append(timed([sys.executable, str(script)], environment))
            check_day = [sys.executable, "-m", "course_lib.classroom", "check-day", str(day)]
            graded.append(timed(check_day, environment))
    checks = []
    with Sandbox(day) as sandbox:
        for exercise in lesson.exercises.values():
            found = []
            for _ in range(ROUNDS):
                started = time.perf_counter()
                verdict = checking.check_exercise(sandbox, exercise, solved_source(exercise))
                own = sum(c.outcome.seconds for c in verdict.checks if c.outcome is not None)
                found.append(time.perf_counter() - started - own)
            checks.append(min(found))
    checks.sort()
    return min(plain), min(graded), checks[-1], checks[len(checks) // 2]


def main() -> int:
    days = [int(word) for word in sys.argv[1:]] or available_days()
    head = ("day", "plain script", "check-day", "added", "check(part) adds at most", "median")
    rows: list[tuple[str, ...]] = [head]
    late = 0
    for day in days:
        plain, graded, slowest, median = measure(day)
        late += graded - plain > BAR_GRADING or slowest > BAR_CHECK
        numbers = (f"{value:.2f} s" for value in (plain, graded, graded - plain, slowest, median))
        rows.append((str(day), *numbers))
    for row in rows:
        print("  ".join(cell.rjust(len(title)) for cell, title in zip(row, head, strict=True)))
    missed = f"missed by {late} of {len(days)} days"
    print(f"bars: {BAR_GRADING:g} s added by grading, {BAR_CHECK:g} s by a check; {missed}")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
