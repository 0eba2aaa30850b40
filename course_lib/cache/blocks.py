"""Blocks: the pool of keys and values cut into pieces of equal size, and who holds which. No tensor in here.

An operating system gives programs pages, not one stretch of memory each; vLLM gave requests blocks in the
same way. Source: Kwon et al. (2023), "Efficient Memory Management for Large Language Model Serving with
PagedAttention".
"""

from collections.abc import Hashable, Sequence
from typing import Self

from course_lib.parts import exercise


class FreeList:
    """The blocks that nobody uses, in the order in which they will be taken; every operation is O(1).

    An intrusive doubly linked list: each block carries its own two links, here in two arrays, so that a
    block in the middle can be taken out without looking for it. Entry `total` is the list's head.
    """

    def __init__(self, total: int):
        self.after = [*range(1, total + 1), 0]  # head -> 0 -> 1 -> ... -> head
        self.before = [total, *range(total)]
        self.head = total
        self.length = total

    def __len__(self) -> int:
        return self.length

    def first(self) -> int:
        """The block to be taken next; the list must not be empty."""
        return self.after[self.head]

    def remove(self, block: int) -> None:
        before, after = self.before[block], self.after[block]
        self.after[before], self.before[after] = after, before
        self.length -= 1

    def append(self, block: int) -> None:
        self._link(self.before[self.head], block, self.head)

    def prepend(self, block: int) -> None:
        self._link(self.head, block, self.after[self.head])

    def _link(self, before: int, block: int, after: int) -> None:
        self.after[before] = self.before[after] = block
        self.before[block], self.after[block] = before, after
        self.length += 1

    def __iter__(self):  # type: ignore[no-untyped-def]
        block = self.after[self.head]
        while block != self.head:
            yield block
            block = self.after[block]


@exercise(day=24)
class BlockAllocator:
    """Hands out the blocks 0 to total - 1, counts who uses each, and remembers what full ones hold.

    A block is *referenced* by one or more users; or *cached*: nobody uses it, but it has a key that
    says whose keys and values it still holds, so `lookup` can find it; or *free*. Cached blocks may
    be overwritten, too, the least recently used first, but only when no free one is left. So
    free + referenced + cached = total, always.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.references = [0] * total
        self.keys: list[Hashable | None] = [None] * total  # what a full block holds; None: not full
        self.holder: dict[Hashable, int] = {}  # key -> the block that `lookup` finds
        self.unused = FreeList(total)  # the free ones, then the cached ones, longest unused first

    @property
    def available(self) -> int:
        """How many blocks `allocate` could hand out now: the free and the cached ones."""
        return len(self.unused)

    def allocate(self) -> int | None:
        """A block for one user alone, its old content forgotten; None if all are referenced."""
        if not self.unused:
            return None
        block = self.unused.first()
        self.unused.remove(block)
        key, self.keys[block] = self.keys[block], None
        if key is not None:
            del self.holder[key]
        self.references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more user for a block that is referenced or cached."""
        if self.references[block] == 0:
            self.unused.remove(block)
        self.references[block] += 1

    def release(self, block: int) -> None:
        """One user less. The last one leaves it cached if `lookup` can find it, else free.

        Raises:
            ValueError: nobody uses the block.
        """
        if self.references[block] == 0:
            raise ValueError(f"block {block} was released more often than it was taken")
        self.references[block] -= 1
        if self.references[block]:
            return
        key = self.keys[block]
        if key is not None and self.holder.setdefault(key, block) == block:
            self.unused.append(block)  # cached: others are overwritten before it
        else:
            self.keys[block] = None  # a twin holds the same, or it never was full: nothing is lost
            self.unused.prepend(block)

    def publish(self, block: int, key: Hashable) -> None:
        """The block is full, and holds what `key` says: from now on nobody writes to it.

        Where another block is known by that key already, that one stays the one `lookup` finds.
        """
        self.keys[block] = key
        self.holder.setdefault(key, block)

    def lookup(self, key: Hashable) -> int | None:
        """The block that holds what `key` says, referenced or cached; None if there is none."""
        return self.holder.get(key)


@exercise(day=24)
class BlockTable:
    """Where a request's keys and values lie: blocks[i] has tokens i*size to (i+1)*size - 1."""

    def __init__(
        self,
        allocator: BlockAllocator,
        block_size: int,
        blocks: Sequence[int] = (),
    ) -> None:
        """`blocks` are already counted as this request's own or shared ones."""
        self.allocator = allocator
        self.block_size = block_size
        self.blocks = list(blocks)

    def missing(self, tokens: int) -> int:
        """How many blocks are lacking to hold `tokens` tokens."""
        return max(0, -(-tokens // self.block_size) - len(self.blocks))

    def grow(self, tokens: int) -> bool:
        """Take all blocks that are missing to hold `tokens` tokens, or take none and say False."""
        missing = self.missing(tokens)
        if missing > self.allocator.available:
            return False
        for _ in range(missing):
            block = self.allocator.allocate()
            assert block is not None  # as many are available as are missing
            self.blocks.append(block)
        return True

    def slots(self, start: int, end: int) -> list[int]:
        """Where in the pool tokens start to end - 1 lie: block * block_size + place in it."""
        size = self.block_size
        return [self.blocks[i // size] * size + i % size for i in range(start, end)]

    def fork(self) -> Self:
        """A second table for the same tokens. Nothing is copied: both share every block."""
        for block in self.blocks:
            self.allocator.share(block)
        return type(self)(self.allocator, self.block_size, self.blocks)

    def shared(self, position: int) -> bool:
        """Whether somebody else uses the block in which token `position` lies, or will lie."""
        index = position // self.block_size
        return index < len(self.blocks) and self.allocator.references[self.blocks[index]] > 1

    def make_private(self, position: int) -> tuple[int, int] | None:
        """Copy on write: call this before token `position` is written.

        If its block is shared, a new block takes its place in this table. Returns (from, to), the
        copy that must be made before the write; None where nothing is to be done.

        Raises:
            RuntimeError: a copy is needed, and no block is available.
        """
        if not self.shared(position):
            return None
        index = position // self.block_size
        new, old = self.allocator.allocate(), self.blocks[index]
        if new is None:
            raise RuntimeError("no block is available for a copy: see to it before asking for one")
        self.blocks[index] = new
        self.allocator.release(old)
        return old, new

    def free(self) -> None:
        """Give all blocks back, the last first: a text's end is to be overwritten first."""
        while self.blocks:
            self.allocator.release(self.blocks.pop())
