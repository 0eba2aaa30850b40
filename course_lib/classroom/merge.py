"""Bring a new version of a day into the learner's notebook, cell by cell: nothing they wrote is ever lost.

Each shipped cell carries the hash of its shipped source (`metadata.course.shipped`). A cell whose source
differs from it is the learner's, and so is a cell without the mark. The rule:

- a cell of the learner's keeps its text, whatever the new version says; if the shipped text under it has
changed, the new   text follows in a note, which they can delete; - an untouched cell becomes what the new
version says, or goes if the new version has dropped it; - a new cell comes in where the new version has it;
a cell that the learner deleted stays deleted; - cells of the learner's own stay behind the cell they
followed.

Plain dictionaries and the standard library only: git runs this file as the merge driver of
days/*/lesson.ipynb, in whatever state the clone is. nbdime's driver loses no text either, but of 150 random
merges (such as test_update.py makes) it ended 88 in a conflict, with markers in the learner's cells and a
pull that stops; here the learner's cell wins, and none does.

    python -m course_lib.classroom.merge BASE OURS THEIRS PATH     the result replaces OURS, as git wants it

"""

import hashlib
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Cell = dict[str, Any]
Notebook = dict[str, Any]


class NotANotebook(ValueError):
    """The text is no notebook: broken JSON, or no list of cells."""


@dataclass
class Merged:
    """The merged notebook, and sentences about what the learner should know."""

    notebook: Notebook
    remarks: list[str] = field(default_factory=list)


def read(text: str) -> Notebook:
    """A notebook from its text. NotANotebook if it is none."""
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise NotANotebook(f"the JSON is broken ({problem})") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(
        isinstance(cell, dict) and "cell_type" in cell for cell in cells
    ):
        raise NotANotebook("it has no list of cells")
    return notebook


def write(notebook: Notebook) -> str:
    """The text of a notebook, laid out as Jupyter and nbformat do."""
    text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a character, which JSON can spell and UTF-8 can't
        text = json.dumps(notebook, ensure_ascii=True, indent=1, sort_keys=True) + "\n"
    return text


def _copy(notebook: Notebook) -> Notebook:
    copied: Notebook = json.loads(json.dumps(notebook))  # a notebook is JSON; five times as fast as deepcopy
    return copied


def source(cell: Cell) -> str:
    """A cell's text; on disk it is a list of lines."""
    text = cell.get("source", "")
    return "".join(map(str, text)) if isinstance(text, list) else str(text)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def mark(cell: Cell) -> dict[str, Any]:
    """The course's mark of a shipped cell: kind, name, shipped; {} for a cell of the learner's own."""
    metadata = cell.get("metadata")
    course = metadata.get("course") if isinstance(metadata, dict) else None
    return course if isinstance(course, dict) and isinstance(course.get("shipped"), str) else {}


def touched(cell: Cell) -> bool:
    """Whether a cell holds text of the learner's."""
    return mark(cell).get("shipped") != digest(source(cell))


def merge(mine: Notebook, theirs: Notebook, base: Notebook | None = None) -> Merged:
    """The learner's notebook with the new version `theirs` brought in; the arguments are left as they are.

    `base` is the shipped notebook that the learner's started from: by it one sees which cells they have
    deleted or moved. Without it a deleted cell comes back. If `theirs` holds a learner's text as well (their
    other machine), both texts are kept.
    """
    return _Merge(_copy(mine), _copy(theirs), None if base is None else _copy(base)).result()


class _Merge:
    def __init__(self, mine: Notebook, theirs: Notebook, base: Notebook | None):
        self.mine, self.theirs = mine, theirs
        self.m: list[Cell] = [c for c in mine["cells"] if not self._is_note(c)]
        self.t: list[Cell] = [c for c in theirs["cells"] if not self._is_note(c)]
        self.b: list[Cell] | None = None if base is None else base["cells"]
        self.base_of_m = match(self.m, self.b or [])
        self.base_of_t = match(self.t, self.b or [])
        self.t_of_m = self._partners()
        self.remarks: list[str] = []
        # Notes of earlier updates stay behind their cell until the cell changes again.
        self.notes: dict[int, list[Cell]] = {}
        self._collect_notes()

    @staticmethod
    def _is_note(cell: Cell) -> bool:
        return mark(cell).get("kind") == "note" and not touched(cell)

    def _collect_notes(self) -> None:
        index = -1
        for cell in self.mine["cells"]:
            if self._is_note(cell):
                self.notes.setdefault(index, []).append(cell)
            else:
                index += 1

    def _partners(self) -> dict[int, int]:
        """For cells of mine the cell of theirs that is the same one; through the base first, which knows
        both.
        """
        t_of_b = {b: t for t, b in self.base_of_t.items()}
        found = {m: t_of_b[b] for m, b in self.base_of_m.items() if b in t_of_b}
        return match(self.m, self.t, found)

    def result(self) -> Merged:
        m_of_t = {t: m for m, t in self.t_of_m.items()}
        # What is left of mine, and what is new of theirs.
        keep_m = [m for m in range(len(self.m)) if m in self.t_of_m or self._stays(m)]
        new_t = [t for t in range(len(self.t)) if t not in m_of_t and self._comes(t)]
        order = self._order(keep_m, new_t)
        cells: list[Cell] = []
        for m, t in order:
            if m is None:
                assert t is not None
                cells.append(self.t[t])
                continue
            cells.extend(self._joined(m, t))
        if -1 in self.notes:
            cells = self.notes[-1] + cells
        notebook = {**self.theirs, **self.mine, "cells": _with_ids(cells)}
        notebook["metadata"] = {**_dict(self.theirs.get("metadata")), **_dict(self.mine.get("metadata"))}
        course = _dict(self.theirs.get("metadata")).get("course")
        if course is not None:
            notebook["metadata"]["course"] = course
        for key in ("nbformat", "nbformat_minor"):
            values = [n[key] for n in (self.mine, self.theirs) if isinstance(n.get(key), int)]
            if values:
                notebook[key] = max(values)
        return Merged(notebook, self.remarks)

    def _stays(self, m: int) -> bool:
        """A cell of mine that theirs does not have."""
        cell = self.m[m]
        if touched(cell):
            if mark(cell):
                name = mark(cell).get("name", "a cell")
                self.remarks.append(f"{name}: the new version has no such cell; yours is kept.")
            return True
        # Untouched: dropped by the new version, unless it is a copy that the learner made of a cell that
        # goes on.
        course = mark(cell)
        goes_on = any(
            other.get("id") == cell.get("id")
            or (mark(other).get("kind"), mark(other).get("name")) == (course.get("kind"), course.get("name"))
            for other in self.t
        )
        return goes_on and (self.b is None or m not in self.base_of_m)

    def _comes(self, t: int) -> bool:
        """A cell of theirs that mine does not have: new, or deleted by the learner."""
        return self.b is None or t not in self.base_of_t or self._changed_by_learner(t)

    def _changed_by_learner(self, t: int) -> bool:
        assert self.b is not None
        return touched(self.t[t]) and source(self.b[self.base_of_t[t]]) != source(self.t[t])

    def _order(self, keep_m: list[int], new_t: list[int]) -> list[tuple[int | None, int | None]]:
        """The cells of the result as pairs (index in mine, index in theirs)."""
        common = [m for m in keep_m if m in self.t_of_m]
        if self._learner_moved(common):
            order: list[tuple[int | None, int | None]] = [(m, self.t_of_m.get(m)) for m in keep_m]
            for t in new_t:
                earlier = [(u, i) for i, (_, u) in enumerate(order) if u is not None and u < t]
                at = max(earlier)[1] if earlier else -1
                order.insert(at + 1, (None, t))
            return order
        # The new version's order; what is the learner's own goes behind the cell it followed.
        followers: dict[int, list[int]] = {}
        anchor = -1
        for m in keep_m:
            if m in self.t_of_m:
                anchor = self.t_of_m[m]
            else:
                followers.setdefault(anchor, []).append(m)
        m_of_t = {self.t_of_m[m]: m for m in common}
        order = [(m, None) for m in followers.get(-1, [])]
        for t in range(len(self.t)):
            if t in m_of_t:
                order.append((m_of_t[t], t))
            elif t in new_t:
                order.append((None, t))
            order += [(m, None) for m in followers.get(t, [])]
        return order

    def _learner_moved(self, common: list[int]) -> bool:
        """Whether the learner has put shipped cells into an order of their own."""
        if self.b is None:
            places = [self.t_of_m[m] for m in common]
        else:
            places = [self.base_of_m[m] for m in common if m in self.base_of_m]
        return places != sorted(places)

    def _joined(self, m: int, t: int | None) -> list[Cell]:
        """What becomes of a cell of mine, with its notes."""
        cell, notes = self.m[m], self.notes.get(m, [])
        if t is None:
            return [cell, *notes]
        new = self.t[t]
        old = self.b[self.base_of_m[m]] if self.b is not None and m in self.base_of_m else None
        retyped = cell.get("cell_type") != new.get("cell_type") and mark(cell) == mark(new)
        if not touched(cell) and not retyped:
            return [_refreshed(cell, new)]
        if source(cell) == source(new) and not retyped:
            return [_marked(cell, new)]
        if touched(new):
            # Both texts are a learner's. Whichever has not changed since they were one gives way.
            if old is not None and source(old) == source(new):
                return [cell, *notes]
            if old is not None and source(old) == source(cell):
                return [_refreshed(cell, new)]
            self.remarks.append(
                f"{_name(new)}: it was changed on both sides; both texts are kept, one below the other."
            )
            return [cell, *notes, {**new, "metadata": {}, "id": None}]
        if mark(cell).get("shipped") != mark(new)["shipped"]:
            self.remarks.append(
                f"{_name(new)}: you have changed this cell, and so has the course. Yours stays; "
                "the new text follows it."
            )
            notes = [_note(new)]
        return [_marked(cell, new), *notes]


def match(first: list[Cell], second: list[Cell], known: dict[int, int] | None = None) -> dict[int, int]:
    """Cells that are the same one in two versions of a notebook: {index in first: index in second}.

    By id and shipped text; then by shipped text alone, for ids of prose shift when a paragraph is put in
    between; then by id; then by kind and name. A cell of the learner's own has an id only.
    """
    found = dict(known or {})
    taken = set(found.values())

    def keys(cell: Cell) -> list[Any]:
        course, own = mark(cell), cell.get("id")
        shipped = (course["shipped"], cell.get("cell_type")) if course else None
        return [
            (own, shipped) if own and shipped else None,
            shipped,
            ("id", own, bool(course)) if own else None,
            ("name", course.get("kind"), course["name"]) if isinstance(course.get("name"), str) else None,
        ]

    first_keys, second_keys = [keys(cell) for cell in first], [keys(cell) for cell in second]
    for level in range(4):
        places: dict[Any, list[int]] = {}
        for index, own in enumerate(second_keys):
            if index not in taken and own[level] is not None:
                places.setdefault(own[level], []).append(index)
        # A copy that the learner made has the original's mark: the original, which has kept its id, goes
        # first.
        for index, own in enumerate(first_keys):
            if index not in found and own[level] is not None and places.get(own[level]):
                found[index] = places[own[level]].pop(0)
                taken.add(found[index])
    return found


def _refreshed(cell: Cell, new: Cell) -> Cell:
    """An untouched cell in its new version. Outputs stay while the text is the same."""
    if source(cell) == source(new) and cell.get("cell_type") == new.get("cell_type"):
        return _marked(cell, new)
    kept = {k: v for k, v in _dict(cell.get("metadata")).items() if k != "course"}
    return {**new, "metadata": {**kept, **_dict(new.get("metadata"))}}


def _marked(cell: Cell, new: Cell) -> Cell:
    """The learner's cell under the new version's id and mark: what it is compared with from now on."""
    if not mark(new):
        return cell
    metadata = {**_dict(cell.get("metadata")), "course": mark(new)}
    return {**cell, "metadata": metadata, **({"id": new["id"]} if new.get("id") else {})}


def _note(new: Cell) -> Cell:
    """A note with the new shipped text of a cell that the learner has changed."""
    text = source(new)
    course = mark(new)
    what = {"exercise": "exercise", "setup": "set-up cell", "prose": "text", "quiz": "question"}.get(
        course.get("kind", ""), "cell"
    )
    head = (
        f"*An update has changed this {what}. Yours is above, as you left it; this is the new one. "
        "Delete this note when you have seen it.*"
    )
    if new.get("cell_type") == "code":
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
        body = f"{fence}python\n{text}\n{fence}"
    else:
        body = "\n".join(f"> {line}".rstrip() for line in text.split("\n"))
    words = f"{head}\n\n{body}"
    name = f"{course.get('name', 'cell')}-update"
    return {
        "cell_type": "markdown",
        "id": re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:64],
        "metadata": {"course": {"kind": "note", "name": name, "shipped": digest(words)}},
        "source": words.splitlines(keepends=True),
    }


def _with_ids(cells: Iterable[Cell]) -> list[Cell]:
    """The cells with ids that are there and unique; of two equal ones the shipped cell keeps its own."""
    listed = list(cells)
    shipped = {cell["id"] for cell in listed if mark(cell) and isinstance(cell.get("id"), str)}
    seen: set[str] = set()
    for number, cell in enumerate(listed):
        own = cell.get("id")
        if not isinstance(own, str) or own in seen or (own in shipped and not mark(cell)):
            stem = digest(f"{own}:{number}:{source(cell)}")
            cell["id"] = next(stem[i : i + 12] for i in range(50) if stem[i : i + 12] not in seen | shipped)
        seen.add(cell["id"])
    return listed


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _name(cell: Cell) -> str:
    return str(mark(cell).get("name") or cell.get("id") or "a cell")


def learners_side(base: Notebook | None, ours: Notebook, theirs: Notebook) -> str:
    """Which of two sides of a merge is the learner's: "ours" "
    "or "theirs". In a rebase and in a stash it is theirs.

    The course's side is shipped text through and through. If both are, the learner has at most deleted and
    moved cells: theirs is the side that says nothing new.
    """
    if any(touched(cell) for cell in ours["cells"]):
        return "ours"
    if any(touched(cell) for cell in theirs["cells"]):
        return "theirs"
    known = {mark(cell).get("shipped") for cell in (base or {"cells": []})["cells"]}
    new_in_ours = any(mark(cell).get("shipped") not in known for cell in ours["cells"])
    return "theirs" if new_in_ours else "ours"


def drive(base_path: Path, ours_path: Path, theirs_path: Path, name: str) -> int:
    """The merge driver: the result replaces the file `ours_path`. Exit status 0, or 1 for git to call it a
    conflict.
    """
    sides: dict[str, Notebook] = {}
    for side, path in (("ours", ours_path), ("theirs", theirs_path)):
        try:
            sides[side] = read(path.read_text(encoding="utf-8"))
        except (NotANotebook, UnicodeDecodeError) as problem:
            print(f"course: {name} was left as it is: {problem}", file=sys.stderr)
    if len(sides) < 2:
        # The course ships no broken notebooks: the broken one is the learner's, and stays.
        if "ours" in sides:
            ours_path.write_bytes(theirs_path.read_bytes())
        return 0 if sides else 1
    try:
        base: Notebook | None = read(base_path.read_text(encoding="utf-8"))
    except (NotANotebook, UnicodeDecodeError):
        base = None  # the file is new on both sides
    mine = learners_side(base, sides["ours"], sides["theirs"])
    other = "theirs" if mine == "ours" else "ours"
    merged = merge(sides[mine], sides[other], base)
    ours_path.write_text(write(merged.notebook), encoding="utf-8")
    for remark in merged.remarks:
        print(f"course: {name}: {remark}", file=sys.stderr)
    return 0


def main(arguments: list[str]) -> int:
    """BASE OURS THEIRS PATH, as git gives them to a merge driver (%O %A %B %P)."""
    base, ours, theirs, name = arguments
    return drive(Path(base), Path(ours), Path(theirs), name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
