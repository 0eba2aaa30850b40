"""`make reset-day N`: the day's notebook as it was handed out; what was there is kept and named."""

from pathlib import Path

from course_lib.classroom import backups
from course_lib.classroom import lesson as lessons


def shipped_notebook(day: int) -> tuple[Path, str]:
    """Where the learner's notebook of a day belongs, and its text as handed out, built from the lesson."""
    from course_lib.classroom.build import make

    ((path, text),) = make(day, execute=False).files.items()
    return lessons.root() / path, text


def reset_day(day: int) -> tuple[Path, Path | None]:
    """Put the shipped notebook of a day in place; returns its path and that of the copy, if there was a
    file.
    """
    path, text = shipped_notebook(day)
    copy = None
    if path.exists() and path.read_bytes() != text.encode("utf-8"):
        copy = backups.keep(path, backups.new_folder("reset"))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path, copy
