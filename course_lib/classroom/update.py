"""`make update`: a new version of the course, brought in around the learner's edits. Nobody has to commit
for it.

What the learner has changed and the new version changes too is copied to `.course/backups/<time>/` and put
aside; the clone is brought forward by git; then each file comes back: notebooks of days by the merge rule
of merge.py, other text line by line, and where that is not possible the course's version stands and the
learner's is named with its copy. If anything fails, all is put back as it was.

A plain `git pull` works as well: set-up (`install_merge_drivers`) makes the same rule git's merge driver
for notebooks.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from course_lib.classroom import backups, merge
from course_lib.classroom import lesson as lessons

Say = Callable[[str], None]


class UpdateError(Exception):
    """The course cannot be updated; the message says why and what to do. Nothing has been changed."""


@dataclass
class Summary:
    """What an update has done: commits brought in, sentences for the learner, and the folder with the
    copies.
    """

    commits: int = 0
    remarks: list[str] = field(default_factory=list)
    folder: Path | None = None


def git(*arguments: str, check: bool = True) -> str:
    """Run git in the course's folder; its output. UpdateError with git's own words if it fails."""
    done = _git(*arguments)
    if check and done.returncode != 0:
        words = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        raise UpdateError(f"`git {' '.join(arguments)}` failed: {words}")
    return done.stdout.decode("utf-8", "replace")


def _git(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(["git", *arguments], cwd=lessons.root(), capture_output=True, check=False)
    except FileNotFoundError:
        raise UpdateError("git is not installed; the course's updates come through it") from None


def _paths(*arguments: str) -> set[str]:
    """Paths from a git command run with -z."""
    return {path for path in git(*arguments).split("\0") if path}


def install_merge_drivers() -> None:
    """Teach this clone to merge notebooks on `git pull`: days/*/lesson.ipynb by our rule, others by nbdime's.

    The learner never has to commit: with autostash, pull puts their edits aside and merges them back by the
    driver.
    """
    python = _beside_clone(Path(sys.executable))
    settings = {
        "merge.course-notebook.name": "the course's rule: a learner's text is never lost",
        "merge.course-notebook.driver": f"{python} -m course_lib.classroom.merge %O %A %B %P",
        "merge.autoStash": "true",
        "rebase.autoStash": "true",
    }
    nbdime = Path(sys.executable).with_name("git-nbmergedriver")
    if nbdime.exists():
        settings["merge.jupyternotebook.name"] = "nbdime"
        settings["merge.jupyternotebook.driver"] = f"{_beside_clone(nbdime)} merge %O %A %B %L %P"
    if not git("config", "--get", "pull.rebase", check=False).strip():
        settings["pull.rebase"] = "false"  # git refuses a pull of diverged branches until it is told one way
    for name, value in settings.items():
        if git("config", "--local", "--get", name, check=False).rstrip("\n") != value:
            git("config", "--local", name, value)


def _beside_clone(program: Path) -> str:
    """A program as git can call it from the clone's top: relative, so that the clone may be moved."""
    root = lessons.root().absolute()
    inside = program.absolute().is_relative_to(root)
    text = str(program.absolute().relative_to(root) if inside else program.absolute())
    return f"'{text}'" if " " in text else text


def update(say: Say = print) -> Summary:
    """Fetch the new version and bring it in. UpdateError, and nothing changed, if that is not possible."""
    _refuse_unfinished()
    recover(say)
    upstream = _upstream()
    say(f"Asking {upstream.partition('/')[0]} for a new version …")
    git("fetch", "--quiet", upstream.partition("/")[0])
    head, new = git("rev-parse", "HEAD").strip(), git("rev-parse", upstream).strip()
    if _git("merge-base", "--is-ancestor", new, head).returncode == 0:
        return Summary()
    base = git("merge-base", head, new, check=False).strip()
    if not base:
        raise UpdateError(
            f"your branch and {upstream} have no common history: clone the course anew beside it"
        )
    changed = _paths("diff", "--name-only", "--no-renames", "-z", base, new)
    aside = _in_the_way(changed)
    folder = backups.new_folder("update")
    summary = Summary(int(git("rev-list", "--count", f"{head}..{new}")), [], folder)
    journal = _Journal(folder, head, sorted(aside))
    journal.write()
    try:
        journal.put_aside()
        _bring_forward(head, new)
    except BaseException:
        journal.put_back()
        journal.forget()
        raise
    for path in journal.paths:
        _bring_back(path, folder, head, summary)
    journal.forget()
    if not any(folder.rglob("*")):
        folder.rmdir()
        summary.folder = None
    return summary


def _refuse_unfinished() -> None:
    if _git("rev-parse", "--is-inside-work-tree").returncode != 0:
        raise UpdateError(
            f"{lessons.root()} is not a git clone, so there is nothing to update from: clone the "
            "course with git, "
            "and copy your notebooks and .course/ into it"
        )
    if git("rev-parse", "--show-prefix").strip():
        raise UpdateError(f"{lessons.root()} lies inside another git repository and is no clone of its own")
    folder = Path(git("rev-parse", "--absolute-git-dir").strip())
    for name, what in (("MERGE_HEAD", "merge"), ("rebase-merge", "rebase"), ("rebase-apply", "rebase")):
        if (folder / name).exists():
            raise UpdateError(
                f"a git {what} is in progress: finish it, or call it off with `git {what} --abort`"
            )
    if git("ls-files", "--unmerged"):
        raise UpdateError("some files are in conflict (`git status` names them): settle them first")


def _upstream() -> str:
    """The remote branch that this one follows, such as origin/main."""
    found = git("rev-parse", "--abbrev-ref", "--symbolic-full-name", "@{upstream}", check=False).strip()
    if found:
        return found
    remotes = git("remote").split()
    if not remotes:
        raise UpdateError(
            "this clone knows no remote to update from: `git remote add origin ADDRESS` names one"
        )
    remote = "origin" if "origin" in remotes else remotes[0]
    git("fetch", "--quiet", remote)
    head = git("symbolic-ref", "--short", f"refs/remotes/{remote}/HEAD", check=False).strip()
    for candidate in (head, f"{remote}/main", f"{remote}/master"):
        if candidate and _git("rev-parse", "--verify", "--quiet", candidate).returncode == 0:
            return candidate
    raise UpdateError(
        f"this branch follows no branch of {remote}: `git branch --set-upstream-to={remote}/main` sets it"
    )


def _in_the_way(changed: set[str]) -> set[str]:
    """Files that git would write over: changed here and in the new version, or new in both."""
    dirty = _paths("diff", "--name-only", "--no-renames", "-z", "HEAD")
    tracked = _paths("ls-tree", "-r", "--name-only", "-z", "HEAD")
    root = lessons.root()
    here = {path for path in changed if (root / path).is_file() or (root / path).is_symlink()}
    return {path for path in here if path in dirty or path not in tracked}


@dataclass
class _Journal:
    """What is put aside during an update, written down first: after a power cut the next update puts it
    back.
    """

    folder: Path
    head: str
    paths: list[str]

    @staticmethod
    def file() -> Path:
        return lessons.root() / ".course" / "update.json"

    def write(self) -> None:
        for path in self.paths:
            backups.keep(lessons.root() / path, self.folder)
        note = {"folder": str(self.folder), "head": self.head, "paths": self.paths}
        self.file().write_text(json.dumps(note, indent=1), encoding="utf-8")

    def put_aside(self) -> None:
        tracked = _paths("ls-tree", "-r", "--name-only", "-z", self.head)
        for path in self.paths:
            if path in tracked:
                git("checkout", "--quiet", self.head, "--", path)
            else:
                git("rm", "--quiet", "--cached", "--ignore-unmatch", "--", path)
                (lessons.root() / path).unlink()

    def put_back(self) -> None:
        for path in self.paths:
            target = lessons.root() / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.folder / path, target)

    def forget(self) -> None:
        self.file().unlink(missing_ok=True)


def recover(say: Say = print) -> None:
    """After an update that was cut short: bring the files it had put aside back."""
    file = _Journal.file()
    if not file.is_file():
        return
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        journal = _Journal(Path(note["folder"]), note["head"], note["paths"])
    except (ValueError, KeyError, TypeError):
        file.unlink()  # cut short while it was being written: nothing had been put aside yet
        return
    summary = Summary()
    for path in journal.paths:
        _bring_back(path, journal.folder, journal.head, summary)
    journal.forget()
    say(
        "The last update was cut short; what it had put aside is back. Copies: "
        f"{backups.shown(journal.folder)}"
    )
    for remark in summary.remarks:
        say(remark)


def _bring_forward(head: str, new: str) -> None:
    if _git("merge-base", "--is-ancestor", head, new).returncode == 0:
        git("merge", "--ff-only", "--quiet", new)
        return
    # The learner has commits of their own: a merge commit, by the merge drivers.
    identity: list[str] = []
    if not git("config", "user.email", check=False).strip():
        identity = ["-c", "user.name=learner", "-c", "user.email=learner@localhost"]
    install_merge_drivers()
    done = _git(*identity, "-c", "merge.autoStash=false", "merge", "--quiet", "--no-edit", new)
    if done.returncode != 0:
        conflicts = sorted(_paths("diff", "--name-only", "--diff-filter=U", "-z"))
        words = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
        _git("merge", "--abort")
        if conflicts:
            raise UpdateError(
                f"you have committed changes to {', '.join(conflicts)}, and the new version "
                "changes the same lines. "
                "Nothing was changed. `git pull` lets you settle it by hand."
            )
        raise UpdateError(f"git could not merge: {words}")


def _bring_back(path: str, folder: Path, head: str, summary: Summary) -> None:
    """The learner's version of a file, over what the update has put in its place."""
    target, mine = lessons.root() / path, folder / path
    is_day = path.startswith("days/") and path.endswith(".ipynb")
    if not target.exists() and is_day:
        moved = sorted((lessons.root() / "days").glob(f"{path.split('/')[1][:6]}_*/{Path(path).name}"))
        target = moved[0] if moved else target
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(mine, target)
        summary.remarks.append(f"{path}: the course no longer has this file; yours was left where it is.")
        return
    if mine.read_bytes() == target.read_bytes():
        return
    was = _git("show", f"{head}:{path}")
    base = was.stdout if was.returncode == 0 else b""
    if is_day:
        _merge_day(path, target, mine, base, summary)
        return
    merged = None if path.endswith(".ipynb") else _merge_lines(target, mine, base)
    if merged is None:
        summary.remarks.append(
            f"{path}: you and the course have both changed it. The course's version is in place; yours is "
            f"{backups.shown(mine)}."
        )
    else:
        target.write_bytes(merged)
        summary.remarks.append(f"{path}: your changes and the course's are both in it.")


def _merge_day(path: str, target: Path, mine: Path, base: bytes, summary: Summary) -> None:
    theirs = merge.read(target.read_text(encoding="utf-8"))
    try:
        learners = merge.read(mine.read_text(encoding="utf-8"))
    except (merge.NotANotebook, UnicodeDecodeError) as problem:
        shutil.copy2(mine, target)
        summary.remarks.append(
            f"{path}: your file is no notebook ({problem}) and was left as it is; `make "
            "reset-day` brings a fresh one."
        )
        return
    try:
        shipped: merge.Notebook | None = merge.read(base.decode("utf-8"))
    except (merge.NotANotebook, UnicodeDecodeError):
        shipped = None
    merged = merge.merge(learners, theirs, shipped)
    _replace(target, merge.write(merged.notebook))
    summary.remarks.append(f"{backups.shown(target)}: brought up to date around your edits.")
    summary.remarks += [f"    {remark}" for remark in merged.remarks]


def _merge_lines(target: Path, mine: Path, base: bytes) -> bytes | None:
    """Three-way merge of text by git, None if both sides changed the same lines."""
    origin = mine.with_name(mine.name + ".base")
    origin.write_bytes(base)
    try:
        done = _git("merge-file", "-p", "--quiet", str(mine), str(origin), str(target))
    finally:
        origin.unlink()
    return done.stdout if done.returncode == 0 else None


def _replace(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def run(say: Say = print) -> Summary:
    """Update, and tell the learner what has happened."""
    summary = update(say)
    if not summary.commits:
        say("This is the newest version of the course.")
        return summary
    say(
        f"The course is up to date ({summary.commits} change{'s' if summary.commits > 1 else ''} brought in)."
    )
    for remark in summary.remarks:
        say(remark)
    if summary.folder is not None:
        say(f"Copies of your files as they were: {backups.shown(summary.folder)}")
    say("Notebooks that are open in JupyterLab: choose File > Reload Notebook from Disk.")
    return summary


if __name__ == "__main__":
    install_merge_drivers()  # part of set-up
