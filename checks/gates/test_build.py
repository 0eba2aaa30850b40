"""The three notebooks: what stands in them, that a rebuild is the same to the byte, and what is refused."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from course_lib.classroom import build, sources, standard
from course_lib.classroom.build import BuildError
from course_lib.classroom.lesson import LessonError, load_lesson

SMALL = Path(__file__).with_name("small_course")
LEARNER = Path("days/day_01_small/lesson.ipynb")
SOLVED = Path("solutions/day_01_small/lesson.ipynb")
CHECKS = Path("checks/day_01.ipynb")


def read(text: str) -> nbformat.NotebookNode:
    return nbformat.reads(text, as_version=4)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A copy of the small course, and COURSE_ROOT set to it."""
    folder = tmp_path_factory.mktemp("course")
    shutil.copytree(SMALL, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_ROOT", str(folder))
        yield folder


@pytest.fixture(scope="module")
def built(course):
    """The small day, built and written."""
    found = build.make(1)
    for target, text in found.files.items():
        (course / target).parent.mkdir(parents=True, exist_ok=True)
        (course / target).write_text(text)
    return found


@pytest.fixture(scope="module")
def notebooks(built):
    return {target: read(text) for target, text in built.files.items()}


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A function that gives the small course with a change in its lesson, as the course to build."""
    shutil.copytree(SMALL, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    path = tmp_path / "solutions" / "day_01_small" / "lesson.md"

    def edit(old: str, new: str) -> Path:
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
        path.write_text(text.replace(old, new))
        return path

    return edit


def line_of(path: Path, text: str) -> int:
    return next(i for i, line in enumerate(path.read_text().split("\n"), 1) if text in line)


def cell(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    (found,) = [c for c in notebook.cells if c.metadata.course["name"] == name]
    return found


def test_a_rebuild_is_the_same_to_the_byte(course, built):
    """Also where an output varies: a volatile cell shows nothing, a sample is kept as long as its cell is."""
    again = build.make(1)
    assert list(again.files) == [LEARNER, SOLVED, CHECKS]
    for target, text in again.files.items():
        assert text == built.files[target], target
        assert text == (course / target).read_text()
    assert build.stale(again) == []


def test_what_is_up_to_date_is_not_built_again(course, built, monkeypatch):
    build._remember(1)
    monkeypatch.setattr(build, "make", lambda *args: pytest.fail("built again"))
    assert build.build_all() == []
    with (course / SOLVED).open("a") as file:
        file.write(" ")
    with pytest.raises(pytest.fail.Exception, match="built again"):
        build.build_all()
    (course / SOLVED).write_text(built.files[SOLVED])


def test_a_small_day_is_built_in_seconds(built):
    assert built.seconds < 30  # 4 s on a quiet machine; the days of the course have a gate of their own


def test_ids_come_from_names_and_are_unique(notebooks):
    for notebook in notebooks.values():
        ids = [c.id for c in notebook.cells]
        assert len(set(ids)) == len(ids)
        for c in notebook.cells:
            assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", c.id)
            assert c.id == build.slug(c.metadata.course["name"])
    assert "numerics-softmax" in [c.id for c in notebooks[LEARNER].cells]


def test_a_long_name_keeps_its_id_short():
    one, other = (build.slug("part." + "x" * 80 + end) for end in "ab")
    assert one != other
    assert max(len(one), len(other)) <= 64


def test_metadata_tells_kind_day_and_what_was_shipped(notebooks):
    kinds = {"prose", "code", "setup", "exercise", "check", "quiz", "predict", "map"}
    for notebook in notebooks.values():
        assert notebook.metadata.course == {"day": 1, "title": "A small day"}
        assert notebook.metadata.kernelspec["name"] == "python3"
        for c in notebook.cells:
            assert c.metadata.course["kind"] in kinds
            assert c.metadata.course["shipped"] == build.digest(c.source)
            assert (c.cell_type == "markdown") == (c.metadata.course["kind"] == "prose")


def test_the_first_code_cell_is_the_set_up(notebooks):
    for target in (LEARNER, SOLVED):
        first = next(c for c in notebooks[target].cells if c.cell_type == "code")
        assert first.metadata.course["kind"] == "setup"
        assert "from course_lib.classroom import answer, check, drill" in first.source
        assert "import numpy as np" in first.source


def test_the_learner_gets_stubs_and_checks(notebooks):
    learner = notebooks[LEARNER]
    assert cell(learner, "numerics.softmax").source.endswith(
        'raise NotImplementedError("day 1, exercise 1: softmax")'
    )
    assert cell(learner, "numerics.softmax-check").source.startswith(
        'check("numerics.softmax")\n# Stuck? hint('
    )
    assert cell(learner, "day01.half").source == 'answer("day01.half", ...)'
    assert cell(learner, "guess").source == 'predict("ratio", ...)'
    assert cell(learner, "numerics.cross_entropy").source.count("You may use `logsumexp`") == 1
    assert "only-solved" not in [c.metadata.course["name"] for c in learner.cells]
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in learner.cells)


def test_the_notebooks_open_with_day_title_and_summary(notebooks):
    opening = (
        "# Day 1: A small day\n\nA whole lesson in little, for the gates of the builder and the grader.\n\n"
    )
    opening += "About 30 minutes · 5 exercises · 8 questions\n\n"
    assert notebooks[LEARNER].cells[0].source.startswith(opening + "*Run the cells from top to bottom")
    assert notebooks[SOLVED].cells[0].source.startswith(opening + "*This is the solved lesson")
    assert "(../../days/day_01_small/lesson.ipynb)" in notebooks[SOLVED].cells[0].source


def test_headings_number_the_exercises(notebooks):
    prose = [c.source for c in notebooks[LEARNER].cells if c.cell_type == "markdown"]
    headings = [line for text in prose for line in text.split("\n") if line.startswith("### Exercise")]
    assert headings == [
        "### Exercise 1 of 5: Softmax",
        "### Exercise 2 of 5: logsumexp",
        "### Exercise 3 of 5: `perplexity`",
        "### Exercise 4 of 5: Cross-entropy",
        "### Exercise 5 of 5: Mend a log-softmax",
    ]
    text = "\n\n".join(prose)
    assert "*`numerics.softmax` · difficulty 2 of 5 · 5 minutes · core*\n\nWrite it." in text
    assert "*repair of `numerics.log_softmax` · difficulty 2 of 5 · 5 minutes · core*" in text
    assert "*Question 4 · a number, within 1% · 1 minute*" in text
    assert "*Question 5 · a number, within 0.001 · 1 minute*" in text
    assert "*Question 7 · a whole number · 1 minute · extra*" in text
    assert "- **c.** exp(0)\n\n*Question 1 · one letter · 1 minute*" in text


def test_the_solved_notebook_is_executed_in_order(notebooks):
    solved = notebooks[SOLVED]
    code = [c for c in solved.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    hello = cell(solved, "hello")
    assert hello.outputs[0].text == "a line\nanother\n"
    assert hello.outputs[1].data["text/plain"] == "5"
    assert "image/png" in cell(solved, "picture").outputs[0].data
    assert cell(solved, "only-solved").outputs
    assert cell(solved, "numerics.softmax").source == sources.part_source("numerics.softmax")
    assert cell(solved, "day01.half").outputs[0].text.startswith("right")
    notes = cell(solved, "numerics.softmax-notes").source
    assert "- large logits do not overflow" in notes
    assert "- it overflows for large logits" in notes
    assert "it asks the library" not in notes


def test_samples_are_measured_anew_on_request(built):
    again = read(build.make(1, measure=True).files[SOLVED])
    before, after = (cell(n, "timing-shown").outputs for n in (read(built.files[SOLVED]), again))
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_varying_outputs_are_dropped_or_labeled(notebooks):
    solved = notebooks[SOLVED]
    assert cell(solved, "timing").outputs == []
    label, value = cell(solved, "timing-shown").outputs
    assert label.data["text/plain"] == "Measured on a machine of 2026; your numbers will differ."
    assert float(value.text) > 0
    assert cell(solved, "timing").metadata.course["volatile"] is True


def test_checks_carry_goldens_and_counts(notebooks):
    checks = notebooks[CHECKS]
    assert checks.cells[0].source == "%load_ext course_lib.classroom.magic\n%course_day 1"
    assert checks.cells[-1].source == "%together"
    assert [c.execution_count for c in checks.cells] == list(range(1, len(checks.cells) + 1))
    golden = cell(checks, "numerics.softmax-2")
    assert golden.source.startswith("%%check numerics.softmax 2\n# NBVAL_CHECK_OUTPUT\n")
    assert golden.outputs[0].data == {"text/plain": "[2, 3, 4]"}
    assert golden.outputs[0].execution_count == golden.execution_count
    plain = cell(checks, "numerics.softmax-0")
    assert "NBVAL" not in plain.source
    assert plain.outputs == []
    heads = [c.source.split("\n")[0] for c in checks.cells[1:-1]]
    lesson = load_lesson(1)
    wanted = [
        f"%%check {e.name} {i}" for e in lesson.exercises.values() for i in range(max(1, len(e.checks)))
    ]
    assert heads == [*wanted, "%%check day01.together 0"]


def nbval(path: Path) -> str:
    options = ["-q", "--nbval-lax", "-p", "no:cacheprovider", "--noconftest"]
    command = [sys.executable, "-m", "pytest", *options, str(path)]
    place = {"PYTHONPATH": os.pathsep.join([str(SMALL.parents[2]), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=path.parent, env=os.environ | place, timeout=120
    )
    return done.stdout


def test_nbval_accepts_the_checks_notebook(course, built):
    """Run without a learner's cells, the checks pass on the solutions, and the goldens are compared."""
    path = course / CHECKS
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--nbval-lax",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        str(path),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=course,
        timeout=120,
        env=os.environ | {"COURSE_ROOT": str(course)},
    )
    count = len(read(path.read_text()).cells)
    assert f"{count} passed" in done.stdout, done.stdout
    spoiled = course / "checks" / "spoiled.ipynb"
    spoiled.write_text(path.read_text().replace("[2, 3, 4]", "[2, 3, 5]"))
    done = subprocess.run(
        [*command[:-1], str(spoiled)],
        capture_output=True,
        text=True,
        cwd=course,
        timeout=120,
        env=os.environ | {"COURSE_ROOT": str(course)},
    )
    spoiled.unlink()
    assert f"1 failed, {count - 1} passed" in done.stdout, done.stdout


def test_without_execution_only_the_learners_notebook_is_made(course, built):
    quick = build.make(1, execute=False)
    assert quick.files == {LEARNER: built.files[LEARNER]}


def test_a_cell_that_fails_is_an_error_at_its_line(edited):
    path = edited('print("another")', "1 / 0")
    with pytest.raises(BuildError, match="ZeroDivisionError") as caught:
        build.make(1)
    line = line_of(path, 'python name="hello"')
    assert f"lesson.md:{line}: the cell does not run" in str(caught.value)


def test_a_check_that_the_reference_fails_is_an_error_at_its_line(edited):
    path = edited("expect(perplexity, documents).close(4.0)", "expect(perplexity, documents).close(5.0)")
    with pytest.raises(
        BuildError, match=r"numerics\.perplexity: the reference fails its own check"
    ) as caught:
        build.make(1)
    line = line_of(path, 'check="numerics.perplexity"')
    assert f"lesson.md:{line}:" in str(caught.value)
    assert "expected: 5.0" in str(caught.value)


# What a cell may show, and what the builder says of the rest.
UNPUBLISHABLE = [
    ('import warnings; warnings.warn("old")', "writes to stderr"),
    ("print(object())", "shows an address in memory"),
    ('print("/home/somebody/file")', "shows a path of this machine"),
    ('print("x" * 30_000)', "30,001 characters"),
]


def test_what_must_not_be_published_is_refused(edited):
    """All in one build: each cell's output is judged on its own."""
    cells = "\n\n".join(f'```python name="bad-{i}"\n{code}\n```' for i, (code, _) in enumerate(UNPUBLISHABLE))
    edited("At the start.\n", f"At the start.\n\n{cells}\n")
    with pytest.raises(BuildError) as caught:
        build.make(1)
    assert len(caught.value.problems) == len(UNPUBLISHABLE)
    for i, (problem, (_, words)) in enumerate(zip(caught.value.problems, UNPUBLISHABLE, strict=True)):
        assert re.search(rf"lesson\.md:\d+: cell bad-{i}: ", problem)
        assert words in problem


@pytest.mark.parametrize(
    "line", ["# NBVAL_CHECK_OUTPUT here", "#NBVAL_RAISES_EXCEPTION", "  # NBVAL_SKIP", "#NBVAL_CHECK_OUTPUT"]
)
def test_markers_that_nbval_would_misread_are_refused(built, line):
    notebook = read(built.files[CHECKS])
    assert build.lint(notebook, "x", "checks") == []
    notebook.cells[3].source += f"\n{line}"
    (problem,) = build.lint(notebook, "x", "checks")
    assert "nbval would ignore or misread the line" in problem


def test_a_missing_count_or_golden_is_refused(built):
    notebook = read(built.files[CHECKS])
    cell(notebook, "numerics.softmax-2").execution_count = None
    (problem,) = build.lint(notebook, "x", "checks")
    assert "no execution count" in problem
    notebook = read(built.files[CHECKS])
    cell(notebook, "numerics.softmax-2").outputs = []
    (problem,) = build.lint(notebook, "x", "checks")
    assert "a golden is one result, got 0 outputs" in problem


def test_outputs_in_the_learners_notebook_and_this_machines_folders_are_refused(built):
    notebook = read(built.files[LEARNER])
    code = next(c for c in notebook.cells if c.cell_type == "code")
    code.execution_count = 1
    code.source += f"\n# {sources.LIBRARY.parent}"
    assert len(build.lint(notebook, "x", "learner")) == 2


def test_writing_keeps_a_copy_of_a_notebook_somebody_worked_in(edited, tmp_path):
    edited("At the start.", "At the very start.")
    assert build.build_day(1, execute=False) == [LEARNER]
    assert build.build_day(1, execute=False) == []
    path = tmp_path / LEARNER
    mine = read(path.read_text())
    cell(mine, "numerics.softmax").source = "def softmax(x, axis=-1):\n    return 'mine'"
    path.write_text(nbformat.writes(mine))
    edited("At the very start.", "At the start.")
    quick = build.make(1, execute=False)
    assert build.stale(quick) == [LEARNER]  # the lesson is newer than what was shipped
    assert build.build_day(1, execute=False) == [LEARNER]
    (copy,) = (tmp_path / ".course" / "backups").iterdir()
    assert "'mine'" in copy.read_text()
    assert build.is_pristine(read(path.read_text()))


def test_a_learners_work_does_not_make_a_day_stale(edited, tmp_path):
    edited("At the start.", "At the start!")
    build.build_day(1, execute=False)
    path = tmp_path / LEARNER
    mine = read(path.read_text())
    cell(mine, "numerics.softmax").source += "\n# half done"
    mine.cells.append(nbformat.v4.new_code_cell("scratch = 1", execution_count=3))
    path.write_text(nbformat.writes(mine))
    assert build.stale(build.make(1, execute=False)) == []
    del mine.cells[2]
    path.write_text(nbformat.writes(mine))
    assert build.stale(build.make(1, execute=False)) == [LEARNER]
    path.write_text("not a notebook")
    assert build.stale(build.make(1, execute=False)) == [LEARNER]
    path.unlink()
    assert build.stale(build.make(1, execute=False)) == [LEARNER]


def test_on_another_platform_the_cells_are_compared_and_not_their_outputs(course, built):
    (course / SOLVED).write_text(built.files[SOLVED].replace("a line", "a lime"))  # in the cell, too
    assert build.stale(built, outputs=False) == []  # what a cell was shipped with is its mark
    assert build.stale(built) == [SOLVED]
    (course / SOLVED).write_text(built.files[SOLVED].replace('"shipped": "', '"shipped": "0'))
    assert build.stale(built, outputs=False) == [SOLVED]
    (course / SOLVED).write_text(built.files[SOLVED])


def test_a_broken_version_may_not_give_away_another_exercise(edited):
    path = edited(
        '    return np.log(softmax(x, axis=axis))\n\n\ndef failing_input():\n    """Return',
        "    x = at_least_float32(x)  # widen\n    weights = np.exp(x)\n"
        "    return np.log(weights / weights.sum(axis=axis, keepdims=True))\n\n\n"
        'def failing_input():\n    """Return',
    )
    with pytest.raises(BuildError) as caught:
        build.make(1, execute=False)
    line = line_of(path, 'exercise="numerics.softmax"')
    assert (
        f"lesson.md:{line}: the learner's cell day01.repair_log_softmax shows a line of the solution"
        in str(caught.value)
    )
    assert "x = at_least_float32(x)" in str(caught.value)


# A lesson that falls short of the standard: an edit of the small day, and what is said.
SHORTCOMINGS = {
    "a title of its own": ("## 1. Where you are", "# Title\n\n## 1. Where you are", "the front matter"),
    "a section is missing": ("## 4. Math\n", "", "expected `## 4. Math` here"),
    "a section has another name": ("## 4. Math\n", "## 4. Mathematics\n", "expected `## 4. Math` here"),
    "sections in another order": ("## 4. Math\n", "## 5. Code\n", "expected `## 4. Math` here"),
    "the last section is missing": ("## 10. References\n", "", "ends without section `## 10. References`"),
    "one hint": ('```text hint="numerics.softmax"\nSubtract something first.\n```\n', "", "has 1 hints"),
    "no check": (
        '```python check="numerics.cross_entropy" says="uniform logits cost log(vocab)"\n'
        "expect(cross_entropy, np.zeros((2, 3, 7)), np.ones((2, 3), dtype=int))"
        ".close(float(np.log(7)))\n```\n",
        "",
        "has 0 checks",
    ),
    "two wrong solutions": (
        '```python wrong="numerics.perplexity" says="it loses the sign"\ndef perplexity(logprobs):\n'
        "    return float(np.exp(np.mean(np.concatenate(logprobs))))\n```\n",
        "",
        "has 2 wrong solutions, at least 3",
    ),
    "a wrong solution of something else": (
        "def perplexity(logprobs):\n    return float(2 **",
        "def perplexities(logprobs):\n    return float(2 **",
        "does not define perplexity",
    ),
    "an option without a reason": (
        '```python wrong="day01.larger" says="exp(0) is exactly 1"\n"c"\n```\n',
        "",
        "option c needs one reason",
    ),
    "an answer given as wrong": (
        'says="exp(0) is exactly 1"\n"c"',
        'says="exp(0) is exactly 1"\n"b"',
        "option b",
    ),
    "too many core minutes": (
        'exercise="numerics.softmax" difficulty=2 minutes=5',
        'exercise="numerics.softmax" difficulty=2 minutes=90',
        "take 110 minutes, 75 are the limit",
    ),
    "too few questions": (
        '```python quiz="day01.one" kind="integer" minutes=1\n1\n```\n\n'
        '```text hint="day01.one"\nOne.\n```\n\n```python wrong="day01.one" says="no"\n2\n```\n',
        "",
        "4 graded questions",
    ),
    "a question that leans on another cell": ("\n1 + 1\n", "\nlen(fig.axes) + 1\n", "uses 'fig'"),
    "a check of a later day": (
        "documents = [np.log([0.5, 0.25]), np.log([0.125])]",
        "from course_lib.tokenizer import merge_pair\ndocuments = [np.log([0.5, 0.25]), np.log([0.125])]",
        "uses tokenizer.merge_pair, a part of day 5",
    ),
    "a part of another day": (
        'exercise="numerics.logsumexp" difficulty=3',
        'exercise="tokenizer.merge_pair" difficulty=3',
        "no exercise of this day",
    ),
    "an exercise heading with another number": (
        "### Exercise 2. logsumexp",
        "### Exercise 3. logsumexp",
        "is exercise 2",
    ),
    "a line that no screen shows": ('print("a line")', f'print("a line")  # {"x" * 90}', "109 characters"),
}


@pytest.mark.parametrize("name", SHORTCOMINGS)
def test_a_lesson_that_falls_short_is_refused(edited, name):
    old, new, words = SHORTCOMINGS[name]
    edited(old, new)
    with pytest.raises((BuildError, LessonError)) as caught:
        build.make(1, execute=False)
    assert words in str(caught.value)
    assert re.search(r"lesson\.md:\d+: ", str(caught.value))


def test_too_many_words_are_refused(edited):
    edited("Nothing here.", "word " * 5001)
    (problem,) = standard.problems(load_lesson(1))
    assert "5,0" in problem.message
    assert "5,000 are the limit" in problem.message
