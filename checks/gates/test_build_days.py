"""The rules for every day there is: its lesson, its learner's notebook, and what is published."""

import ast
import platform
import sys

import nbformat
import pytest

from course_lib.classroom import build, sources, standard
from course_lib.classroom.lesson import available_days, load_lesson
from course_lib.classroom.prove import changed_days

DAYS = available_days()


def read(text: str) -> nbformat.NotebookNode:
    return nbformat.reads(text, as_version=4)


def test_there_are_days():
    assert DAYS


@pytest.mark.parametrize("day", DAYS)
def test_the_lesson_meets_the_standard(day):
    assert [str(problem) for problem in standard.problems(load_lesson(day))] == []


@pytest.mark.parametrize("day", DAYS)
def test_the_learners_notebook_holds_no_line_of_a_solution(day):
    """Nor may a broken version, which is to be mended, give away the solution of another exercise."""
    files = build.make(day, execute=False).files
    (text,) = (text for path, text in files.items() if path.name == "lesson.ipynb")
    cells = [(c.metadata.course["kind"], c.metadata.course["name"], c.source) for c in read(text).cells]
    assert [str(leak) for leak in standard.leaks(load_lesson(day), cells)] == []


@pytest.mark.parametrize("day", DAYS)
def test_stubs_have_the_librarys_signature(day):
    for asked in load_lesson(day).exercises.values():
        if asked.kind in ("part", "warmup", "repair"):
            stub = ast.parse(sources.stub_source(asked))
            (part,) = ast.parse(sources.part_source(asked.part or "")).body
            assert isinstance(part, sources.Definition)
            (same,) = [n for n in stub.body if isinstance(n, sources.Definition) and n.name == part.name]
            assert type(same) is type(part)
            if not isinstance(part, ast.ClassDef) and not isinstance(same, ast.ClassDef):
                assert ast.dump(same.args) == ast.dump(part.args)


@pytest.mark.parametrize("day", DAYS)
def test_the_published_notebooks_are_clean(day):
    lesson = load_lesson(day)
    base = lesson.path.parents[2]
    for kind, path in (
        ("solved", lesson.path.with_suffix(".ipynb")),
        ("checks", base / "checks" / f"day_{day:02d}.ipynb"),
    ):
        notebook = read(path.read_text())
        nbformat.validate(notebook)
        assert build.lint(notebook, path.name, kind) == []
        assert path.stat().st_size < 3_000_000


@pytest.mark.parametrize("day", [day for day in DAYS if day in changed_days()])
def test_a_changed_day_rebuilds_to_the_byte(day):
    """What is committed is what the lesson says: after a change of lesson or library run `make lessons`."""
    built = build.make(day)
    published_here = (sys.platform, platform.machine()) == ("linux", "x86_64")
    assert build.stale(built, outputs=published_here) == [], "run `make lessons` and commit what it writes"
