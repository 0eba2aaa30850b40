"""Byte-pair encoding on byte strings: train merges, encode with them, decode.

Tokens are `bytes` here, not numbers: a token *is* the bytes it stands for, and merging two tokens is
`a + b`. Numbers (ids) appear only at the very end of `encode_chunk` and at the start of `decode`, so
nothing in between can mistake an id for a rank.

Sources: Gage (1994), "A New Algorithm for Data Compression"; Sennrich, Haddow and Birch (2016),
arXiv:1508.07909.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from math import inf
from typing import Protocol, TypeVar

from course_lib.parts import exercise

Pair = tuple[bytes, bytes]
Token = TypeVar("Token", bytes, str)
TokenIn = TypeVar("TokenIn", bytes, str, contravariant=True)


class Ranks(Protocol[TokenIn]):
    """What a merge asks of a table of ranks: a dictionary will do."""

    def __contains__(self, pair: tuple[TokenIn, TokenIn], /) -> bool: ...

    def __getitem__(self, pair: tuple[TokenIn, TokenIn], /) -> float: ...


@exercise(day=5)
def pair_counts(words: Iterable[tuple[Sequence[bytes], int]]) -> Counter[Pair]:
    """Count the adjacent pairs of tokens in `words`.

    Each word is `(tokens, n)`: a chunk of text cut into tokens, and how often that chunk occurs in
    the corpus. Every adjacent position counts, overlapping ones too: three equal tokens in a row
    hold two pairs. No pair reaches from one word into the next.

    >>> pair_counts([([b"a", b"a", b"a"], 10), ([b"a", b"b"], 1)])
    Counter({(b'a', b'a'): 20, (b'a', b'b'): 1})
    """
    counts: Counter[Pair] = Counter()
    for tokens, n in words:
        for pair in pairwise(tokens):
            counts[pair] += n
    return counts


@exercise(day=5)
def merge_pair(tokens: Sequence[bytes], pair: Pair) -> list[bytes]:
    """Return `tokens` with every occurrence of `pair` replaced by one token, `pair[0] + pair[1]`.

    Goes from left to right; where occurrences overlap the first one wins, so merging (a, a) in
    a a a gives aa a. The merged token is not looked at again. The input stays as it was.
    """
    merged = []
    i = 0
    while i < len(tokens):
        if tuple(tokens[i : i + 2]) == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return merged


@exercise(day=5)
def train_bpe(chunks: Mapping[bytes, int], vocab_size: int) -> list[Pair]:
    """Learn merges from a corpus and return them in the order in which they were made.

    `chunks` maps each distinct chunk of the corpus to its number of occurrences. The vocabulary
    starts as the 256 single bytes. Each round merges the most frequent pair; a tie goes to the
    smallest pair, compared as bytes. Training ends when the vocabulary holds `vocab_size` tokens or
    no pair is left. `ValueError` if `vocab_size` is below 256.

    A round counts again only the words that hold the merged pair, so it costs what it changes and
    not a pass over the corpus. Outdated heap entries stay, and are dropped when they come up.
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size is {vocab_size}; the 256 single bytes alone need 256")
    words = [([bytes([byte]) for byte in chunk], n) for chunk, n in chunks.items()]
    counts = pair_counts(words)
    holders = defaultdict(set)  # pair -> indices of the words that hold it, or once did
    for i, (tokens, _) in enumerate(words):
        for pair in pairwise(tokens):
            holders[pair].add(i)
    heap = [(-count, pair) for pair, count in counts.items()]  # the smallest is the next merge
    heapify(heap)

    vocab = {bytes([byte]) for byte in range(256)}
    merges: list[Pair] = []
    while heap and len(vocab) < vocab_size:
        count, best = heappop(heap)
        if -count != counts[best]:
            continue  # the count has changed since; a newer entry is in the heap
        merges.append(best)
        vocab.add(best[0] + best[1])
        change: Counter[Pair] = Counter()
        for i in holders.pop(best):
            tokens, n = words[i]
            merged = merge_pair(tokens, best)
            change.subtract(pair_counts([(tokens, n)]))
            change.update(pair_counts([(merged, n)]))
            for pair in pairwise(merged):
                holders[pair].add(i)
            words[i] = (merged, n)
        for pair, difference in change.items():
            counts[pair] += difference
            if difference and counts[pair]:
                heappush(heap, (-counts[pair], pair))
    return merges


@exercise(day=5)
def encode_chunk(chunk: bytes, ranks: Mapping[Pair, int], ids: Mapping[bytes, int]) -> list[int]:
    """Encode one chunk: merge the pair of lowest rank, leftmost on a tie, until none has a rank.

    `ranks` maps a pair of tokens to its rank (lower merges first), `ids` maps a token to its number
    in the model's vocabulary. The two are unrelated: ids may start anywhere, have gaps, or run
    against the ranks. `KeyError` if a token has no id. An empty chunk has no tokens.
    """
    tokens = [bytes([byte]) for byte in chunk]
    while len(tokens) > 1:
        rank, i = min((ranks.get(pair, inf), i) for i, pair in enumerate(pairwise(tokens)))
        if rank == inf:
            break
        tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
    return [ids[token] for token in tokens]


def encode_long_chunk(chunk: bytes, ranks: Mapping[Pair, int], ids: Mapping[bytes, int]) -> list[int]:
    """The same ids as `encode_chunk` in O(n log n) instead of O(n²) steps, for chunks of many bytes.

    See `merge_with_heap`.
    """
    return [ids[token] for token in merge_with_heap([bytes([byte]) for byte in chunk], ranks)]


def merge_with_heap(start: Sequence[Token], ranks: Ranks[Token]) -> list[Token]:
    """Merge the pair of lowest rank, leftmost on a tie, until none has a rank; O(n log n) for n tokens.

    The tokens, bytes or strings, are a linked list over their places and the candidate pairs wait in a
    heap, so that a merge looks only at its two neighbors. An entry whose tokens have changed is skipped.
    """
    tokens, end = list(start), len(start)
    after, before = list(range(1, end + 1)), list(range(-1, end - 1))
    heap = [(ranks[pair], i, pair) for i, pair in enumerate(pairwise(tokens)) if pair in ranks]
    heapify(heap)
    while heap:
        _, i, pair = heappop(heap)
        j = after[i]
        if j == end or (tokens[i], tokens[j]) != pair:
            continue
        tokens[i], tokens[j] = pair[0] + pair[1], pair[0][:0]  # an empty token was merged away
        after[i] = after[j]
        if after[j] < end:
            before[after[j]] = i
        for k in (before[i], i):
            if k >= 0 and after[k] < end:
                candidate = (tokens[k], tokens[after[k]])
                if candidate in ranks:
                    heappush(heap, (ranks[candidate], k, candidate))
    return [token for token in tokens if token]


@exercise(day=5)
def decode(ids: Iterable[int], vocab: Mapping[int, bytes]) -> str:
    """Return the text of `ids`; `vocab` maps an id to its token's bytes.

    The bytes are joined first and decoded once, because a character's bytes may be spread over
    several tokens. What is not UTF-8 becomes U+FFFD, the replacement character. `KeyError` for an
    unknown id.
    """
    return b"".join(vocab[i] for i in ids).decode("utf-8", errors="replace")
