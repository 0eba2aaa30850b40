"""An update never loses a learner's text: the merge rule, fuzzed, and upgrades by git in scratch clones."""

import json
import random
import re
import shutil
import subprocess
from collections import Counter
from itertools import pairwise

import nbformat
import pytest

from course_lib.classroom import merge, update

WORDS = [
    "attention",
    "softmax",
    "cache",
    "block",
    "token",
    "batch",
    "head",
    "norm",
    "mask",
    "page",
    "rope",
    "query",
]


def copied(what):
    return json.loads(json.dumps(what))


class Course:
    """A made-up course: writes a first version of a notebook, and then edits it as its authors would."""

    def __init__(self, rng: random.Random):
        self.rng, self.counter = rng, 0

    def text(self) -> str:
        self.counter += 1
        lines = [" ".join(self.rng.choices(WORDS, k=3)) for _ in range(self.rng.randint(1, 3))]
        return "\n".join([*lines, f"shipped {self.counter}"])

    def cell(self, kind: str, name: str, text: str | None = None) -> merge.Cell:
        words = self.text() if text is None else text
        cell = {
            "cell_type": "markdown" if kind == "prose" else "code",
            "id": name.replace(".", "-"),
            "metadata": {"course": {"kind": kind, "name": name, "shipped": merge.digest(words)}},
            "source": words.splitlines(keepends=True),
        }
        return cell if kind == "prose" else {**cell, "execution_count": None, "outputs": []}

    def notebook(self) -> merge.Notebook:
        kinds = self.rng.choices(["prose", "prose", "code", "exercise", "check"], k=self.rng.randint(0, 9))
        cells = [self.cell("setup", "setup")] + [
            self.cell(kind, f"{kind}.{i}") for i, kind in enumerate(kinds)
        ]
        return {
            "cells": cells,
            "metadata": {"course": {"day": 5}, "kernelspec": {"name": "python3", "display_name": "Python 3"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }

    def next_version(self, notebook: merge.Notebook) -> merge.Notebook:
        """The course's next version: cells changed, added, dropped, moved; ids of prose shifted."""
        new, rng = copied(notebook), self.rng
        cells = new["cells"]
        for _ in range(rng.randint(0, 5)):
            what, at = rng.random(), rng.randrange(len(cells) + 1)
            if what < 0.4 and cells:
                at = rng.randrange(len(cells))
                course = cells[at]["metadata"]["course"]
                text = (
                    self.text()
                    if rng.random() < 0.5
                    else merge.source(cells[at]) + f"\nshipped more {self.counter}"
                )
                cells[at] = self.cell(course["kind"], course["name"], text)
            elif what < 0.65:
                self.counter += 1
                kind = rng.choice(["prose", "code", "exercise"])
                cells.insert(at, self.cell(kind, f"{kind}.new{self.counter}"))
            elif what < 0.8 and cells:
                cells.pop(rng.randrange(len(cells)))
            elif what < 0.9 and cells:
                cells.insert(rng.randrange(len(cells)), cells.pop(rng.randrange(len(cells))))
            elif cells:
                # As the builder numbers prose: one paragraph more, and the ids of all that follow shift.
                for number, cell in enumerate(c for c in cells if c["cell_type"] == "markdown"):
                    cell["id"] = f"text-{number}"
                    cell["metadata"]["course"]["name"] = f"text.{number}"
        return new


class Learner:
    """Does to a notebook what people do, and remembers nothing: what is theirs can be seen in the cells."""

    def __init__(self, rng: random.Random, who: str = "mine"):
        self.rng, self.who, self.counter = rng, who, 0

    def token(self) -> str:
        self.counter += 1
        return f"{self.who} {self.rng.getrandbits(60):x}.{self.counter}"

    def work(self, notebook: merge.Notebook, most: int = 6) -> merge.Notebook:
        new = copied(notebook)
        for _ in range(self.rng.randint(0, most)):
            self.rng.choice(self.HABITS)(self, new["cells"])
        return new

    def edit(self, cells: list[merge.Cell]) -> None:
        if cells:
            cell = self.rng.choice(cells)
            lines = merge.source(cell).split("\n")
            lines.insert(self.rng.randint(0, len(lines)), self.token())
            cell["source"] = "\n".join(lines if self.rng.random() < 0.7 else [self.token()])

    def write(self, cells: list[merge.Cell]) -> None:
        cell = {
            "cell_type": "code",
            "id": f"{self.rng.getrandbits(40):x}",
            "metadata": {},
            "source": self.token(),
        }
        cells.insert(self.rng.randint(0, len(cells)), {**cell, "execution_count": 7, "outputs": []})

    def delete(self, cells: list[merge.Cell]) -> None:
        if cells:
            cells.pop(self.rng.randrange(len(cells)))

    def move(self, cells: list[merge.Cell]) -> None:
        if cells:
            cells.insert(self.rng.randint(0, len(cells) - 1), cells.pop(self.rng.randrange(len(cells))))

    def duplicate(self, cells: list[merge.Cell]) -> None:
        if cells:
            twin = copied(self.rng.choice(cells))
            if self.rng.random() < 0.8:
                twin["id"] = f"{self.rng.getrandbits(40):x}"
            cells.insert(self.rng.randint(0, len(cells)), twin)

    def split(self, cells: list[merge.Cell]) -> None:
        if cells:
            at = self.rng.randrange(len(cells))
            first, second = copied(cells[at]), copied(cells[at])
            lines = merge.source(cells[at]).split("\n")
            cut = self.rng.randint(0, len(lines))
            first["source"], second["source"] = "\n".join(lines[:cut]), "\n".join(lines[cut:])
            self.rng.choice([first, second])["id"] = f"{self.rng.getrandbits(40):x}"
            cells[at : at + 1] = [first, second]

    def join(self, cells: list[merge.Cell]) -> None:
        if len(cells) > 1:
            at = self.rng.randrange(len(cells) - 1)
            cells[at]["source"] = merge.source(cells[at]) + "\n\n" + merge.source(cells.pop(at + 1))

    def run(self, cells: list[merge.Cell]) -> None:
        for cell in cells:
            if cell["cell_type"] == "code":
                cell["execution_count"] = self.rng.randint(1, 99)
                cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": self.token()}]

    def retype(self, cells: list[merge.Cell]) -> None:
        if cells:
            cell = self.rng.choice(cells)
            cell["cell_type"] = "markdown"
            cell.pop("outputs", None), cell.pop("execution_count", None)

    def forget(self, cells: list[merge.Cell]) -> None:
        """Another editor, which drops the course's marks."""
        if cells:
            self.rng.choice(cells)["metadata"] = {}

    HABITS = (edit, edit, edit, write, write, delete, move, duplicate, split, join, run, retype, forget)


def learners_texts(notebook: merge.Notebook) -> Counter[str]:
    return Counter(merge.source(cell) for cell in notebook["cells"] if merge.touched(cell))


def texts(notebook: merge.Notebook) -> Counter[str]:
    return Counter(merge.source(cell) for cell in notebook["cells"])


def tokens(notebook: merge.Notebook, who: str = "mine") -> set[str]:
    return {t for cell in notebook["cells"] for t in re.findall(rf"{who} [0-9a-f]+\.\d+", merge.source(cell))}


def assert_sound(notebook: merge.Notebook) -> None:
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", own) for own in ids)


@pytest.mark.parametrize("part", range(4))
def test_ten_thousand_random_edits_on_both_sides_lose_no_text(part):
    for seed in range(part * 2500, part * 2500 + 2500):
        rng = random.Random(seed)
        course, learner = Course(rng), Learner(rng)
        base = course.notebook()
        mine, theirs = learner.work(base), course.next_version(base)
        known: set[str] = set()
        for step in range(rng.randint(1, 2)):
            merged = merge.merge(mine, theirs, base if rng.random() < 0.8 else None).notebook
            where = f"seed {seed}, update {step}"
            assert learners_texts(mine) <= texts(merged), where
            assert tokens(mine) <= tokens(merged), where
            assert_sound(merged)
            # What the course has added arrives, and what it has changed arrives where nobody else has.
            known |= {merge.source(cell) for cell in base["cells"]}
            shipped_now = texts(merged)
            ours = {cell["id"]: merge.touched(cell) for cell in merged["cells"]}
            for cell in theirs["cells"]:
                if cell["metadata"]["course"]["name"].startswith(("exercise.new", "code.new")):
                    fresh = cell["id"] not in {c["id"] for c in base["cells"]}
                    assert not fresh or ours[cell["id"]] or shipped_now[merge.source(cell)], where
            for cell in merged["cells"]:
                text = merge.source(cell)
                if not merge.touched(cell) and merge.mark(cell)["kind"] != "note":
                    copies = text in texts(mine)
                    assert text in texts(theirs) or (copies and text in known), where
            # Merging the same version again changes nothing.
            again = merge.merge(merged, theirs, theirs).notebook
            assert again["cells"] == merged["cells"], where
            base, mine = theirs, learner.work(merged, 3)
            theirs = course.next_version(theirs)


def test_two_learners_texts_are_both_kept():
    """The same clone on two machines: both have committed their work, and pull from one another."""
    for seed in range(3000):
        rng = random.Random(seed)
        course, here, there = Course(rng), Learner(rng, "mine"), Learner(rng, "other")
        base = course.notebook()
        shared = here.work(base, 2) if rng.random() < 0.5 else base
        mine, theirs = here.work(shared), there.work(shared)
        merged = merge.merge(mine, theirs, shared if rng.random() < 0.8 else None).notebook
        assert tokens(mine) - tokens(shared) <= tokens(merged), seed
        assert tokens(theirs, "other") <= tokens(merged, "other"), seed
        assert_sound(merged)


def test_an_untouched_notebook_becomes_the_new_version_and_a_new_version_of_nothing_changes_nothing():
    for seed in range(500):
        rng = random.Random(seed)
        course = Course(rng)
        base = course.notebook()
        new = course.next_version(base)
        assert merge.merge(base, new, base).notebook["cells"] == new["cells"]
        mine = Learner(rng).work(base)
        kept = merge.merge(mine, base, base).notebook["cells"]
        assert [merge.source(c) for c in kept] == [merge.source(c) for c in mine["cells"]]
        assert [c.get("outputs") for c in kept] == [c.get("outputs") for c in mine["cells"]]


def test_merged_notebooks_are_valid():
    for seed in range(100):
        rng = random.Random(seed)
        course = Course(rng)
        base = course.notebook()
        merged = merge.merge(Learner(rng).work(base), course.next_version(base), base).notebook
        nbformat.validate(nbformat.reads(merge.write(merged), as_version=4))


DAY = "days/day_05_tokens/lesson.ipynb"
DEFAULT_HEAD = "main"


class Clones:
    """An upstream repository with one day, and a learner's clone of it, as set-up leaves it."""

    def __init__(self, folder, monkeypatch):
        for name, value in {
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "author",
            "GIT_AUTHOR_EMAIL": "author@localhost",
            "GIT_COMMITTER_NAME": "author",
            "GIT_COMMITTER_EMAIL": "author@localhost",
            "GIT_TERMINAL_PROMPT": "0",
            "COURSE_ROOT": str(folder / "clone"),
        }.items():
            monkeypatch.setenv(name, value)
        self.upstream, self.clone = folder / "upstream", folder / "clone"
        self.rng = random.Random(5)
        self.course = Course(self.rng)
        self.upstream.mkdir()
        self.git("init", "--quiet", "--initial-branch", DEFAULT_HEAD, at=self.upstream)
        self.shipped = self.course.notebook()
        names = ("tokenizer.merge_pair", "tokenizer.decode")
        stubs = [
            self.course.cell("exercise", name, f"def {name[10:]}():\n    raise NotImplementedError")
            for name in names
        ]
        prose = [self.course.cell("prose", f"text.{i}") for i in range(3)]
        self.shipped["cells"] = [
            self.course.cell("setup", "setup"),
            prose[0],
            stubs[0],
            prose[1],
            stubs[1],
            prose[2],
        ]
        self.put(self.upstream, DAY, merge.write(self.shipped))
        self.put(self.upstream, "solutions/day_05_tokens/lesson.ipynb", merge.write(self.shipped))
        self.put(self.upstream, "README.md", "one\ntwo\nthree\nfour\nfive\n")
        self.put(self.upstream, "course_lib/model.py", "a = 1\n")
        self.put(self.upstream, ".gitattributes", "days/**/*.ipynb merge=course-notebook\n")
        self.put(self.upstream, ".gitignore", ".course/\n")
        self.commit(self.upstream)
        self.git("clone", "--quiet", str(self.upstream), str(self.clone), at=folder)
        update.install_merge_drivers()

    def git(self, *arguments, at=None, ok=True):
        done = subprocess.run(["git", *arguments], cwd=at or self.clone, capture_output=True, text=True)
        assert not ok or done.returncode == 0, done.stdout + done.stderr
        return done

    @staticmethod
    def put(folder, path, text):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")

    def commit(self, at):
        self.git("add", "--all", at=at)
        self.git("commit", "--quiet", "-m", "work", at=at)

    def day(self):
        return merge.read((self.clone / DAY).read_text(encoding="utf-8"))

    def half_solve(self):
        """One exercise solved, prose annotated, a scratch cell, outputs: a learner's evening."""
        notebook = self.day()
        cells = notebook["cells"]
        cells[2]["source"] = "def merge_pair():\n    return 'my own solution'"
        cells[2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "it runs"}]
        cells[5]["source"] = merge.source(cells[5]) + "\n\nMy remark."
        cells.insert(3, {"cell_type": "code", "id": "scratch", "metadata": {}, "source": "my_scratch = 1"})
        cells[3] |= {"execution_count": 3, "outputs": []}
        self.put(self.clone, DAY, merge.write(notebook))

    def release(self):
        """The course's next version: the solved exercise's stub, two texts and a new exercise."""
        new = copied(self.shipped)
        cells = new["cells"]
        cells[1] = self.course.cell("prose", "text.0", "A better introduction.")
        cells[2] = self.course.cell(
            "exercise", "tokenizer.merge_pair", "def merge_pair(a):\n    raise NotImplementedError"
        )
        cells[4] = self.course.cell(
            "exercise", "tokenizer.decode", "def decode(ids):\n    raise NotImplementedError"
        )
        cells.append(
            self.course.cell("exercise", "tokenizer.encode", "def encode():\n    raise NotImplementedError")
        )
        self.put(self.upstream, DAY, merge.write(new))
        self.put(self.upstream, "README.md", "one\ntwo\nthree\nfour\nfive, better\n")
        self.commit(self.upstream)

    def assert_upgraded(self):
        found = [merge.source(cell) for cell in self.day()["cells"]]
        assert found[1] == "A better introduction."
        assert found[2] == "def merge_pair():\n    return 'my own solution'"
        assert "def merge_pair(a):" in found[3], "a note with the new stub"
        assert found[4] == "my_scratch = 1"
        assert found[6] == "def decode(ids):\n    raise NotImplementedError"
        assert found[7].endswith("My remark.")
        assert found[8].startswith("def encode")
        assert len(found) == 9
        assert self.day()["cells"][2]["outputs"][0]["text"] == "it runs"
        assert (self.clone / "README.md").read_text().endswith("better\n")
        nbformat.validate(nbformat.read(self.clone / DAY, as_version=4))


@pytest.fixture
def clones(tmp_path, monkeypatch):
    return Clones(tmp_path, monkeypatch)


def test_make_update_brings_a_half_solved_day_up_to_date(clones):
    clones.half_solve()
    before = (clones.clone / DAY).read_text()
    clones.release()
    said: list[str] = []
    summary = update.run(said.append)
    assert summary.folder is not None
    clones.assert_upgraded()
    assert (summary.folder / DAY).read_text() == before
    text = "\n".join(said)
    assert "brought up to date around your edits" in text
    assert "tokenizer.merge_pair: you have changed this cell, and so has the course" in text
    assert not (clones.clone / ".course/update.json").exists()
    assert (
        clones.git("rev-parse", "HEAD").stdout == clones.git("rev-parse", "HEAD", at=clones.upstream).stdout
    )
    said.clear()
    assert update.run(said.append).commits == 0
    assert said[-1] == "This is the newest version of the course."


@pytest.mark.parametrize("pull", [["pull"], ["pull", "--rebase"], ["pull", "--ff-only"]])
def test_a_plain_pull_brings_a_half_solved_day_up_to_date(clones, pull):
    clones.half_solve()
    clones.release()
    clones.git(*pull)
    clones.assert_upgraded()
    assert clones.git("stash", "list").stdout == ""
    assert clones.git("ls-files", "--unmerged").stdout == ""


@pytest.mark.parametrize("how", ["update", "pull", "pull --rebase"])
def test_a_learner_who_commits_is_served_as_well(clones, how):
    clones.half_solve()
    clones.commit(clones.clone)
    clones.release()
    if how == "update":
        update.run(lambda text: None)
    else:
        clones.git(*how.split())
    clones.assert_upgraded()


def test_committed_and_uncommitted_work_together(clones):
    clones.half_solve()
    clones.commit(clones.clone)
    notebook = clones.day()
    notebook["cells"][2]["source"] = "def merge_pair():\n    return 'my second solution'"
    clones.put(clones.clone, DAY, merge.write(notebook))
    clones.release()
    update.run(lambda text: None)
    found = [merge.source(cell) for cell in clones.day()["cells"]]
    assert [text for text in found if "merge_pair():" in text] == [
        "def merge_pair():\n    return 'my second solution'"
    ]


def test_other_files_that_both_have_changed(clones):
    """Lines apart are merged; the same lines, and executed notebooks, give way to the course's."""
    clones.put(clones.clone, "README.md", "one, mine\ntwo\nthree\nfour\nfive\n")
    clones.put(clones.clone, "course_lib/model.py", "a = 'mine'\n")
    clones.put(clones.clone, "notes.md", "my notes\n")
    clones.put(clones.clone, "days/day_05_tokens/scratch.ipynb", "{}")
    executed = merge.write(Learner(random.Random(1)).work(clones.shipped))
    clones.put(clones.clone, "solutions/day_05_tokens/lesson.ipynb", executed)
    clones.put(clones.upstream, "course_lib/model.py", "a = 2\n")
    clones.put(clones.upstream, "notes.md", "the course's notes\n")
    clones.put(clones.upstream, "solutions/day_05_tokens/lesson.ipynb", merge.write(clones.course.notebook()))
    clones.release()
    summary = update.update(lambda text: None)
    assert summary.folder is not None
    assert (clones.clone / "README.md").read_text() == "one, mine\ntwo\nthree\nfour\nfive, better\n"
    assert (clones.clone / "course_lib/model.py").read_text() == "a = 2\n"
    assert (clones.clone / "notes.md").read_text() == "the course's notes\n"
    assert (clones.clone / "days/day_05_tokens/scratch.ipynb").read_text() == "{}"
    assert (summary.folder / "course_lib/model.py").read_text() == "a = 'mine'\n"
    assert (summary.folder / "notes.md").read_text() == "my notes\n"
    assert (summary.folder / "solutions/day_05_tokens/lesson.ipynb").read_text() == executed
    named = "\n".join(summary.remarks)
    assert "course_lib/model.py: you and the course have both changed it" in named
    assert "notes.md: you and the course have both changed it" in named
    assert "README.md: your changes and the course's are both in it" in named


def test_a_day_that_moves_takes_the_learners_work_along(clones):
    clones.half_solve()
    clones.git("mv", "days/day_05_tokens", "days/day_05_tokenization", at=clones.upstream)
    clones.commit(clones.upstream)
    update.update(lambda text: None)
    moved = (clones.clone / "days/day_05_tokenization/lesson.ipynb").read_text()
    assert "my own solution" in moved
    assert "my_scratch" in moved


def test_a_broken_notebook_is_left_as_it_is(clones):
    clones.put(clones.clone, DAY, '{"cells": [my unfinished')
    clones.release()
    summary = update.update(lambda text: None)
    assert (clones.clone / DAY).read_text() == '{"cells": [my unfinished'
    assert "is no notebook" in "\n".join(summary.remarks)


def test_a_broken_notebook_survives_a_plain_pull(clones):
    clones.put(clones.clone, DAY, '{"cells": [my unfinished')
    clones.release()
    clones.git("pull")
    assert (clones.clone / DAY).read_text() == '{"cells": [my unfinished'


def test_an_update_that_cannot_be_done_changes_nothing(clones):
    clones.half_solve()
    clones.put(clones.clone, "README.md", "one\ntwo\nthree\nfour\nfive, mine\n")
    clones.git("commit", "--quiet", "-m", "mine", "README.md")
    before, head = (clones.clone / DAY).read_text(), clones.git("rev-parse", "HEAD").stdout
    clones.release()
    with pytest.raises(update.UpdateError, match=r"you have committed changes to README\.md"):
        update.update(lambda text: None)
    assert (clones.clone / DAY).read_text() == before
    assert (clones.clone / "README.md").read_text().endswith("five, mine\n")
    assert clones.git("rev-parse", "HEAD").stdout == head
    assert not (clones.clone / ".git/MERGE_HEAD").exists()


def test_an_update_that_was_cut_short_is_taken_up_again(clones, monkeypatch):
    clones.half_solve()
    clones.release()

    class PowerCut(BaseException):
        pass

    def cut(*arguments):
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(update, "_bring_back", cut)
        with pytest.raises(PowerCut):
            update.update(lambda text: None)
    assert "my own solution" not in (clones.clone / DAY).read_text()
    said: list[str] = []
    update.run(said.append)
    clones.assert_upgraded()
    assert "cut short" in said[0]


@pytest.mark.parametrize(
    ("arrange", "says"),
    [
        (lambda c: shutil.rmtree(c.clone / ".git"), "is not a git clone"),
        (lambda c: c.git("remote", "remove", "origin"), "knows no remote"),
        (lambda c: shutil.rmtree(c.upstream), "failed"),
        (
            lambda c: (c.clone / ".git/MERGE_HEAD").write_text(c.git("rev-parse", "HEAD").stdout),
            "merge is in progress",
        ),
    ],
)
def test_what_keeps_a_clone_from_updating_is_said(clones, arrange, says):
    clones.half_solve()
    before = (clones.clone / DAY).read_text()
    arrange(clones)
    with pytest.raises(update.UpdateError, match=says):
        update.update(lambda text: None)
    assert (clones.clone / DAY).read_text() == before


def test_notes_are_replaced_and_deleted_cells_stay_deleted():
    course = Course(random.Random(0))
    shipped = [course.cell("prose", "text.0"), course.cell("exercise", "a.b"), course.cell("code", "code.0")]
    first = {"cells": copied(shipped), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    versions: list[merge.Notebook] = [first]
    for number in (1, 2):
        new = copied(versions[-1])
        new["cells"][1] = course.cell("exercise", "a.b", f"stub number {number}")
        versions.append(new)
    mine = copied(versions[0])
    mine["cells"][1]["source"] = "my solution"
    del mine["cells"][2]
    for old, new in pairwise(versions):
        mine = merge.merge(mine, new, old).notebook
    found = [merge.source(cell) for cell in mine["cells"]]
    assert len(found) == 3
    assert found[1] == "my solution"
    assert "stub number 2" in found[2]
    assert "stub number 1" not in found[2]


def test_reset_keeps_a_copy_and_says_where(tmp_path, monkeypatch, capsys):
    from course_lib.classroom import lesson, reset
    from course_lib.classroom.cli import main

    day = lesson.available_days()[0]
    folder = lesson.find_day(day)
    shutil.copytree(folder, tmp_path / "solutions" / folder.name, ignore=shutil.ignore_patterns("*.ipynb"))
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    path, text = reset.shipped_notebook(day)
    monkeypatch.setattr("sys.argv", ["course", "reset-day", str(day)])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert path.read_text() == text
    assert "kept" not in capsys.readouterr().out
    path.write_text("mine")
    with pytest.raises(SystemExit, match="0"):
        main()
    out = capsys.readouterr().out
    assert path.read_text() == text
    copied = re.search(r"Yours is kept: (.*)", out)
    assert copied is not None
    assert (tmp_path / copied[1]).read_text() == "mine"
