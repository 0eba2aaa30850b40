"""The classroom's commands, one for each `make` target; `python -m course_lib.classroom --help` lists them.

Exit status: 0 done, 1 not passed or not up to date, 2 a request that makes no sense.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from course_lib.classroom import lesson as lessons

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="The course's classroom."
)

_UNITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
NUMBERS = [*_UNITS, *_TEENS, "twenty", *(f"twenty-{unit}" for unit in _UNITS), "thirty"]


class WrongDay(Exception):
    """A day that there is not; the message says which there are."""


def parse_day(text: str, command: str) -> int:
    """The number of a day with a lesson. WrongDay for "", "five", 0, 31, and for days that are not built
    yet.
    """
    days = lessons.available_days()
    built = _ranges(days)
    word = text.strip()
    if not word:
        raise WrongDay(f"which day? For example: make {command} {days[0] if days else 1}")
    word = re.sub(r"^day[ _-]*", "", word.lower())
    if word in NUMBERS:
        raise WrongDay(f'"{text}" is written as a number here: make {command} {NUMBERS.index(word) + 1}')
    try:
        day = int(word)
    except ValueError:
        raise WrongDay(
            f'"{text}" is no day: give its number, as in make {command} {days[0] if days else 1}'
        ) from None
    if not 1 <= day <= 30:
        raise WrongDay(f"there is no day {day}: the course has days 1 to 30")
    if day not in days:
        raise WrongDay(f"day {day} is not built yet; built so far: {built or 'none'}")
    return day


def _ranges(days: list[int]) -> str:
    """[1, 2, 3, 5] as "1-3, 5"."""
    runs: list[list[int]] = []
    for day in days:
        if runs and day == runs[-1][-1] + 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


@contextmanager
def _sentences() -> Iterator[None]:
    """What the learner can mend is said in a sentence, without a traceback."""
    from course_lib.classroom.lesson import LessonError
    from course_lib.classroom.progress import ProgressError
    from course_lib.classroom.start import StartError
    from course_lib.classroom.update import UpdateError

    try:
        yield
    except (WrongDay, LessonError, ProgressError, StartError, UpdateError) as problem:
        text = str(problem)
        print(f"course: {text[:1]}{text[1:]}", file=sys.stderr)
        raise typer.Exit(1 if isinstance(problem, LessonError) else 2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


# A day of -1 is no day, but it is no option either: parse_day has a sentence for it.
_DAY = {"ignore_unknown_options": True}
Day = Annotated[str, typer.Argument(metavar="N", help="The day's number, 1 to 30.", show_default=False)]


@app.command("check-day", context_settings=_DAY)
def check_day(n: Day = "") -> None:
    """Grade a day: check your notebook's exercises and print the scoreboard."""
    with _sentences():
        day = parse_day(n, "check-day")
        from course_lib.classroom import grade

        raise typer.Exit(grade.main(day))


@app.command()
def progress() -> None:
    """The thirty days at a glance."""
    with _sentences():
        from course_lib.classroom import overview

        overview.show()


@app.command()
def start(
    day: Annotated[
        str, typer.Option("--day", metavar="N", help="Open this day, not the first unfinished one.")
    ] = "",
    browser: Annotated[
        bool | None, typer.Option(help="Open a browser; by default where there is one.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="The port to listen on; by default the first free from 8888.")
    ] = None,
) -> None:
    """Open JupyterLab at the first unfinished day."""
    with _sentences():
        from course_lib.classroom import start as starting

        starting.start(parse_day(day, "start --day") if day else None, browser, port)


@app.command("reset-day", context_settings=_DAY)
def reset_day(n: Day = "") -> None:
    """Put a day's notebook back as it was handed out; yours is kept as a copy."""
    with _sentences():
        day = parse_day(n, "reset-day")
        from course_lib.classroom import backups, reset

        path, copy = reset.reset_day(day)
        print(f"Day {day} is as it was handed out: {backups.shown(path)}")
        if copy is not None:
            print(f"Yours is kept: {backups.shown(copy)}")
            print("If it is open in JupyterLab: File > Reload Notebook from Disk.")


@app.command()
def update() -> None:
    """Bring in a new version of the course around your edits."""
    with _sentences():
        # What is used after the files have changed is loaded before.
        from course_lib.classroom import update as updating

        updating.run()


@app.command("lessons")
def build_lessons(
    day: Annotated[str, typer.Option("--day", metavar="N", help="One day only.")] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if anything is out of date.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Replace the samples of what varies, on a quiet machine.")
    ] = False,
) -> None:
    """Build the notebooks of the days from their lesson.md."""
    with _sentences():
        days = [parse_day(day, "lessons")] if day else lessons.available_days()
        from course_lib.classroom import build

        stale = False
        for number in days:
            try:
                found = (
                    build.differing([number])
                    if check
                    else build.build_day(number, always=bool(day) or measure, measure=measure)
                )
            except build.BuildError as problem:
                print("\n".join(f"course: {line}" for line in problem.problems), file=sys.stderr)
                raise typer.Exit(1) from None
            stale = stale or bool(found)
            verb = "differs from a fresh build" if check else "written"
            for path in found:
                print(f"{path}: {verb}")
            if not found:
                print(f"day {number}: up to date")
        raise typer.Exit(1 if check and stale else 0)


@app.command()
def prove(
    day: Annotated[str, typer.Option("--day", metavar="N", help="One day.")] = "",
    changed: Annotated[
        bool, typer.Option("--changed", help="The days that differ from the main branch.")
    ] = False,
    all_days: Annotated[bool, typer.Option("--all", help="Every day, with every mutant.")] = False,
    mutants: Annotated[bool, typer.Option("--mutants", help="Try every mutant, not a sample.")] = False,
) -> None:
    """Prove that a day's grading can be trusted: stubs, references, wrong solutions, mutants."""
    with _sentences():
        if sum((bool(day), changed, all_days)) != 1:
            raise WrongDay("say what to prove: --day N, --changed or --all")
        from course_lib.classroom import prove as proving

        if day:
            days = [parse_day(day, "prove --day")]
        else:
            days = proving.changed_days() if changed else lessons.available_days()
        raise typer.Exit(proving.main(days, everything=all_days or mutants))


def main() -> None:
    """The commands, by their name in `make`."""
    app(prog_name="course")


if __name__ == "__main__":
    main()
