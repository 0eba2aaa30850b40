"""Blocks, tables and prefix caches: every block is accounted for after any sequence of operations."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from course_lib.cache import BlockAllocator, BlockTable, HashPrefixCache, NoPrefixCache, RadixPrefixCache
from course_lib.cache.blocks import FreeList
from course_lib.cache.prefix import block_key, root_key

# The free list


def test_free_list_is_a_queue_with_two_ends():
    blocks = FreeList(4)
    assert list(blocks) == [0, 1, 2, 3] and len(blocks) == 4
    blocks.remove(2)
    blocks.remove(0)
    blocks.append(0)
    blocks.prepend(2)
    assert list(blocks) == [2, 1, 3, 0] and blocks.first() == 2
    for block in (2, 1, 3, 0):
        blocks.remove(block)
    assert not blocks and list(blocks) == []
    blocks.append(3)
    assert list(blocks) == [3]


# The allocator


def states(allocator: BlockAllocator) -> tuple[int, int, int]:
    """(free, referenced, cached), each counted from the ground up."""
    unused = list(allocator.unused)
    cached = sum(allocator.keys[block] is not None for block in unused)
    referenced = sum(count > 0 for count in allocator.references)
    return len(unused) - cached, referenced, cached


def test_a_full_pool_never_raises():
    """Promise 4, first half: it says None, and goes on as soon as there is room."""
    allocator = BlockAllocator(2)
    assert {allocator.allocate(), allocator.allocate()} == {0, 1}
    assert allocator.allocate() is None
    allocator.release(1)
    assert allocator.allocate() == 1
    assert BlockAllocator(0).allocate() is None


def test_a_block_has_as_many_lives_as_users():
    allocator = BlockAllocator(1)
    block = allocator.allocate()
    allocator.share(block)
    allocator.release(block)
    assert allocator.allocate() is None
    allocator.release(block)
    assert allocator.allocate() == block
    allocator.release(block)
    with pytest.raises(ValueError, match="block 0 was released more often than it was taken"):
        allocator.release(block)


def test_free_blocks_go_first_then_the_least_recently_used():
    allocator = BlockAllocator(4)
    a, b, c, d = (allocator.allocate() for _ in range(4))
    for block in (a, b, c):
        allocator.publish(block, f"text {block}")
    for block in (b, a, d, c):
        allocator.release(block)
    assert states(allocator) == (1, 0, 3)
    allocator.share(allocator.lookup(f"text {b}"))  # used again, so it is now the most recent
    allocator.release(b)
    assert [allocator.allocate() for _ in range(4)] == [d, a, c, b]
    assert [allocator.lookup(f"text {block}") for block in (a, b, c)] == [None] * 3


def test_twins():
    """Two requests computed the same text: one block is found, and the other takes its place when it goes."""
    allocator = BlockAllocator(3)
    first, second = allocator.allocate(), allocator.allocate()
    allocator.publish(first, "text")
    allocator.publish(second, "text")
    assert allocator.lookup("text") == first
    allocator.release(first)
    assert states(allocator) == (1, 1, 1)
    assert {allocator.allocate(), allocator.allocate()} == {2, first}  # overwritten
    assert allocator.lookup("text") is None
    allocator.release(second)
    assert allocator.lookup("text") == second and states(allocator) == (0, 2, 1)


# The table


def test_slots():
    table = BlockTable(BlockAllocator(9), 4, [7, 2, 5])
    assert table.slots(2, 10) == [30, 31, 8, 9, 10, 11, 20, 21]
    assert table.slots(4, 4) == []


def test_a_table_grows_wholly_or_not_at_all():
    allocator = BlockAllocator(3)
    table = BlockTable(allocator, 4)
    assert [table.missing(tokens) for tokens in (0, 1, 4, 5, 12, 13)] == [0, 1, 1, 2, 3, 4]
    assert table.grow(5) and len(table.blocks) == 2
    assert table.grow(8) and len(table.blocks) == 2
    assert not table.grow(13) and len(table.blocks) == 2 and allocator.available == 1
    assert table.grow(0) and len(table.blocks) == 2


def test_blocks_are_freed_in_reverse():
    """The end of a text is overwritten before its beginning, which more texts have in common."""
    allocator = BlockAllocator(3)
    table = BlockTable(allocator, 2)
    table.grow(6)
    blocks = list(table.blocks)
    for block in blocks:
        allocator.publish(block, block)
    table.free()
    assert table.blocks == [] and [allocator.allocate() for _ in range(3)] == blocks[::-1]


def test_copy_on_write():
    """Promise 2: a shared block is never written. Whoever writes first takes a copy."""
    allocator = BlockAllocator(4)
    one = BlockTable(allocator, 4)
    one.grow(6)
    two = one.fork()
    assert one.blocks == two.blocks == [0, 1] and allocator.references == [2, 2, 0, 0]
    assert two.make_private(6) == (1, 2) and two.blocks == [0, 2] and one.blocks == [0, 1]
    assert allocator.references == [2, 1, 1, 0]
    assert two.make_private(6) is None and one.make_private(6) is None  # each is alone in its last block
    assert one.make_private(8) is None  # not there yet: it will be new
    two.free()
    assert allocator.references == [1, 1, 0, 0] and one.blocks == [0, 1]


def test_copy_on_write_without_room():
    allocator = BlockAllocator(1)
    one = BlockTable(allocator, 4)
    one.grow(1)
    two = one.fork()
    with pytest.raises(RuntimeError, match="no block is available for a copy"):
        two.make_private(1)
    assert two.blocks == one.blocks


# Names of blocks


def test_keys_name_the_whole_text():
    root = root_key("")
    ab = block_key(block_key(root, [1, 2]), [3, 4])
    assert ab == block_key(block_key(root, [1, 2]), [3, 4])
    others = [
        block_key(block_key(root, [9, 2]), [3, 4]),  # the same block after another beginning
        block_key(block_key(root, [1, 2]), [4, 3]),
        block_key(block_key(root_key("tenant"), [1, 2]), [3, 4]),
        block_key(root, [1, 2, 3, 4]),
        block_key(root, [1, 2]),
    ]
    assert len({ab, *others}) == 6


CACHES = [HashPrefixCache, RadixPrefixCache]


def written(cache, text: list[int], salt: str = "") -> list[int]:
    """As a request would: take over what is known, compute the rest, publish it, end."""
    allocator, size = cache.allocator, cache.block_size
    found = cache.match(text, salt)
    for block in found:
        allocator.share(block)
    table = BlockTable(allocator, size, found)
    assert cache.make_available(table.missing(len(text))) and table.grow(len(text))
    full = len(text) // size
    if full > len(found):
        cache.insert(text[: full * size], table.blocks[:full], len(found), salt)
    blocks = list(table.blocks)
    table.free()
    return blocks


@pytest.mark.parametrize("kind", CACHES)
def test_longest_known_beginning(kind):
    cache = kind(BlockAllocator(32), 2)
    blocks = written(cache, [1, 2, 3, 4, 5, 6, 7])
    assert cache.match([1, 2, 3, 4, 5, 6, 7, 8]) == blocks[:3]  # the last block was never full
    assert cache.match([1, 2, 3, 4, 9, 9]) == blocks[:2]
    assert cache.match([1, 2, 3]) == blocks[:1]
    assert cache.match([1]) == cache.match([]) == cache.match([2, 1, 3, 4]) == []
    assert cache.match([1, 2, 3, 4], salt="somebody else") == []
    branch = written(cache, [1, 2, 3, 4, 9, 9, 9, 9])
    assert branch[:2] == blocks[:2]
    assert cache.match([1, 2, 3, 4, 9, 9, 9, 9, 1]) == branch
    assert cache.match([1, 2, 3, 4, 5, 6]) == blocks[:3]
    assert written(cache, [1, 2, 3, 4], salt="somebody else") != blocks[:2]
    assert cache.cached() == 3 + 2 + 2
    cache.clear()
    assert cache.cached() == 0 and cache.match([1, 2]) == [] and cache.allocator.available == 32


@pytest.mark.parametrize("kind", CACHES)
def test_eviction_takes_the_end_of_the_least_recently_used(kind):
    cache = kind(BlockAllocator(6), 1)
    written(cache, [1, 2, 3])
    written(cache, [5, 6, 7])
    written(cache, [1, 2])  # used again
    assert cache.make_available(2)
    while cache.allocator.available < 2 or cache.cached() > 4:
        cache.allocator.allocate()
    assert len(cache.match([1, 2, 3])) >= 2 and len(cache.match([5, 6, 7])) <= 2


def test_radix_tree_grows_in_three_ways():
    cache = RadixPrefixCache(BlockAllocator(32), 2)

    def shape(node):
        return (node.tokens, sorted((shape(child) for child in node.children.values()), key=str))

    written(cache, [1, 1, 2, 2])
    assert shape(cache.roots[""]) == ([], [([1, 1, 2, 2], [])])
    written(cache, [1, 1, 2, 2, 3, 3])  # a leaf becomes longer
    assert shape(cache.roots[""]) == ([], [([1, 1, 2, 2, 3, 3], [])])
    written(cache, [1, 1, 2, 2, 4, 4])  # a node is split
    assert shape(cache.roots[""]) == ([], [([1, 1, 2, 2], [([3, 3], []), ([4, 4], [])])])
    written(cache, [1, 1, 2, 2, 5, 5])  # one more child
    assert len(cache.roots[""].children[1, 1].children) == 3
    written(cache, [7, 7])
    assert len(cache.roots[""].children) == 2


def test_radix_never_evicts_what_is_in_use():
    allocator = BlockAllocator(4)
    cache = RadixPrefixCache(allocator, 1)
    blocks = written(cache, [1, 2, 3])
    allocator.share(blocks[0])
    allocator.share(blocks[1])  # a running request
    assert cache.evict(99) == 1 and cache.match([1, 2, 3]) == blocks[:2]
    allocator.release(blocks[1])
    assert cache.evict(99) == 1 and cache.match([1, 2, 3]) == blocks[:1]


def test_depth_first_order_computes_every_beginning_once():
    """With room for hardly more than one path, only neighbors in the tree can share."""
    rng = random.Random(3)
    prompts = [[a, b, c] for a in range(4) for b in range(4) for c in range(4)]
    rng.shuffle(prompts)

    def computed(order: list[int]) -> int:
        cache = RadixPrefixCache(BlockAllocator(3), 1)
        total = 0
        for index in order:
            total += 3 - len(cache.match(prompts[index]))
            written(cache, prompts[index])
        return total

    best = computed(RadixPrefixCache(BlockAllocator(3), 1).depth_first(prompts))
    assert best == 4 + 16 + 64  # the nodes of the tree
    assert computed(list(range(64))) > 1.5 * best


# Any sequence of operations


class Pool(RuleBasedStateMachine):
    """Tables that grow, fork, are written, published and freed, beside a plain account of who holds what."""

    @initialize(
        total=st.integers(2, 12), size=st.integers(1, 4), kind=st.sampled_from([*CACHES, NoPrefixCache])
    )
    def begin(self, total: int, size: int, kind: type):
        self.allocator, self.size = BlockAllocator(total), size
        self.cache = kind(self.allocator, size)
        self.tables: list[tuple[BlockTable, list[int]]] = []  # with the text that each holds
        self.content: dict[int, tuple[int, ...]] = {}  # slot -> the text up to and with its token

    def pick(self, data) -> tuple[BlockTable, list[int]] | None:
        return data.draw(st.sampled_from(self.tables)) if self.tables else None

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def start(self, prompt: list[int]):
        found = self.cache.match(prompt[:-1])
        for block in found:
            self.allocator.share(block)
        table = BlockTable(self.allocator, self.size, found)
        if not (self.cache.make_available(table.missing(len(prompt))) and table.grow(len(prompt))):
            table.free()
            return
        self.tables.append((table, []))
        self.write(self.tables[-1], prompt, len(found) * self.size)

    def write(self, entry: tuple[BlockTable, list[int]], text: list[int], start: int):
        table, known = entry
        for position in range(start, len(text)):
            (slot,) = table.slots(position, position + 1)
            block = slot // self.size
            assert self.allocator.references[block] == 1, "a shared block is written"
            assert self.allocator.keys[block] is None, "a full block is written"
            self.content[slot] = tuple(text[: position + 1])
        known[:] = text
        full = len(text) // self.size
        if full > start // self.size:
            self.cache.insert(text[: full * self.size], table.blocks[:full], start // self.size)

    @rule(data=st.data(), token=st.integers(0, 1))
    def extend(self, data, token: int):
        if entry := self.pick(data):
            table, text = entry
            needed = table.missing(len(text) + 1) + table.shared(len(text))
            if self.cache.make_available(needed):
                if copy := table.make_private(len(text)):
                    for place in range(self.size):
                        if (old := copy[0] * self.size + place) in self.content:
                            self.content[copy[1] * self.size + place] = self.content[old]
                assert table.grow(len(text) + 1)
                self.write(entry, [*text, token], len(text))

    @rule(data=st.data())
    def fork(self, data):
        if entry := self.pick(data):
            self.tables.append((entry[0].fork(), list(entry[1])))

    @rule(data=st.data())
    def free(self, data):
        if entry := self.pick(data):
            entry[0].free()
            self.tables = [other for other in self.tables if other[0] is not entry[0]]

    @rule()
    def clear(self):
        self.cache.clear()

    @invariant()
    def every_block_is_accounted_for(self):
        """Promise 1: free + referenced + cached = total, and references are exactly the users."""
        if not hasattr(self, "allocator"):
            return
        users = [0] * self.allocator.total
        for table, _ in self.tables:
            for block in table.blocks:
                users[block] += 1
        for block in self.cache.held():
            users[block] += 1
        assert users == self.allocator.references
        assert sum(states(self.allocator)) == self.allocator.total
        assert sorted(self.allocator.unused) == [block for block, count in enumerate(users) if not count]

    @invariant()
    def every_table_reads_its_own_text(self):
        for table, text in getattr(self, "tables", ()):
            slots = table.slots(0, len(text))
            assert [self.content[slot] for slot in slots] == [tuple(text[: i + 1]) for i in range(len(text))]

    def teardown(self):
        if hasattr(self, "tables"):
            for table, _ in self.tables:
                table.free()
            self.cache.clear()
            assert states(self.allocator) == (self.allocator.total, 0, 0)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
