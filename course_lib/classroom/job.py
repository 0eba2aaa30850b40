"""One job, in the process made for it: the learner's cell, the part replaced, the check, the verdict."""

import __future__

import ast
import contextlib
import linecache
import signal
import sys
import time
import traceback
import types
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from course_lib.classroom import expect, kernels, quiz, substitute
from course_lib.classroom.confine import MEMORY

if TYPE_CHECKING:
    from course_lib.classroom.worker import DayState


def _register(filename: str, source: str) -> None:
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)


def _futures(setup: str) -> int:
    """Compiler flags of the set-up's `from __future__` imports, which hold for later cells, too."""
    flags = 0
    for node in ast.parse(setup).body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for alias in node.names:
                flags |= getattr(__future__, alias.name).compiler_flag
    return flags


def compile_cell(source: str, filename: str, flags: int = 0) -> types.CodeType:
    """Compile a learner's cell; lines with notebook magics (%timeit, !ls) are left out."""
    _register(filename, source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            return compile(source, filename, "exec", flags, dont_inherit=True)
        except SyntaxError:
            bare = without_magics(source)
            if bare == source:
                raise
            return compile(bare, filename, "exec", flags, dont_inherit=True)


def without_magics(source: str) -> str:
    """The cell with its IPython lines (%magic, !command) as comments; other lines keep their numbers."""
    lines = source.split("\n")
    return "\n".join("#" + text if text.lstrip().startswith(("%", "!")) else text for text in lines)


def run_source(source: str, namespace: dict[str, Any], filename: str) -> Any:
    """Execute statements; the value of the last one if it is an expression, else None."""
    _register(filename, source)
    tree = ast.parse(source, filename)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, filename, "exec", dont_inherit=True), namespace)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), filename, "eval", dont_inherit=True), namespace)


class Bench:
    """The namespace of one job: set-up, the learner's cell, the part replaced."""

    def __init__(self, day: "DayState", job: dict[str, Any]):
        self.day, self.job = day, job
        self.exercise = day.exercise(job["exercise"])
        self.filename = substitute.cell_filename(self.exercise.name)
        self.module = types.ModuleType("__main__")
        self.answers: dict[str, Any] = {}
        sys.modules["__main__"] = self.module  # the home of the learner's classes, for pickle and dataclasses
        self.namespace = self.module.__dict__
        linecache.clearcache()

    def set_up(self, exercise: Any, namespace: dict[str, Any]) -> None:
        exec(compile(self.day.setup(exercise), "<set-up>", "exec", dont_inherit=True), namespace)
        for name in ("check", "hint", "solution", "drill", "predict", "measured"):
            namespace[name] = lambda *args, **kwargs: None  # they belong to the notebook, not to the grading
        answers = self.answers

        def answer(name: str, value: Any = ...) -> None:
            answers[name] = value

        namespace["answer"] = answer

    def learner(self) -> None:
        """Run the cell and put the learner's object where the library uses it."""
        exercise = self.exercise
        if exercise.kind == "quiz":
            self.set_up(exercise, self.namespace)
            refuse_changes = substitute.Modules().refuse_changes  # held before the cell could replace it
            exec(compile_cell(self.job["cell_source"], self.filename), self.namespace)
            refuse_changes()
            return
        if exercise.kind == "kernel":
            # Text only: the checks compile and launch it.
            self.set_up(exercise, self.namespace)
            text = kernels.without_magic(self.job["cell_source"])
            name = exercise.file.rpartition("/")[2]
            self.namespace["source"] = kernels.KernelSource.of(text, exercise.language, name)
            self.modules = substitute.Modules()
            return
        swaps = self.swaps()
        for _, swap, _ in swaps:
            swap.install()
        base = self.day.lesson.path.parent.parent.parent
        files = {sys.modules[swap.part.module].__file__ or "" for _, swap, _ in swaps}
        substitute.hide_sources(files, (str(base / "solutions"), str(base / "checks")), self.filename)
        for other, swap, source in swaps:
            namespace = self.namespace if other is exercise else {"__name__": "__main__"}
            self.run_cell(other, swap, source, namespace)
        if exercise.kind == "together":
            self.set_up(exercise, self.namespace)
        for other, swap, _ in swaps:
            # In a check of all parts together the neighbors are the learner's as well.
            if other is not exercise and swap.short in self.namespace and not swap.is_method:
                self.namespace[swap.short] = swap.target
        self.modules = substitute.Modules()

    def swaps(self) -> list[tuple[Any, substitute.Substitution, str]]:
        """The parts to be replaced, each with its exercise and the learner's cell, the one checked first."""
        cells = {} if self.exercise.kind == "together" else {self.exercise.name: self.job["cell_source"]}
        found: dict[str, tuple[Any, substitute.Substitution, str]] = {}
        for name, source in {**cells, **self.job["together"]}.items():
            other = self.day.exercise(name)
            if other.part is not None:
                swap = substitute.Substitution(other.part, substitute.cell_filename(name))
                found.setdefault(
                    swap.part.key, (other, swap, source)
                )  # a repair may ask for a part of the day
        return list(found.values())

    def run_cell(
        self, exercise: Any, swap: substitute.Substitution, source: str, names: dict[str, Any]
    ) -> None:
        """Run a learner's cell after its set-up and hand its object to the substitution."""
        setup = self.day.setup(exercise)
        self.set_up(exercise, names)
        names.pop(swap.short, None)
        code = compile_cell(source, swap.filename, _futures(setup))
        forbid = [*exercise.forbid, *substitute.INTROSPECTION]
        found = substitute.forbidden_use(without_magics(source), setup, forbid)
        if found:
            raise substitute.refuse(found)
        substitute.guard_forbidden(exercise.forbid, swap.filename)
        refuse_changes = substitute.Modules().refuse_changes
        exec(code, names)
        refuse_changes()
        # Once more, for modules that the cell itself has imported.
        substitute.guard_forbidden(exercise.forbid, swap.filename)
        swap.adopt(names)

    def check(self, index: int) -> Any:
        """Run one check; its golden value, or None."""
        exercise = self.exercise
        if exercise.kind == "quiz":
            self.quiz()
            return None
        source = self.job["check_source"]
        if source is None:
            source = exercise.checks[index].source
        # Of several checks in one process each has the names to itself.
        namespace = self.namespace if self.job["check_index"] is not None else dict(self.namespace)
        namespace.update(expect.NAMES)
        if exercise.kind == "repair":
            namespace["broken"] = self.broken()
        refuse_changes = self.modules.refuse_changes
        expect.begin_check()
        value = run_source(source, namespace, f"<check {index + 1} of {exercise.name}>")
        refuse_changes()
        expect.end_check()
        return value if expect.has_golden(source) else None

    def compare(self, index: int, text: str | None) -> None:
        """Raise CheckFailure if the check's golden is another one."""
        want = self.job["goldens"].get(str(index))
        if want is not None and text != want:
            line = ast.unparse(ast.parse(self.exercise.checks[index].source).body[-1])
            message, mark = f"the value of `{line}` differs", f"golden: {text}"
            raise expect.CheckFailure(message, "", want, str(text), "golden", mark)

    def broken(self) -> Any:
        """The function of a repair exercise as it was handed out."""
        namespace: dict[str, Any] = {"__name__": "broken"}
        self.set_up(self.exercise, namespace)
        exec(compile(self.exercise.skeleton, "<broken>", "exec", dont_inherit=True), namespace)
        return namespace[self.exercise.part.rpartition(".")[2]]

    def quiz(self) -> None:
        """Compare the learner's answer with the key, computed from the lesson; never tell the key."""
        exercise = self.exercise
        if exercise.name not in self.answers:
            given = ", ".join(self.answers) or "none"
            raise quiz.wrong(f'the cell calls no answer("{exercise.name}", …); answers found: {given}')
        quiz.judge(exercise, self.answers[exercise.name], self.evaluate)

    def evaluate(self, source: str) -> Any:
        namespace: dict[str, Any] = {"__name__": "key"}
        self.set_up(self.exercise, namespace)
        return run_source(source, namespace, "<answer key>")


class _TooLong(BaseException):
    pass


@contextlib.contextmanager
def _limit_seconds(seconds: float | None) -> Iterator[None]:
    """Interrupt Python code after so many seconds; code in C is left to the job's own deadline."""
    if seconds is None:
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _TooLong

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_job(day: "DayState", job: dict[str, Any]) -> dict[str, Any]:
    """Run one job to its end, in a process made for it. Returns the fields of an Outcome."""
    started = time.perf_counter()
    report: dict[str, Any] = {"status": "passed"}
    stage = "harness"
    index = job["check_index"] or 0
    try:
        bench = Bench(day, job)
        stage = "cell"
        bench.learner()
        stage = "check"
        indices = range(len(bench.exercise.checks) or 1) if job["check_index"] is None else [index]
        for index in indices:
            with _limit_seconds(job["limits"].get(str(index))):
                value = bench.check(index)
            if value is not None:
                report["value"] = expect.golden_text(value)
            bench.compare(index, report.get("value"))
            if substitute.violations:
                break
        if isinstance(bench.namespace.get("source"), kernels.KernelSource):
            report["ran"] = ", ".join(f"in the {place}" for place in sorted(bench.namespace["source"].ran_on))
    except BaseException as error:  # SystemExit and KeyboardInterrupt are the learner's, too
        report = _verdict(error, stage)
    if substitute.violations:
        report = {"status": "failed", "kind": "delegation", "message": substitute.violations[0]}
        report["fingerprint"] = "delegation"
    report["check"] = index
    report["seconds"] = time.perf_counter() - started
    return report


def _verdict(error: BaseException, stage: str) -> dict[str, Any]:
    """The fields of an Outcome for an error in the stage "harness", "cell" or "check"."""

    def said(status: str, kind: str, message: str, mark: str) -> dict[str, Any]:
        return {"status": status, "kind": kind, "message": message, "fingerprint": mark}

    name, cause = type(error).__name__, error.__cause__
    if isinstance(error, expect.CheckFailure):
        if isinstance(cause, BaseException) and (_out_of_memory(cause) or isinstance(cause, _TooLong)):
            return _verdict(cause, stage)
        texts = {"given": str(error.given), "expected": error.expected, "got": error.got}
        return said("failed", error.kind, error.message, error.fingerprint) | texts
    if isinstance(error, _TooLong):
        return said("timeout", "timeout", f"no result in time{_at(error)}", "timeout")
    if getattr(error, "of_the_kernel", False):  # the kernel lab's words about a learner's kernel
        return said("failed", name, str(error), f"{name}: {getattr(error, 'fingerprint', '')}")
    if _out_of_memory(error):
        text = f"your code asks for more than {MEMORY // 1024**3} GB of memory{_at(error)}"
        return said("memory", "memory", text, "memory")
    if isinstance(error, substitute.NotYours):
        return said("failed", "not yours", str(error), f"not yours: {error}")
    if isinstance(error, SyntaxError) and str(error.filename).startswith(expect.CELL_PREFIX):
        line = (error.text or "").strip()[:80]
        where = f"line {error.lineno}" + (f": {line}" if line else "")
        return said("error", name, f"your cell is not valid Python: {error.msg} ({where})", "syntax")
    text = expect.error_text(error)
    if stage == "cell" and expect.cell_line(error):
        text = f"your cell stops before anything is checked: {text}"
    elif not expect.cell_line(error):
        where = "by the check" if stage == "check" else "before your cell ran"
        text = f"{text}; raised {where}{_at_check(error)}"
    return said("error", name, text, expect.error_mark(error))


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _at(error: BaseException) -> str:
    place = expect.cell_line(error)
    return f" ({place})" if place else ""


def _at_check(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith("<check")]
    return f" in its line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
