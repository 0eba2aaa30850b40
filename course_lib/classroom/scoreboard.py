"""A graded day on the terminal: one line an exercise, and for the first failure of each what is needed to
mend it.
"""

import sys

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from course_lib.classroom.checking import FAILED, NOT_ATTEMPTED, NOT_RUN, PASSED, CheckVerdict
from course_lib.classroom.grade import DayReport, ExerciseReport

_SIGNS = {PASSED: ("✓", "ok"), FAILED: ("✗", "X"), NOT_ATTEMPTED: ("·", "."), NOT_RUN: ("–", "-")}
_STYLES = {PASSED: "green", FAILED: "bold red", NOT_ATTEMPTED: "dim", NOT_RUN: "yellow"}
WIDTH = 80  # columns; a wider terminal shows no more, a narrower one folds
LINES = 6  # of a value that is shown


def console(stderr: bool = False) -> Console:
    """A console of at most 80 columns; colors only on a terminal."""
    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    made.width = min(made.width, WIDTH)
    return made


def complain(message: str) -> None:
    """An error that stopped the grading, as a sentence on stderr."""
    print(f"course: {message}", file=sys.stderr)


def show(report: DayReport, out: Console | None = None) -> None:
    """Print the scoreboard of a day."""
    out = out or console()
    out.print(render(report, ascii_only=not (out.encoding or "").lower().startswith("utf")))


def render(report: DayReport, ascii_only: bool = False) -> RenderableType:
    """The scoreboard as a rich renderable."""
    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    title = Text.assemble((f"Day {report.day}", "bold"), f"  {report.title}")
    head.add_row(
        title,
        Text(f"{report.count(PASSED)} of {len(report.exercises)} passed · {report.seconds:.1f} s", "dim"),
    )
    rule = Rule(style="dim", characters="-" if ascii_only else "─")
    rows: list[RenderableType] = [Text(""), head, rule]
    rows += [_line(exercise, ascii_only) for exercise in report.exercises]
    rows.append(rule)
    for exercise in report.exercises:
        details = _details(exercise)
        if details.row_count:
            rows += [_heading(exercise, ascii_only), Padding(details, (0, 0, 1, 2))]
    if rows[-1] is not rule:
        rows.append(rule)
    rows.extend(_closing(report))
    return Group(*rows)


def _heading(exercise: ExerciseReport, ascii_only: bool) -> Text:
    sign = _SIGNS[exercise.status][ascii_only]
    return Text.assemble((f"{sign} ", _STYLES[exercise.status]), (exercise.name, "bold"))


def _line(exercise: ExerciseReport, ascii_only: bool) -> RenderableType:
    style = _STYLES[exercise.status]
    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(width=1, no_wrap=True)
    row.add_column(width=11, no_wrap=True)
    row.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    row.add_column(width=13, no_wrap=True)
    row.add_column(width=7, justify="right", no_wrap=True)
    label = {"warmup": "warm-up", "quiz": f"question {exercise.number}"}.get(
        exercise.kind, f"exercise {exercise.number}"
    )
    name = Text(exercise.name, "dim" if exercise.status == NOT_ATTEMPTED else "")
    if not exercise.core:
        name.append("  extra", "dim italic")
    # What is still to do has its planned minutes, what was run the seconds its checks took.
    took = f"{exercise.seconds:.1f} s" if exercise.status in (PASSED, FAILED) else f"{exercise.minutes} min"
    sign = _SIGNS[exercise.status][ascii_only]
    place = f"passed {exercise.reason}" if exercise.status == PASSED and exercise.reason else ""
    row.add_row(
        Text(sign, style),
        Text(label, "dim"),
        name,
        Text(exercise.status, style),
        Text(took, "dim"),
    )
    if place:  # of a kernel: on what it ran
        row.add_row("", "", Text(place, "dim"), "", "")
    return row


def _details(exercise: ExerciseReport) -> Table:
    """What is needed to mend an exercise; no rows where there is nothing to say."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=9, style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    failure = exercise.first_failure
    if exercise.status == FAILED and failure is not None and failure.outcome is not None:
        if exercise.kind != "quiz":
            table.add_row("check", Text(f"{failure.says} ({_ran(exercise.checks)})"))
        outcome = failure.outcome
        for label, value in (("given", outcome.given), ("expected", outcome.expected), ("got", outcome.got)):
            if value:
                table.add_row(label, Text(_clip(value)))
        if not (outcome.got and outcome.message == f"got {outcome.got}, expected {outcome.expected}"):
            table.add_row("why", Text(_clip(outcome.message), "red"))
        if outcome.stdout.strip() and exercise.kind != "quiz":
            table.add_row("printed", Text(_clip(outcome.stdout.strip()), "dim"))
    elif exercise.status == NOT_RUN or (
        exercise.status == NOT_ATTEMPTED and "as it was handed out" not in exercise.reason
    ):
        table.add_row("why", Text(exercise.reason))
    if exercise.diagnosis:
        table.add_row("looks", Text(f"as if {_lower(exercise.diagnosis)}", "yellow"))
    if exercise.hint:
        table.add_row("next", Text.assemble((exercise.hint, "bold"), " in the notebook"))
    for note in exercise.notes:
        table.add_row("note", Text(note, "yellow"))
    return table


def _ran(checks: list[CheckVerdict]) -> str:
    failed = sum(c.outcome is not None and not c.outcome.passed for c in checks)
    skipped = sum(c.outcome is None for c in checks)
    text = f"{failed} of {len(checks)} checks failed"
    return text + (f", {skipped} not run" if skipped else "")


def _clip(text: str) -> str:
    lines = text.splitlines()
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"… {len(lines) - LINES + 1} more lines"]
    return "\n".join(lines)


def _lower(text: str) -> str:
    """The sentence as a clause: "This merges twice" -> "this merges twice"; names and acronyms stay."""
    return text[0].lower() + text[1:] if len(text) > 1 and text[1].islower() and text[0] != "I" else text


def _closing(report: DayReport) -> list[RenderableType]:
    core = [e for e in report.exercises if e.core]
    done = sum(e.status == PASSED for e in core)
    left = sum(e.minutes for e in core if e.status != PASSED)
    lines: list[RenderableType] = []
    if report.together:
        lines.append(Text(f"Your parts pass one by one, but not together: {report.together}", "bold red"))
    if report.passed:
        text = f"Day {report.day} passed: {done} of {len(core)} core exercises and questions."
        failed = [e.name for e in report.exercises if e.status == FAILED]
        if failed:
            text += f" Still failing, and not needed for the day: {', '.join(failed)}."
        lines.append(Text(text, "bold green"))
    else:
        lines.append(Text(f"{done} of {len(core)} core exercises and questions; about {left} minutes left."))
    if report.kept:
        noun = "part" if len(report.kept) == 1 else "parts"
        lines.append(Text(f"{len(report.kept)} {noun} kept for your engine: make engine PARTS=mine", "dim"))
    return lines


__all__ = ["complain", "console", "render", "show"]
