"""Take the README's two pictures anew: `python .github/images/screens.py` (needs Chromium).

lesson.png is Day 1 in JupyterLab with a wrong answer checked; scoreboard.svg is a half-done day, graded.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from rich.console import Console

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "checks" / "gates"))

import test_browser  # noqa: E402

from course_lib.classroom import lesson as lessons  # noqa: E402
from course_lib.classroom import sources  # noqa: E402


def half_done(course: Path) -> None:
    """Day 1 as it looks in the middle of an evening: some right, one wrong, the rest to come."""
    lesson = lessons.load_lesson(1)
    parts = [e for e in lesson.exercises.values() if e.kind == "part"]
    quizzes = [e for e in lesson.exercises.values() if e.kind == "quiz"]
    written = {e.name: sources.solved_source(e) for e in [*parts[:5], *quizzes[:5]]}
    written[parts[2].name] = parts[2].wrongs[0].source
    path = course / "days" / lesson.path.parent.name / "lesson.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        course_mark = cell.metadata.course
        if course_mark.kind in ("exercise", "quiz") and course_mark.name in written:
            cell.source = written[course_mark.name]
    nbformat.write(notebook, path)


def scoreboard(course: Path) -> None:
    """The graded day, as a terminal of 80 columns shows it."""
    from course_lib.classroom import grade
    from course_lib.classroom import scoreboard as board

    half_done(course)
    report = grade.grade_day(1, keep=False)
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=80, force_terminal=True, highlight=False, file=nowhere)
        board.show(report, console)
    svg = console.export_svg(title="make check-day 1", unique_id="scoreboard")
    # No fonts from afar: a page that shows the picture must not need them.
    svg = re.sub(r"@font-face\s*\{[^}]*\}\s*", "", svg).replace(
        "Fira Code, monospace", "DejaVu Sans Mono, monospace"
    )
    (HERE / "scoreboard.svg").write_text(svg.rstrip() + "\n", encoding="utf-8")


def lesson_page(course: Path) -> None:
    """An exercise of Day 1 with a wrong answer and what check() says to it."""
    fixture = test_browser.lab._get_wrapped_function()(course)
    lab = next(fixture)
    exercise = next(e for e in lessons.load_lesson(1).exercises.values() if e.name == "numerics.softmax")
    lab.page.set_viewport_size({"width": 1120, "height": 940})
    lab.page.keyboard.press("Control+b")  # the file browser gives its room to the lesson
    lab.run("setup", "setup")
    lab.page.wait_for_timeout(4000)  # reading; meanwhile the checks warm up
    lab.run(exercise.name, "exercise", exercise.wrongs[0].source)
    lab.run(f"{exercise.name}-check", "check")
    lab.cell(f"{exercise.name}-check", "check").evaluate("cell => cell.scrollIntoView({block: 'end'})")
    lab.page.wait_for_timeout(1500)
    lab.page.screenshot(path=HERE / "lesson.png")
    next(fixture, None)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder)
        name = lessons.find_day(1).name
        for path in (f"solutions/{name}/lesson.md", f"days/{name}/lesson.ipynb", "checks/day_01.ipynb"):
            (course / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(lessons.root() / path, course / path)
        os.environ["COURSE_ROOT"] = str(course)
        lesson_page(course)
        scoreboard(course)


if __name__ == "__main__":
    main()
