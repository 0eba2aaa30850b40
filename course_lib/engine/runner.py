"""What the engine asks of whatever runs the model. Nothing in here knows torch, MLX or any other library."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from course_lib.engine.scheduler import Chunk, Schedule

if TYPE_CHECKING:
    from course_lib.decode.params import SamplingParams


class Runner(Protocol):
    """Owns the weights and the pool of blocks; runs one step, and chooses the next tokens.

    The engine never looks into the logits: they are the runner's own kind of array.
    """

    vocab_size: int  # token ids are 0 to vocab_size - 1

    def refuse(self, params: "SamplingParams") -> None:
        """Raise ValueError for parameters that this runner cannot do as they say."""
        ...

    def execute(self, schedule: Schedule) -> Any:
        """Copy what is to be copied, compute the scheduled tokens; returns the logits asked for."""
        ...

    def sample(self, logits: Any, schedule: Schedule) -> list[list[int]]:
        """The tokens chosen by each of `schedule.samplers()`: one, and one more for each right draft."""
        ...


@dataclass
class Batch:
    """A step's tokens in one row, N in all, whoever they belong to.

    token_ids[i] stands at positions[i] of its text; its key and value go to slot slots[i] of the pool.
    `chunks` says which rows are whose. `rows` are the tokens whose logits are wanted, in the order of the
    schedule's chunks.
    """

    token_ids: list[int]
    positions: list[int]
    slots: list[int]
    chunks: list[Chunk]
    rows: list[int]

    def tables(self) -> list[tuple[int, Sequence[int], int]]:
        """For every chunk: (new tokens, blocks in use, tokens of the text once these are computed)."""
        described: list[tuple[int, Sequence[int], int]] = []
        for chunk in self.chunks:
            table, length = chunk.request.table, chunk.start + chunk.count
            assert table is not None
            described.append((chunk.count, table.blocks[: -(-length // table.block_size)], length))
        return described


def flatten(schedule: Schedule) -> Batch:
    """Lay a step's tokens in one row: single ones first, those of the shortest texts before others."""
    chunks = sorted(schedule.chunks, key=lambda chunk: (chunk.count > 1, chunk.start))
    batch = Batch([], [], [], chunks, [])
    end_of: dict[int, int] = {}  # by request: the row behind its last token
    for chunk in chunks:
        request, start, end = chunk.request, chunk.start, chunk.start + chunk.count
        assert request.table is not None
        known = request.tokens[start:end]
        batch.token_ids += known
        if len(known) < chunk.count:
            batch.token_ids += request.draft[: chunk.count - len(known)]
        batch.positions += range(start, end)
        batch.slots += request.table.slots(start, end)
        end_of[id(request)] = len(batch.token_ids)
    for chunk in schedule.chunks:
        end = end_of[id(chunk.request)]
        batch.rows += range(end - chunk.samples, end)
    return batch


def verified(chunk: Chunk, chosen: Sequence[int]) -> list[int]:
    """What a request gets of the tokens chosen after its last known token and after each of its drafts.

    A draft is right if it is what has been chosen in its place; then the choice after it counts, too. The
    text is the same as without drafts, greedy or drawn, since a draw depends on seed and position alone.
    """
    right = 0
    for draft, token in zip(chunk.request.draft, chosen[:-1], strict=False):
        if draft != token:
            break
        right += 1
    return list(chosen[: right + 1])
