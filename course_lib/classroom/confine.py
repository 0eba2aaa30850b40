"""The walls around one check: a process of its own that can harm nobody, and whose last words are kept.

Its session is its own, so that all it starts can be ended together; its folder is empty, its keyboard
missing, its memory limited. What it prints goes to shared memory, so that it survives a crash.
"""

import contextlib
import io
import mmap
import os
import resource
import sys
from typing import Any

MEMORY = 6 * 1024**3  # bytes of address space for a check, on top of what is loaded before it
KEPT = 4096  # bytes of the learner's printed output that are kept
FILE_SIZE = 2 * 1024**3  # bytes: an endless write must not fill the disk
FORKS = 32  # processes a check may start


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


def isolate(folder: str, tape: Tape, timeout: float) -> None:
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
        _limit(resource.RLIMIT_AS, _mapped() + MEMORY)
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


def _mapped() -> int:
    """Bytes of address space in use already: the libraries of a CUDA build alone may be several gigabytes."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 0


def _limit(what: int, size: int) -> None:
    hard = resource.getrlimit(what)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(what, (size if hard < 0 else min(size, hard), hard))


_libc: Any = None


def prctl(option: int, value: int) -> None:
    global _libc
    if _libc is None:
        import ctypes

        _libc = ctypes.CDLL(None)
    _libc.prctl(option, value, 0, 0, 0)
