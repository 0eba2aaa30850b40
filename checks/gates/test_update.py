"""An update never loses a learner's text: the merge rule fuzzed, and whole upgrades through git in scratch clones."""

import copy
import random
import re
from collections import Counter

import nbformat
import pytest

from course_lib.classroom import merge

WORDS = "attention softmax cache block token batch head row norm scale mask page rope draft query key".split()


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
        cells = [self.cell("setup", "setup")] + [self.cell(kind, f"{kind}.{i}") for i, kind in enumerate(kinds)]
        return {
            "cells": cells,
            "metadata": {"course": {"day": 5}, "kernelspec": {"name": "python3", "display_name": "Python 3"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }

    def next_version(self, notebook: merge.Notebook) -> merge.Notebook:
        """The course's next version: cells changed, added, dropped, moved; ids of prose shifted."""
        new, rng = copy.deepcopy(notebook), self.rng
        cells = new["cells"]
        for _ in range(rng.randint(0, 5)):
            what, at = rng.random(), rng.randrange(len(cells) + 1)
            if what < 0.4 and cells:
                at = rng.randrange(len(cells))
                course = cells[at]["metadata"]["course"]
                text = self.text() if rng.random() < 0.5 else merge.source(cells[at]) + f"\nshipped more {self.counter}"
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
        new = copy.deepcopy(notebook)
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
        cell = {"cell_type": "code", "id": f"{self.rng.getrandbits(40):x}", "metadata": {}, "source": self.token()}
        cells.insert(self.rng.randint(0, len(cells)), {**cell, "execution_count": 7, "outputs": []})

    def delete(self, cells: list[merge.Cell]) -> None:
        if cells:
            cells.pop(self.rng.randrange(len(cells)))

    def move(self, cells: list[merge.Cell]) -> None:
        if cells:
            cells.insert(self.rng.randint(0, len(cells) - 1), cells.pop(self.rng.randrange(len(cells))))

    def duplicate(self, cells: list[merge.Cell]) -> None:
        if cells:
            twin = copy.deepcopy(self.rng.choice(cells))
            if self.rng.random() < 0.8:
                twin["id"] = f"{self.rng.getrandbits(40):x}"
            cells.insert(self.rng.randint(0, len(cells)), twin)

    def split(self, cells: list[merge.Cell]) -> None:
        if cells:
            at = self.rng.randrange(len(cells))
            first, second = copy.deepcopy(cells[at]), copy.deepcopy(cells[at])
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
