"""The runner without a model must notice what goes wrong with blocks: that is all it is for."""

import pytest

from course_lib.cache import BlockAllocator, HashPrefixCache, NoPrefixCache
from course_lib.decode import SamplingParams
from course_lib.engine.engine import Engine, EngineConfig
from course_lib.engine.request import Request
from course_lib.engine.scheduler import Scheduler
from course_lib.engine.text_runner import TextRunner, WrongText, beginnings, serve

GREEDY = SamplingParams(temperature=0, max_tokens=6)


def world(blocks=32, size=2, cache=HashPrefixCache) -> tuple[Scheduler, TextRunner]:
    allocator = BlockAllocator(blocks)
    return Scheduler(allocator, cache(allocator, size), size, 16, 4), TextRunner(size)


def test_texts_are_those_of_a_request_alone():
    scheduler, runner = world(blocks=14)
    family = [Request("a", [1, 2, 3], GREEDY, index=index) for index in range(3)]
    family[0].siblings = family[1:]
    others = [Request(str(i), [1, 2, 3, i], GREEDY) for i in range(5)]
    for request in (family[0], *others):
        scheduler.add(request)
    assert serve(scheduler, runner) == len(runner.schedules) < 100
    for request in (*family, *others):
        prompt = request.tokens[: request.num_prompt_tokens]
        assert request.output_ids == runner.alone(prompt, 6, request.index)
    assert len({tuple(request.output_ids) for request in family}) == 3
    assert any(schedule.copies for schedule in runner.schedules)
    assert any(schedule.preempted for schedule in runner.schedules)


def test_it_serves_under_the_engine_with_drafts():
    engine = Engine(
        TextRunner(4, vocab_size=2), 32, EngineConfig(block_size=4, speculative="ngram", debug=True)
    )
    (request,) = engine.add([1, 0, 1, 0, 1], SamplingParams(temperature=0, max_tokens=40))
    while engine.has_work:
        engine.step()
    assert request.output_ids == TextRunner(4, vocab_size=2).alone([1, 0, 1, 0, 1], 40)
    assert engine.counters.drafted_tokens > 0


def test_equal_tokens_after_other_beginnings_are_other_texts():
    assert beginnings([1, 2, 3])[2] != beginnings([2, 1, 3])[2] and beginnings([]) == []


def test_steps_may_run_out():
    scheduler, runner = world()
    scheduler.add(Request("a", [1], GREEDY))
    assert serve(scheduler, runner, steps=3) == 3 and scheduler.running


def started() -> tuple[Scheduler, TextRunner, list[Request]]:
    scheduler, runner = world(cache=NoPrefixCache)
    requests = [Request(name, [first, 2, 3], GREEDY) for name, first in zip("ab", (1, 9), strict=True)]
    for request in requests:
        scheduler.add(request)
    serve(scheduler, runner, steps=1)
    return scheduler, runner, requests


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lost", "a is to be computed and holds no blocks"),
        ("shared", "a writes token 3 to block 1, which others use, too"),
        ("full", "a writes token 3 to block 1, which is full"),
        ("same slot", "b and a write to slot 3 in one step"),
        ("another's", "a reads what is not its own text at token 0, slot 4"),
        ("never written", "a reads what is not its own text at token 0, slot 60"),
    ],
)
def test_what_goes_wrong_is_noticed(name: str, sentence: str):
    scheduler, runner, (a, b) = started()
    assert a.table is not None and b.table is not None
    assert (a.table.blocks, b.table.blocks) == ([0, 1], [2, 3])
    schedule = scheduler.schedule()
    if name == "lost":
        a.table = None
    elif name == "shared":
        scheduler.allocator.share(1)
    elif name == "full":
        scheduler.allocator.publish(1, "key")
    elif name == "same slot":
        b.table.blocks = [2, 1]
    elif name == "another's":
        runner.pool[4] = beginnings(b.tokens)[0]
        a.table.blocks[0] = 2
    else:
        a.table.blocks[0] = 30
    with pytest.raises(WrongText, match=sentence):
        runner.execute(schedule)


def test_a_copy_made_too_late_is_noticed():
    scheduler, runner = world()
    family = [Request("a", [1, 2, 3], GREEDY, index=index) for index in range(2)]
    family[0].siblings = family[1:]
    scheduler.add(family[0])
    serve(scheduler, runner, steps=1)
    schedule = scheduler.schedule()
    schedule.copies.clear()
    with pytest.raises(WrongText, match="reads what is not its own text"):
        runner.execute(schedule)
