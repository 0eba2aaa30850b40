"""The engine in its thread: streams, disconnections, failures, and whether health tells the truth."""

import asyncio
import threading
import time

import pytest

from checks.library.test_engine_promises import GREEDY, model_of, prompts_of, reference
from checks.tiny import tiny_engine
from course_lib.decode import SamplingParams
from course_lib.engine import ImpossibleRequest
from course_lib.engine.async_engine import AsyncEngine, EngineDead, Health
from course_lib.engine.engine import Engine

PATIENCE = 60.0  # seconds


@pytest.fixture(scope="module")
def llama():
    return model_of("llama")


class Serving:
    """An engine that serves for the length of a `with`, and must be empty at its end."""

    def __init__(self, engine: Engine, **options):
        self.core = engine
        self.options = options

    def __enter__(self) -> AsyncEngine:
        self.engine = AsyncEngine(self.core, **self.options)
        return self.engine

    def __exit__(self, kind, *error) -> None:
        self.engine.close(timeout=60)
        if kind is not None:
            return
        assert not self.engine.thread.is_alive()
        assert not self.core.has_work and not self.engine.streams
        self.core.scheduler.check()
        self.core.prefix_cache.clear()
        assert self.core.allocator.available == self.core.allocator.total


async def read(engine: AsyncEngine, prompt: list[int], params: SamplingParams = GREEDY) -> list[int]:
    async with engine.stream(prompt, params) as stream:
        return [token async for output in stream for token in output.token_ids]


async def until(condition) -> None:
    for _ in range(int(PATIENCE / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"still not so after {PATIENCE} s")


def test_many_streams_at_once(llama):
    prompts = prompts_of(20, seed=20)
    want = [reference(llama, prompt) for prompt in prompts]

    async def all_of_them(engine):
        return await asyncio.gather(*(read(engine, prompt) for prompt in prompts))

    with Serving(tiny_engine(llama, num_blocks=60)) as engine:
        assert asyncio.run(all_of_them(engine)) == want
        assert asyncio.run(all_of_them(engine)) == want  # another event loop
        assert engine.health().ok


def test_n_texts_in_one_stream(llama):
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=5, n=3)

    async def texts(engine):
        tokens: list[list[int]] = [[], [], []]
        async for output in engine.stream([1, 2, 3], params):
            tokens[output.request.index] += output.token_ids
        return tokens

    with Serving(tiny_engine(llama)) as engine:
        tokens = asyncio.run(texts(engine))
    assert [len(each) for each in tokens] == [5, 5, 5] and len(set(map(tuple, tokens))) == 3


def test_promise_4_impossible_requests_fail_at_once(llama):
    async def ask(engine):
        with pytest.raises(ImpossibleRequest, match="The prompt has 200 tokens"):
            engine.stream([1] * 200, GREEDY)
        return await read(engine, [1])

    with Serving(tiny_engine(llama)) as engine:
        assert asyncio.run(ask(engine)) == reference(llama, [1])


def test_promise_5_a_client_that_disconnects_frees_its_blocks(llama):
    """By leaving the block, by being cancelled, by breaking off, before it began, after it ended, twice."""
    long = SamplingParams(temperature=0, max_tokens=80)

    async def clients(engine):
        core = engine.engine
        other = asyncio.create_task(read(engine, [5, 6]))
        async with engine.stream([1, 2, 3], long) as stream:
            async for _ in stream:
                break
        task = asyncio.create_task(read(engine, [1, 2, 3, 4], long))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        early = engine.stream([7, 8], long)
        early.cancel()
        early.cancel()
        outputs = [output async for output in early]
        assert all(output.finish_reason in (None, "cancelled") for output in outputs)
        finished = engine.stream([9], GREEDY)
        tokens = [token async for output in finished for token in output.token_ids]
        finished.cancel()
        assert tokens == reference(llama, [9]) and await other == reference(llama, [5, 6])
        await until(lambda: not core.has_work and not engine.streams)
        assert core.counters.finished == {"length": 2, "cancelled": 3}
        core.prefix_cache.clear()
        assert core.allocator.available == core.allocator.total

    with Serving(tiny_engine(llama)) as engine:
        asyncio.run(clients(engine))


def test_promise_5_inverse(llama, monkeypatch):
    """If nobody ended what a client has left behind, it would run on to its end."""
    monkeypatch.setattr(AsyncEngine, "cancel", lambda self, stream: None)
    with pytest.raises(AssertionError):
        test_promise_5_a_client_that_disconnects_frees_its_blocks(llama)


def test_a_client_whose_event_loop_is_gone(llama):
    with Serving(tiny_engine(llama)) as engine:

        async def vanish():
            engine.stream([1, 2], SamplingParams(temperature=0, max_tokens=90))

        asyncio.run(vanish())
        assert asyncio.run(read(engine, [3])) == reference(llama, [3])
        assert engine.health().ok


def test_a_failed_step_ends_its_own_requests_only(llama, monkeypatch):
    core = tiny_engine(llama, max_num_seqs=1)
    execute = core.runner.execute

    def poisoned(schedule):
        if any(13 in chunk.request.tokens for chunk in schedule.chunks):
            raise MemoryError("out of luck")
        return execute(schedule)

    monkeypatch.setattr(core.runner, "execute", poisoned)

    async def ask(engine):
        bad = engine.stream([1, 13], GREEDY)
        good = asyncio.create_task(read(engine, [2]))
        outputs = [output async for output in bad]
        assert outputs[-1].finish_reason == "error"
        assert outputs[-1].request.error == "MemoryError: out of luck"
        assert 13 not in reference(llama, [2]) and await good == reference(llama, [2])
        assert engine.health().ok

    with Serving(core) as engine:
        asyncio.run(ask(engine))


def test_promise_8_health_tells_the_truth(llama, monkeypatch):
    """A dead thread is reported as dead, with the reason; all who wait are told, and all who come."""
    core = tiny_engine(llama)

    def broken(*arguments):
        raise RuntimeError("the device is lost")

    async def ask(engine):
        assert engine.health().ok
        waiting = [asyncio.create_task(read(engine, [i])) for i in range(2)]
        await asyncio.gather(*waiting, return_exceptions=True)
        assert engine.health().ok  # one failed step or two, both requests told: it can go on
        monkeypatch.setattr(core.scheduler, "schedule", broken)
        waiting = [asyncio.create_task(read(engine, [i])) for i in range(3)]
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, EngineDead) and "RuntimeError: the device is lost" in str(error)
        await until(lambda: not engine.thread.is_alive())
        health = engine.health()
        assert not health.ok and "RuntimeError: the device is lost" in health.reason
        with pytest.raises(EngineDead, match="the device is lost"):
            engine.stream([1], GREEDY)

    monkeypatch.setattr(core.runner, "execute", broken)
    with Serving(core) as engine:
        asyncio.run(ask(engine))


def test_promise_8_a_step_that_hangs_is_not_healthy(llama, monkeypatch):
    core = tiny_engine(llama)
    execute, stuck = core.runner.execute, threading.Event()
    monkeypatch.setattr(core.runner, "execute", lambda schedule: stuck.wait(60) and execute(schedule))

    async def ask(engine):
        task = asyncio.create_task(read(engine, [1]))
        await until(lambda: not engine.health().ok)
        assert "One step has been running for" in engine.health().reason
        stuck.set()
        assert await task == reference(llama, [1])
        assert engine.health().ok

    with Serving(core, stall_seconds=0.05) as engine:
        asyncio.run(ask(engine))


def test_promise_8_inverse(llama, monkeypatch):
    """An engine that always says it is well is found out, dead or stuck."""
    monkeypatch.setattr(AsyncEngine, "health", lambda self: Health(True))
    monkeypatch.setattr("checks.library.test_engine_async.PATIENCE", 1.0)
    for test in (test_promise_8_health_tells_the_truth, test_promise_8_a_step_that_hangs_is_not_healthy):
        with monkeypatch.context() as patch, pytest.raises(AssertionError):
            test(llama, patch)


def test_closing_tells_whoever_waits(llama):
    async def ask(engine):
        stream = engine.stream([1, 2], SamplingParams(temperature=0, max_tokens=90))
        outputs = aiter(stream)
        await anext(outputs)
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineDead, match="has been closed"):
            _ = [output async for output in outputs]
        assert not engine.health().ok
        with pytest.raises(EngineDead, match="has been closed"):
            engine.stream([1], GREEDY)

    with Serving(tiny_engine(llama)) as engine:
        asyncio.run(ask(engine))


def test_without_work_it_waits(llama):
    with Serving(tiny_engine(llama)) as engine:
        asyncio.run(read(engine, [1]))
        steps, spent = engine.engine.counters.steps, time.process_time()
        time.sleep(0.2)
        assert engine.engine.counters.steps == steps
        assert time.process_time() - spent < 0.1
