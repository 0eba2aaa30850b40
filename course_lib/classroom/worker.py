"""The process behind a `Sandbox`: warm, single-threaded, and forked once for every check.

It imports what the day's checks need and runs no tensor code itself (a fork after torch has used OpenMP
hangs). Each job runs in a child: its own session, an empty folder, no keyboard, at most 6 GB, a deadline.
Whatever a learner's code does to its process (exit, crash, endless loop, patched NumPy), the worker answers
with a verdict and its next child is clean. Where forking is unsafe (macOS) the child is spawned instead.

    python -m course_lib.classroom.worker 5        speaks JSON lines on stdin and stdout; see sandbox.py
"""

import __future__

import ast
import contextlib
import errno
import io
import json
import linecache
import mmap
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEMORY = 6 * 1024**3  # bytes of address space for a check
KEPT = 4096  # bytes of the learner's printed output that are kept
FILE_SIZE = 2 * 1024**3  # bytes: an endless write must not fill the disk
FORKS = 32  # processes a check may start
SPAWN = sys.platform == "darwin" or bool(os.environ.get("COURSE_SPAWN"))


# in the child


class Tape(io.RawIOBase):
    """Shared memory with the first 4 kB printed: they survive a crash. Bytes 0..8: length, 8..16: forks."""

    def __init__(self, path: str, create: bool = False):
        if create:
            with open(path, "wb") as file:
                file.truncate(16 + KEPT)
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 16 + KEPT)
        self.full, self.uncounted = False, 0

    def _count(self, at: int, add: int) -> int:
        value = int.from_bytes(self.memory[at : at + 8], "little") + add
        self.memory[at : at + 8] = value.to_bytes(8, "little")
        return value

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = len(data)
        if self.full:  # a million lines are counted by the 64 kB
            self.uncounted += size
            if self.uncounted > 1 << 16:
                self._count(0, self.uncounted)
                self.uncounted = 0
            return size
        length = self._count(0, size) - size
        kept = bytes(data[: max(0, KEPT - length)])
        self.memory[16 + length : 16 + length + len(kept)] = kept
        self.full = length + size >= KEPT
        return size

    def add_fork(self) -> int:
        return self._count(8, 1)

    def text(self) -> str:
        length = self._count(0, 0)
        text = self.memory[16 : 16 + min(length, KEPT)].decode("utf-8", "replace")
        return text + (f"\n… ({length:,} bytes printed, the first {KEPT:,} kept)" if length > KEPT else "")


def _isolate(folder: str, tape: Tape, timeout: float) -> None:
    """Turn this fresh process into one that can harm nobody."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stderr = io.TextIOWrapper(tape, encoding="utf-8", errors="replace", write_through=True)
    sys.__stdout__ = sys.__stderr__ = sys.stdout  # type: ignore[misc]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_FSIZE, FILE_SIZE)
    if sys.platform == "linux" and not os.path.exists(
        "/dev/nvidia0"
    ):  # CUDA reserves more address space than that
        _limit(resource.RLIMIT_AS, MEMORY)
    os.chdir(os.path.join(folder, "cwd"))

    import faulthandler

    where = open(os.path.join(folder, "where"), "w")  # noqa: SIM115  lives as long as the process
    faulthandler.enable(where)
    faulthandler.dump_traceback_later(max(0.1, timeout - 0.2), file=where)

    def hook(event: str, args: tuple) -> None:
        if (
            event in ("os.fork", "os.forkpty", "subprocess.Popen", "os.posix_spawn")
            and tape.add_fork() > FORKS
        ):
            raise PermissionError(f"your code starts more than {FORKS} processes")

    sys.addaudithook(hook)


def _limit(what: int, size: int) -> None:
    hard = resource.getrlimit(what)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(what, (size if hard < 0 else min(size, hard), hard))


def _register(filename: str, source: str) -> None:
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)


def _futures(setup: str) -> int:
    """Compiler flags of the set-up's `from __future__` imports, which hold for the cells after it as in a
    notebook.
    """
    names = [
        a.name
        for n in ast.walk(ast.parse(setup))
        if isinstance(n, ast.ImportFrom) and n.module == "__future__"
        for a in n.names
    ]
    return sum(getattr(__future__, name).compiler_flag for name in set(names))


def _compile(source: str, filename: str, flags: int = 0) -> types.CodeType:
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
        from course_lib.classroom import substitute

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
        namespace["answer"] = self._answer

    def _answer(self, name: str, value: Any = ...) -> None:
        self.answers[name] = value

    def learner(self) -> None:
        """Run the cell and put the learner's object where the library uses it."""
        from course_lib.classroom import substitute

        exercise = self.exercise
        cells = {exercise.name: self.job["cell_source"]} if exercise.kind != "together" else {}
        cells |= self.job["together"]
        installed: list[tuple[Any, Any, substitute.Substitution, str]] = []
        files = set()
        for name, source in cells.items():
            other = self.day.exercise(name)
            if other.part is None:
                continue
            swap = substitute.Substitution(other.part, substitute.cell_filename(name))
            if any(swap.part.key == earlier[2].part.key for earlier in installed):
                continue  # a repair and its part on one day: the exercise being checked comes first
            files.add(sys.modules[swap.part.module].__file__ or "")
            installed.append((other, self.namespace if other is exercise else {}, swap, source))
        for _, _, swap, _ in installed:
            swap.install()
        if exercise.kind == "quiz":
            self.set_up(exercise, self.namespace)
            modules = substitute.Modules()
            exec(_compile(self.job["cell_source"], self.filename), self.namespace)
            modules.refuse_changes()
            return
        base = self.day.lesson.path.parent.parent.parent
        substitute.hide_sources(files, (str(base / "solutions"), str(base / "checks")), self.filename)
        for other, namespace, swap, source in installed:
            namespace.setdefault("__name__", "__main__")
            self.set_up(other, namespace)
            namespace.pop(swap.short, None)
            code = _compile(source, swap.filename, _futures(self.day.setup(other)))
            found = substitute.forbidden_use(without_magics(source), self.day.setup(other), other.forbid)
            if found:
                raise substitute.refuse(found)
            substitute.guard_forbidden(other.forbid, swap.filename)
            modules = substitute.Modules()
            exec(code, namespace)
            modules.refuse_changes()
            substitute.guard_forbidden(
                other.forbid, swap.filename
            )  # modules that the cell itself has imported
            swap.adopt(namespace)
        if exercise.kind == "together":
            self.set_up(exercise, self.namespace)
        for other, _, swap, _ in installed:
            # In a check of all parts together the neighbors are the learner's as well.
            if other is not exercise and swap.short in self.namespace and not swap.is_method:
                self.namespace[swap.short] = swap.target
        self.modules = substitute.Modules()

    def check(self, index: int) -> Any:
        """Run one check; its golden value, or None."""
        from course_lib.classroom import expect

        exercise = self.exercise
        if exercise.kind == "quiz":
            self.quiz()
            return None
        source = self.job.get("check_source")
        if source is None:
            source = exercise.checks[index].source
        namespace = self.namespace
        namespace.update(expect.NAMES)
        if exercise.kind == "repair":
            namespace["broken"] = self.broken()
        expect.begin_check()
        value = run_source(source, namespace, f"<check {index + 1} of {exercise.name}>")
        self.modules.refuse_changes()
        expect.end_check()
        return value if expect.has_golden(source) else None

    def compare(self, index: int, text: str | None) -> None:
        """Raise CheckFailure if the check's golden is another one."""
        from course_lib.classroom import expect

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
        from course_lib.classroom import quiz

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
    from course_lib.classroom import expect, substitute

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
    except BaseException as error:  # SystemExit and KeyboardInterrupt are the learner's, too
        report = _verdict(error, stage)
    if substitute.violations:
        report = {"status": "failed", "kind": "delegation", "message": substitute.violations[0]}
        report["fingerprint"] = "delegation"
    report["check"] = index
    report["seconds"] = time.perf_counter() - started
    return report


def _verdict(error: BaseException, stage: str) -> dict[str, Any]:
    from course_lib.classroom import expect, substitute

    if isinstance(error, expect.CheckFailure):
        cause = error.__cause__
        if isinstance(cause, BaseException) and (_out_of_memory(cause) or isinstance(cause, _TooLong)):
            return _verdict(cause, stage)
        fields = {
            name: str(getattr(error, name))
            for name in ("kind", "message", "given", "expected", "got", "fingerprint")
        }
        return {"status": "failed", **fields}
    name = type(error).__name__
    if isinstance(error, _TooLong) or isinstance(error.__cause__, _TooLong):
        text = f"no result in time{_at(error)}"
        return {"status": "timeout", "kind": "timeout", "message": text, "fingerprint": "timeout"}
    if _out_of_memory(error):
        return {
            "status": "memory",
            "kind": "memory",
            "message": f"your code asks for more than {MEMORY // 1024**3} GB of memory{_at(error)}",
            "fingerprint": "memory",
        }
    if isinstance(error, substitute.NotYours):
        return {
            "status": "failed",
            "kind": "not yours",
            "message": str(error),
            "fingerprint": f"not yours: {error}",
        }
    if (
        isinstance(error, SyntaxError)
        and stage == "cell"
        and str(error.filename).startswith(expect.CELL_PREFIX)
    ):
        line = (error.text or "").strip()
        text = (
            f"your cell is not valid Python: {error.msg} (line {error.lineno}{': ' + line if line else ''})"
        )
        return {"status": "error", "kind": name, "message": text, "fingerprint": "syntax"}
    text = expect.error_text(error)
    if stage == "cell" and expect.cell_line(error):
        text = f"your cell stops before anything is checked: {text}"
    elif not expect.cell_line(error):
        where = "by the check" if stage == "check" else "before your cell ran"
        text = f"{text}; raised {where}{_at_check(error)}"
    return {"status": "error", "kind": name, "message": text, "fingerprint": f"error: {name}"}


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _at(error: BaseException) -> str:
    from course_lib.classroom import expect

    place = expect.cell_line(error)
    return f" ({place})" if place else ""


def _at_check(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith("<check")]
    return f" in its line {frames[-1].lineno}: {frames[-1].line}" if frames else ""


def _child(day: "DayState", job: dict[str, Any], folder: str, result: int) -> None:
    """The whole life of a child process. Never returns."""
    me = os.getpid()
    os.setsid()
    if sys.platform == "linux":
        _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a dead worker leaves nobody behind
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    tape = Tape(os.path.join(folder, "tape"))
    _isolate(folder, tape, job["timeout"])
    report = run_job(day, job)
    if os.getpid() != me:  # the learner's code has forked, and both of us came back
        os._exit(0)
    data = json.dumps(report).encode("utf-8", "replace")
    data = len(data).to_bytes(8, "little") + data
    while data:
        data = data[os.write(result, data) :]
    os._exit(0)


# in the worker

_libc: Any = None


def _prctl(option: int, value: int) -> None:
    global _libc
    if _libc is None:
        import ctypes

        _libc = ctypes.CDLL(None)
    _libc.prctl(option, value, 0, 0, 0)


class DayState:
    """What a day's jobs share: the lesson, its set-up sources, the modules already imported."""

    def __init__(self, day: int):
        from course_lib.classroom import expect, quiz, substitute  # noqa: F401  imported before the first fork
        from course_lib.classroom.lesson import load_lesson

        self.lesson = load_lesson(day)
        self._setups: dict[str, str] = {}
        self._warm: set[str] = set()

    def exercise(self, name: str) -> Any:
        if name.endswith(".together"):  # no exercise of its own: the lesson's checks of all parts at once
            fields = {
                "name": name,
                "kind": "together",
                "part": None,
                "checks": self.lesson.together,
                "body": "",
            }
            return types.SimpleNamespace(**fields)
        return self.lesson.exercises[name]

    def setup(self, exercise: Any) -> str:
        if not self._setups:
            from course_lib.classroom.sources import check_setup_sources

            self._setups = check_setup_sources(self.lesson)
        return self._setups["together" if exercise.kind == "together" else exercise.name]

    def warm(self, job: dict[str, Any]) -> None:
        """Import what this job's set-up and checks import, once, so that children find it there."""
        name = job["exercise"]
        if name in self._warm:
            return
        self._warm.add(name)
        exercise = self.exercise(name)
        sources = [self.setup(exercise), *(check.source for check in exercise.checks), exercise.body]
        for source in sources:
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    alone = ast.fix_missing_locations(ast.Module([node], []))
                    with contextlib.suppress(Exception):  # it is reported by the check that needs it
                        exec(compile(alone, "<warm>", "exec", dont_inherit=True), {"__name__": "warm"})
        if exercise.part is not None:
            from course_lib.classroom.substitute import find_part

            with contextlib.suppress(Exception):
                find_part(exercise.part)


def supervise(day: DayState, job: dict[str, Any], commands: int) -> dict[str, Any] | None:
    """Run a job in a child and wait for its result, its death or its deadline. None if our own owner has
    gone.
    """
    folder = tempfile.mkdtemp(prefix="course-check-")
    os.mkdir(os.path.join(folder, "cwd"))
    tape = Tape(os.path.join(folder, "tape"), create=True)
    read, write = os.pipe()
    started = time.monotonic()
    report: dict[str, Any] | None = None
    gone = False
    pid = _spawn(day, job, folder, write) if SPAWN else os.fork()
    if pid == 0:
        try:
            os.close(read)
            _child(day, job, folder, write)
        finally:
            os._exit(70)
    os.close(write)
    data = b""
    status: int | None = None
    end = started + job["timeout"] + (5.0 if SPAWN else 0.0)  # a spawned child imports everything anew
    try:
        watch = [read, commands] if _silent(commands) else [read]
        while True:
            left = end - time.monotonic()
            ready = select.select(watch, [], [], max(0.0, min(left, 0.02)))[0]
            if commands in ready and not select.select([read], [], [], 0)[0]:
                gone = True
                break
            if read in ready:
                chunk = os.read(read, 1 << 16)
                data += chunk
                if len(data) >= 8 and len(data) >= 8 + int.from_bytes(data[:8], "little"):
                    report = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
                    break
                if not chunk:
                    watch = [fd for fd in watch if fd != read]
            if status is None:
                done, code = os.waitpid(pid, os.WNOHANG)
                if done:
                    status = code
                    if not data:
                        break
            elif not data or not ready:
                break
            if left <= 0:
                break
    finally:
        os.close(read)
        _end(pid, reaped=status is not None)
    seconds = time.monotonic() - started
    if report is None and not gone:
        report = _death(status, job["timeout"], folder) | {"seconds": seconds}
    if report is not None:
        report["stdout"] = tape.text()
    shutil.rmtree(folder, ignore_errors=True)
    return None if gone else report


def _silent(commands: int) -> bool:
    """Whether nothing waits on our input yet; from then on its becoming readable means that our owner has
    gone.
    """
    return not select.select([commands], [], [], 0)[0]


def _spawn(day: DayState, job: dict[str, Any], folder: str, write: int) -> int:
    command = [
        sys.executable,
        "-m",
        "course_lib.classroom.worker",
        "--child",
        str(day.lesson.day),
        folder,
        str(write),
    ]
    Path(folder, "job.json").write_text(json.dumps(job))
    return subprocess.Popen(
        command, pass_fds=[write], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ).pid


def _end(pid: int, reaped: bool) -> None:
    """Kill a child with everything it has started, also what has left its process group."""
    for _ in range(200):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        if not reaped:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            reaped = True
        # We are the subreaper: what it left behind is now our child.
        strays = _children()
        if not strays:
            return
        for stray in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stray, signal.SIGKILL)
        for stray in strays:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(stray, 0)


def _children() -> list[int]:
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def _death(status: int | None, timeout: float, folder: str) -> dict[str, Any]:
    """The verdict on a child that sent no result: killed by us, by the system, by a signal, or by itself."""
    place = _place(folder)
    if status is None:
        text = f"no result after {timeout:g} s: your code does not come to an end{place}"
        return {"status": "timeout", "kind": "timeout", "message": text, "fingerprint": "timeout"}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL:
            text = "the system ended your code, most likely because memory ran out"
            return {"status": "memory", "kind": "memory", "message": text, "fingerprint": "memory"}
        name = signal.Signals(number).name
        what = {"SIGSEGV": "a segmentation fault", "SIGABRT": "an abort", "SIGFPE": "a division fault"}.get(
            name, name
        )
        return {
            "status": "crashed",
            "kind": name,
            "message": f"your code crashed its process with {what}{place}",
            "fingerprint": f"crashed: {name}",
        }
    code = os.WEXITSTATUS(status)
    text = f"your code ended its process (exit status {code}) before the check was through"
    return {"status": "crashed", "kind": "exit", "message": text, "fingerprint": f"crashed: exit {code}"}


def _place(folder: str) -> str:
    """The learner's line in the traceback that faulthandler wrote, the innermost one."""
    from course_lib.classroom.expect import CELL_PREFIX

    with contextlib.suppress(OSError):
        for line in Path(folder, "where").read_text(errors="replace").splitlines():
            if f'File "{CELL_PREFIX}' in line:
                return f"; it was at line {line.partition(', line ')[2].partition(' ')[0]} of your cell"
    return ""


def main(argv: list[str]) -> None:
    if argv[0] == "--child":
        day, folder, write = DayState(int(argv[1])), argv[2], int(argv[3])
        job = json.loads(Path(folder, "job.json").read_text())
        day.warm(job)
        _child(day, job, folder, write)
    commands, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what libraries print while they are imported is no reply
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C in a notebook is for the kernel; it then closes our input

    def reply(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(replies, data) :]

    try:
        if sys.platform == "linux":
            _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
        day = DayState(int(argv[0]))
    except BaseException as error:
        reply({"problem": f"{type(error).__name__}: {error}"})
        raise
    reply({"ready": day.lesson.day})
    source = os.fdopen(commands, "rb", buffering=0)
    for line in source:
        job = json.loads(line)
        if job["exercise"] not in day.lesson.exercises and not job["exercise"].endswith(".together"):
            text = f"day {day.lesson.day} has no exercise {job['exercise']}"
            reply({"status": "error", "kind": "harness", "message": text})
            continue
        try:
            day.warm(job)
            report = supervise(day, job, commands)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOMEM):
                raise
            report = {
                "status": "error",
                "kind": "harness",
                "message": f"this machine starts no process: {error}",
            }
        if report is None:
            return
        reply(report)


if __name__ == "__main__":
    main(sys.argv[1:])
