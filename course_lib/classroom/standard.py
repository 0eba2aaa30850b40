"""The lesson standard, as far as a program can judge it: what every day must have, and in which order.

`problems(lesson)` names each shortcoming at its line of lesson.md; the builder refuses a lesson that has any.
The rule that a day uses only what that day and earlier ones have taught is judged here too, from the sources
alone.
"""

import ast
import re
from collections.abc import Iterable, Iterator

from course_lib.classroom import kernels, sources
from course_lib.classroom.lesson import SECTIONS, Exercise, Lesson, LessonError
from course_lib.classroom.sources import Located, Module, SourceError

CORE_MINUTES = 75
PROSE_WORDS = 5000
CELL_WIDTH = 100  # characters that a notebook's column shows
MIN_HINTS, MIN_CHECKS, MIN_WRONGS = 2, 1, 3
CAPSTONE_DAYS = (27, 28, 29, 30)


def problems(lesson: Lesson) -> list[LessonError]:
    """Everything in which a lesson falls short of the standard, by line."""
    found = [*_title(lesson), *_sections(lesson), *_exercises(lesson), *_day(lesson), *_cells(lesson)]
    if not found:  # the rest reads the library, and would only repeat what is said above
        found = [*_widths(lesson), *_days_in_order(lesson)]
    return sorted(found, key=lambda problem: problem.line)


def _title(lesson: Lesson) -> Iterator[LessonError]:
    for block in lesson.blocks:
        if block.kind == "prose" and re.match(r"# ", block.source):
            text = "the title comes from the front matter: a lesson's own headings start with ##"
            yield LessonError(lesson.path, block.line, text)


def _sections(lesson: Lesson) -> Iterator[LessonError]:
    wanted = list(enumerate(SECTIONS, 1))
    given = [(number, title) for number, title, _ in lesson.sections]
    for position, (number, title, line) in enumerate(lesson.sections):
        if position >= len(wanted) or (number, title) != wanted[position]:
            expected = (
                "## {}. {}".format(*wanted[position]) if position < len(wanted) else "no further section"
            )
            yield LessonError(
                lesson.path, line, f"section `## {number}. {title}`: expected `{expected}` here"
            )
            return
    if len(given) < len(wanted):
        number, title = wanted[len(given)]
        last = lesson.sections[-1][2] if lesson.sections else 1
        yield LessonError(lesson.path, last, f"the lesson ends without section `## {number}. {title}`")


def _exercises(lesson: Lesson) -> Iterator[LessonError]:
    for exercise in lesson.exercises.values():
        if exercise.kind == "warmup":
            continue  # judged in the lesson it comes from

        def short(what: str, have: int, want: int, exercise: Exercise = exercise) -> Iterator[LessonError]:
            if have < want:
                text = f"{exercise.name} has {have} {what}, at least {want} are needed"
                yield LessonError(lesson.path, exercise.line, text)

        if exercise.kind == "quiz":
            yield from short("hints", len(exercise.hints), 1)
            yield from short("wrong answers", len(exercise.wrongs), 1)
            yield from _options(lesson, exercise)
            continue
        yield from short("hints", len(exercise.hints), MIN_HINTS)
        yield from short("checks", len(exercise.checks), MIN_CHECKS)
        yield from short("wrong solutions", len(exercise.wrongs), MIN_WRONGS)
        if exercise.section != 6:
            yield LessonError(
                lesson.path, exercise.line, f"{exercise.name} stands outside section 6, Exercises"
            )
        if exercise.kind == "kernel":
            continue  # whether it defines what is launched, its checks say
        assert exercise.part is not None
        name = exercise.part.split(".")[-1]
        for wrong in exercise.wrongs:
            if name not in sources.defined_names(wrong.source):
                text = f"this wrong solution of {exercise.name} does not define {name}"
                yield LessonError(lesson.path, wrong.line, text)


def _options(lesson: Lesson, exercise: Exercise) -> Iterator[LessonError]:
    if exercise.options:
        answered = [ast.literal_eval(w.source.strip().split("\n")[-1]) for w in exercise.wrongs]
        answered.append(ast.literal_eval(exercise.body.strip().split("\n")[-1]))
        for letter in exercise.options:
            if answered.count(letter) != 1:
                text = f"{exercise.name}: option {letter} needs one reason, a wrong= block (or is the answer)"
                yield LessonError(lesson.path, exercise.line, text)


def _day(lesson: Lesson) -> Iterator[LessonError]:
    asked = [e for e in lesson.exercises.values() if e.kind in ("part", "repair", "kernel")]
    quizzes = [e for e in lesson.exercises.values() if e.kind == "quiz"]

    def line_of(section: int) -> int:
        return next((line for number, _, line in lesson.sections if number == section), 1)

    fewest = 3 if lesson.day in CAPSTONE_DAYS else 5
    core_ones = sum(e.core for e in asked)
    if not fewest <= core_ones <= 9:
        text = f"{core_ones} core exercises: a day has {fewest} to 8, and its repair; extra ones come on top"
        yield LessonError(lesson.path, line_of(6), text)
    if not any(e.is_repair for e in asked):
        yield LessonError(lesson.path, line_of(6), "no exercise of the day is a repair")
    core = sum(e.minutes for e in asked if e.core)
    if core > CORE_MINUTES:
        text = f"the core exercises take {core} minutes, {CORE_MINUTES} are the limit"
        yield LessonError(lesson.path, line_of(6), text)
    if not any(e.section == 2 for e in lesson.exercises.values()):
        yield LessonError(
            lesson.path, line_of(2), "section 2 asks for nothing: it needs a warm-up or a question"
        )
    if lesson.day > 1 and not any(e.kind == "warmup" for e in lesson.exercises.values()):
        yield LessonError(lesson.path, line_of(2), "section 2 has no warm-up from an earlier day")
    here = [e for e in quizzes if e.section == 9]
    if len(here) < 5:
        yield LessonError(lesson.path, line_of(9), f"{len(here)} graded questions, at least 5 are needed")
    if sum(e.tolerance["kind"] != "choice" for e in here) < 2:
        yield LessonError(lesson.path, line_of(9), "at least two questions ask for a number to compute")
    reading = [e for e in quizzes if e.section == 8]
    if len(reading) < 2:
        text = f"{len(reading)} graded questions that only reading answers, at least 2 are needed"
        yield LessonError(lesson.path, line_of(8), text)
    words = prose_words(lesson)
    if words > PROSE_WORDS:
        yield LessonError(lesson.path, 1, f"{words:,} words of prose, {PROSE_WORDS:,} are the limit")


def prose_words(lesson: Lesson) -> int:
    """Words of running text: fenced blocks, tables' rules and link targets do not count."""
    text = "\n".join(block.source for block in lesson.blocks if block.kind == "prose")
    text = re.sub(r"^(`{3,}|~{3,}).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return len(re.findall(r"\b[^\W_][\w'’-]*", text))


def _cells(lesson: Lesson) -> Iterator[LessonError]:
    """A quiz stands alone: the grader computes its answer from the set-up cell and its own imports."""
    try:
        known = sources.defined_names(sources.setup_source(lesson))
    except (LessonError, SourceError) as problem:
        yield problem if isinstance(problem, LessonError) else LessonError(lesson.path, 1, str(problem))
        return
    known |= {item.binds for item in sources.other_parts(lesson)}
    for exercise in lesson.exercises.values():
        if exercise.kind == "quiz":
            bodies = [(exercise.body, exercise.line), *((w.source, w.line) for w in exercise.wrongs)]
            for body, line in bodies:
                for name in sorted(sources.free_names(body) - known):
                    text = (
                        f"{exercise.name} uses {name!r}, which the set-up cell does not have: import it here"
                    )
                    yield LessonError(lesson.path, line, text)


def _widths(lesson: Lesson) -> Iterator[LessonError]:
    """No cell that a learner reads runs out of its column."""
    cells = [(b.source, b.line + 1, 1) for b in lesson.blocks if b.kind in ("code", "drill")]
    for exercise in lesson.exercises.values():
        if exercise.home == lesson.day:
            for text in (sources.solved_source(exercise), sources.stub_source(exercise)):
                cells.append((text, exercise.line, 0))  # their lines are not lesson.md's
    for text, line, step in cells:
        for number, row in enumerate(text.split("\n")):
            if len(row) > CELL_WIDTH:
                what = f"a line of {len(row)} characters, {CELL_WIDTH} fit: {row.strip()[:50]} …"
                yield LessonError(lesson.path, line + number * step, what)


def leaks(lesson: Lesson, cells: Iterable[tuple[str, str, str]]) -> Iterator[LessonError]:
    """Lines of a solution that the learner's notebook shows: `cells` are its (kind, name, source).

    In an exercise cell any such line counts, in a worked example a long one: short ones coincide. A broken
    version shares with its own mended one what is not broken, but may not give away another exercise.
    """
    for exercise in lesson.exercises.values():
        if exercise.kind == "quiz":
            continue
        if exercise.kind == "kernel":
            secret = kernels.body_lines(sources.solved_source(exercise))
            secret -= kernels.body_lines(exercise.skeleton or "")  # what the skeleton gives is given
        else:
            secret = solution_lines(sources.solved_source(exercise))
            if exercise.skeleton and not exercise.is_repair:
                secret -= solution_lines(exercise.skeleton)
        for kind, name, source in cells:
            if exercise.is_repair and name == exercise.name:
                continue
            shown = {_bare(row) for row in source.split("\n")}
            for row in sorted(secret & shown):
                if kind == "exercise" or (kind != "prose" and len(row) > 40):
                    text = f"the learner's cell {name} shows a line of the solution: {row}"
                    yield LessonError(lesson.path, exercise.line, text)


def solution_lines(source: str) -> set[str]:
    """What the bodies of a solution say, line by line: no docstring, signature, comment or lone bracket."""
    rows = source.split("\n")
    body: set[int] = set()
    heads: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1:] if ast.get_docstring(node) is not None else node.body
            for statement in first:
                body |= set(range(statement.lineno, (statement.end_lineno or 0) + 1))
            heads |= set(range(node.lineno, node.body[0].lineno))
    found = {_bare(rows[i - 1]) for i in body - heads}
    return {
        row for row in found if len(re.findall(r"\w+", row)) >= 2 and not row.startswith(("import ", "from "))
    }


def _bare(row: str) -> str:
    return row.split("  #")[0].split("# ")[0].strip()


def _days_in_order(lesson: Lesson) -> Iterator[LessonError]:
    """Marks name the right day, and checks and solutions use nothing of a later day."""
    for exercise in lesson.exercises.values():
        if exercise.part is None:
            continue
        located = sources.locate(exercise.part)
        day = sources.marked_day(located)
        if exercise.kind in ("part", "warmup") and day != exercise.home:
            mark = f"is marked as day {day}'s" if day else "has no mark @exercise"
            text = f"{exercise.name} {mark} in {located.module.name}: expected @exercise(day={exercise.home})"
            yield LessonError(lesson.path, exercise.line, text)
        for name, late in later_parts(located, lesson.day):
            text = f"the reference of {exercise.name} uses {name}, a part of day {late}"
            yield LessonError(lesson.path, exercise.line, text)
        for check in exercise.checks if exercise.home == lesson.day else []:
            for name, late in later_imports(check.source, lesson.day):
                text = f"a check of {exercise.name} uses {name}, a part of day {late}"
                yield LessonError(lesson.path, check.line, text)
    for check in lesson.together:
        for name, late in later_imports(check.source, lesson.day):
            yield LessonError(lesson.path, check.line, f"the check uses {name}, a part of day {late}")


def later_imports(source: str, day: int) -> Iterator[tuple[str, int]]:
    """Parts of a later day that a cell imports from course_lib, directly or by way of what it imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("course_lib."):
            for alias in node.names:
                name = f"{(node.module or '').removeprefix('course_lib.')}.{alias.name}"
                try:
                    yield from later_parts(sources.locate(name), day)
                except SourceError:
                    continue  # a constant or a module: no part


def later_parts(located: Located, day: int) -> Iterator[tuple[str, int]]:
    """Parts of a day after `day` in a definition and in all that it refers to, found without importing
    anything.
    """
    seen: set[str] = set()
    waiting = [located]
    while waiting:
        here = waiting.pop()
        if here.key in seen:
            continue
        seen.add(here.key)
        marked = sources.marked_day(here)
        if marked is not None and marked > day:
            yield sources.public_name(here.key), marked
            continue
        text = ast.unparse(here.node)
        for name in sources.free_names(text):
            waiting.extend(_definitions(name, here.module))


def _definitions(name: str, module: Module) -> Iterator[Located]:
    for item in sources.provide(name, module):
        if item.module.startswith("course_lib.") and item.name:
            try:
                yield sources.locate(f"{item.module.removeprefix('course_lib.')}.{item.name}")
            except SourceError:
                continue
