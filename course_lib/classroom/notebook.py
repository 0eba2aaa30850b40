"""What a lesson's cells call: check, hint, solution, answer, drill, predict, measured.

`check` grades what the learner ran last: it takes the source of the latest executed cell that defines the
exercise, and runs the day's checks on it in the sandbox, with the reference in place of every other part. A
helper process, started in the background when the set-up cell imports this module, has everything loaded,
so that a verdict takes milliseconds.

Everything prints plain text: it reads the same in JupyterLab, in VS Code and on the web.
"""

import ast
import difflib
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from textwrap import fill, indent
from typing import Any, ParamSpec

from course_lib.classroom import drills, kernels, predictions, progress
from course_lib.classroom import lesson as lessons
from course_lib.classroom.lesson import Exercise, Lesson

P = ParamSpec("P")
WIDTH = 92  # columns of a notebook's output on a laptop
GREEN, RED, YELLOW, PLAIN = "\x1b[1;32m", "\x1b[1;31m", "\x1b[1;33m", "\x1b[0m"


class Friendly(Exception):
    """Something the learner can mend; printed as a sentence, without a traceback."""


def _building() -> bool:
    """Whether the solved notebooks are being built: nothing is kept then, and nothing printed that varies."""
    return bool(os.environ.get("COURSE_BUILD"))


def _sentences(function: Callable[P, None]) -> Callable[P, None]:
    """Print what the learner can mend as a sentence. While a notebook is built, such a thing is an error."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except (Friendly, progress.ProgressError) as problem:
            if _building():
                raise
            _say(str(problem))

    return wrapped


def _say(text: str) -> None:
    """Print, with lines of prose wrapped: JupyterLab breaks long ones in the middle of a word."""
    for line in text.split("\n"):
        prose = len(line) > WIDTH and not line.startswith((" ", "\x1b"))
        print(fill(line, WIDTH, break_long_words=False, break_on_hyphens=False) if prose else line)


def _paint(color: str, text: str) -> str:
    shell = _shell()
    return text if _building() or shell is None or not hasattr(shell, "kernel") else f"{color}{text}{PLAIN}"


def _shell() -> Any:
    """The running IPython, or None in a plain Python."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def _day() -> int | None:
    """The day whose notebook this is, from its path; None elsewhere."""
    for place in (os.environ.get("JPY_SESSION_NAME", ""), os.environ.get("COURSE_DAY", ""), str(Path.cwd())):
        # JupyterLab's session is named after the notebook's path; a kernel's folder is the notebook's.
        found = re.search(r"day_(\d\d)_", place) or re.fullmatch(r"(\d{1,2})", place)
        if found:
            return int(found[1])
    return None


def _find(name: Any) -> tuple[Lesson, Exercise]:
    """The exercise or question of that name, this day's before others'. Its last part will do."""
    if not isinstance(name, str):  # check(softmax) means check("softmax")
        name = getattr(name, "__name__", name)
    if not isinstance(name, str) or not name.strip():
        raise Friendly(
            f'Give the name of an exercise in quotes, such as check("numerics.softmax"); got {name!r}.'
        )
    name, here, found = name.strip(), _day(), []
    for day in sorted(lessons.available_days(), key=lambda day: (day != here, day)):
        found.append(lessons.load_lesson(day))
        if name in found[-1].exercises:
            return found[-1], found[-1].exercises[name]
    if not found:
        raise Friendly(
            f"No lessons were found under {lessons.root() / 'solutions'}: is this a full copy of the course?"
        )
    for lesson in found:
        short = [e for e in lesson.exercises.values() if e.name.rpartition(".")[2] == name]
        if len(short) == 1:
            return lesson, short[0]
    raise Friendly(f'There is no exercise or question called "{name}".{_did_you_mean(name, found)}')


def _did_you_mean(name: str, found: list[Lesson]) -> str:
    days = {exercise: lesson.day for lesson in reversed(found) for exercise in lesson.exercises}
    full = {exercise.rpartition(".")[2]: exercise for exercise in days} | {
        exercise: exercise for exercise in days
    }
    near = dict.fromkeys(full[text] for text in difflib.get_close_matches(name, full, n=3, cutoff=0.6))
    if near:
        return " Did you mean " + " or ".join(f'"{text}" (day {days[text]})' for text in near) + "?"
    today = next((lesson for lesson in found if lesson.day == _day()), None)
    return f" Day {today.day} has: {', '.join(today.order)}." if today else ""


@dataclass(frozen=True)
class RunCell:
    """A cell as it was executed: its source, its number (`In [7]`) and its id if the front end tells it."""

    source: str
    number: int
    id: str | None = None


_RUN: list[RunCell] = []


def _remember_cell(result: Any) -> None:
    """Called after each cell has run. Its id outlives a renamed function and a syntax error."""
    if result.info.store_history and result.info.raw_cell:
        cell_id = getattr(result.info, "cell_id", None)
        _RUN.append(RunCell(result.info.raw_cell, result.execution_count, cell_id))


def _history() -> list[RunCell]:
    """The cells that have been run in this kernel, the latest first."""
    if _shell() is None:
        raise Friendly(
            "There is no notebook here: check() looks at the cells you have run. In a terminal, "
            "`make check-day N` grades the saved notebook."
        )
    return _RUN[::-1]


def _defines(source: str, names: set[str]) -> bool:
    """Whether a cell defines a function, class or variable of one of these names at its top level."""
    try:
        tree = ast.parse(
            "\n".join("" if t.lstrip().startswith(("%", "!")) else t for t in source.split("\n"))
        )
    except SyntaxError:
        # It was meant to: the checks will say what is wrong with it.
        return any(
            re.search(rf"^(async +def|def|class) +{re.escape(n)}\b", source, re.MULTILINE) for n in names
        )
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name in names:
            return True
        if isinstance(node, ast.Assign):
            targets = {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
            if targets & names:
                return True
    return False


def _is_exercise_cell(cell: RunCell, lesson: Lesson, exercise: Exercise) -> bool:
    """By its id where that is one of the lesson's exercises, else by what it defines."""
    from course_lib.classroom.build import slug

    ids = {slug(name) for name in lesson.exercises}
    if cell.id in ids:
        return cell.id == slug(exercise.name)
    if exercise.kind == "kernel":
        return kernels.cell_line(cell.source, exercise) is not None
    if exercise.kind == "quiz":
        return re.search(rf"\banswer\(\s*[\"']{re.escape(exercise.name)}[\"']", cell.source) is not None
    # A repair redefines a part that may be an exercise of the same day; failing_input tells the two apart.
    is_repair = _defines(cell.source, {"failing_input"})
    name = (exercise.part or exercise.name).rpartition(".")[2]
    return is_repair == (exercise.kind == "repair") and _defines(cell.source, {name})


def _latest_cell(lesson: Lesson, exercise: Exercise) -> RunCell:
    for cell in _history():
        if _is_exercise_cell(cell, lesson, exercise):
            return cell
    raise Friendly(
        f"{exercise.name}: you have not run its cell yet. Run the cell of the exercise first "
        "(Shift+Enter), then this one; "
        "after a restart of the kernel every cell must be run again."
    )


def _latest_exercise() -> tuple[Lesson, Exercise]:
    """For check() without a name: the exercise whose cell was run last."""
    day = _day()
    if day is None or day not in lessons.available_days():
        raise Friendly('Outside of a day\'s notebook, say which exercise: check("numerics.softmax").')
    lesson = lessons.load_lesson(day)
    exercises = [e for e in lesson.exercises.values() if e.kind != "quiz"]
    for cell in _history():
        for exercise in exercises:
            if _is_exercise_cell(cell, lesson, exercise):
                return lesson, exercise
    raise Friendly(f"No exercise cell of day {day} has been run yet: run one (Shift+Enter), then check().")


class _Bench:
    """The sandboxes of this kernel, by day; today's is started in the background."""

    def __init__(self) -> None:
        self.sandboxes: dict[int, tuple[float, Any]] = {}
        self.lock = threading.Lock()

    def get(self, day: int) -> Any:
        """The running sandbox of a day; a new one if the lesson has changed under it, as after `make
        update`.
        """
        from course_lib.classroom.sandbox import Sandbox

        version = (lessons.find_day(day) / "lesson.md").stat().st_mtime
        with self.lock:
            known = self.sandboxes.get(day)
            if known and known[0] != version:
                known[1].close()
                known = None
            if known is None:
                known = self.sandboxes[day] = (version, Sandbox(day))
            known[1].start()
            return known[1]

    def warm(self, day: int) -> None:
        try:
            import course_lib.classroom.build
            import course_lib.classroom.checking  # noqa: F401

            self.get(day)
        except Exception:  # the first check meets it again and says it aloud
            pass


_BENCH = _Bench()


def _get_ready() -> None:
    """When a kernel imports this module: remember the cells' ids, and start today's sandbox without waiting
    for it.
    """
    shell = _shell()
    if shell is None:
        return
    raw = shell.history_manager.input_hist_raw
    _RUN.extend(RunCell(text, number) for number, text in enumerate(raw[:-1]) if text)
    shell.events.register("post_run_cell", _remember_cell)
    for language in kernels.ENDINGS:
        shell.register_magic_function(_kernel_magic(language), "cell", language)
    day = _day()
    if hasattr(shell, "kernel") and day in lessons.available_days():
        threading.Thread(target=_BENCH.warm, args=(day,), name="classroom-warm-up", daemon=True).start()


@_sentences
def check(name: Any = None) -> None:
    """Check an exercise: the function you ran last, on inputs of the course's choosing. Without a name, the
    last one run.
    """
    lesson, exercise = _find(name) if name is not None else _latest_exercise()
    if exercise.kind == "quiz":
        cell = _latest_cell(lesson, exercise)
        raise Friendly(
            f"{exercise.name} is a question: running its cell (In [{cell.number}]) already says "
            "right or wrong."
        )
    _check_cell(lesson, exercise, _latest_cell(lesson, exercise))


def _check_cell(lesson: Lesson, exercise: Exercise, cell: RunCell) -> None:
    started = time.perf_counter()
    verdict = _verdict(lesson, exercise, cell.source)
    seconds = time.perf_counter() - started
    if verdict.status in ("passed", "failed"):
        with progress.edit() as kept:
            progress.record_try(kept, exercise.name, lesson.day, verdict.status == "passed")
    _say(_verdict_text(lesson, exercise, cell, verdict, seconds))


def _kernel_magic(language: str) -> Callable[[str, str], None]:
    """`%%cuda kernels_cuda/vector_add.cu`, `%%metal …`: the cell is the answer of that exercise; check it."""

    @_sentences
    def magic(line: str, cell: str = "") -> None:
        lesson, exercise = _find(line)
        if exercise.kind != "kernel" or exercise.language != language:
            raise Friendly(f"{exercise.name} is no exercise in {language}: name a kernel after %%{language}.")
        shell = _shell()
        number = shell.execution_count if shell is not None else 0
        _check_cell(lesson, exercise, RunCell(f"%%{language} {exercise.name}\n{cell}", number))

    return magic


def _verdict(lesson: Lesson, exercise: Exercise, source: str) -> Any:
    from course_lib.classroom.checking import check_exercise
    from course_lib.classroom.diagnose import looks_as_if
    from course_lib.classroom.sandbox import SandboxError

    try:
        sandbox = _BENCH.get(lesson.day)
        verdict = check_exercise(sandbox, exercise, source, diagnose=False, show_broken=True)
        # A notebook does not wait for what a slow solution's known mistakes do; `make check-day` does.
        failure = verdict.first_failure if verdict.status == "failed" else None
        if failure is not None and failure.outcome is not None and failure.outcome.status != "timeout":
            verdict = replace(verdict, diagnosis=looks_as_if(sandbox, exercise, verdict, budget=1.0))
    except SandboxError as problem:
        raise Friendly(f"The check could not run, through no fault of your code: {problem}") from None
    return verdict


def _verdict_text(lesson: Lesson, exercise: Exercise, cell: RunCell, verdict: Any, seconds: float) -> str:
    where = "" if _building() else f"  In [{cell.number}], {seconds:.1f} s"
    name = exercise.name
    if verdict.status == "passed":
        count = len(verdict.checks)
        checks = "its check" if count == 1 else f"all {count} checks"
        place = f" {verdict.reason}" if verdict.reason else ""  # of a kernel: "in the kernel lab"
        text = f"{_paint(GREEN, 'passed' + place)}  {name}: {checks}{where}"
        if exercise.kind == "kernel":
            text = "\n".join([text, *_printed(verdict)])
        return f'{text}\nsolution("{name}") shows the course\'s own.'
    if verdict.status == "not attempted":
        again = "mend it and run it" if exercise.is_repair else "write your code in it and run it"
        if exercise.kind != "kernel":  # whose own cell is the check
            again += ", then run this one again"
        text = f"{_paint(YELLOW, 'not attempted')}  {name}{where}\n{_sentence(f'{verdict.reason}: {again}.')}"
        if (broken := verdict.first_failure) is not None:  # of a kernel to repair, run as it was handed out
            text += f"\nThe first check that fails: {broken.says}.\n{_sentence(broken.outcome.message)}\n"
        return f"{text}\n{_next_hint(exercise)}"
    failure = verdict.first_failure
    if failure is None:
        return f"{_paint(YELLOW, verdict.status)}  {name}{where}\n{_sentence(verdict.reason)}"
    from course_lib.classroom.checking import same_everywhere

    outcome, count = failure.outcome, len(verdict.checks)
    passed = sum(1 for check in verdict.checks if check.outcome is not None and check.outcome.passed)
    if same_everywhere(outcome):  # the cell itself is at fault, not what it does on some input
        blocks = [f"{_paint(RED, 'failed')}  {name}{where}", _sentence(outcome.message)]
    else:
        head = f"{_paint(RED, 'failed')}  {name}: {passed} of {count} checks pass{where}"
        blocks = [head, f"The first that does not: {failure.says}.\n{_sentence(outcome.message)}"]
    rows = [_row("given", outcome.given), _row("expected", outcome.expected), _row("got", outcome.got)]
    blocks.append("\n".join(row for row in rows if row))
    if verdict.diagnosis:
        blocks.append(f"It looks as if {_full_stop(verdict.diagnosis)}")
    if outcome.stdout.strip():
        blocks.append(f"  Your code printed:\n{indent(_shorten(outcome.stdout.rstrip()), '    ')}")
    blocks += [_helper_elsewhere(outcome.message), _next_hint(exercise)]
    return "\n\n".join(block for block in blocks if block)


def _printed(verdict: Any) -> list[str]:
    """What the checks of a kernel printed: its report."""
    found = [c.outcome.stdout.rstrip() for c in verdict.checks if c.outcome is not None]
    return [f"\n{indent(text, '  ')}\n" for text in found if text.strip()]


def _row(label: str, text: str) -> str:
    first, _, rest = text.partition("\n")
    return f"  {label:<9} {first}" + (f"\n{indent(rest, ' ' * 12)}" if rest else "") if text else ""


def _full_stop(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def _sentence(text: str) -> str:
    """With a capital and a full stop, but for the file's name that a kernel's message begins with and a line
    of its source at the end, where a stop would look like the learner's."""
    if not re.match(r"\S+\.(cu|metal)\b", text):
        text = text[:1].upper() + text[1:]
    return text if not text or text.split("\n")[-1].startswith("    ") else _full_stop(text)


def _shorten(text: str, lines: int = 12) -> str:
    kept = text.split("\n")
    return text if len(kept) <= lines else "\n".join([*kept[:lines], f"… {len(kept) - lines} more lines"])


def _helper_elsewhere(message: str) -> str:
    """A name that the notebook knows and the exercise's cell does not: a helper that stands in another
    cell.
    """
    found = re.search(r"NameError: name '(\w+)' is not defined", message)
    shell = _shell()
    if found and shell is not None and found[1] in shell.user_ns:
        return (
            f"Your notebook has {found[1]}, but in another cell: put helpers and imports into the "
            "exercise's own cell, "
            "which becomes a part of your engine."
        )
    return ""


def _next_hint(exercise: Exercise) -> str:
    shown, count = (
        progress.load()["hints"].get(exercise.name, 0) if not _building() else 0,
        len(exercise.hints),
    )
    if not count:
        return ""
    if shown >= count:
        return f'All {count} hints are told: hint("{exercise.name}") shows them again.'
    return f'Next: hint("{exercise.name}"), number {shown + 1} of {count}.'


@_sentences
def hint(name: Any) -> None:
    """Tell one hint more at each call; after the last, all of them again."""
    _, exercise = _find(name)
    hints = exercise.hints
    if not hints:
        raise Friendly(f"{exercise.name} has no hints; its docstring says what is wanted.")
    with progress.edit() as kept:
        shown = kept["hints"].get(exercise.name, 0)
        kept["hints"][exercise.name] = min(shown + 1, len(hints))
        progress.touch(kept)
    if shown < len(hints):
        _say(f"Hint {shown + 1} of {len(hints)}, {exercise.name}\n\n{hints[shown].strip()}")
        if shown + 1 == len(hints):
            _say(f'\nThat was the last. If it does not help: solution("{exercise.name}", anyway=True).')
        return
    for number, text in enumerate(hints, 1):
        _say(f"Hint {number} of {len(hints)}, {exercise.name}\n\n{text.strip()}\n")
    _say(f'There are no more. If they do not help: solution("{exercise.name}", anyway=True).')


@_sentences
def solution(name: Any, anyway: bool = False) -> None:
    """Show the course's own solution: once yours has passed, or after all hints with `anyway=True`."""
    lesson, exercise = _find(name)
    kept = progress.load() if not _building() else progress.new()
    passed = exercise.name in progress.passed_names(kept, lesson.day)
    left = len(exercise.hints) - kept["hints"].get(exercise.name, 0)
    if not passed and left > 0:
        hints = "1 hint is" if left == 1 else f"{left} hints are"
        test = "answered it" if exercise.kind == "quiz" else f'passed check("{exercise.name}")'
        raise Friendly(
            f"The solution shows once you have {test}. {hints.capitalize()} still untold: "
            f'hint("{exercise.name}").'
        )
    if not passed and not anyway:
        raise Friendly(
            "You have had all hints. One more try often does it; otherwise "
            f'solution("{exercise.name}", anyway=True).'
        )
    from course_lib.classroom.sources import solved_source

    if exercise.kind == "quiz":
        print(exercise.body.strip())
        return
    print(solved_source(exercise).strip())


@_sentences
def answer(quiz: str, value: Any = ...) -> None:
    """Answer a question: say at once whether the answer is right, and if not, why."""
    lesson, exercise = _find(quiz)
    if exercise.kind != "quiz":
        raise Friendly(
            f'{exercise.name} is an exercise, not a question: write its cell, then check("{exercise.name}").'
        )
    if value is ...:
        _say(
            f"{_paint(YELLOW, 'not answered')}  {exercise.name}: put your answer in place of the "
            "dots, run the cell."
        )
        return
    plain = _plain(value)
    verdict = (
        _verdict(lesson, exercise, f"answer({exercise.name!r}, {plain!r})") if plain is not None else None
    )
    right = verdict is not None and verdict.status == "passed"
    with progress.edit() as kept:
        progress.record_try(kept, exercise.name, lesson.day, right)
    if right:
        reason = exercise.options.get(str(value).strip().lower(), "")
        _say(
            f"{_paint(GREEN, 'right')}  {exercise.name}: {_shown(value)}" + (f". {reason}" if reason else "")
        )
        return
    if verdict is None:
        reason = f"the answer is {_wanted(exercise)}, and this is {type(value).__name__}"
    else:
        reason = verdict.reason
    _say(
        f"{_paint(RED, 'wrong')}  {exercise.name}: "
        f"{_shown(value)}\n{_sentence(reason)}\n{_next_hint(exercise)}".rstrip()
    )


def _plain(value: Any) -> int | float | str | None:
    """An answer as something whose repr is its value; None for what no question asks for."""
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item() if not callable(getattr(value, "numel", None)) or value.numel() == 1 else None
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value
    try:
        number = float(value)  # Fraction, Decimal, NumPy's scalars
    except (TypeError, ValueError):
        return None
    return number if number == number and abs(number) != float("inf") else None


def _wanted(exercise: Exercise) -> str:
    if exercise.kind == "quiz" and exercise.options:
        return f"one of the letters {', '.join(exercise.options)}"
    return "a whole number" if exercise.tolerance.get("kind") == "integer" else "a finite number"


def _shown(value: Any) -> str:
    text = repr(value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value)
    return text if len(text) <= 60 else text[:57] + "…"


@_sentences
def drill(topic: str = "shapes", value: Any = ...) -> None:
    """An endless game: `drill("shapes")` asks, `drill("shapes", (3, 4))` grades the answer and asks the
    next.
    """
    if topic not in drills.TOPICS:
        near = difflib.get_close_matches(str(topic), drills.TOPICS, n=1)
        text = f'Did you mean "{near[0]}"?' if near else f"There are: {', '.join(drills.TOPICS)}."
        raise Friendly(f"There is no drill called {topic!r}. {text}")
    with progress.edit() as kept:
        state = kept["drills"].setdefault(topic, {"asked": 0, "right": 0, "streak": 0, "best": 0})
        if value is not ...:
            _grade_drill(kept, state, topic, value)
        question = drills.question(topic, kept["seed"], state["asked"], state["streak"])
        number = state["asked"] + 1
    ask = "What shape comes out?\n" if isinstance(question.answer, tuple | str) else ""
    call = f'Answer with drill("{topic}", (2, 3)); "error" if it does not work.'
    call = call if ask else f'Answer with drill("{topic}", 1024).'
    _say(
        f"Question {number}. {ask}\n{question.text}\n\n{call}"
        if ask
        else f"Question {number}.\n\n{question.text}\n\n{call}"
    )


def _grade_drill(kept: dict[str, Any], state: dict[str, int], topic: str, value: Any) -> None:
    question = drills.question(topic, kept["seed"], state["asked"], state["streak"])
    given = drills.read_answer(value)
    if given is None:
        raise Friendly(
            f'{_shown(value)} is no answer: give a shape such as (3, 4), a whole number, or "error".'
        )
    right = drills.is_right(given, question.answer)
    state["asked"] += 1
    state["right"] += right
    state["streak"] = state["streak"] + 1 if right else 0
    state["best"] = max(state["best"], state["streak"])
    progress.touch(kept)
    if right:
        _say(
            f"{_paint(GREEN, 'right')}  {question.answer}. {state['streak']} in a row, best "
            f"{state['best']}.\n"
        )
    else:
        _say(f"{_paint(RED, 'wrong')}  {_shown(value)}; it is {question.answer}. {question.why}\n")


def _number(what: str, value: Any) -> int | float:
    number = _plain(value)
    if not isinstance(number, int | float):
        raise Friendly(f"{what} is a number; {_shown(value)} is {type(value).__name__}.")
    return number


@_sentences
def predict(label: str, value: Any = ...) -> None:
    """Write down an estimate before the cell that measures: `predict("decode tok/s", 40)`."""
    if value is ...:
        _say(
            f"{_paint(YELLOW, 'no estimate yet')}  {label}: put a number in place of the dots. A "
            "guess is enough."
        )
        return
    number = _number("An estimate", value)
    key, day = _prediction_key(label)
    with progress.edit() as kept:
        entry = kept["predictions"].get(key)
        if entry and entry["measured"] is not None:
            _say(
                f"{label}: your first estimate, {predictions.say(entry['predicted'])}, stands; it "
                "has been measured."
            )
            return
        kept["predictions"][key] = {
            "day": day,
            "label": label,
            "predicted": number,
            "measured": None,
            "at": progress.now(),
        }
        progress.touch(kept)
    _say(f"{label}: you say {predictions.say(number)}. Now measure.")


@_sentences
def measured(label: str, value: Any) -> None:
    """Hold a measurement against the estimate of the same label, and say how far off it was."""
    if _building():
        return
    number = _number("A measurement", value)
    key, _ = _prediction_key(label)
    with progress.edit() as kept:
        entry = kept["predictions"].get(key)
        if entry is None:
            known = [
                e["label"] for k, e in kept["predictions"].items() if k.startswith(key.partition(":")[0])
            ]
            near = difflib.get_close_matches(label, known, n=1)
            also = (
                f' Did you mean "{near[0]}"?'
                if near
                else " Next time, predict first: it is half of the lesson."
            )
            raise Friendly(f"{label}: measured {predictions.say(number)}; you made no estimate.{also}")
        if entry["measured"] is None:
            entry["measured"] = number
            progress.touch(kept)
    _say(f"{label}: {predictions.verdict(entry['predicted'], number)}")


def _prediction_key(label: str) -> tuple[str, int]:
    if not isinstance(label, str) or not label.strip():
        raise Friendly(f'Say in words what is estimated: predict("decode tok/s", 40); got {label!r}.')
    day = _day() or 0
    return f"{day}:{label}", day


_get_ready()
