"""Prefix reuse: a request that begins like an earlier one takes over the blocks of what they share.

A token's key and value depend on all tokens before it, so a block can be reused only by a text that is
equal up to the block's end. Each full block is therefore named by a hash of its own tokens and of the name
of the block before it: equal names, equal texts.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

from course_lib.cache.blocks import BlockAllocator
from course_lib.parts import exercise


class PrefixCache(Protocol):
    """What the scheduler asks of a prefix cache; `salt` separates tenants and adapters from each other."""

    def match(self, tokens: Sequence[int], salt: str = "") -> list[int]:
        """The blocks of the longest known beginning of `tokens`, whole blocks only. Takes no reference."""
        ...

    def insert(self, tokens: Sequence[int], blocks: Sequence[int], start: int, salt: str = "") -> None:
        """`blocks[start:]` have become full: together `blocks` hold `tokens`, a whole number of blocks."""
        ...

    def make_available(self, blocks: int) -> bool:
        """See to it that the allocator has so many blocks available, if that is possible."""
        ...

    def held(self) -> list[int]:
        """The blocks of which the cache itself counts as a user."""
        ...

    def cached(self) -> int:
        """How many blocks are kept though no request uses them."""
        ...

    def clear(self) -> None:
        """Forget everything that no request uses."""
        ...


@exercise(day=24)
def block_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a full block: a hash of the name of the block before it and of its own tokens.

    A cryptographic hash: with an ordinary one somebody could search for a text whose blocks collide
    with another user's, and read the answers to it.

    Args:
        parent: the name of the block before, or `root_key(salt)`: 16 bytes.
        tokens: the block's own, each 0 or more.

    Returns:
        16 bytes, the same for the same arguments, in every process.

    Source: vLLM v1, vllm/v1/core/kv_cache_utils.py.
    """
    return blake2b(array("q", tokens).tobytes(), key=parent, digest_size=16).digest()


def root_key(salt: str) -> bytes:
    """The name before the first block: texts of different salts never share a block."""
    return blake2b(salt.encode(), digest_size=16).digest()


class HashPrefixCache:
    """Finds blocks by the chain of their hashes; the allocator keeps them until it needs the room."""

    def __init__(self, allocator: BlockAllocator, block_size: int):
        self.allocator = allocator
        self.block_size = block_size

    def match(self, tokens: Sequence[int], salt: str = "") -> list[int]:
        key, blocks = root_key(salt), []
        for end in range(self.block_size, len(tokens) + 1, self.block_size):
            key = block_key(key, tokens[end - self.block_size : end])
            block = self.allocator.lookup(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def insert(self, tokens: Sequence[int], blocks: Sequence[int], start: int, salt: str = "") -> None:
        key = self.allocator.keys[blocks[start - 1]] if start else root_key(salt)
        assert isinstance(key, bytes)  # the blocks before are full, so they have been published
        for index in range(start, len(blocks)):
            key = block_key(key, tokens[index * self.block_size : (index + 1) * self.block_size])
            self.allocator.publish(blocks[index], key)

    def make_available(self, blocks: int) -> bool:
        return self.allocator.available >= blocks  # cached blocks are available as they are

    def held(self) -> list[int]:
        return []

    def cached(self) -> int:
        allocator = self.allocator
        return sum(not allocator.references[block] for block in allocator.holder.values())

    def clear(self) -> None:
        allocator = self.allocator
        for block in [block for block in allocator.holder.values() if not allocator.references[block]]:
            del allocator.holder[allocator.keys[block]]
            allocator.keys[block] = None
            allocator.unused.remove(block)
            allocator.unused.prepend(block)


class NoPrefixCache:
    """Keeps nothing: every request computes all of its tokens."""

    def __init__(self, allocator: BlockAllocator, block_size: int):
        self.allocator = allocator

    def match(self, tokens: Sequence[int], salt: str = "") -> list[int]:
        return []

    def insert(self, tokens: Sequence[int], blocks: Sequence[int], start: int, salt: str = "") -> None:
        pass

    def make_available(self, blocks: int) -> bool:
        return self.allocator.available >= blocks

    def held(self) -> list[int]:
        return []

    def cached(self) -> int:
        return 0

    def clear(self) -> None:
        pass
