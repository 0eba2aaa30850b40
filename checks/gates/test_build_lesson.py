"""The parser of lesson.md: what it reads, and that each mistake is reported at its line."""

from pathlib import Path

import jupytext
import pytest

from course_lib.classroom.lesson import (
    LessonError,
    available_days,
    find_day,
    load_lesson,
    predict_stub,
)

SMALL = Path(__file__).with_name("small_course")

FRONT = """---
jupyter:
  day: 5
  title: Test
  minutes: 10
  summary: A test.
---
"""
BODY_LINE = FRONT.count("\n") + 1  # where the text after the front matter starts

EXERCISE = '```python exercise="numerics.softmax" difficulty=2 minutes=10 core\n```\n'


def write(folder: Path, text: str, day: int = 5) -> Path:
    path = folder / "solutions" / f"day_{day:02d}_test" / "lesson.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def mistake(folder: Path, text: str) -> LessonError:
    with pytest.raises(LessonError) as caught:
        load_lesson(write(folder, text))
    return caught.value


# (name, text after the front matter, line counted from its first line, words of the message)
MISTAKES = [
    ("an unclosed fence", "\n```python\nx = 1\n", 2, "never closed"),
    ("a fence closed by a shorter one", "````python\nx = 1\n```\n", 1, "never closed"),
    ("an unknown key", '```python names="x"\n1\n```\n', 1, "unknown key 'names'"),
    ("an unknown flag", "text\n\n```python voltaile\n1\n```\n", 3, "unknown flag 'voltaile'"),
    ("an unquoted text", "```python name=hello\n1\n```\n", 1, 'name="hello"'),
    ("a quoted number", EXERCISE.replace("=2", '="2"'), 1, "difficulty=2"),
    ("a key without a value", "```python name\n1\n```\n", 1, 'name="…"'),
    ("an empty value", '```python name=" "\n1\n```\n', 1, "name is empty"),
    ("a key given twice", '```python name="a" name="b"\n1\n```\n', 1, "given twice"),
    ("a broken quotation", '```python name="a\n1\n```\n', 1, "cannot read"),
    ("no space between pairs", '```python name="a"volatile\n1\n```\n', 1, "cannot read"),
    ("a comma between pairs", '```python name="a", volatile\n1\n```\n', 1, "cannot read"),
    ("two kinds in one block", '```python wrong="a.b" check="a.b" says="x"\n1\n```\n', 1, "of one kind"),
    ("the kind not first", '```python says="x" check="a.b"\n1\n```\n', 1, "comes first"),
    ("a sample that does not vary", '```python sample="here"\n1\n```\n', 1, "add the flag volatile"),
    ("an empty cell", "```python\n\n```\n", 1, "empty cell"),
    ("a cell that is no Python", "a\n\n```python\nx = 1\ny = = 2\n```\n", 5, "not valid Python"),
    (
        "a check that is no Python",
        EXERCISE + '```python check="numerics.softmax" says="x"\n(\n```\n',
        4,
        "valid",
    ),
    ("an indented cell", "- item\n\n  ```python\n  1\n  ```\n", 3, "first column"),
    ("a hint as a cell", EXERCISE + '```python hint="numerics.softmax"\nx\n```\n', 3, "```text block"),
    (
        "a check as text",
        EXERCISE + '```text check="numerics.softmax" says="x"\n1\n```\n',
        3,
        "```python block",
    ),
    ("a text block with a typo", '```text hnit="numerics.softmax"\nx\n```\n', 1, "unknown info string"),
    ("an exercise with a body", EXERCISE.replace("core\n", "core\nx = 1\n"), 1, "has no body"),
    ("an exercise without difficulty", EXERCISE.replace("difficulty=2 ", ""), 1, "needs difficulty"),
    ("an exercise without minutes", EXERCISE.replace("minutes=10 ", ""), 1, "needs minutes"),
    ("difficulty beyond the scale", EXERCISE.replace("=2", "=6"), 1, "from 1 to 5, got 6"),
    ("half a minute", EXERCISE.replace("=10", "=0.5"), 1, "minutes must be int"),
    ("negative minutes", EXERCISE.replace("=10", "=-10"), 1, "must not be negative"),
    ("neither core nor extra", EXERCISE.replace(" core", ""), 1, "core` or `extra"),
    ("core and extra", EXERCISE.replace(" core", " core extra"), 1, "not both"),
    ("a part without a room", EXERCISE.replace("numerics.", ""), 1, "no dotted name"),
    ("a lesson's own thing as a part", EXERCISE.replace("numerics.", "day05."), 1, "needs repairs"),
    ("one exercise twice", EXERCISE + "\n" + EXERCISE, 4, "asked for twice"),
    ("a hint for nobody", '```text hint="numerics.sofmax"\nx\n```\n', 1, "no exercise of this day"),
    (
        "a check for nobody",
        EXERCISE + '```python check="x.y" says="z"\n1\n```\n',
        3,
        "no exercise of this day",
    ),
    ("a check that says nothing", EXERCISE + '```python check="numerics.softmax"\n1\n```\n', 3, "needs says"),
    (
        "a wrong solution that says nothing",
        EXERCISE + '```python wrong="numerics.softmax"\n1\n```\n',
        3,
        "says",
    ),
    ("an empty hint", EXERCISE + '```text hint="numerics.softmax"\n```\n', 3, "without a body"),
    ("an empty check", EXERCISE + '```python check="numerics.softmax" says="x"\n```\n', 3, "without a body"),
    ("two skeletons", EXERCISE + 2 * '```python skeleton="numerics.softmax"\n1\n```\n', 6, "two skeletons"),
    (
        "a repair without its broken version",
        '```python exercise="day05.mend" repairs="numerics.softmax" difficulty=1 minutes=1 core\n'
        "def failing_input():\n    return ()\n```\n",
        1,
        "needs a skeleton",
    ),
    (
        "a repair without a failing input",
        '```python exercise="day05.mend" repairs="numerics.softmax" difficulty=1 minutes=1 core\n1\n```\n',
        1,
        "failing_input",
    ),
    (
        "a repair named like another day's",
        '```python exercise="day04.mend" repairs="numerics.softmax" difficulty=1 minutes=1 core\n'
        "def failing_input():\n    return ()\n```\n",
        1,
        "start with day05.",
    ),
    (
        "a warm-up that nobody asked for before",
        '```python warmup="numerics.nothing" minutes=5\n```\n',
        1,
        "no day",
    ),
    ("a warm-up with a body", '```python warmup="numerics.softmax" minutes=5\n1\n```\n', 1, "has no body"),
    (
        "a quiz named like another day's",
        '```python quiz="day06.q" kind="integer" minutes=1\n1\n```\n',
        1,
        "day05.",
    ),
    ("a quiz of no kind", '```python quiz="day05.q" minutes=1\n1\n```\n', 1, "needs kind"),
    (
        "a quiz of an unknown kind",
        '```python quiz="day05.q" kind="text" minutes=1\n1\n```\n',
        1,
        "got 'text'",
    ),
    ("a number without tolerance", '```python quiz="day05.q" kind="number" minutes=1\n1\n```\n', 1, "rtol"),
    (
        "a whole number with one",
        '```python quiz="day05.q" kind="integer" rtol=0.1 minutes=1\n1\n```\n',
        1,
        "go with",
    ),
    (
        "a quiz without an answer",
        '```python quiz="day05.q" kind="integer" minutes=1\nx = 1\n```\n',
        1,
        "expression",
    ),
    (
        "a choice without options",
        'Text.\n\n```python quiz="day05.q" kind="choice" minutes=1\n"a"\n```\n',
        3,
        "options",
    ),
    (
        "a choice of an option that is not there",
        '- **a.** x\n- **b.** y\n\n```python quiz="day05.q" kind="choice" minutes=1\n"c"\n```\n',
        4,
        "not among the options a, b",
    ),
    (
        "a choice that is no letter",
        '- **a.** x\n- **b.** y\n\n```python quiz="day05.q" kind="choice" minutes=1\n1\n```\n',
        4,
        "a letter in quotes",
    ),
    (
        "a wrong answer that is not there",
        '- **a.** x\n- **b.** y\n\n```python quiz="day05.q" kind="choice" minutes=1\n"a"\n```\n'
        '```python wrong="day05.q" says="no"\n"d"\n```\n',
        7,
        "not among the options",
    ),
    (
        "a check for a quiz",
        '```python quiz="day05.q" kind="integer" minutes=1\n1\n```\n'
        '```python check="day05.q" says="x"\n1\n```\n',
        4,
        "it has no check",
    ),
    ("an empty drill", '```python drill="numerics.shapes"\n```\n', 1, "give it a body"),
    ("two cells of one name", '```python name="a"\n1\n```\n\n```python name="a"\n2\n```\n', 5, "of line"),
    ("a prediction of nothing", "```python predict\nx = 1\n```\n", 1, 'predict("label", number)'),
    ("a prediction without a number", '```python predict\npredict("x")\n```\n', 2, "a label and a number"),
]


@pytest.mark.parametrize(("text", "line", "words"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_an_error_at_its_line(tmp_path, text, line, words):
    error = mistake(tmp_path, FRONT + text)
    assert (error.line - BODY_LINE + 1, words in error.message) == (line, True), str(error)
    assert str(error).startswith(f"{error.path}:{error.line}: ")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("# No front matter\n", 1, "starts with a front matter"),
        ("---\njupyter:\n  day: 5\n", 1, "not closed"),
        ("---\nday: 5\n---\n", 2, "one root key"),
        ("---\njupyter:\n  day: 5\n other: [\n---\n", 4, "front matter:"),
        (FRONT.replace("title: Test\n", "titel: Test\n"), 4, "unknown field 'titel'"),
        (FRONT.replace("  title: Test\n", ""), 2, "lacks 'title'"),
        (FRONT.replace("day: 5", "day: five"), 3, "day must be int, got 'five'"),
        (FRONT.replace("day: 5", "day: 31"), 2, "from 1 to 30, got 31"),
        (FRONT.replace("minutes: 10", "minutes: true"), 5, "minutes must be int"),
    ],
)
def test_a_mistake_in_the_front_matter(tmp_path, text, line, words):
    error = mistake(tmp_path, text)
    assert error.line == line
    assert words in error.message


def test_prose_keeps_what_only_looks_like_a_cell(tmp_path):
    text = (
        "# Title\n\n```bash\nls\n```\n\n```\nplain\n```\n\n```py\nshown = 1\n```\n"
        "~~~text\n```python\n~~~\n\n"
        "````markdown\n```python exercise=broken\n```\n````\n\nInline ```python``` is prose, too.\n"
    )
    lesson = load_lesson(write(tmp_path, FRONT + text))
    (block,) = lesson.blocks
    assert block.kind == "prose"
    assert block.source + "\n" == text


def test_headings_start_new_cells(tmp_path):
    text = "intro\n\n## 1. Where you are\n\na\n\n### Sub\n\nb\n\n#### Small\n\nc\n\n## 2. Warm-up\n"
    lesson = load_lesson(write(tmp_path, FRONT + text))
    assert [b.source.split("\n")[0] for b in lesson.blocks] == [
        "intro",
        "## 1. Where you are",
        "### Sub",
        "## 2. Warm-up",
    ]
    assert [b.section for b in lesson.blocks][-2:] == [1, 2]


def test_what_belongs_to_an_exercise_may_stand_before_it(tmp_path):
    lesson = load_lesson(write(tmp_path, FRONT + '```text hint="numerics.softmax"\nx\n```\n' + EXERCISE))
    assert lesson.exercises["numerics.softmax"].hints == ["x"]


def test_the_small_day_reads_as_it_is_written():
    lesson = load_lesson(SMALL / "solutions" / "day_01_small")
    assert (lesson.day, lesson.title, lesson.minutes) == (1, "A small day", 30)
    assert lesson.sections[0][1] == "Where you are"
    assert [len(lesson.sections), len(lesson.together)] == [10, 1]
    softmax = lesson.exercises["numerics.softmax"]
    assert (softmax.kind, softmax.number, softmax.difficulty, softmax.core) == ("part", 1, 2, True)
    assert softmax.forbid == ["scipy.special.softmax"]
    assert [len(softmax.hints), len(softmax.checks), len(softmax.wrongs)] == [2, 3, 3]
    assert [c.index for c in softmax.checks] == [0, 1, 2]
    repair = lesson.exercises["day01.repair_log_softmax"]
    assert (repair.kind, repair.number, repair.part) == ("repair", 5, "numerics.log_softmax")
    assert repair.body.startswith("def failing_input")
    quiz = lesson.exercises["day01.larger"]
    assert quiz.options == {"a": "exp(-1)", "b": "exp(1)", "c": "exp(0)"}
    assert quiz.tolerance == {"kind": "choice"}
    assert lesson.exercises["day01.log_ten"].tolerance == {"kind": "number", "rtol": 0.01}
    lines = (lesson.path).read_text().split("\n")
    for exercise in lesson.exercises.values():
        assert f'="{exercise.name}"' in lines[exercise.line - 1]
        for line in [c.line for c in exercise.checks] + [w.line for w in exercise.wrongs]:
            assert f'="{exercise.name}" says=' in lines[line - 1]


def test_an_option_may_run_over_several_lines(tmp_path):
    text = "- **a.** one\n  and more\n- **b.** two\n\n"
    text += '```python quiz="day05.q" kind="choice" minutes=1\n"a"\n```\n'
    lesson = load_lesson(write(tmp_path, FRONT + text))
    assert lesson.exercises["day05.q"].options == {"a": "one and more", "b": "two"}


def test_a_warm_up_brings_what_its_first_day_has(tmp_path):
    first = (SMALL / "solutions" / "day_01_small" / "lesson.md").read_text()
    write(tmp_path, first, day=1)
    path = write(tmp_path, FRONT + '## 2. Warm-up\n\n```python warmup="numerics.softmax" minutes=4\n```\n')
    warmup = load_lesson(path).exercises["numerics.softmax"]
    assert (warmup.kind, warmup.day, warmup.home, warmup.number, warmup.minutes) == ("warmup", 5, 1, 0, 4)
    assert [len(warmup.hints), len(warmup.checks), len(warmup.wrongs)] == [2, 3, 3]
    assert warmup.section == 2
    error = mistake(tmp_path, path.read_text() + '```text hint="numerics.softmax"\nmore\n```\n')
    assert "come from the day that first asked" in error.message


def test_days_are_found_by_number(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no lesson for day 5; days with a lesson: none yet"):
        find_day(5)
    path = write(tmp_path, FRONT)
    assert available_days() == [5]
    assert find_day(5) == path.parent
    assert load_lesson(5).path == path.resolve()
    other = tmp_path / "solutions" / "day_05_other"
    other.mkdir()
    (other / "lesson.md").write_text(FRONT)
    with pytest.raises(FileExistsError, match="day 5 has two folders"):
        find_day(5)


def test_a_changed_lesson_is_read_again(tmp_path):
    path = write(tmp_path, FRONT)
    assert load_lesson(path).blocks == []
    path.write_text(FRONT + "more\n")
    assert len(load_lesson(path).blocks) == 1


def test_predictions_lose_their_numbers():
    cell = 'x = 3\npredict("größe — tok/s", 40)  # a guess\npredict("a", x * (1 + 2)); predict("b", -1e3)'
    assert predict_stub(cell) == (
        'x = 3\npredict("größe — tok/s", ...)  # a guess\npredict("a", ...); predict("b", ...)'
    )


@pytest.mark.parametrize("day", available_days())
def test_jupytext_reads_the_same_cells(day):
    """lesson.md opens as a notebook in JupyterLab: an author may write it there."""
    lesson = load_lesson(day)
    notebook = jupytext.read(lesson.path, fmt="md")
    theirs = [cell.source.strip() for cell in notebook.cells if cell.cell_type == "code"]
    ours = [block.source.strip() for block in lesson.blocks if block.kind in ("code", "drill")]
    for exercise in lesson.exercises.values():
        if exercise.home == lesson.day:
            ours += [check.source.strip() for check in exercise.checks]
            if exercise.kind != "kernel":  # whose language jupytext shows as text
                ours += [exercise.body.strip(), (exercise.skeleton or "").strip()]
                ours += [wrong.source.strip() for wrong in exercise.wrongs]
    ours += [check.source.strip() for check in lesson.together]
    assert sorted(filter(None, theirs)) == sorted(filter(None, ours))
    assert notebook.metadata["day"] == lesson.day
