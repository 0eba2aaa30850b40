"""What the learner has done so far: `.course/progress.json`, and the view of it that `make progress`
prints.

The notebook's kernel and `make check-day` may write at the same time: every change is one read, edit and
atomic replace under a lock. A file that cannot be read is put aside, never overwritten, and the copy of the
last good one takes over.
"""

import copy
import fcntl
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from course_lib.classroom import lesson as lessons

VERSION = 1


class ProgressError(Exception):
    """Progress that this version of the course must not touch; the message says what to do."""


def new() -> dict[str, Any]:
    """Progress before the first cell: plain JSON, described here field by field."""
    return {
        "version": VERSION,
        # Seeds the drills, so that two learners in one room get different questions.
        "seed": secrets.randbits(32),
        # Local dates on which anything was checked, answered, predicted or graded, in order: the streak.
        "active": [],
        # "5:tokenizer.decode" -> {"day", "name", "status": "passed|failed", "tries", "passed_at"}, where
        # passed_at is the ISO time of the first pass, or null
        "exercises": {},
        # name -> how many hints have been shown
        "hints": {},
        # "5" -> {"opened_at", "graded_at", "passed_at": first time, "seconds": of the last grading}
        "days": {},
        # "5:decode tok/s" -> {"day", "label", "predicted", "measured", "at"}: the first estimate
        "predictions": {},
        # topic -> {"asked", "right", "streak", "best"}
        "drills": {},
    }


def folder() -> Path:
    """Where the learner's state lies: `.course/` in the repository, ignored by git."""
    return lessons.root() / ".course"


def path() -> Path:
    return folder() / "progress.json"


def load() -> dict[str, Any]:
    """The progress so far, or a new one. Reports a file that cannot be read, on stderr, after putting it
    aside.
    """
    with _locked():
        return _read()


@contextmanager
def edit() -> Iterator[dict[str, Any]]:
    """Change the progress: `with edit() as progress: …`. Saved at the end, unless the block raises.

    Building the solved notebooks (COURSE_BUILD) leaves no trace: the change is made to a copy and forgotten.
    """
    if os.environ.get("COURSE_BUILD"):
        yield new() | {"seed": 0}
        return
    with _locked():
        progress = _read()
        before = copy.deepcopy(progress)
        yield progress
        if progress != before or not path().exists():
            _write(progress)


@contextmanager
def _locked() -> Iterator[None]:
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "progress.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _previous() -> Path:
    return folder() / "progress.previous.json"


def _read() -> dict[str, Any]:
    if not path().exists():
        # A crash between putting a bad file aside and writing anew must not start from nothing either.
        return (_parse(_previous()) if _previous().exists() else None) or new()
    progress = _parse(path())
    if progress is None:
        aside = _put_aside(path())
        progress = _parse(_previous()) if _previous().exists() else None
        found = "the copy made before the last change" if progress else "an empty one: no good copy was found"
        print(
            f"Your progress file could not be read. It is kept as {aside}; going on with {found}.",
            file=sys.stderr,
        )
    return progress or new()


def _parse(file: Path) -> dict[str, Any] | None:
    """The progress in a file, None if it is not one. ProgressError if a newer course wrote it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("version"), int):
        return None
    if found["version"] > VERSION:
        raise ProgressError(
            f"{file} was written by a newer version of the course (format {found['version']}, this one knows "
            f"{VERSION}). Nothing was changed: run `make update` here too."
        )
    fresh = new()
    progress = {key: found.get(key, fresh[key]) for key in fresh} | {
        k: v for k, v in found.items() if k not in fresh
    }
    return progress if all(type(progress[key]) is type(fresh[key]) for key in fresh) else None


def _put_aside(file: Path) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%dT%H%M%S")
    for number in range(1000):
        aside = file.with_name(f"progress.unreadable-{stamp}{f'-{number}' if number else ''}.json")
        if not aside.exists():
            file.rename(aside)
            return aside
    raise ProgressError(f"no free name for a copy of {file}")


def _write(progress: dict[str, Any]) -> None:
    if path().exists() and _parse(path()) is not None:
        _replace(_previous(), path().read_text(encoding="utf-8"))
    _replace(path(), json.dumps(progress, indent=1, ensure_ascii=False) + "\n")


def _replace(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)


def now() -> str:
    """The local time with its offset, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def touch(progress: dict[str, Any], today: date | None = None) -> None:
    """Count today as a day of work."""
    text = (today or date.today()).isoformat()
    if text not in progress["active"]:
        progress["active"] = sorted([*progress["active"], text])


def record_try(progress: dict[str, Any], name: str, day: int, passed: bool) -> None:
    """An exercise or question was tried: in the notebook, or in a grading."""
    fresh = {"day": day, "name": name, "status": "failed", "tries": 0, "passed_at": None}
    # By day as well: a warm-up asks again for a part of an earlier day.
    entry = progress["exercises"].setdefault(f"{day}:{name}", fresh)
    entry["tries"] += 1
    entry["status"] = "passed" if passed else "failed"
    if passed and not entry["passed_at"]:
        entry["passed_at"] = now()
    touch(progress)


def day_entry(progress: dict[str, Any], day: int) -> dict[str, Any]:
    """What is kept about a day, made where there is nothing yet."""
    fresh = {"opened_at": None, "graded_at": None, "passed_at": None, "seconds": 0.0}
    entry: dict[str, Any] = progress["days"].setdefault(str(day), fresh)
    for key, value in fresh.items():
        entry.setdefault(key, value)
    return entry


def record_day(report: Any) -> None:
    """Keep the result of grading a whole day: a `DayReport` with `day`, `seconds`, `passed` and its
    exercises' verdicts.
    """
    with edit() as progress:
        for verdict in report.exercises:
            if verdict.status in ("passed", "failed"):
                record_try(progress, verdict.name, report.day, verdict.status == "passed")
        entry = day_entry(progress, report.day)
        entry["graded_at"] = now()
        entry["seconds"] = round(float(report.seconds), 2)
        if report.passed and not entry["passed_at"]:
            entry["passed_at"] = now()
        touch(progress)


def streak(progress: dict[str, Any], today: date | None = None) -> int:
    """How many days in a row, up to today or yesterday, something was done."""
    today = today or date.today()
    active = set(progress["active"])
    at = today if today.isoformat() in active else today - timedelta(days=1)
    count = 0
    while at.isoformat() in active:
        count, at = count + 1, at - timedelta(days=1)
    return count


def passed_names(progress: dict[str, Any], day: int | None = None) -> set[str]:
    """Exercises and questions that have passed at least once: on any day, or on this one."""
    entries = [entry for entry in progress["exercises"].values() if entry.get("passed_at")]
    return {entry["name"] for entry in entries if day in (None, entry["day"])}


def day_passed(progress: dict[str, Any], day: int) -> bool:
    """Whether `make check-day` has once passed all of a day."""
    return bool(progress["days"].get(str(day), {}).get("passed_at"))


def first_unfinished(progress: dict[str, Any]) -> int | None:
    """The first day with a lesson that has not passed yet; None if all have."""
    return next((day for day in lessons.available_days() if not day_passed(progress, day)), None)
