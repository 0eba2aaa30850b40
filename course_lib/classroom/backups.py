"""Copies of the learner's files, made before anything is written over them:
`.course/backups/<time>/<path>`.
"""

import shutil
from datetime import datetime
from pathlib import Path

from course_lib.classroom import lesson as lessons


def new_folder(why: str = "") -> Path:
    """A fresh folder under `.course/backups/`, named after the time and, in a word, the reason."""
    base = lessons.root() / ".course" / "backups"
    stamp = datetime.now().strftime("%Y-%m-%dT%H%M%S") + (f"-{why}" if why else "")
    for number in range(1000):
        folder = base / (f"{stamp}-{number}" if number else stamp)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(f"no free name for a folder in {base}")


def keep(file: Path, folder: Path) -> Path:
    """Copy a file of the course into a backup folder, under its path in the repository; returns the copy."""
    copy = folder / file.resolve().relative_to(lessons.root().resolve())
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(file, copy)
    return copy


def shown(path: Path) -> str:
    """A path as a learner types it: relative to the repository where it lies in it."""
    try:
        return str(path.resolve().relative_to(lessons.root().resolve()))
    except ValueError:
        return str(path)
