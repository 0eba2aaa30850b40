"""`AsyncEngine`: an engine in a thread of its own, and asyncio streams that it feeds."""

import asyncio
import queue
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, Unpack

from course_lib.decode.sampler import SamplingParams
from course_lib.engine.engine import Engine, RequestOptions
from course_lib.engine.request import Output, Request, Status

FAILURES_IN_A_ROW = 3  # so many failed steps are no accident


class EngineDead(RuntimeError):
    """The engine's thread has ended: no request can be served any more."""


@dataclass(frozen=True)
class Health:
    """Whether the engine makes progress, and if not, why."""

    ok: bool
    reason: str = ""


class AsyncStream:
    """What comes for one prompt. `async with` it and iterate: leaving the block ends its requests."""

    def __init__(self, engine: "AsyncEngine", requests: list[Request]):
        self.engine = engine
        self.requests = requests
        self.loop = asyncio.get_running_loop()
        self.mailbox: asyncio.Queue[Output | Exception] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Output]:
        """The outputs of all its requests, as they come, until the last has ended.

        Raises:
            EngineDead: the engine's thread has ended before.
        """
        unfinished = len(self.requests)
        try:
            while unfinished:
                item = await self.mailbox.get()
                if isinstance(item, Exception):
                    raise item
                unfinished -= item.finish_reason is not None
                yield item
        finally:
            self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End its requests, whatever their state; harmless if they have ended."""
        self.engine.cancel(self)


class AsyncEngine:
    """Runs an engine step after step in a thread, while there is work.

    All that others want goes through the inbox, whose entries the thread carries out between two steps. So
    the engine itself needs no locks. After this object has been made, leave the engine to it.
    """

    def __init__(self, engine: Engine, stall_seconds: float = 120.0):
        """A step that takes longer than `stall_seconds` is reported as unhealthy."""
        self.engine = engine
        self.stall_seconds = stall_seconds
        self.inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.streams: dict[Request, AsyncStream] = {}  # the thread's own
        self.step_began: float | None = None
        self.death = ""
        self.dying = threading.Lock()  # between submitting and the end of the thread
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.thread.start()

    def stream(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncStream:
        """Start answering a prompt; call it from a running event loop.

        Raises:
            ImpossibleRequest: at once, if it can never be served.
            EngineDead: the engine's thread has ended.
        """
        requests = self.engine.requests(prompt_ids, params, **options)
        stream = AsyncStream(self, requests)
        with self.dying:
            if self.death:
                raise EngineDead(self.death)
            self.inbox.put(lambda: self._begin(stream))
        return stream

    def cancel(self, stream: AsyncStream) -> None:
        self.inbox.put(lambda: self._end(stream))

    def health(self) -> Health:
        """The truth about the engine's thread, from any thread."""
        if not self.thread.is_alive():
            return Health(False, self.death or "The engine's thread has ended.")
        began = self.step_began
        if began is not None and (seconds := time.perf_counter() - began) > self.stall_seconds:
            return Health(False, f"One step has been running for {seconds:.0f} s.")
        return Health(True)

    def close(self, timeout: float | None = None) -> None:
        """End the thread after the step that is running now; whoever still waits gets EngineDead."""
        self.inbox.put(None)
        self.thread.join(timeout)

    def _run(self) -> None:
        try:
            self._serve()
            death = "The engine has been closed."
        except BaseException as error:  # whatever it was, it must be known
            death = f"The engine's thread has failed: {type(error).__name__}: {error}"
        with self.dying:
            self.death = death
        while not self.inbox.empty():  # those who came too late to be served are told, too
            if command := self.inbox.get():
                command()
        for request in list(self.streams):
            self.engine.cancel(request)
        self._post([(stream, EngineDead(death)) for stream in set(self.streams.values())])
        self.streams.clear()

    def _serve(self) -> None:
        failures = 0
        while self._receive():
            self.step_began = time.perf_counter()
            try:
                outputs = self.engine.step()
            except Exception as error:
                failures += 1
                self._fail(error)
                if failures == FAILURES_IN_A_ROW:
                    raise
            else:
                failures = 0
                self._tell(outputs)
            self.step_began = None

    def _receive(self) -> bool:
        """Carry out what is in the inbox; wait for it where there is nothing else to do. False: the end."""
        while not (self.engine.has_work and self.inbox.empty()):
            command = self.inbox.get()
            if command is None:
                return False
            command()
        return True

    def _begin(self, stream: AsyncStream) -> None:
        if stream.requests[0].status is Status.WAITING:  # else it was cancelled before it came here
            self.streams |= dict.fromkeys(stream.requests, stream)
            self.engine.scheduler.add(stream.requests[0])

    def _end(self, stream: AsyncStream) -> None:
        running = [request for request in stream.requests if request.status is not Status.FINISHED]
        for request in running:
            self.engine.cancel(request)
        self._tell([request.emit() for request in running])

    def _fail(self, error: Exception) -> None:
        """End the requests of a failed step; the others go on."""
        failed = [member for request in self.engine.failed for member in (request, *request.siblings)]
        self.engine.failed = []
        for request in failed:
            request.error = f"{type(error).__name__}: {error}"
            self.engine.cancel(request, "error")
        self._tell([request.emit() for request in failed])

    def _tell(self, outputs: list[Output]) -> None:
        told: list[tuple[AsyncStream, Output | Exception]] = []
        for output in outputs:
            stream = self.streams.get(output.request)
            if stream is not None:
                told.append((stream, output))
                if output.finish_reason:
                    del self.streams[output.request]
        self._post(told)

    def _post(self, items: list[tuple[AsyncStream, Output | Exception]]) -> None:
        """Put items into mailboxes, each in its own event loop; each loop is woken once."""
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[AsyncStream, Output | Exception]]]
        by_loop = defaultdict(list)
        for item in items:
            by_loop[item[0].loop].append(item)
        for loop, letters in by_loop.items():
            try:
                loop.call_soon_threadsafe(deliver, letters)
            except RuntimeError:  # the loop is closed: nobody is left to read
                for stream, _ in letters:
                    for request in stream.requests:
                        self.engine.cancel(request)
                        self.streams.pop(request, None)


def deliver(letters: list[tuple[AsyncStream, Output | Exception]]) -> None:
    for stream, item in letters:
        stream.mailbox.put_nowait(item)
