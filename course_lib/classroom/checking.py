"""Is this cell a solution of that exercise? The one implementation behind the notebook, the grader and the
gates.
"""

import ast
import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from course_lib.classroom import kernels
from course_lib.classroom import lesson as lessons
from course_lib.classroom.lesson import Check, Exercise
from course_lib.classroom.sandbox import Job, Outcome, Sandbox
from course_lib.classroom.sources import solved_source, strip_magics, stub_source

PASSED, FAILED, NOT_ATTEMPTED, NOT_RUN = "passed", "failed", "not attempted", "not run"


class NoChecks(Exception):
    """An exercise without a check would pass whatever one writes."""


@dataclass(frozen=True)
class CheckVerdict:
    """One check: what it proves, and what came of it. `outcome` is None where it was not run."""

    index: int
    says: str
    outcome: Outcome | None


@dataclass(frozen=True)
class ExerciseVerdict:
    """What is to be said about one exercise.

    `reason` is a sentence wherever the status is not "passed"; of a kernel that passed, what it ran on ("in
    the kernel lab").
    """

    name: str
    status: str
    reason: str = ""
    checks: list[CheckVerdict] = field(default_factory=list)
    diagnosis: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.status == PASSED

    @property
    def first_failure(self) -> CheckVerdict | None:
        return next((c for c in self.checks if c.outcome is not None and not c.outcome.passed), None)


# without running


def tree(source: str) -> str:
    """A cell as the text of its syntax tree: equal for cells that differ in comments and layout only.
    SyntaxError.
    """
    return ast.dump(ast.parse(strip_magics(source)))


def not_attempted(exercise: Exercise, source: str) -> str:
    """Why the cell holds no attempt ("the cell is as it was handed out"), or ""; nothing is run."""
    if exercise.kind == "kernel":
        if not kernels.bare(source):
            return "the cell is empty"
        same = kernels.bare(source) == kernels.bare(stub_source(exercise))
        return "the cell is as it was handed out" if same else ""
    try:
        found = tree(source)
    except (SyntaxError, ValueError):
        return ""
    if found == tree(""):
        return "the cell is empty"
    if found == tree(stub_source(exercise)):
        return "the cell is as it was handed out"
    return ""


def checks_of(exercise: Exercise) -> list[Check]:
    """The checks of an exercise; a quiz has one of its own. NoChecks if there is none."""
    if exercise.kind == "quiz":
        return [Check(exercise.name, "the answer is right", "", 10.0, exercise.line, 0)]
    if not exercise.checks:
        raise NoChecks(
            f"{exercise.path}:{exercise.line}: {exercise.name} has no check, so anything would pass"
        )
    return exercise.checks


# goldens


def checks_notebook(day: int) -> Path:
    """checks/day_NN.ipynb."""
    return lessons.root() / "checks" / f"day_{day:02d}.ipynb"


def recorded_goldens(path: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """(exercise, index) -> (source, golden's text), read from a built checks notebook; empty if it isn't
    there.
    """
    return _recorded(path, path.stat().st_mtime_ns) if path.is_file() else {}


@functools.lru_cache(maxsize=8)
def _recorded(path: Path, _mtime: int) -> dict[tuple[str, int], tuple[str, str]]:
    found = {}
    for cell in json.loads(path.read_text(encoding="utf-8")).get("cells", []):
        head, _, source = "".join(cell["source"]).partition("\n")
        words = head.split()
        if cell["cell_type"] == "code" and len(words) == 3 and words[0] == "%%check":
            for output in cell["outputs"]:
                if output["output_type"] == "execute_result":
                    found[words[1], int(words[2])] = (source, "".join(output["data"]["text/plain"]))
    return found


_made: dict[tuple[int, str, int, str, str], str | None] = {}


def golden(sandbox: Sandbox, exercise: Exercise, check: Check) -> str | None:
    """The text that the reference gives for this check, or None if the check has no golden.

    Taken from checks/day_NN.ipynb if that was built from the same source, else made by running the reference.
    """
    from course_lib.classroom.goldens import has_golden

    if not check.source or not has_golden(check.source):
        return None
    recorded = recorded_goldens(checks_notebook(sandbox.day)).get((exercise.name, check.index))
    if recorded is not None and tree(recorded[0]) == tree(check.source):
        return recorded[1]
    reference = solved_source(exercise)
    key = (sandbox.day, exercise.name, check.index, check.source, reference)
    if key not in _made:
        outcome = sandbox.run(Job(exercise.name, check.index, reference, timeout=check.timeout))
        if not outcome.passed:
            raise RuntimeError(
                f"the reference of {exercise.name} fails its check {check.says!r}: {outcome.message}"
            )
        _made[key] = outcome.value
    return _made[key]


# running


def run_check(
    sandbox: Sandbox, exercise: Exercise, check: Check, source: str, together: Mapping[str, str] | None = None
) -> Outcome:
    """One check of one cell, its golden compared."""
    want = golden(sandbox, exercise, check)
    goldens = {} if want is None else {check.index: want}
    return sandbox.run(Job(exercise.name, check.index, source, None, check.timeout, together or {}, goldens))


def check_exercise(
    sandbox: Sandbox,
    exercise: Exercise,
    cell_source: str,
    *,
    diagnose: bool = True,
    stop_at_first: bool = False,
    together: Mapping[str, str] | None = None,
    show_broken: bool = False,
) -> ExerciseVerdict:
    """Check a cell: first without running it, then check by check in children of the sandbox.

    After a check that runs out of time the exercise's other checks are not run. With `diagnose`, a failure is
    compared with the exercise's known mistakes. `together` holds the cells of further parts, by exercise, to
    be used in place of the references. With `show_broken`, a kernel to repair is run as it was handed out,
    too: its verdict stays "not attempted", and holds what the checks found.
    """
    checks = checks_of(exercise)
    reason = not_attempted(exercise, cell_source)
    broken = exercise.kind == "kernel" and exercise.is_repair and kernels.bare(cell_source) != ""
    if reason and not (show_broken and broken):
        return ExerciseVerdict(
            exercise.name, NOT_ATTEMPTED, reason, [CheckVerdict(c.index, c.says, None) for c in checks]
        )
    verdicts: list[CheckVerdict] = []
    over = False
    for check in checks:
        outcome = None if over else run_check(sandbox, exercise, check, cell_source, together)
        verdicts.append(CheckVerdict(check.index, check.says, outcome))
        if outcome is not None and not outcome.passed:
            over = over or stop_at_first or outcome.status == "timeout" or same_everywhere(outcome)
    verdict = conclude(exercise, verdicts)
    if reason:
        return replace(verdict, status=NOT_ATTEMPTED, reason=reason)
    if verdict.status == FAILED and diagnose:
        from course_lib.classroom.diagnose import looks_as_if

        verdict = replace(verdict, diagnosis=looks_as_if(sandbox, exercise, verdict))
    return verdict


def same_everywhere(outcome: Outcome) -> bool:
    """Whether the fault lies in the cell itself, so that every further check would only say it again."""
    return outcome.kind in ("SyntaxError", "not yours") or outcome.message.startswith(
        "your cell stops before"
    )


def conclude(exercise: Exercise, checks: Iterable[CheckVerdict]) -> ExerciseVerdict:
    """Sum up the checks of an exercise that was attempted: passed only if every check was run and passed."""
    found = list(checks)
    seconds = sum(c.outcome.seconds for c in found if c.outcome is not None)
    failure = next((c for c in found if c.outcome is not None and not c.outcome.passed), None)
    if failure is not None:
        assert failure.outcome is not None
        return ExerciseVerdict(exercise.name, FAILED, failure.outcome.message, found, "", seconds)
    if not found or any(c.outcome is None for c in found):
        return ExerciseVerdict(exercise.name, NOT_RUN, "some of its checks were not run", found, "", seconds)
    ran = sorted({c.outcome.ran for c in found if c.outcome is not None and c.outcome.ran})
    return ExerciseVerdict(exercise.name, PASSED, ", ".join(ran), found, "", seconds)
