"""A place to run a learner's code that always answers: `with Sandbox(5) as s: s.run(Job(...)) -> Outcome`.

One warmed process a day (see worker.py) forks a child for each job, so that a verdict costs milliseconds and
no piece of code can disturb the next, the grader or the notebook.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from course_lib.classroom.lesson import root

STATUSES = ("passed", "failed", "error", "timeout", "crashed", "memory")


@dataclass(frozen=True)
class Job:
    """One check of one cell. `check_index` None runs all checks in one child and stops at the first that
    fails.
    """

    exercise: str
    check_index: int | None
    cell_source: str
    check_source: str | None = None  # instead of the lesson's
    timeout: float = 10.0
    together: Mapping[str, str] = field(default_factory=dict)  # cells of further parts to use, by exercise
    goldens: Mapping[int, str] = field(default_factory=dict)  # by check: the text its value must have
    limits: Mapping[int, float] = field(
        default_factory=dict
    )  # by check: seconds it may take within `timeout`


@dataclass(frozen=True)
class Outcome:
    """What came of a job. `value` is the golden's text; `fingerprint` is equal for equal failures; `check`
    its index.
    """

    status: str
    kind: str = ""
    message: str = ""
    given: str = ""
    expected: str = ""
    got: str = ""
    value: str | None = None
    stdout: str = ""
    seconds: float = 0.0
    fingerprint: str = ""
    check: int = 0
    ran: str = ""  # of a kernel: on what, as "in the kernel lab"

    @property
    def passed(self) -> bool:
        return self.status == "passed"


class SandboxError(RuntimeError):
    """The worker itself cannot start or has died: a fault of the course or the machine, not of a learner's
    code.
    """


class Sandbox:
    """The warmed process of a day. Starts at the first job (or `start()`), ends with `close()` or its owner's
    death.

    `mutants` of the reference and hostile cells leave no trace: each job is a child of its own.
    """

    def __init__(self, day: int):
        self.day, self.root = day, root()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Sandbox":
        self.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Start the worker and wait until the lesson is read. SandboxError with the worker's words if it
        can't.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        environment = dict(os.environ) | {
            "PARTS": "reference",
            "PYTHONHASHSEED": "0",
            "COURSE_ROOT": str(self.root),
        }
        for name, value in {
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "MPLBACKEND": "agg",
        }.items():
            environment.setdefault(name, value)
        if environment.get("MPLBACKEND", "").startswith("module://"):
            environment["MPLBACKEND"] = "agg"  # a kernel's inline figures mean nothing here
        package = Path(__file__).resolve().parents[2]
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(package), environment.get("PYTHONPATH", "")])
        )
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "course_lib.classroom.worker", str(self.day)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # an interrupt of the notebook is not for it
        )
        atexit.register(self.close)
        hello = self._read(120.0)
        if "ready" not in hello:
            problem = hello.get("problem") or "it ended without a word"
            self.close()
            raise SandboxError(f"the checking process of day {self.day} does not start: {problem}")

    def close(self) -> None:
        """End the worker and whatever it runs."""
        process, self._process = self._process, None
        atexit.unregister(self.close)
        if process is not None:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
            try:
                process.wait(2.0)
            except subprocess.TimeoutExpired:
                _kill(process)
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def run(self, job: Job) -> Outcome:
        """Run a job and wait for its outcome, which comes whatever the code does, soon after `job.timeout`
        at the latest.
        """
        with self._lock:
            for attempt in (1, 2):
                self.start()
                assert self._process is not None
                assert self._process.stdin is not None
                line = json.dumps(asdict(job)).encode() + b"\n"
                try:
                    self._process.stdin.write(line)
                    self._process.stdin.flush()
                    report = self._read(job.timeout + 60.0)
                except (BrokenPipeError, ConnectionResetError):
                    report = {}
                except BaseException:  # Ctrl-C in a notebook: the reply would be taken for the next job's
                    self.close()
                    raise
                if "status" in report:
                    return Outcome(**report)
                words = self._last_words()
                self.close()
                if attempt == 2:
                    raise SandboxError(f"the checking process of day {self.day} died: {words}")
        raise AssertionError

    def _read(self, seconds: float) -> dict[str, Any]:
        """One line from the worker, {} if it has ended; SandboxError after `seconds`."""
        assert self._process is not None
        assert self._process.stdout is not None
        stdout = self._process.stdout.fileno()
        end, data = time.monotonic() + seconds, b""
        while not data.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                _kill(self._process)
                raise SandboxError(f"the checking process of day {self.day} is silent for {seconds:g} s")
            chunk = os.read(stdout, 1 << 16)
            if not chunk:
                return {}
            data += chunk
        found: dict[str, Any] = json.loads(data)
        return found

    def _last_words(self) -> str:
        if self._errors is None:
            return ""
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "no message"


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
