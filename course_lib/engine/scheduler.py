"""The scheduler: which tokens of which requests are computed in the next step. Plain Python, no tensor.

Iteration-level scheduling is Orca's (Yu et al., 2022); one token budget for prompts and new tokens alike is
Sarathi-Serve's (Agrawal et al., 2024) and vLLM v1's (vllm/v1/core/sched/scheduler.py).
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from course_lib.cache.blocks import BlockAllocator, BlockTable
from course_lib.cache.prefix import PrefixCache
from course_lib.engine.request import FinishReason, Request, Status
from course_lib.parts import exercise


class ImpossibleRequest(ValueError):
    """A request that this engine can never serve; the message says why, and what would be possible."""


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of one request, from its first pending one on.

    `samples` of them, the last ones, are asked for their logits: none while known tokens are left behind the
    chunk, one at the end of what is known, one more for each drafted token.
    """

    request: Request
    start: int
    count: int
    samples: int


@dataclass
class Schedule:
    """What one step computes. `copies` are pairs (from, to) of blocks, to be copied before anything else."""

    chunks: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)

    def add(self, request: Request, count: int) -> None:
        """Compute the first `count` pending tokens of `request`."""
        start = request.num_computed_tokens
        self.chunks.append(Chunk(request, start, count, max(0, start + count - request.num_tokens + 1)))

    @property
    def num_tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks)

    def samplers(self) -> list[Request]:
        """Who chooses tokens in this step: siblings all choose from the logits of their common prompt."""
        return [
            member
            for chunk in self.chunks
            if chunk.samples
            for member in (chunk.request, *chunk.request.siblings)
        ]


class Scheduler:
    """Waiting and running requests, each list in the order of their rank, and the blocks that they hold."""

    def __init__(
        self,
        allocator: BlockAllocator,
        prefix_cache: PrefixCache,
        block_size: int = 16,
        max_num_batched_tokens: int = 512,
        max_num_seqs: int = 256,
        max_model_len: int = 1 << 30,
    ):
        """At most `max_num_batched_tokens` tokens a step, of at most `max_num_seqs` requests.

        Raises:
            ValueError: the budget is smaller than the number of requests, each of which is owed a token.
        """
        if not 1 <= max_num_seqs <= max_num_batched_tokens:
            raise ValueError(
                f"max_num_seqs is {max_num_seqs} and max_num_batched_tokens {max_num_batched_tokens}: there "
                "must be at least one request, and a token a step for each."
            )
        self.allocator = allocator
        self.prefix_cache = prefix_cache
        self.block_size = block_size
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        # The last token of a text is chosen and never read, so it needs no place in the pool.
        self.max_len = min(max_model_len, allocator.total * block_size + 1)
        self.waiting: list[Request] = []  # the next one is the last: taking it moves none of the others
        self.running: list[Request] = []  # the first to be served is the first
        self.arrivals = 0

    def refuse_impossible(self, request: Request) -> None:
        """Raise ImpossibleRequest if a new request could not be served even if it were alone."""
        family = 1 + len(request.siblings)
        if request.num_tokens == 0:
            raise ImpossibleRequest(
                "The prompt is empty: the model needs at least one token to continue from."
            )
        if request.num_tokens >= self.max_len:
            raise ImpossibleRequest(
                f"The prompt has {request.num_tokens} tokens; there is room for {self.max_len} in all, one "
                "of them for the answer. Shorten the prompt."
            )
        if family > self.max_num_seqs:
            raise ImpossibleRequest(
                f"n is {family}; this engine runs {self.max_num_seqs} requests at once (max_num_seqs)."
            )
        if request.status is not Status.WAITING or request.arrival:
            raise ImpossibleRequest(f"The request {request.id!r} has been added before.")

    def add(self, request: Request) -> None:
        """Let a request wait for its turn.

        Raises:
            ImpossibleRequest: it can never be served; the message says why.
        """
        self.refuse_impossible(request)
        self.arrivals += 1
        for member in (request, *request.siblings):
            member.arrival = self.arrivals
        self.enqueue(request)

    def enqueue(self, request: Request) -> None:
        """Put a request among the waiting ones, where its rank belongs."""
        insort(self.waiting, request, key=reverse_rank)

    @exercise(day=24)
    def schedule(self) -> Schedule:
        """Choose what the next step computes, and give every chosen token its place in the cache.

        Nothing here knows a prefill or a decode phase. Every request has pending tokens, and the
        step has a budget of `max_num_batched_tokens`. Running requests come first, in order of rank;
        each is owed one token, and may take as many as the budget has beyond what is owed to those
        behind it. Where the blocks do not suffice, the last running request is preempted, until they
        do. Then waiting requests are admitted in order, while budget, blocks and seats last; none in
        a step that preempted, since that would take the blocks which have just run out. None
        overtakes another: large ones get their turn, too.

        Uses `reserve(request, count, copies)` and `admit(request)`, which say False where blocks are
        missing, `preempt()`, and `num_running` (siblings included; `max_num_seqs` at most).
        """
        schedule = Schedule()
        budget = self.max_num_batched_tokens
        served = 0
        while served < len(self.running):  # which preempting shortens
            request = self.running[served]
            owed = len(self.running) - served - 1
            count = min(request.num_pending_tokens, budget - owed)
            if not self.reserve(request, count, schedule.copies):
                schedule.preempted.append(self.preempt())  # the last one: at worst this one itself
                continue
            schedule.add(request, count)
            budget -= count
            served += 1

        seats = self.max_num_seqs - self.num_running
        while self.waiting and budget and not schedule.preempted:
            request = self.waiting[-1]
            seats -= 1 + len(request.siblings)
            if seats < 0 or not self.admit(request):
                break
            count = min(request.num_pending_tokens, budget)
            schedule.add(request, count)
            budget -= count
        return schedule

    @exercise(day=24)
    def preempt(self, victim: Request | None = None) -> Request:
        """Take the blocks of a running request: of the lowest priority, and of those the latest.

        It waits again with all its tokens, prompt and chosen ones alike, none of them computed: when
        it is admitted again they are read like a prompt, and the text goes on as if nothing had
        happened. (What its full blocks hold stays in the prefix cache for a while, so much of it may
        be found there.)
        """
        if victim is None:
            victim = max(self.running, key=lambda request: request.rank)
        self.running.remove(victim)
        assert victim.table is not None  # a running request holds blocks
        victim.table.free()
        victim.table = None
        victim.num_computed_tokens = 0
        victim.draft = []
        victim.num_preemptions += 1
        victim.status = Status.WAITING
        self.enqueue(victim)
        return victim

    @property
    def num_running(self) -> int:
        """Running requests, and those that will be running once a prompt they share has been computed."""
        return sum(1 + len(request.siblings) for request in self.running)

    def reserve(self, request: Request, count: int, copies: list[tuple[int, int]]) -> bool:
        """Find blocks for the next `count` tokens of a running request; False if there are too few.

        If the first of them goes to a block that another request shares, this one gets a copy of its own.
        """
        table, start = request.table, request.num_computed_tokens
        assert table is not None
        shared = table.shared(start)
        needed = table.missing(start + count) + shared
        if needed:
            if not self.prefix_cache.make_available(needed):
                return False
            if shared and (copy := table.make_private(start)):
                copies.append(copy)
            table.grow(start + count)
        return True

    def admit(self, request: Request) -> bool:
        """Start the first waiting request, if there are blocks for all of its tokens; else change nothing.

        What is known of its beginning is taken over from the prefix cache, except for the last token: that
        one is always computed, into a block of its own, since its logits choose the next.
        """
        allocator = self.allocator
        found = self.prefix_cache.match(request.tokens[:-1], request.salt)
        for block in found:
            allocator.share(block)
        table = BlockTable(allocator, self.block_size, found)
        if not (
            self.prefix_cache.make_available(table.missing(request.num_tokens))
            and table.grow(request.num_tokens)
        ):
            table.free()
            return False
        self.waiting.pop()
        request.table = table
        request.num_computed_tokens = len(found) * self.block_size
        if not request.num_preemptions:
            request.num_cached_tokens = request.num_computed_tokens
        request.status = Status.RUNNING
        insort(self.running, request, key=rank)
        return True

    def update(self, schedule: Schedule, chosen: Iterable[Sequence[int]]) -> list[Request]:
        """A step has run: count its tokens as computed, append those it chose, end what has ended.

        `chosen` are the tokens of each of `schedule.samplers()`: one, or more where drafts were right.
        Returns the requests that chose.
        """
        told, chosen = [], iter(chosen)
        for chunk in schedule.chunks:
            request = chunk.request
            request.num_computed_tokens += chunk.count
            members = [request, *request.siblings] if chunk.samples else []
            for sibling in members[1:]:
                self.fork(request, sibling)
            endings = [self.extend(member, next(chosen), chunk.samples) for member in members]
            self.publish(request, chunk.start)
            for member, reason in zip(members, endings, strict=True):
                if reason:
                    self.finish(member, reason)
            told += members
        return told

    def extend(self, request: Request, tokens: Sequence[int], samples: int) -> FinishReason | None:
        """Append what was chosen, and forget the drafts; returns why the text ends, if it does."""
        request.draft, request.siblings = [], []
        taken, reason = 0, None
        while taken < len(tokens) and reason is None:
            reason = request.append(tokens[taken])
            if reason is None and request.num_tokens >= self.max_len:
                reason = "length"
            taken += 1
        request.num_computed_tokens -= samples - taken  # what lies behind a wrong draft is written over
        return reason

    def publish(self, request: Request, start: int) -> None:
        """Tokens from `start` on have been computed: let others find the blocks that they have filled."""
        assert request.table is not None
        before, full = start // self.block_size, request.num_computed_tokens // self.block_size
        if full > before:
            tokens, blocks = request.tokens[: full * self.block_size], request.table.blocks[:full]
            self.prefix_cache.insert(tokens, blocks, before, request.salt)

    def fork(self, request: Request, copy: Request) -> None:
        """Let `copy`, a new request with the same tokens, run on from where `request` is, on the same blocks.

        The blocks are shared until one of the two writes (see `reserve`).
        """
        assert request.table is not None
        copy.table = request.table.fork()
        copy.num_computed_tokens = request.num_computed_tokens
        copy.num_cached_tokens = request.num_cached_tokens
        copy.arrival = copy.arrival or request.arrival
        copy.status = Status.RUNNING
        insort(self.running, copy, key=rank)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request, in whatever state it is; a second time changes nothing."""
        if request.status is Status.FINISHED:
            return
        if request.status is Status.RUNNING:
            self.running.remove(request)
        else:
            at = bisect_left(self.waiting, reverse_rank(request), key=reverse_rank)
            if at < len(self.waiting) and self.waiting[at] is request:
                del self.waiting[at]
        if request.table is not None:
            request.table.free()
            request.table = None
        if request.stream is not None:
            request.stream.finish()
        request.status = Status.FINISHED
        request.finish_reason = reason
        for sibling in request.siblings:
            self.finish(sibling, reason)

    def abandon(self, schedule: Schedule) -> None:
        """A step has failed: nothing of it counts, and what it may have left half written is let go."""
        for chunk in schedule.chunks:
            if chunk.request.status is Status.RUNNING:
                self.preempt(chunk.request)

    def check(self) -> None:
        """Count everything anew and compare with the books. For tests and debugging: it takes a while.

        Raises:
            AssertionError: a block is lost, or used by somebody who is not in the books.
        """
        allocator = self.allocator
        users = Counter(block for r in self.running if r.table for block in r.table.blocks)
        users.update(self.prefix_cache.held())
        assert all(users[block] == count for block, count in enumerate(allocator.references))
        assert sorted(allocator.unused) == [b for b, count in enumerate(allocator.references) if not count]
        cached = {block for block in allocator.unused if allocator.keys[block] is not None}
        assert all(allocator.holder.get(allocator.keys[block]) == block for block in cached)
        assert all(allocator.keys[block] == key for key, block in allocator.holder.items())
        for request in self.running:
            assert request.status is Status.RUNNING
            assert request.table is not None
            assert 0 <= request.num_computed_tokens < request.num_tokens < self.max_len
            assert request.num_computed_tokens <= len(request.table.blocks) * self.block_size
        for request in self.waiting:
            assert request.status is Status.WAITING
            assert request.table is None
            assert request.num_computed_tokens == 0
        assert self.running == sorted(self.running, key=rank)
        assert self.num_running <= self.max_num_seqs
        assert self.waiting == sorted(self.waiting, key=reverse_rank)


def rank(request: Request) -> tuple[int, int, int]:
    return request.rank


def reverse_rank(request: Request) -> tuple[int, int, int]:
    priority, arrival, index = request.rank
    return -priority, -arrival, -index
