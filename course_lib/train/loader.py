"""The order in which a run reads its tokens: shuffled, without gaps, and resumable at any position."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from course_lib.parts import exercise
from course_lib.train.data import open_shard


@exercise(day=8)
class TokenLoader:
    """Batches of windows from memory-mapped shards, each window once an epoch, in shuffled order.

    An epoch cuts every shard into windows of block_size tokens, from a random offset below
    block_size, so that the next epoch cuts elsewhere; a window never crosses from one shard into
    another. All ranks share one order. A step takes the next batch_size * world_size windows of
    it, the first batch_size for rank 0, the next for rank 1; where an epoch ends within a step,
    the next epoch goes on. Offsets and order come from (seed, epoch) alone, so two numbers say
    where a run stands; its state also holds the shards' lengths, block_size and seed, by which
    another loader's state is recognized. A run may go on with another batch size or world size.

    `epoch`, counted from 0, is that of the last window taken.

    Args:
        shards: 1-D .npy files of uint16 or uint32 tokens.
        batch_size: windows a step and rank.
        block_size: tokens a window.
        seed: another seed, another order.
        rank: which of the world_size readers this is, from 0.
        world_size: how many readers share the shards.

    Raises:
        ValueError: a size below 1; rank not below world_size; no shard of 2 * block_size tokens,
            which every offset leaves a window; a state that lacks something, is not of these
            shards, this block size and this seed, or stands beyond its epoch's last window.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        batch_size: int,
        block_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if min(batch_size, block_size) < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size {batch_size}, block_size {block_size}, rank {rank} of {world_size}: "
                "expected sizes of 1 or more and a rank from 0 to world_size - 1"
            )
        self.shards = [open_shard(path) for path in shards]
        longest = max((len(shard) for shard in self.shards), default=0)
        if longest < 2 * block_size:
            raise ValueError(f"the longest shard has {longest} tokens; {2 * block_size} are needed")
        self.batch_size, self.block_size, self.seed = batch_size, block_size, seed
        self.rank, self.world_size = rank, world_size
        self._begin(epoch=0)

    def _begin(self, epoch: int, position: int = 0) -> None:
        """Cut the windows of an epoch and shuffle them."""
        rng = np.random.default_rng([self.seed, epoch])
        windows = []
        for i, shard in enumerate(self.shards):
            # The last token of a window needs a successor to predict: hence the - 1.
            offset = rng.integers(self.block_size)
            starts = np.arange(offset, len(shard) - self.block_size, self.block_size)
            windows.append(np.stack([np.full_like(starts, i), starts], axis=1))
        order = rng.permutation(np.concatenate(windows))  # (windows, 2): shard, first token
        if not 0 <= position <= len(order):
            raise ValueError(f"window {position} of epoch {epoch}: expected 0 to {len(order)}")
        self.order, self.epoch, self.position = order, epoch, position

    def next_batch(self) -> tuple[Int64[np.ndarray, "batch t"], Int64[np.ndarray, "batch t"]]:
        """Return the inputs and the targets, one token on, of this rank's next step."""
        rows = []
        for turn in range(self.batch_size * self.world_size):
            if self.position == len(self.order):
                self._begin(self.epoch + 1)
            if turn // self.batch_size == self.rank:
                shard, start = self.order[self.position]
                rows.append(self.shards[shard][start : start + self.block_size + 1])
            self.position += 1
        tokens = np.stack(rows).astype(np.int64)
        return tokens[:, :-1], tokens[:, 1:]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on here: the same for all ranks, fit for JSON."""
        tokens = [len(shard) for shard in self.shards]
        fixed = {"tokens": tokens, "block_size": self.block_size, "seed": self.seed}
        return {"epoch": self.epoch, "position": self.position, **fixed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the loader that gave `state` stood."""
        here = self.state_dict()
        if missing := sorted(here.keys() - state.keys()):
            raise ValueError(f"this is no loader's state: it lacks {missing}")
        for key in ("tokens", "block_size", "seed"):
            if state[key] != here[key]:
                raise ValueError(
                    f"the state is of a loader with {key} {state[key]}, this one has {here[key]}: "
                    "their windows are not the same"
                )
        self._begin(state["epoch"], state["position"])
