"""`make lessons`: from a day's lesson.md to its three notebooks, byte for byte the same on every build.

    days/day_05_*/lesson.ipynb        the learner's: stubs in place of solutions, no outputs
    solutions/day_05_*/lesson.ipynb   solved, executed, with its figures
    checks/day_05.ipynb               the graded checks, with golden outputs made by the reference

A day may have bonus notebooks, `bonus_*.md` beside its lesson.md: worked cells about a package that not every
machine has. Each becomes a notebook in days/ and, where the package is there, an executed one in solutions/.

What would differ between two builds is kept out: cell ids come from names, execution counts are numbered
anew, nothing is timed, threads and hash seeds are fixed, and the outputs of cells flagged `volatile` are
dropped. What must never be published (a warning, an address in memory, a path of this machine, an error)
fails the build at the cell's line.
"""

import hashlib
import importlib.util
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_lib import parts
from course_lib.classroom import sources
from course_lib.classroom.expect import has_golden
from course_lib.classroom.lesson import (
    Block,
    Exercise,
    Lesson,
    LessonError,
    available_days,
    bonuses,
    find_day,
    load_bonus,
    load_lesson,
    predict_stub,
    root,
)
from course_lib.classroom.sandbox import Job, Sandbox
from course_lib.classroom.standard import leaks, problems

# What a kernel that builds must not take from the machine it runs on.
FIXED_ENVIRONMENT = {
    "COURSE_BUILD": "1",
    "PARTS": "reference",
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": "0",
    "TQDM_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "NO_COLOR": "1",
    "COLUMNS": "80",
    "JAX_PLATFORMS": "cpu",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
}
CELL_TIMEOUT = 300  # seconds; a lesson's cell takes a few
TRACEBACK_LINES = 30
OUTPUT_LIMIT = 20_000  # characters of text that one cell may show: about four screens
IMAGE_LIMIT = 400_000  # bytes of one figure

_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
_PATH = re.compile(r"(?<![\w.:/~<-])/(?:home|Users|root|tmp|work|usr|opt|var|mnt|private)/[\w.+-]+")
_MARKER = re.compile(r"^\s*#\s*(?:NBVAL_|PYTEST_VALIDATE_)\w*.*$", re.MULTILINE)
CHECK_OUTPUT = "# NBVAL_CHECK_OUTPUT"

NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}


class BuildError(Exception):
    """What keeps a day from being built: one problem a line, each with its place."""

    def __init__(self, problems: Iterable[object]):
        self.problems = [str(problem) for problem in problems]
        super().__init__("\n".join(self.problems))


@dataclass
class Built:
    """A built day: its files' contents by their path below the course's folder."""

    day: int
    files: dict[Path, str]
    seconds: float


class _Made(NamedTuple):
    """A notebook in the making. `kind`: "learner", "solved" or "checks"; `source`: what it is made of."""

    kind: str
    target: Path
    source: Lesson
    cells: "list[_Cell]"


@dataclass
class _Cell:
    """A cell to be, before it knows which notebook it is in."""

    kind: str
    name: str
    source: str
    line: int
    flags: dict[str, Any] = field(default_factory=dict)


def slug(name: str) -> str:
    """A cell id from a name: at most 64 letters, digits, - and _."""
    text = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
    if len(text) > 64:
        text = f"{text[:55]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return text


def digest(source: str) -> str:
    """The `shipped` mark of a cell: by it `make update` sees whether a learner has edited the cell."""
    return hashlib.sha256(source.encode()).hexdigest()


# Headings and lines around exercises


_WHAT_TO_DO = (
    "*Run the cells from top to bottom and fill in the exercises. `make check-day {day}` grades the day; "
    "what passes becomes part of your engine.*"
)
_WHAT_THIS_IS = (
    "*This is the solved lesson, with its output and figures. The one to work in is "
    "[days/{folder}](../../days/{folder}/lesson.ipynb).*"
)


def _title(lesson: Lesson) -> str:
    """The opening of both notebooks: the day, what it is about and what it asks for."""
    asked = [e for e in lesson.exercises.values() if e.kind in ("part", "repair", "kernel")]
    core = sum(e.core for e in asked)
    questions = sum(e.kind == "quiz" for e in lesson.exercises.values())
    counts = f"{len(asked)} exercises" + (f", {core} core" if core < len(asked) else "")
    facts = f"About {lesson.minutes} minutes · {counts} · {questions} questions"
    return f"# Day {lesson.day}: {lesson.title}\n\n{lesson.summary.strip()}\n\n{facts}"


def _minutes(exercise: Exercise) -> str:
    return f"{exercise.minutes} minute{'s' if exercise.minutes != 1 else ''}"


def exercise_line(exercise: Exercise) -> str:
    """The line under an exercise's title: its part, difficulty, minutes, and whether the day needs it."""
    if exercise.kind == "quiz":
        tolerance = exercise.tolerance
        kind = {"number": "a number", "integer": "a whole number", "choice": "one letter"}[tolerance["kind"]]
        if "rtol" in tolerance:
            kind += f", within {100 * tolerance['rtol']:g}%"
        elif "atol" in tolerance:
            kind += f", within {tolerance['atol']:g}"
        extra = "" if exercise.core else " · extra"
        return f"*Question {exercise.number} · {kind} · {_minutes(exercise)}{extra}*"
    if exercise.kind == "warmup":
        return f"*Warm-up · `{exercise.name}`, from day {exercise.home} · {_minutes(exercise)}*"
    repaired = exercise.part or exercise.file
    repair = f"`{exercise.name}`" if exercise.name == repaired else f"repair of `{repaired}`"
    core = "core" if exercise.core else "extra: offered, not needed to pass the day"
    return f"*{repair} · difficulty {exercise.difficulty} of 5 · {_minutes(exercise)} · {core}*"


def _headed(lesson: Lesson, exercise: Exercise, before: str | None, line: int) -> str:
    """The prose before an exercise, with its number in the heading and the line of facts in its place."""
    facts = exercise_line(exercise)
    if exercise.kind in ("quiz", "warmup"):
        return f"{before}\n\n{facts}" if before else facts
    count = sum(1 for e in lesson.exercises.values() if e.kind in ("part", "repair", "kernel"))
    label = f"Exercise {exercise.number} of {count}"
    match = re.match(r"^### +(.*?)\s*(?:\n|$)", before or "")
    if match:
        assert before is not None
        title = match[1]
        own = re.match(r"^Exercise (\d+)(?: of \d+)?\s*[.:·-]?\s*", title)
        if own:
            if int(own[1]) != exercise.number:
                raise LessonError(
                    lesson.path,
                    line,
                    f"the heading says exercise {own[1]}, but {exercise.name} is exercise {exercise.number}",
                )
            title = title[own.end() :]
        rest = before[match.end() :].lstrip("\n")
        return f"### {label}: {title}\n\n{facts}" + (f"\n\n{rest}" if rest else "")
    title = exercise.name.split("/")[-1] if exercise.kind == "kernel" else exercise.name.split(".")[-1]
    heading = f"### {label}: `{title}`\n\n{facts}"
    if before is None:
        return heading
    if before.startswith("## "):
        return f"{before}\n\n{heading}"
    return f"{heading}\n\n{before}"


def _after_solution(exercise: Exercise) -> str:
    """What the solved notebook says below a solution: what the checks prove, and how it goes wrong."""
    wrongs = [
        w for w in exercise.wrongs if "course_lib" not in w.source
    ]  # delegating is no mistake to learn from
    if exercise.kind == "quiz":
        # A quotation, so that the next question does not seem to belong to it.
        given = [f"`{w.source.strip()}`: " if exercise.options else "" for w in wrongs]
        reasons = [f"> - {letter}{w.says}" for letter, w in zip(given, wrongs, strict=True)]
        return "\n".join(["> **Wrong answers, and why**", ">", *reasons]) if wrongs else ""
    lines = []
    if exercise.checks:
        lines = ["**What the checks prove**", "", *(f"- {check.says}" for check in exercise.checks), ""]
    if wrongs:
        lines += ["**How it goes wrong**", "", *(f"- {wrong.says}" for wrong in wrongs)]
    return "\n".join(lines).strip()


# The three notebooks, without outputs


def _learner_and_solved(lesson: Lesson) -> tuple[list[_Cell], list[_Cell]]:
    learner: list[_Cell] = []
    solved: list[_Cell] = []
    both = (learner, solved)
    setup = sources.setup_source(lesson)

    for cells, tail in ((learner, _WHAT_TO_DO), (solved, _WHAT_THIS_IS)):
        text = f"{_title(lesson)}\n\n{tail.format(day=lesson.day, folder=lesson.path.parent.name)}"
        cells.append(_Cell("prose", "title", text, 1))

    def add_setup(line: int) -> None:
        if not any(cell.kind == "setup" for cell in learner):
            for cells in both:
                cells.append(_Cell("setup", "setup", setup, line))

    for block in lesson.blocks:
        if block.kind != "prose":
            add_setup(block.line)
        if block.kind == "prose":
            for cells in both:
                cells.append(_Cell("prose", block.name, block.source, block.line))
        elif block.kind == "code":
            kind = "predict" if "predict" in block.flags else "code"
            kind = "map" if re.search(r"^course_map\(", block.source, re.MULTILINE) else kind
            stub = predict_stub(block.source) if kind == "predict" else block.source
            if "solved" not in block.flags:
                learner.append(_Cell(kind, block.name, stub, block.line))
            solved.append(_Cell(kind, block.name, block.source, block.line, block.flags))
        elif block.kind == "drill":
            learner.append(_Cell("code", block.name, block.source, block.line))
            # An endless game has no answer: the solved notebook shows the cell and does not run it.
            solved.append(_Cell("prose", block.name, f"```python\n{block.source}\n```", block.line))
        else:
            exercise = lesson.exercises[block.name]
            _add_exercise(lesson, exercise, block, learner, solved)
    return learner, solved


def _add_exercise(
    lesson: Lesson, exercise: Exercise, block: Block, learner: list[_Cell], solved: list[_Cell]
) -> None:
    kind = "quiz" if exercise.kind == "quiz" else "exercise"
    for cells in (learner, solved):
        before = cells[-1] if cells and cells[-1].kind == "prose" else None
        text = _headed(
            lesson, exercise, before.source if before else None, before.line if before else block.line
        )
        if before:
            before.source = text
        else:
            cells.append(_Cell("prose", f"{exercise.name}-title", text, block.line))
    learner.append(_Cell(kind, exercise.name, sources.stub_source(exercise), block.line))
    solved.append(_Cell(kind, exercise.name, sources.solved_source(exercise), block.line))
    if exercise.kind == "kernel":
        # Running the cell checks it.
        text = f'# Stuck? Take away the next sign: it tells a little more.\n# hint("{exercise.name}")'
        learner.append(_Cell("code", f"{exercise.name}-hint", text, block.line))
    elif kind == "exercise":
        count = len(exercise.hints)
        text = f'check("{exercise.name}")\n# Stuck? hint("{exercise.name}") tells a little more each time'
        text += f"; there are {count}." if count > 1 else "."
        learner.append(_Cell("check", f"{exercise.name}-check", text, block.line))
    after = _after_solution(exercise)
    if after and exercise.kind != "warmup":  # its first day has said it
        solved.append(_Cell("prose", f"{exercise.name}-notes", after, block.line))


_BONUS_WHAT_TO_DO = (
    "*A bonus: nothing to fill in, and nothing depends on it. Run the cells from top to bottom.*"
)
_BONUS_WHAT_THIS_IS = (
    "*This is the notebook with its output. The one to run is "
    "[days/{folder}/{name}](../../days/{folder}/{name}).*"
)


def _bonus(bonus: Lesson, tail: str) -> list[_Cell]:
    """The cells of a bonus notebook: its title, a cell that asks for the package, and what it says."""
    facts = f"About {bonus.minutes} minutes · needs `{bonus.needs}`, and is skipped without"
    folder, name = bonus.path.parent.name, bonus.path.with_suffix(".ipynb").name
    title = f"# Day {bonus.day}, bonus: {bonus.title}\n\n{bonus.summary.strip()}\n\n{facts}"
    needs = f'from course_lib.classroom import needs\n\nneeds("{bonus.needs}")'
    cells = [
        _Cell("prose", "title", f"{title}\n\n{tail.format(folder=folder, name=name)}", 1),
        _Cell("setup", "needs", needs, 1),
    ]
    return cells + [
        _Cell(block.kind, block.name, block.source, block.line, block.flags) for block in bonus.blocks
    ]


def _notebook(lesson: Lesson, cells: list[_Cell]) -> NotebookNode:
    nodes, seen = [], set()
    for cell in cells:
        make = new_markdown_cell if cell.kind == "prose" else new_code_cell
        node = make(cell.source)
        node.id = slug(cell.name)
        if node.id in seen:
            raise LessonError(lesson.path, cell.line, f"two cells of the day would have the id {node.id!r}")
        seen.add(node.id)
        node.metadata["course"] = {"kind": cell.kind, "name": cell.name, "shipped": digest(cell.source)}
        nodes.append(node)
    metadata = json.loads(json.dumps(NOTEBOOK_METADATA))
    metadata["course"] = {"day": lesson.day, "title": lesson.title}
    return new_notebook(cells=nodes, metadata=metadata)


def _checks(lesson: Lesson) -> list[_Cell]:
    """The cells of the checks notebook: one a check, which a magic runs in a process of its own."""
    setup = f"%load_ext course_lib.classroom.magic\n%course_day {lesson.day}"
    cells = [_Cell("setup", "setup", setup, 1)]

    def add(name: str, index: int, says: str, body: str, line: int) -> None:
        golden = has_golden(body)
        source = f"%%check {name} {index}\n" + (f"{CHECK_OUTPUT}\n" if golden else "") + body
        flags = {"exercise": name, "index": index, "says": says, "golden": golden}
        cells.append(_Cell("check", f"{name}-{index}", source, line, flags))

    for exercise in lesson.exercises.values():
        if exercise.kind == "quiz":
            facts = exercise_line(exercise).strip("*")
            add(exercise.name, 0, "the answer is right", f"# {facts}", exercise.line)
        for check in exercise.checks:
            add(exercise.name, check.index, check.says, check.source, check.line)
    for check in lesson.together:
        add(check.exercise, check.index, check.says, check.source, check.line)
    return [*cells, _Cell("check", "together", "%together", 1)]


# Running


def _execute(lesson: Lesson, notebook: NotebookNode, cells: list[_Cell]) -> None:
    """Run a notebook in a fresh kernel in an empty folder. BuildError at the first cell that fails."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    begun = 0

    def begin(cell: NotebookNode, cell_index: int) -> None:
        nonlocal begun
        begun = cell_index

    with tempfile.TemporaryDirectory(prefix="course-build-") as folder:
        # Named like the learner's folder: by it a notebook knows its day.
        here = Path(folder, lesson.path.parent.name)
        here.mkdir()
        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=["--IPKernelApp.log_level=40"],
            resources={"metadata": {"path": str(here)}},
            on_cell_start=begin,
        )
        try:
            client.execute(env=_environment(Path(folder)))
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as problem:
            lines = re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).strip().split("\n")
            text = "\n    ".join(["the cell does not run:", *lines[-TRACEBACK_LINES:]])
            raise BuildError([LessonError(lesson.path, cells[begun].line, text)]) from None


def _environment(folder: Path) -> dict[str, str]:
    """The kernel's environment: this machine's, with what could change an output fixed or taken away."""
    rc = folder / "matplotlibrc"
    rc.write_text("", encoding="utf-8")
    package = str(sources.LIBRARY.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    private = {"IPYTHONDIR": str(folder / "ipython"), "MATPLOTLIBRC": str(rc), "PYTHONPATH": path}
    # The first import of Matplotlib on a machine writes a line about its font cache: not into a lesson.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    import matplotlib.font_manager  # noqa: F401

    return dict(os.environ) | FIXED_ENVIRONMENT | private


def _settle(notebook: NotebookNode, cells: list[_Cell], before: NotebookNode | None) -> None:
    """Make an executed notebook the same on every build."""
    notebook.metadata["kernelspec"] = dict(NOTEBOOK_METADATA["kernelspec"])
    notebook.metadata["language_info"] = dict(NOTEBOOK_METADATA["language_info"])
    kept = {cell.id: cell for cell in before.cells} if before else {}
    count = 0
    for node, cell in zip(notebook.cells, cells, strict=True):
        if node.cell_type != "code":
            continue
        count += 1
        node.execution_count = count
        node.metadata.pop("execution", None)
        if "sample" in cell.flags:
            node.outputs = _sample(node, cell, kept.get(node.id))
        elif "volatile" in cell.flags:
            node.outputs = []
        if "volatile" in cell.flags:
            node.metadata["course"]["volatile"] = True
        for output in node.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count


def _sample(node: NotebookNode, cell: _Cell, before: NotebookNode | None) -> list[NotebookNode]:
    """The labeled output of a volatile cell: the published one as long as cell and label are the same."""
    label = cell.flags["sample"]
    node.metadata["course"]["sample"] = label
    if before is not None:
        old = before.metadata.get("course", {})
        if old.get("shipped") == digest(cell.source) and old.get("sample") == label:
            return list(before.outputs)
    text = f"Measured on {label}; your numbers will differ."
    data = {"text/markdown": f"*{text}*", "text/plain": text}
    return [nbformat.v4.new_output("display_data", data=data), *node.outputs]


def _golden_outputs(lesson: Lesson, notebook: NotebookNode, cells: list[_Cell]) -> None:
    """Run each check on the reference, which must pass, and record the goldens."""
    failures = []
    together = {e.name: sources.solved_source(e) for e in lesson.exercises.values() if e.kind == "part"}
    with Sandbox(lesson.day) as sandbox:
        for count, (node, cell) in enumerate(zip(notebook.cells, cells, strict=True), 1):
            node.execution_count = count
            if "exercise" not in cell.flags:
                continue
            name, index = cell.flags["exercise"], cell.flags["index"]
            if name in lesson.exercises:
                solved = sources.solved_source(lesson.exercises[name])
                checks = lesson.exercises[name].checks
                job = Job(name, index, solved, timeout=checks[index].timeout if checks else 10.0)
            else:
                check = lesson.together[index]
                job = Job(name, index, "", check.source, check.timeout, together)
            outcome = sandbox.run(job)
            golden = cell.flags.pop("golden")
            node.metadata["course"] |= {"exercise": name, "index": index, "says": cell.flags["says"]}
            if not outcome.passed:
                text = f"{name}: the reference fails its own check ({outcome.status}): {outcome.message}"
                shown = [f"{k}: {v}" for k in ("given", "expected", "got") if (v := getattr(outcome, k))]
                failures.append(LessonError(lesson.path, cell.line, "\n    ".join([text, *shown])))
            elif golden and outcome.value is None:
                failures.append(
                    LessonError(lesson.path, cell.line, f"{name}: the check ends in a value, got None")
                )
            elif golden:
                data = {"text/plain": outcome.value}
                output = nbformat.v4.new_output("execute_result", data=data, execution_count=count)
                node.outputs = [output]
    if failures:
        raise BuildError(failures)


# What must not be published


def lint(notebook: NotebookNode, where: str, kind: str, lines: dict[str, int] | None = None) -> list[str]:
    """What is wrong with a built notebook. `kind`: "learner", "solved" or "checks".

    `where` names the file. With `lines`, a line for each cell id, it is the lesson, and these are its lines.
    """
    found: list[str] = []
    for number, cell in enumerate(notebook.cells, 1):
        name = cell.get("id", "without id")
        place = f"{where}:{lines[name]}: cell {name}" if lines else f"{where}: cell {number} ({name})"
        for marker in _MARKER.findall(cell.source):
            # nbval reads only the exact line; with more on it, the cell is silently not compared.
            if kind != "checks" or marker != CHECK_OUTPUT:
                found.append(f"{place}: nbval would ignore or misread the line {marker.strip()!r}")
        for path in (str(sources.LIBRARY.parent), str(Path.home())):
            if len(path) > 1 and re.search(re.escape(path) + r"(?![\w-])", cell.source):
                found.append(f"{place}: names a folder of this machine, {path}")
        if cell.cell_type != "code":
            continue
        if kind == "learner":
            if cell.outputs or cell.execution_count is not None:
                found.append(f"{place}: the learner's notebook comes without outputs")
            continue
        if cell.execution_count is None:
            found.append(f"{place}: has no execution count, with which nbval would pass anything")
        golden = kind == "checks" and CHECK_OUTPUT in cell.source.split("\n")
        if golden and [output.output_type for output in cell.outputs] != ["execute_result"]:
            found.append(f"{place}: a golden is one result, got {len(cell.outputs)} outputs")
        found += [f"{place}: {problem}" for output in cell.outputs for problem in _lint_output(output)]
    return found


def _lint_output(output: NotebookNode) -> Iterator[str]:
    if output.output_type == "error":
        yield f"ends in an error: {output.ename}: {output.evalue}"
    if output.output_type == "stream" and output.name == "stderr":
        yield f"writes to stderr: {output.text.strip()[:200]!r}"
        return  # a warning shows a path as well: one complaint is enough
    data = output.get("data", {})
    texts = [output.get("text", ""), *(v for k, v in data.items() if k.startswith("text/"))]
    for text in texts:
        if match := _ADDRESS.search(text):
            yield f"shows an address in memory, {match[0]!r}"
        if match := _PATH.search(text):
            yield f"shows a path of this machine, {match[0]!r}"
        if len(text) > OUTPUT_LIMIT:
            yield f"shows {len(text):,} characters; {OUTPUT_LIMIT:,} are the limit"
    for kind, content in data.items():
        if kind.startswith("image/") and len(content) > IMAGE_LIMIT:
            yield f"holds a figure of {len(content):,} bytes; {IMAGE_LIMIT:,} are the limit"


# Building


def make(day: int, execute: bool = True, measure: bool = False) -> Built:
    """Build a day's notebooks in memory; without `execute` the learner's only. BuildError, LessonError.

    The labeled samples of volatile cells are kept as published, unless `measure` asks for new ones.
    """
    started = time.perf_counter()
    lesson = load_lesson(day)
    short = problems(lesson)
    if short:
        raise BuildError(short)
    folder = lesson.path.parent.name
    learner_cells, solved_cells = _learner_and_solved(lesson)
    told = list(leaks(lesson, [(cell.kind, cell.name, cell.source) for cell in learner_cells]))
    if told:
        raise BuildError(told)
    made = [_Made("learner", Path("days", folder, "lesson.ipynb"), lesson, learner_cells)]
    if execute:
        made.append(_Made("solved", Path("solutions", folder, "lesson.ipynb"), lesson, solved_cells))
        made.append(_Made("checks", Path("checks", f"day_{day:02d}.ipynb"), lesson, _checks(lesson)))
    for path in bonuses(lesson.path.parent):
        bonus, name = load_bonus(path), path.with_suffix(".ipynb").name
        made.append(_Made("learner", Path("days", folder, name), bonus, _bonus(bonus, _BONUS_WHAT_TO_DO)))
        if execute and importlib.util.find_spec(str(bonus.needs)) is None:
            print(f"{path.name}: {bonus.needs} is not installed here, so its output stays as it is published")
        elif execute:
            cells = _bonus(bonus, _BONUS_WHAT_THIS_IS)
            made.append(_Made("solved", Path("solutions", folder, name), bonus, cells))
    found: list[str] = []
    files = {}
    for kind, target, source, cells in made:
        notebook = _notebook(source, cells)
        if kind == "solved":
            _execute(source, notebook, cells)
            _settle(notebook, cells, None if measure else _read(root() / target))
        elif kind == "checks":
            _golden_outputs(source, notebook, cells)
        lines = {slug(cell.name): cell.line for cell in cells}
        found += lint(notebook, str(source.path), kind, lines)
        nbformat.validate(notebook)
        files[target] = nbformat.writes(notebook, version=4).rstrip("\n") + "\n"
    if found:
        raise BuildError(found)
    return Built(day, files, time.perf_counter() - started)


def _read(path: Path) -> NotebookNode | None:
    try:
        return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    except (OSError, ValueError):
        return None


def build_day(day: int, execute: bool = True, always: bool = True, measure: bool = False) -> list[Path]:
    """Build a day and write its notebooks; returns the files that changed.

    Unless `always`, nothing is done if lesson, library and notebooks are the same as last time. A
    notebook in days/ that somebody has worked in is copied to .course/backups/ before it is replaced.
    """
    if not always and _is_up_to_date(day):
        return []
    changed = _write(make(day, execute, measure))
    if execute:
        _remember(day)
    return changed


def _write(built: Built) -> list[Path]:
    changed = []
    for target, text in built.files.items():
        path = root() / target
        if path.is_file():
            if path.read_text(encoding="utf-8") == text:
                continue
            if target.parts[0] == "days" and not is_pristine(_read(path)):
                parts.back_up(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        changed.append(target)
    return changed


def is_pristine(notebook: NotebookNode | None) -> bool:
    """Whether a notebook is as it was built: nobody has edited, added or run a cell of it."""
    if notebook is None:
        return False
    for cell in notebook.cells:
        if cell.get("metadata", {}).get("course", {}).get("shipped") != digest(cell.source):
            return False
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None):
            return False
    return True


def build_all(days: Iterable[int] | None = None, execute: bool = True) -> list[Path]:
    """Build the days, or those of all that need it, and return the files that changed."""
    if days is not None:
        return [path for day in days for path in build_day(day, execute)]
    return [path for day in available_days() for path in build_day(day, execute, always=False)]


def _state(day: int) -> str:
    """A fingerprint of all that a day's notebooks are made of, and of the notebooks."""
    lesson = load_lesson(day)
    files = sorted(p for p in sources.LIBRARY.rglob("*.py") if parts.mine_folder() not in p.parents)
    files += [find_day(e.home, lesson.path.parents[2]) / "lesson.md" for e in lesson.exercises.values()]
    folder = lesson.path.parent.name
    files += [root() / "days" / folder / "lesson.ipynb", lesson.path.with_suffix(".ipynb")]
    for bonus in bonuses(lesson.path.parent):
        built = bonus.with_suffix(".ipynb")
        files += [bonus, built, root() / "days" / folder / built.name]
    files += [root() / "checks" / f"day_{day:02d}.ipynb", sources.LIBRARY.parent / "pyproject.toml"]
    state = hashlib.sha256(sys.version.encode())
    for path in files:
        state.update(f"{path}\0".encode() + (path.read_bytes() if path.is_file() else b"") + b"\0")
    return state.hexdigest()


def _states() -> dict[str, str]:
    try:
        found = json.loads((root() / ".course" / "lessons.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _is_up_to_date(day: int) -> bool:
    return _states().get(str(day)) == _state(day)


def _remember(day: int) -> None:
    path = root() / ".course" / "lessons.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(_states() | {str(day): _state(day)}, indent=1) + "\n", encoding="utf-8")


def differing(days: Iterable[int] | None = None) -> list[Path]:
    """Rebuild the days and name the files that differ from what lies in the course's folder.

    A notebook in days/ that a learner has worked in counts as equal if the cells it was shipped with are the
    same.
    """
    return [path for day in days or available_days() for path in stale(make(day))]


def stale(built: Built, outputs: bool = True) -> list[Path]:
    """The files of a built day that differ from those in the course's folder.

    Without `outputs` only the cells are compared: last digits and pixels are those of the platform
    on which they were published, and another processor rounds a sum otherwise.
    """
    found = []
    for target, text in built.files.items():
        path = root() / target
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        there = _read(path)
        if not outputs and _shipped(there) == _shipped(nbformat.reads(text, as_version=4)):
            continue
        in_use = target.parts[0] == "days" and there is not None and not is_pristine(there)
        if not in_use or _shipped(there) != _shipped(nbformat.reads(text, as_version=4)):
            found.append(target)
    return found


def _shipped(notebook: NotebookNode | None) -> list[tuple[str, str]]:
    cells = notebook.cells if notebook is not None else []
    marks = [
        (cell.get("id", ""), cell.get("metadata", {}).get("course", {}).get("shipped")) for cell in cells
    ]
    return [mark for mark in marks if mark[1]]
