"""The scheduler without a model: a pretended pool in which every slot remembers the text it was written for.

Reading a request's keys through its block table must then give its own text, token by token; so no block can
be shared wrongly, written while shared, copied too late or taken too early without being noticed.
"""

import os
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from course_lib.cache import BlockAllocator, BlockTable, HashPrefixCache, NoPrefixCache, RadixPrefixCache
from course_lib.decode import SamplingParams
from course_lib.engine.request import Request, Status
from course_lib.engine.scheduler import ImpossibleRequest, Schedule, Scheduler

CACHES = {"hash": HashPrefixCache, "radix": RadixPrefixCache, "off": NoPrefixCache}


def next_token(text: tuple[int, ...], index: int) -> int:
    """The pretended model: the next token depends on the whole text, and on which of n texts it is."""
    return hash((text, index, 5)) // 1009 % 3


def table_of(request: Request) -> BlockTable:
    assert request.table is not None, f"{request.id} holds no blocks"
    return request.table


class World:
    """A scheduler, and a pretended pool on which its steps are carried out."""

    def __init__(self, blocks=8, size=2, budget=8, seqs=4, cache="hash", max_len=1 << 30):
        self.allocator = BlockAllocator(blocks)
        self.scheduler = Scheduler(
            self.allocator, CACHES[cache](self.allocator, size), size, budget, seqs, max_len
        )
        self.size = size
        self.pool: dict[int, int] = {}  # slot -> hash of the text up to and with its token
        self.count = 0
        self.requests: list[Request] = []
        self.computed = 0

    def request(self, prompt, max_tokens=4, priority=0, n=1, salt="") -> Request:
        self.count += 1
        params = SamplingParams(temperature=0, max_tokens=max_tokens)
        family = [
            Request(f"r{self.count}", list(prompt), params, priority, salt, index=index) for index in range(n)
        ]
        family[0].siblings = family[1:]
        return family[0]

    def add(self, *args, **options) -> Request:
        request = self.request(*args, **options)
        family = [request, *request.siblings]
        self.scheduler.add(request)
        self.requests += family
        return request

    def run(self, schedule: Schedule) -> list[list[int]]:
        """Copy blocks, write every scheduled token into its slot, read each request's text back, choose."""
        for source, target in schedule.copies:
            for place in range(self.size):
                if (text := self.pool.get(source * self.size + place)) is not None:
                    self.pool[target * self.size + place] = text
        writers: set[int] = set()
        for chunk in schedule.chunks:
            request, end = chunk.request, chunk.start + chunk.count
            known = tuple(request.tokens + request.draft)
            for position, slot in zip(
                range(chunk.start, end), table_of(request).slots(chunk.start, end), strict=True
            ):
                block = slot // self.size
                assert self.allocator.references[block] == 1, f"{request.id} writes to a shared block"
                assert self.allocator.keys[block] is None, f"{request.id} writes to a full block"
                assert slot not in writers, "two tokens in one slot"
                writers.add(slot)
                self.pool[slot] = hash(known[: position + 1])
            self.computed += chunk.count
        chosen = []
        for chunk in schedule.chunks:
            request, end = chunk.request, chunk.start + chunk.count
            assert chunk.count >= chunk.samples, f"{request.id} chooses by logits that nobody computed"
            known = tuple(request.tokens + request.draft)
            read = [self.pool[slot] for slot in table_of(request).slots(0, end)]
            assert read == [hash(known[: i + 1]) for i in range(end)], f"{request.id} reads another's text"
            if chunk.samples:
                for member in (request, *request.siblings):
                    chosen.append(self.verify(member, chunk))
        assert len(chosen) == len(schedule.samplers())
        return chosen

    def verify(self, member: Request, chunk) -> list[int]:
        """Greedy verification: the drafts that the model would have chosen itself, and one token more."""
        text, tokens = tuple(member.tokens), []
        for guess in [*member.draft[: chunk.samples - 1], None]:
            tokens.append(next_token(text, member.index))
            if tokens[-1] != guess:
                break
            text += (guess,)
        return tokens

    def step(self) -> Schedule:
        schedule = self.scheduler.schedule()
        self.scheduler.update(schedule, self.run(schedule))
        return schedule

    def drain(self, steps=10_000) -> int:
        for count in range(steps):
            if not (self.scheduler.waiting or self.scheduler.running):
                return count
            self.step()
            self.scheduler.check()
        raise AssertionError(f"still running after {steps} steps")

    def empty(self) -> None:
        """Nobody uses anything any more."""
        assert not self.scheduler.running and not self.scheduler.waiting
        self.scheduler.check()
        self.scheduler.prefix_cache.clear()
        assert self.allocator.references == [0] * self.allocator.total
        assert self.allocator.available == self.allocator.total and not self.allocator.holder


def alone(request: Request, max_len: int = 1 << 30) -> list[int]:
    """What the pretended model writes if there is nothing but this request."""
    text = tuple(request.tokens[: request.num_prompt_tokens])
    for _ in range(min(request.params.max_tokens, max_len - request.num_prompt_tokens)):
        text += (next_token(text, request.index),)
    return list(text[request.num_prompt_tokens :])


# One rule at a time


def test_a_prompt_is_read_in_chunks_and_nothing_else_is_special_about_it():
    world = World(blocks=32, budget=5)
    request = world.add(range(12), max_tokens=3)
    counts = [[chunk.count for chunk in world.step().chunks] for _ in range(5)]
    assert counts == [[5], [5], [2], [1], [1]]
    assert request.output_ids == alone(request) and request.finish_reason == "length"


def test_every_running_request_is_owed_a_token():
    """A long prompt takes what the others leave, never their turn."""
    world = World(blocks=64, budget=6, seqs=4)
    short = [world.add([i], max_tokens=20) for i in range(3)]
    world.step()
    first = world.add(range(30), priority=1)
    world.step()
    for _ in range(4):
        chunks = world.step().chunks
        assert chunks[0].request is first and chunks[0].count == 3
        assert [(chunk.request, chunk.count) for chunk in chunks[1:]] == [(request, 1) for request in short]


def test_waiting_requests_go_by_priority_then_by_arrival():
    world = World(blocks=64, seqs=1, budget=64)
    order = [world.add([1, 2, 3], max_tokens=1, priority=p) for p in (0, 2, 1, 2, 0)]
    done = []
    while world.scheduler.waiting:
        done += [chunk.request for chunk in world.step().chunks]
    assert done == [order[i] for i in (1, 3, 2, 0, 4)]


def test_a_large_request_is_not_overtaken():
    """Small ones that would fit wait behind a large one that does not yet: else it might wait forever."""
    world = World(blocks=4, size=2, budget=16, seqs=8, cache="off")
    running = world.add([1, 2, 3, 4], max_tokens=3)
    world.step()
    large, small = world.add([5] * 6, max_tokens=1), world.add([6], max_tokens=1)
    while running.status is Status.RUNNING:
        assert [chunk.request for chunk in world.step().chunks] == [running]
    assert [chunk.request for chunk in world.step().chunks] == [large, small]


def test_victim_is_the_lowest_priority_then_the_latest():
    world = World(blocks=64, seqs=8, budget=64)
    requests = [world.add([i] * 4, max_tokens=9, priority=p) for i, p in enumerate((1, 0, 2, 0, 1))]
    world.step()
    victims = [world.scheduler.preempt() for _ in range(5)]
    assert victims == [requests[i] for i in (3, 1, 4, 0, 2)]
    world.drain()
    assert all(request.output_ids == alone(request) for request in requests)


def test_nothing_is_admitted_in_a_step_that_preempted():
    world = World(blocks=4, size=2, budget=16, seqs=4, cache="off")
    one, two = world.add([1, 2, 3, 4], max_tokens=9), world.add([5, 6, 7, 8], max_tokens=9)
    world.step()
    world.add([9], max_tokens=1)
    schedule = world.step()
    assert schedule.preempted == [two] and [chunk.request for chunk in schedule.chunks] == [one]
    assert two.num_computed_tokens == 0 and two.output_ids and two.num_preemptions == 1
    world.drain()
    assert two.output_ids == alone(two, max_len=9) and len(two.output_ids) == 5


@pytest.mark.parametrize("cache", CACHES)
def test_on_a_full_hit_the_last_token_is_computed_in_a_private_block(cache):
    """Promise 2, second half."""
    world = World(blocks=16, size=4, budget=64, cache=cache)
    world.add(range(8), max_tokens=1)
    world.drain()
    again = world.add(range(8), max_tokens=5)
    chunk = world.step().chunks[0]
    assert (chunk.start, chunk.count) == ((4, 4) if cache != "off" else (0, 8))
    assert again.num_cached_tokens == chunk.start
    world.drain()
    assert again.output_ids == alone(again)


@pytest.mark.parametrize("cache", CACHES)
def test_n_texts_share_the_blocks_of_their_prompt(cache):
    world = World(blocks=32, size=4, budget=64, seqs=8, cache=cache)
    family = [world.add(range(10), max_tokens=6, n=3)]
    family += family[0].siblings
    schedule = world.step()
    assert len(schedule.chunks) == 1 and schedule.num_tokens == 10
    held = {block for request in family for block in table_of(request).blocks}
    assert len(held) == 3 and all(request.status is Status.RUNNING for request in family)
    assert len(world.step().copies) == 2  # the third, partial block: the last of the three keeps it
    world.drain()
    assert [request.output_ids for request in family] == [alone(request) for request in family]
    assert len({tuple(request.output_ids) for request in family}) > 1
    world.empty()


def test_siblings_that_end_with_their_first_token():
    world = World(blocks=2, size=4, budget=64, seqs=8)
    request = world.add(range(5), max_tokens=1, n=4)
    assert world.drain() == 1
    assert all(r.output_ids == alone(r) for r in world.requests) and len(world.requests) == 4
    assert request.siblings == []
    world.empty()


def test_salts_share_nothing():
    world = World(blocks=32, size=2, budget=64)
    world.add(range(8), max_tokens=1, salt="a")
    world.drain()
    other, same = world.add(range(8), max_tokens=1, salt="b"), world.add(range(8), max_tokens=1, salt="a")
    world.drain()
    assert (other.num_cached_tokens, same.num_cached_tokens) == (0, 6)


# Requests that cannot be


def test_impossible_requests_fail_at_once():
    """Promise 4, second half: a reason, and nothing has changed."""
    world = World(blocks=2, size=4, budget=8, seqs=2)
    for request, reason in [
        (world.request([]), "The prompt is empty"),
        (world.request(range(9)), "The prompt has 9 tokens; there is room for 9 in all"),
        (world.request([1], n=3), "n is 3; this engine runs 2 requests at once"),
    ]:
        with pytest.raises(ImpossibleRequest, match=reason):
            world.scheduler.add(request)
    request = world.add([1])
    with pytest.raises(ImpossibleRequest, match="has been added before"):
        world.scheduler.add(request)
    world.drain()
    with pytest.raises(ImpossibleRequest, match="has been added before"):
        world.scheduler.add(request)
    with pytest.raises(ValueError, match="a token a step for each"):
        Scheduler(BlockAllocator(1), NoPrefixCache(BlockAllocator(1), 1), 1, 3, 4)


def test_largest_possible_request():
    """A prompt that fills the pool leaves room for exactly one token, which is never read."""
    world = World(blocks=2, size=4, budget=3, seqs=2)
    request = world.add(range(8), max_tokens=99)
    world.drain()
    assert request.finish_reason == "length" and len(request.output_ids) == 1
    request = world.add(range(3), max_tokens=99)
    world.drain()
    assert len(request.output_ids) == 6
    world.empty()


@pytest.mark.parametrize("cache", CACHES)
def test_a_pool_of_two_blocks(cache):
    """Everything takes its turn; nothing raises, nothing is lost, nothing starves."""
    world = World(blocks=2, size=2, budget=4, seqs=4, cache=cache)
    for i in range(30):
        world.add([i % 3, i % 2, 1][: 1 + i % 3], max_tokens=1 + i % 5, priority=i % 2, n=1 + i % 2)
    world.drain()
    for request in world.requests:
        assert request.output_ids == alone(request, max_len=5)
    world.empty()


def test_256_requests_at_once():
    world = World(blocks=1024, size=4, budget=512, seqs=256)
    for i in range(256):
        world.add([i] * 5, max_tokens=8)
    for _ in range(4):
        world.step()
    assert len(world.scheduler.running) == 256
    assert world.step().num_tokens == 256
    world.drain()
    assert all(request.output_ids == alone(request) for request in world.requests)


# Cancelling


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("n", [1, 3])
def test_cancel_in_any_state_is_idempotent(cache, n):
    """Promise 5: waiting, half read, writing, preempted, finished; once or twice."""

    def begin() -> tuple[World, Request]:
        world = World(blocks=8, size=2, budget=4, seqs=4, cache=cache)
        return world, world.add([1, 2, 3, 4, 5, 6], max_tokens=8, n=n)

    def waiting(world, request):
        pass

    def half_read(world, request):
        world.step()
        assert 0 < request.num_computed_tokens < request.num_tokens == request.num_prompt_tokens

    def writing(world, request):
        half_read(world, request)
        world.step()
        assert request.output_ids

    def preempted(world, request):
        writing(world, request)
        world.scheduler.preempt(request)

    def finished(world, request):
        world.drain()

    for reach in (waiting, half_read, writing, preempted, finished):
        world, request = begin()
        family = [request, *request.siblings]
        other = world.add([7, 7, 7], max_tokens=5)
        reach(world, request)
        before = request.finish_reason
        for _ in range(2):
            for member in family:
                world.scheduler.finish(member, "cancelled")
                world.scheduler.check()
        assert {member.finish_reason for member in family} == {before or "cancelled"}
        assert all(member.status is Status.FINISHED and member.table is None for member in family)
        world.drain()
        assert other.output_ids == alone(other)
        world.empty()


def test_cancel_before_it_was_added():
    world = World()
    request = world.request([1], n=2)
    world.scheduler.finish(request, "cancelled")
    assert request.finish_reason == request.siblings[0].finish_reason == "cancelled"
    world.empty()


def test_a_failed_step_does_not_count():
    """Promise 1: all is in order after an exception; the same requests go on and write the same."""
    world = World(blocks=12, size=2, budget=6, seqs=4)
    for i in range(4):
        world.add([i, 1, 2], max_tokens=6, n=1 + i % 2)
    for turn in range(6):
        schedule = world.scheduler.schedule()
        for chunk in schedule.chunks:  # it wrote half of everything before it failed
            for slot in table_of(chunk.request).slots(chunk.start, chunk.start + chunk.count):
                world.pool[slot] = -1
        world.scheduler.abandon(schedule)
        world.scheduler.check()
        assert not world.scheduler.running and world.allocator.available == 12
        for _ in range(turn):
            world.step()
    world.drain()
    assert all(request.output_ids == alone(request) for request in world.requests)
    world.empty()


# Preemption wherever it may hurt


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("budget", [4, 7, 64])
def test_preempted_after_every_step_that_produced_a_token(cache, budget):
    """The text is that of an undisturbed run (a request that computed nothing new would never end)."""
    world = World(blocks=32, size=2, budget=budget, seqs=4, cache=cache)
    for i in range(6):
        world.add([i, 1, 2, 3, 4][: 1 + i % 5], max_tokens=7, n=1 + i % 3)
    while world.scheduler.waiting or world.scheduler.running:
        before = {id(request): len(request.output_ids) for request in world.requests}
        world.step()
        for request in list(world.scheduler.running):
            if len(request.output_ids) > before[id(request)]:
                world.scheduler.preempt(request)
        world.scheduler.check()
    assert all(request.output_ids == alone(request) for request in world.requests)
    world.empty()


# Drafts


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("quality", [0.0, 0.6, 1.0])
def test_drafts_change_nothing_but_the_number_of_steps(cache, quality):
    rng = random.Random(5)
    world = World(blocks=24, size=2, budget=9, seqs=4, cache=cache)
    for i in range(6):
        world.add([i, 1, 2], max_tokens=12, n=1 + i % 2)
    steps = 0
    while world.scheduler.waiting or world.scheduler.running:
        for request in world.scheduler.running:
            draft(world, request, rng, quality)
        world.step()
        world.scheduler.check()
        steps += 1
    assert all(request.output_ids == alone(request) for request in world.requests)
    world.empty()


# The promises can be broken: the tests above would notice


def broken(world: World) -> None:
    for i in range(8):
        world.add([i % 2, 1, 2], max_tokens=6, n=1 + i % 3)
    world.drain()
    assert all(request.output_ids == alone(request) for request in world.requests)
    world.empty()


def test_inverse_without_copy_on_write(monkeypatch):
    monkeypatch.setattr("course_lib.cache.blocks.BlockTable.make_private", lambda self, position: None)
    with pytest.raises(AssertionError, match="writes to a shared block"):
        broken(World(blocks=32, size=4))


def test_inverse_with_a_copy_that_is_not_made(monkeypatch):
    world = World(blocks=32, size=4)
    run = world.run
    monkeypatch.setattr(world, "run", lambda schedule: schedule.copies.clear() or run(schedule))
    with pytest.raises((AssertionError, KeyError)):
        broken(world)


def test_inverse_with_names_that_forget_the_beginning(monkeypatch):
    from course_lib.cache import prefix

    names = prefix.block_key
    monkeypatch.setattr(prefix, "block_key", lambda parent, tokens: names(b"", tokens))
    world = World(blocks=32, size=2)
    for beginning in ([0, 1], [1, 0]):
        world.add([*beginning, 1, 1, 0, 0, 2], max_tokens=2)
    with pytest.raises(AssertionError, match="reads another's text"):
        broken(world)


def test_inverse_with_a_block_that_is_not_freed(monkeypatch):
    monkeypatch.setattr("course_lib.cache.blocks.BlockTable.free", lambda self: self.blocks.clear())
    with pytest.raises(AssertionError):
        broken(World())


def test_inverse_with_a_preemption_that_keeps_its_counter(monkeypatch):
    preempt = Scheduler.preempt

    def forgetful(self, victim=None):
        victim = victim or self.running[-1]
        computed = victim.num_computed_tokens
        preempt(self, victim).num_computed_tokens = computed
        return victim

    monkeypatch.setattr(Scheduler, "preempt", forgetful)
    with pytest.raises(AssertionError):
        broken(World(blocks=4, size=2))


def test_inverse_with_a_full_hit_that_computes_nothing(monkeypatch):
    match = HashPrefixCache.match
    monkeypatch.setattr(HashPrefixCache, "match", lambda self, tokens, salt: match(self, [*tokens, 2], salt))
    world = World(blocks=32, size=3, seqs=4)
    with pytest.raises(AssertionError, match="chooses by logits that nobody computed"):
        broken(world)


# Any sequence of events


class Serving(RuleBasedStateMachine):
    """Requests come and go, steps run or fail, in any order, on pools of any size."""

    @initialize(
        blocks=st.integers(2, 10),
        size=st.integers(1, 4),
        seqs=st.integers(1, 4),
        spare=st.integers(0, 6),
        cache=st.sampled_from(list(CACHES)),
    )
    def begin(self, blocks, size, seqs, spare, cache):
        self.world = World(blocks, size, seqs + spare, seqs, cache)

    @rule(
        prompt=st.lists(st.integers(0, 1), max_size=14),
        max_tokens=st.integers(1, 6),
        priority=st.integers(0, 2),
        n=st.integers(1, 3),
        salt=st.sampled_from(["", "", "tenant"]),
    )
    def add(self, prompt, max_tokens, priority, n, salt):
        scheduler = self.world.scheduler
        possible = 0 < len(prompt) < scheduler.max_len and n <= scheduler.max_num_seqs
        try:
            self.world.add(prompt, max_tokens, priority, n, salt)
        except ImpossibleRequest:
            assert not possible
        else:
            assert possible

    @rule(seed=st.integers(0, 99))
    def draft(self, seed):
        for request in self.world.scheduler.running:
            draft(self.world, request, random.Random(seed))

    @rule(steps=st.integers(1, 5))
    def step(self, steps):
        for _ in range(steps):
            schedule = self.world.step()
            busy = self.world.scheduler.running or self.world.scheduler.waiting
            assert schedule.chunks or not busy, "requests are there, and nothing is computed"
            assert schedule.num_tokens <= self.world.scheduler.max_num_batched_tokens

    @precondition(lambda self: self.world.requests)
    @rule(data=st.data())
    def cancel(self, data):
        request = data.draw(st.sampled_from(self.world.requests))
        if request.status is not Status.WAITING or not request.index or request.num_preemptions:
            self.world.scheduler.finish(request, "cancelled")

    @rule()
    def fail(self):
        self.world.scheduler.abandon(self.world.scheduler.schedule())

    @rule()
    def forget(self):
        self.world.scheduler.prefix_cache.clear()

    @invariant()
    def books_are_right(self):
        if hasattr(self, "world"):
            self.world.scheduler.check()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.drain()
            for request in self.world.requests:
                want = alone(request, self.world.scheduler.max_len)
                if request.finish_reason == "cancelled":
                    want = want[: len(request.output_ids)]
                assert request.output_ids == want
            self.world.empty()


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("cache", ["hash", "radix"])
def test_promise_1_over_a_long_life(cache):
    """The books are compared often, the pretended pool is read at every step.

    For a longer life: SCHEDULER_STEPS=100000 python -m pytest checks/library/test_scheduler.py -k long_life
    """
    rng = random.Random(11)
    world = World(blocks=20, size=4, budget=24, seqs=8, cache=cache)
    preempted = reused = drafted = 0
    for _ in range(int(os.environ.get("SCHEDULER_STEPS", 5_000))):
        while rng.random() < 0.5 and len(world.scheduler.waiting) < 20:
            beginning = [rng.randrange(2)] * rng.choice([0, 4, 8, 12])
            prompt = [*beginning, *(rng.randrange(3) for _ in range(rng.randrange(1, 20)))]
            salt, n = rng.choice(["", "", "tenant"]), rng.choice([1, 1, 1, 2, 4])
            world.add(prompt, rng.randrange(1, 12), rng.randrange(3), n, salt)
        if rng.random() < 0.1 and world.requests:
            request = rng.choice(world.requests)
            if not request.index or request.num_preemptions:
                world.scheduler.finish(request, "cancelled")
        if rng.random() < 0.01:
            world.scheduler.abandon(world.scheduler.schedule())
        for request in world.scheduler.running:
            if rng.random() < 0.3:
                drafted += draft(world, request, rng)
        world.step()
        if rng.random() < 0.1:
            world.scheduler.check()
        ended = [request for request in world.requests if request.status is Status.FINISHED]
        world.requests = [request for request in world.requests if request.status is not Status.FINISHED]
        for request in ended:
            assert request.output_ids == alone(request)[: len(request.output_ids)]
            preempted += request.num_preemptions
            reused += request.num_cached_tokens
    assert preempted > 100 and reused > 1000 and drafted > 1000
    world.drain()
    world.empty()


def draft(world: World, request: Request, rng: random.Random, quality: float = 0.6) -> int:
    """Guess up to three tokens of a text that is at its last known one, right or wrong; returns how many."""
    if not request.output_ids or request.draft or request.num_pending_tokens != 1:
        return 0
    text = tuple(request.tokens)
    for _ in range(rng.randrange(4)):
        token = next_token(text, request.index)
        text += (token if rng.random() < quality else 2 - token,)
    room = min(
        world.scheduler.max_len - 1 - request.num_tokens,
        request.params.max_tokens - len(request.output_ids) - 1,
    )
    request.draft = list(text[request.num_tokens :])[: max(0, room)]
    return len(request.draft)
