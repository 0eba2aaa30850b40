"""The runtime's structs as ctypes sees them, and how a launch is run: in a child process, with a time limit.

Mirrors runtime/launch.h; `lab_layout` in the library gives the sizes, so that a slip here can't go unseen.
"""

import ctypes
import os
import select
import signal
import time
from ctypes import POINTER, Structure, c_char, c_double, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path

from course_lib.kernels.lab.errors import LabError

LEVELS = ("off", "bounds", "counts", "races")
ACCESSES = ("read", "write", "atomic")
PATIENCE = 4  # seconds of waiting for one of processor time
SHARED_OBJECT, NO_OBJECT = 0x10000, 0xFFFFFFFF
_FINDINGS, _STATS, _SHARED, _TEXT, _TRACE = 64, 8192, 64, 65536, 65536


class Buffer(Structure):
    _fields_ = (
        ("host", c_void_p),
        ("size", c_uint64),
        ("begin", c_uint64),
        ("constant", c_uint32),
        ("reserved", c_uint32),
    )


class Pointer(Structure):
    _fields_ = (("argument", c_uint32), ("buffer", c_uint32), ("offset", c_uint64))


class Place(Structure):
    _fields_ = (("block", c_uint32 * 3), ("thread", c_uint32 * 3), ("line", c_uint32), ("kind", c_uint32))


class RawFinding(Structure):
    _fields_ = (
        ("kind", c_uint32),
        ("size", c_uint32),
        ("here", Place),
        ("other", Place),
        ("object", c_uint32),
        ("lanes", c_uint32),
        ("offset", c_int64),
        ("text", c_char * 104),
    )


class Stat(Structure):
    _fields_ = (
        ("line", c_uint32),
        ("object", c_uint32),
        ("kind", c_uint32),
        ("size", c_uint32),
        ("requests", c_uint64),
        ("accesses", c_uint64),
        ("bytes", c_uint64),
        ("sectors", c_uint64),
        ("ideal_sectors", c_uint64),
        ("wavefronts", c_uint64),
        ("ideal_wavefronts", c_uint64),
    )


class SharedArray(Structure):
    _fields_ = (
        ("name", c_char * 48),
        ("size", c_uint64),
        ("begin", c_uint64),
        ("line", c_uint32),
        ("dynamic", c_uint32),
    )


class Trace(Structure):
    _fields_ = (
        ("line", c_uint32),
        ("step", c_uint32),
        ("lane", c_uint32),
        ("object", c_uint32),
        ("kind", c_uint32),
        ("size", c_uint32),
        ("offset", c_uint64),
    )


class RawReport(Structure):
    _fields_ = (
        ("finished", c_uint32),
        ("findings", c_uint32),
        ("stats", c_uint32),
        ("shared", c_uint32),
        ("text", c_uint32),
        ("traced", c_uint32),
        ("barriers", c_uint64),
        ("warp_operations", c_uint64),
        ("atomics", c_uint64),
        ("shared_bytes", c_uint64),
        ("lost_stats", c_uint64),
        ("finding", RawFinding * _FINDINGS),
        ("array", SharedArray * _SHARED),
        ("stat", Stat * _STATS),
        ("printed", c_char * _TEXT),
        ("trace", Trace * _TRACE),
    )


class Launch(Structure):
    _fields_ = (
        ("grid", c_uint32 * 3),
        ("block", c_uint32 * 3),
        ("threads", c_uint32 * 3),
        ("warp_size", c_uint32),
        ("level", c_uint32),
        ("strict", c_uint32),
        ("sites", c_uint32),
        ("buffers", c_uint32),
        ("pointers", c_uint32),
        ("blocks", c_uint32),
        ("trace_warp", c_uint32),
        ("shared_bytes", c_uint64),
        ("trace_block", c_uint64),
        ("seconds", c_double),
        ("call", c_void_p),
        ("values", POINTER(c_void_p)),
        ("site_lines", POINTER(c_uint32)),
        ("order", c_void_p),
        ("buffer", POINTER(Buffer)),
        ("pointer", POINTER(Pointer)),
        ("argument_bytes", POINTER(c_uint64)),
        ("arguments", c_uint32),
        ("poison", c_uint32),
        ("report", POINTER(RawReport)),
        ("child", c_int32),
        ("pipe", c_int32),
        ("arena", c_void_p),
        ("arena_size", c_uint64),
    )


class Parameter(Structure):
    """How the compiler sees a kernel's parameter: LabParameter of runtime.h."""

    _fields_ = (
        ("pointer", c_uint32),
        ("constant", c_uint32),
        ("code", c_uint32),
        ("size", c_uint32),
        ("align", c_uint32),
    )

    @property
    def kind(self) -> str:
        """The element's kind as NumPy writes it, with bytes: "f4"; "" for a type of the source's own."""
        return f"{chr(self.code >> 8)}{self.code & 0xFF}" if self.code else ""


@dataclass(frozen=True)
class Ended:
    """How the child process ended: by itself (signal 0), by a signal, or after its time was up."""

    signal: int
    overtime: bool
    seconds: float


class Library:
    """A compiled module, loaded."""

    def __init__(self, path: Path):
        self.loaded = ctypes.CDLL(str(path))
        self.loaded.lab_layout.restype = c_uint32
        if self.loaded.lab_layout() != ctypes.sizeof(Launch) + ctypes.sizeof(RawReport):
            raise LabError("native.py and runtime/launch.h disagree about a struct")
        self.loaded.lab_start.argtypes = [POINTER(Launch)]
        self.loaded.lab_finish.argtypes = [POINTER(Launch), ctypes.c_int]

    def parameters(self, number: int) -> list[Parameter]:
        """The parameters of the module's kernel of that number."""
        ask = self.loaded[f"lab_parameters_{number}"]
        ask.restype, ask.argtypes = POINTER(Parameter), [POINTER(c_uint32)]
        count = c_uint32()
        found = ask(ctypes.byref(count))
        return [found[i] for i in range(count.value)]

    def entry(self, number: int) -> c_void_p:
        """The address that runs one thread of the kernel of that number."""
        return ctypes.cast(self.loaded[f"lab_call_{number}"], c_void_p)

    def start(self, launch: Launch) -> None:
        self.loaded.lab_start(ctypes.byref(launch))
        if launch.child < 0:
            self.finish(launch, copy=False)
            raise LabError(
                "the lab could not start the kernel's process: there is not enough memory for its arrays, "
                "or too many "
                "processes run. Use smaller arrays."
            )

    def finish(self, launch: Launch, copy: bool) -> None:
        """Copy results to the caller's arrays, if asked, and free the launch's memory."""
        self.loaded.lab_finish(ctypes.byref(launch), int(copy))


def wait(child: int, pipe: int, seconds: float) -> Ended:
    """Wait for the child. It is gone when this returns or raises.

    It stops itself after so many seconds of processor time; on a machine that is busy with other things that
    takes longer, and only a child that has four times as long and more is stopped from here.
    """
    began = time.perf_counter()
    overtime, status = False, None
    try:
        poll = select.poll()
        poll.register(pipe, select.POLLIN | select.POLLHUP)
        if not poll.poll(1000 * (PATIENCE * seconds + 5)):
            overtime = True
            os.kill(child, signal.SIGUSR1)  # it says where it is, and ends
            if not poll.poll(1000):
                os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    finally:
        os.close(pipe)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return Ended(ended, overtime, time.perf_counter() - began)
