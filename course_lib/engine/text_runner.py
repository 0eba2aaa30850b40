"""A runner without a model: where keys and values would lie, its pool keeps the text that they stand for.

A token's key and value depend on the whole text up to it. So this runner writes a hash of that text into the
token's slot, and before a request chooses a token its whole text is read back through its block table.
Whatever goes wrong with blocks (one lost, one shared wrongly, copied too late, written by two) shows as a
wrong text. It is quick, so that scheduling can be watched and tested over many thousand steps.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from course_lib.engine.request import Request
from course_lib.engine.runner import verified
from course_lib.engine.scheduler import Chunk, Schedule, Scheduler

if TYPE_CHECKING:
    from course_lib.decode.params import SamplingParams


class WrongText(AssertionError):
    """A request writes where it must not, or reads what is not its own text."""


def beginnings(tokens: Sequence[int], known: Sequence[int] = (0,)) -> list[int]:
    """For each token a hash of the text up to and with it: what stands in a slot for its key and value.

    `known` are those of a text that `tokens` continue.
    """
    return list(accumulate(tokens, lambda text, token: hash((text, token)), initial=known[-1]))[1:]


class TextRunner:
    """Runs steps on a pretended pool of blocks of `block_size` tokens, and keeps the steps in `schedules`.

    The next token is a hash of the whole text: after any other text it would be another one.
    """

    def __init__(self, block_size: int = 16, vocab_size: int = 1 << 16):
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.pool: dict[int, int] = {}  # by slot
        self.texts: dict[Request, list[int]] = {}  # the beginnings of each request's tokens
        self.schedules: list[Schedule] = []

    def refuse(self, params: "SamplingParams") -> None:
        """Whatever the parameters say about chance, there is none here."""

    def execute(self, schedule: Schedule) -> Schedule:
        """Copy blocks, write every scheduled token, then read every text back.

        Raises:
            WrongText: what is written or read is not the request's own.
        """
        self.schedules.append(schedule)
        places = range(self.block_size)
        copied = {
            target * self.block_size + place: self.pool.get(source * self.block_size + place, 0)
            for source, target in schedule.copies
            for place in places
        }
        self.pool.update(copied)
        writers: dict[int, str] = {}
        for chunk in schedule.chunks:
            self.write(chunk, writers)
        for chunk in schedule.chunks:
            self.read(chunk)
        return schedule

    def write(self, chunk: Chunk, writers: dict[int, str]) -> None:
        """Fill the slots of a chunk. `writers` says who wrote to which slot in this step."""
        request, table, end = chunk.request, chunk.request.table, chunk.start + chunk.count
        if table is None:
            raise WrongText(f"{request.id} is to be computed and holds no blocks")
        texts = self.texts_of(request)
        for place, slot in zip(range(chunk.start, end), table.slots(chunk.start, end), strict=True):
            block = slot // self.block_size
            if table.allocator.references[block] != 1:
                raise WrongText(f"{request.id} writes token {place} to block {block}, which others use, too")
            if table.allocator.keys[block] is not None:
                raise WrongText(f"{request.id} writes token {place} to block {block}, which is full")
            if slot in writers:
                raise WrongText(f"{request.id} and {writers[slot]} write to slot {slot} in one step")
            writers[slot] = request.id
            self.pool[slot] = texts[place]

    def read(self, chunk: Chunk) -> None:
        """Read a request's text back, up to the end of its chunk."""
        request, table, end = chunk.request, chunk.request.table, chunk.start + chunk.count
        assert table is not None  # it has been written to
        slots, texts = table.slots(0, end), self.texts_of(request)[:end]
        if [self.pool.get(slot) for slot in slots] != texts:
            place = next(i for i, slot in enumerate(slots) if self.pool.get(slot) != texts[i])
            raise WrongText(
                f"{request.id} reads what is not its own text at token {place}, slot {slots[place]}"
            )

    def texts_of(self, request: Request) -> list[int]:
        """The beginnings of a request's text, its drafts included. Tokens are only ever added to a text."""
        known = self.texts.setdefault(request, [])
        known += beginnings(request.tokens[len(known) :], known or (0,))
        return known + beginnings(request.draft, known)

    def sample(self, logits: Schedule, schedule: Schedule) -> list[list[int]]:
        """What each of `schedule.samplers()` chooses, with the drafts that it would have chosen itself."""
        chosen = []
        for chunk in schedule.chunks:
            for member in (chunk.request, *chunk.request.siblings) if chunk.samples else ():
                ends = self.texts_of(member)[member.num_tokens - 1 :][: chunk.samples]
                chosen.append(verified(chunk, [self.next(text, member.index) for text in ends]))
        return chosen

    def next(self, text: int, index: int = 0) -> int:
        """The token after a beginning, in the index-th of the `n` texts of a prompt."""
        return hash((text, index)) // 1009 % self.vocab_size

    def alone(self, prompt: Sequence[int], count: int, index: int = 0) -> list[int]:
        """The `count` tokens that follow a prompt where there is no pool and nobody else."""
        tokens, texts = [], beginnings(prompt)
        for _ in range(count):
            tokens.append(self.next(texts[-1], index))
            texts += beginnings(tokens[-1:], texts)
        return tokens


def serve(scheduler: Scheduler, runner: TextRunner, steps: int = 10_000) -> int:
    """Run steps until nobody waits or runs, at most `steps`; returns how many it took."""
    for count in range(steps):
        if not (scheduler.waiting or scheduler.running):
            return count
        schedule = scheduler.schedule()
        scheduler.update(schedule, runner.sample(runner.execute(schedule), schedule))
    return steps
