"""Near-duplicates: documents that share most of their shingles, found without comparing every pair."""

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import combinations

import numpy as np

from course_lib.parts import exercise

PRIME = 2**31 - 1  # products of two numbers below it fit into 64 bits


def shingles(text: str, size: int = 3) -> set[str]:
    """All runs of `size` words in a text, in lower case and without punctuation.

    A text of fewer words is one shingle; a text without a word has none.
    """
    words = re.findall(r"[\w']+", text.lower())
    if not words:
        return set()
    return {" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


def jaccard(a: AbstractSet[object], b: AbstractSet[object]) -> float:
    """How alike two sets are: what both have, out of what either has. Of two empty sets it is 0."""
    return len(a & b) / len(a | b) if a or b else 0.0


@exercise(day=8)
def minhash_duplicates(
    documents: Sequence[str],
    threshold: float = 0.8,
    bands: int = 16,
    rows: int = 8,
    size: int = 3,
    seed: int = 0,
) -> list[tuple[int, int, float]]:
    """Pairs of documents that are nearly the same, by MinHash and locality-sensitive hashing.

    A document's signature are the smallest hashes of its shingles under bands * rows random hash
    functions: h -> (a * h + b) % PRIME, with a from 1 and b from 0 up to PRIME - 1. The signature
    is cut into bands of `rows` numbers. Two documents are compared if they agree in a whole band.

    Args:
        documents: texts; those without a word are like no other.
        threshold: from which estimated similarity on a pair is returned.
        bands, rows: a pair of similarity s is compared with probability 1 - (1 - s^rows)^bands.
        size: words in a shingle.
        seed: of the hash functions; the result depends on it, and on nothing else random.

    Returns:
        (i, j, estimate) with i < j, in order. The estimate is the share of the bands * rows
        numbers in which the two signatures agree; its expected value is the Jaccard similarity.

    Source: Broder (1997), "On the resemblance and containment of documents"; bands as in Leskovec,
    Rajaraman & Ullman, "Mining of Massive Datasets", section 3.4.
    """
    rng = np.random.default_rng(seed)
    a = rng.integers(1, PRIME, size=(bands * rows, 1))
    b = rng.integers(0, PRIME, size=(bands * rows, 1))
    signatures = {}
    for i, document in enumerate(documents):
        # Not Python's hash(), which differs from one process to the next.
        hashes = [zlib.crc32(shingle.encode()) % PRIME for shingle in shingles(document, size)]
        if hashes:
            signatures[i] = ((a * np.array(hashes) + b) % PRIME).min(axis=1)  # (bands * rows,)

    candidates: set[tuple[int, int]] = set()
    for start in range(0, bands * rows, rows):
        buckets = defaultdict(list)
        for i, signature in signatures.items():
            buckets[signature[start : start + rows].tobytes()].append(i)
        for bucket in buckets.values():
            candidates.update(combinations(bucket, 2))

    agree = [(i, j, float(np.mean(signatures[i] == signatures[j]))) for i, j in sorted(candidates)]
    return [pair for pair in agree if pair[2] >= threshold]


def clusters(count: int, pairs: Iterable[tuple[int, int, float]]) -> list[list[int]]:
    """Groups of documents that hang together by pairs, singles included, each in order.

    If a is like b and b like c, all three are one group, though a and c may not be alike. To remove
    duplicates keep the first of each.
    """
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j, _ in pairs:
        first, second = sorted((root(i), root(j)))
        parent[second] = first
    groups = defaultdict(list)
    for i in range(count):
        groups[root(i)].append(i)
    return list(groups.values())
