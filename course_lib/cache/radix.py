"""Prefix reuse by a radix tree: the texts whose keys and values are kept, as one tree of shared beginnings.

Source: Zheng et al. (2024), "SGLang: Efficient Execution of Structured Language Model Programs", section 3.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from course_lib.cache.blocks import BlockAllocator
from course_lib.parts import exercise


@dataclass(eq=False)
class RadixNode:
    """A run of tokens, a whole number of blocks, that follows what the nodes above it say."""

    parent: "RadixNode | None" = None
    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    children: dict[tuple[int, ...], "RadixNode"] = field(default_factory=dict)  # by their first block
    used: int = 0  # when a request last came by: the tree's own clock

    def walk(self) -> Iterator["RadixNode"]:
        """This node and all below it, depth first, each after the one above it."""
        pending = [self]
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())


@exercise(day=24)
class RadixPrefixCache:
    """Keeps full blocks in a tree, in which each path from the root spells a text.

    The tree is a user of each of its blocks: it shares them with the requests that wrote them, and
    holds them after those have ended, until `evict` lets go of the leaves that were used least
    recently.
    """

    def __init__(self, allocator: BlockAllocator, block_size: int) -> None:
        self.allocator = allocator
        self.block_size = block_size
        self.roots: dict[str, RadixNode] = {}  # one tree a salt: tenants never share a block
        self.clock = 0

    def find(self, tokens: Sequence[int], salt: str) -> tuple[RadixNode, int, int]:
        """Go down the tree as far as `tokens` leads, in whole blocks.

        Returns (node, inside, known): the last node reached, how many of its tokens fit, and how
        many tokens have been found in all. Makes the root of a new salt, counts the clock up by 1,
        and all nodes on the way as used now.
        """
        self.clock += 1
        node, inside, known = self.roots.setdefault(salt, RadixNode()), 0, 0
        node.used = self.clock
        while child := node.children.get(tuple(tokens[known : known + self.block_size])):
            node, inside = child, 0
            node.used = self.clock
            while inside < len(node.tokens):
                end = inside + self.block_size
                if list(tokens[known : known + self.block_size]) != node.tokens[inside:end]:
                    return node, inside, known
                inside, known = end, known + self.block_size
        return node, inside, known

    def match(self, tokens: Sequence[int], salt: str = "") -> list[int]:
        """The blocks of the longest known beginning of `tokens`. Takes no reference."""
        found, inside, _ = self.find(tokens, salt)
        path = found.blocks[: inside // self.block_size]
        node = found.parent
        while node is not None:
            path = node.blocks + path
            node = node.parent
        return path

    def insert(
        self,
        tokens: Sequence[int],
        blocks: Sequence[int],
        start: int,
        salt: str = "",
    ) -> None:
        """`blocks` hold `tokens`, a whole number of blocks: remember those that are new.

        `start` says from where on they are new to the request that has them; the tree looks for
        itself. Where it knows a beginning of `tokens` already it keeps its own blocks for that. A
        radix tree grows in three ways: a leaf becomes longer; a node gets one more child; a node is
        split where a text leaves it, and gets one more child there.
        """
        node, inside, known = self.find(tokens, salt)
        new = list(blocks[known // self.block_size :])
        if not new:
            return
        for block in new:
            self.allocator.share(block)
        if inside < len(node.tokens):
            node = self.split(node, inside)
        if node.parent is not None and not node.children:
            node.tokens += tokens[known:]
            node.blocks += new
        else:
            child = RadixNode(node, list(tokens[known:]), new, used=self.clock)
            node.children[tuple(tokens[known : known + self.block_size])] = child

    def split(self, node: RadixNode, at: int) -> RadixNode:
        """Cut a node after its first `at` tokens; the rest becomes the upper half's only child.

        Returns the upper half. Both keep `used`.
        """
        assert node.parent is not None  # the root holds no tokens
        size = self.block_size
        upper = RadixNode(node.parent, node.tokens[:at], node.blocks[: at // size], used=node.used)
        node.parent.children[tuple(node.tokens[:size])] = upper
        node.parent, node.tokens, node.blocks = upper, node.tokens[at:], node.blocks[at // size :]
        upper.children[tuple(node.tokens[:size])] = node
        return upper

    def evict(self, count: int) -> int:
        """Let go of up to `count` blocks that only the tree uses; returns how many.

        The leaf used least recently comes first, and of a leaf its end. A node above is touched
        only when it has become a leaf itself: what remains can always be reached from the root.
        A root that has nothing below it any more is forgotten, too: its salt leaves `roots`.
        """
        size = self.block_size
        nodes = (node for root in self.roots.values() for node in root.walk())
        bare = (node for node in nodes if node.blocks and not node.children)
        leaves = [(leaf.used, id(leaf), leaf) for leaf in bare]
        heapq.heapify(leaves)
        freed = 0
        while leaves and freed < count:
            _, _, leaf = heapq.heappop(leaves)
            first = tuple(leaf.tokens[:size])
            while leaf.blocks and freed < count and self.allocator.references[leaf.blocks[-1]] == 1:
                self.allocator.release(leaf.blocks.pop())
                del leaf.tokens[-size:]
                freed += 1
            if not leaf.blocks and leaf.parent is not None:
                parent = leaf.parent
                del parent.children[first]
                if parent.blocks and not parent.children:
                    heapq.heappush(leaves, (parent.used, id(parent), parent))
        self.roots = {salt: root for salt, root in self.roots.items() if root.children}
        return freed

    def make_available(self, blocks: int) -> bool:
        """See to it that the allocator has so many blocks available, if evicting can do that.

        Evicts some more than is asked for, so that the search for leaves is rare.
        """
        missing = blocks - self.allocator.available
        if missing > 0:
            self.evict(max(missing, self.allocator.total // 32))
        return self.allocator.available >= blocks

    def held(self) -> list[int]:
        """Every block in the tree."""
        nodes = (node for root in self.roots.values() for node in root.walk())
        return [block for node in nodes for block in node.blocks]

    def cached(self) -> int:
        """How many blocks only the tree uses."""
        return sum(self.allocator.references[block] == 1 for block in self.held())

    def clear(self) -> None:
        """Let go of everything that no request uses."""
        self.evict(self.allocator.total)

    def depth_first(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """In which order to run many prompts so that each shared beginning is computed once.

        Sorted like words in a dictionary, prompts with a common beginning follow one another: that
        is a depth-first walk of their tree, so a node is needed no more once the walk has left it.
        """
        return sorted(range(len(prompts)), key=lambda index: list(prompts[index]))
