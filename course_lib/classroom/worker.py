"""The process behind a `Sandbox`: warm, single-threaded, and forked once for every check.

It imports what the day's checks need and runs no tensor code itself (a fork after torch has used OpenMP
hangs). Each job runs in a child of its own (confine.py, job.py) under a deadline. Whatever a learner's code
does to its process (exit, crash, endless loop, patched NumPy), the worker answers with a verdict and its
next child is clean. Where forking is unsafe (macOS) the child is spawned instead.

    python -m course_lib.classroom.worker 5        speaks JSON lines on stdin and stdout; see sandbox.py
"""

import ast
import contextlib
import errno
import gc
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

from course_lib.classroom.confine import Tape, isolate, prctl
from course_lib.classroom.expect import CELL_PREFIX
from course_lib.classroom.job import run_job
from course_lib.classroom.lesson import load_lesson
from course_lib.classroom.sources import check_setup_sources
from course_lib.classroom.substitute import find_part

SPAWN = sys.platform == "darwin" or bool(os.environ.get("COURSE_SPAWN"))


class DayState:
    """What a day's jobs share: the lesson, its set-up sources, the modules already imported."""

    def __init__(self, day: int):
        self.lesson = load_lesson(day)
        self._setups: dict[str, str] = {}
        self._warm: set[str] = set()

    def exercise(self, name: str) -> Any:
        if name.endswith(".together"):  # no exercise of its own: the lesson's checks of all parts at once
            checks = self.lesson.together
            return types.SimpleNamespace(name=name, kind="together", part=None, checks=checks, body="")
        if name.endswith(".each"):  # and the first check of each part
            checks = [e.checks[0] for e in self.lesson.exercises.values() if e.kind in ("part", "warmup")]
            return types.SimpleNamespace(name=name, kind="together", part=None, checks=checks, body="")
        return self.lesson.exercises[name]

    def setup(self, exercise: Any) -> str:
        if not self._setups:
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
        if imports_torch(self.setup(exercise)):
            # The first optimizer that is made imports this, and this replaces torch.manual_seed: in a check
            # that would look as if the learner's cell had done it.
            with contextlib.suppress(Exception):
                importlib.import_module("torch._dynamo")
        if exercise.part is not None:
            with contextlib.suppress(Exception):
                find_part(exercise.part)
        gc.collect()
        gc.freeze()  # children then share these pages instead of copying them at their first collection


def imports_torch(source: str) -> bool:
    """Whether a set-up cell is that of a torch day; NumPy days whose checks ask torch need no optimizer."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    named = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    named |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    return any(name.partition(".")[0] == "torch" for name in named)


def _child(day: "DayState", job: dict[str, Any], folder: str, result: int, token: bytes) -> None:
    """The whole life of a child process. Never returns. Its result begins with the token."""
    me = os.getpid()
    os.setsid()
    if sys.platform == "linux":
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a dead worker leaves nobody behind
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    tape = Tape(os.path.join(folder, "tape"))
    isolate(folder, tape, job["timeout"])
    report = run_job(day, job)
    if os.getpid() != me:  # the learner's code has forked, and both of us came back
        os._exit(0)
    data = json.dumps(report).encode("utf-8", "replace")
    data = token + len(data).to_bytes(8, "little") + data
    while data:
        data = data[os.write(result, data) :]
    os._exit(0)


def supervise(day: DayState, job: dict[str, Any], commands: int, replies: int) -> dict[str, Any] | None:
    """Run a job in a child and wait for its result, its death or its deadline. None if our own owner has
    gone.
    """
    folder = tempfile.mkdtemp(prefix="course-check-")
    os.mkdir(os.path.join(folder, "cwd"))
    tape = Tape(os.path.join(folder, "tape"), create=True)
    read, write = os.pipe()
    token = os.urandom(16)  # whatever else is written into the pipe is no result
    started = time.monotonic()
    report: dict[str, Any] | None = None
    gone = False
    pid = _spawn(day, job, folder, write, token) if SPAWN else os.fork()
    if pid == 0:
        try:
            for fd in (read, commands, replies):
                os.close(fd)
            _child(day, job, folder, write, token)
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
                if not data.startswith(token[: len(data)]):
                    text = "your code writes into files that it has not opened"
                    report = {"status": "crashed", "kind": "exit", "message": text, "fingerprint": text}
                    break
                size = int.from_bytes(data[16:24], "little")
                if len(data) >= 24 + size and size:
                    report = json.loads(data[24 : 24 + size])
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


def _spawn(day: DayState, job: dict[str, Any], folder: str, write: int, token: bytes) -> int:
    command = [
        sys.executable,
        "-m",
        "course_lib.classroom.worker",
        "--child",
        str(day.lesson.day),
        folder,
        str(write),
    ]
    Path(folder, "job.json").write_text(json.dumps([job, token.hex()]))
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
    with contextlib.suppress(OSError):
        for line in Path(folder, "where").read_text(errors="replace").splitlines():
            if f'File "{CELL_PREFIX}' in line:
                return f"; it was at line {line.partition(', line ')[2].partition(' ')[0]} of your cell"
    return ""


def main(argv: list[str]) -> None:
    if argv[0] == "--child":
        day, folder, write = DayState(int(argv[1])), argv[2], int(argv[3])
        job, token = json.loads(Path(folder, "job.json").read_text())
        os.remove(Path(folder, "job.json"))
        day.warm(job)
        _child(day, job, folder, write, bytes.fromhex(token))
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
            prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
        day = DayState(int(argv[0]))
    except BaseException as error:
        reply({"problem": f"{type(error).__name__}: {error}"})
        raise
    reply({"ready": day.lesson.day})
    source = os.fdopen(commands, "rb", buffering=0)
    for line in source:
        job = json.loads(line)
        if job["exercise"] not in day.lesson.exercises and not job["exercise"].endswith(
            (".together", ".each")
        ):
            text = f"day {day.lesson.day} has no exercise {job['exercise']}"
            reply({"status": "error", "kind": "harness", "message": text})
            continue
        try:
            day.warm(job)
            report = supervise(day, job, commands, replies)
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
