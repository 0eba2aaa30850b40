"""The kernel lab can be trusted: it, or a kernel's checks, find the small mistakes that a script makes.

The record of all of them is made by `python -m course_lib.kernels.lab.mutants --write`. Here it is held
against the sources, and a part of it is run anew: every barrier, and of each file a bound and an index.
"""

import hashlib
import shutil
from collections import Counter

import pytest

from course_lib.kernels.catalog.case import ROOT
from course_lib.kernels.lab import mutants as table
from course_lib.kernels.lab.mutate import BARRIER, BOUND, INDEX, Mutant, mutants, users

RECORD = table.read_record()
FILES = table.sources()


def test_the_record_is_of_these_sources() -> None:
    assert sorted(RECORD) == sorted(FILES)
    stale = [
        f for f in FILES if RECORD[f]["code"] != table.bare_digest((ROOT / f).read_text(encoding="utf-8"))
    ]
    assert not stale, f"run python -m course_lib.kernels.lab.mutants {' '.join(stale)} --write"


@pytest.mark.parametrize("file", FILES)
def test_each_survivor_has_a_reason(file: str) -> None:
    known = {(m.operator, m.function, m.change) for m in mutants((ROOT / file).read_text(encoding="utf-8"))}
    for survivor in RECORD[file]["survivors"]:
        assert (survivor["operator"], survivor["function"], survivor["change"]) in known, survivor
        assert len(survivor["why"]) > 20, survivor


def test_few_survive() -> None:
    total: Counter[str] = Counter()
    for said in RECORD.values():
        for outcomes in said["outcomes"].values():
            total.update(outcomes)
    run = sum(n for outcome, n in total.items() if outcome != table.INVALID)
    assert run and total[table.SURVIVED] <= table.MOST * run
    for file, said in RECORD.items():
        barriers = sum(m.operator == BARRIER for m in mutants((ROOT / file).read_text(encoding="utf-8")))
        assert said["outcomes"].get(BARRIER, {}) == ({table.FINDING: barriers} if barriers else {})


def sample() -> list[tuple[str, Mutant]]:
    """Every barrier, and of each file the bound and the index whose digests are the least."""

    def digest(pair: tuple[str, Mutant]) -> str:
        return hashlib.sha256(f"{pair[0]}{pair[1].function}{pair[1].change}".encode()).hexdigest()

    chosen = table.every_mutant(FILES, [BARRIER])
    for operator in (BOUND, INDEX):
        for file in FILES:
            chosen += sorted(table.every_mutant([file], [operator]), key=digest)[:1]
    return chosen


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="there is no C++ compiler"
)
def test_a_part_of_the_record_holds_here() -> None:
    chosen, seen = sample(), 0
    for file, mutant, outcome in table.judge_all(chosen, 2, {}):
        seen += 1
        listed = {(s["function"], s["change"]) for s in RECORD[file]["survivors"]}
        survived = outcome == table.SURVIVED
        assert survived == ((mutant.function, mutant.change) in listed), (file, mutant.change, outcome)
        if mutant.operator == BARRIER:
            assert outcome.startswith(table.FINDING), (file, mutant.change, outcome)
    assert seen == len(chosen) > 100


SOURCE = """
__device__ float twice(float x) { return x + x; }
__global__ void k(const float* a, float* b, int n) {
    __shared__ float tile[32][33];  // a < b in a comment is left alone
    int i = blockIdx.x * 32 + threadIdx.x;
    float own[4] = {}, max = -INFINITY;
    if (i < n && n > 0) tile[i][0] = twice(a[i]);
    __syncthreads();
    for (int j = 0; j < 4; ++j) own[j] = fmaxf(max, tile[0][j]);
    b[i] = own[1];
}
__global__ void other(float* b) { b[0] = 1; }
"""


def test_what_is_changed() -> None:
    found = mutants(SOURCE)
    changes = {(m.operator, m.change.partition(" => ")[2]) for m in found}
    for operator, line in [
        ("barrier", ";"),
        ("bound", "if (i <= n && n > 0) tile[i][0] = twice(a[i]);"),
        ("bound", "if (true && n > 0) tile[i][0] = twice(a[i]);"),
        ("bound", "if (i < n && false) tile[i][0] = twice(a[i]);"),
        ("bound", "for (int j = 0; j <= 4; ++j) own[j] = fmaxf(max, tile[0][j]);"),
        ("index", "int i = blockIdx.y * 32 + threadIdx.x;"),
        ("index", "int i = threadIdx.x * 32 + blockIdx.x;"),
        ("index", "if (i < n && n > 0) tile[0][i] = twice(a[i]);"),
        ("index", "if (i < n && n > 0) tile[i][0] = twice(a[i + 1]);"),
        ("arithmetic", "float own[4] = {}, max = 0.0f;"),
        ("arithmetic", "for (int j = 0; j < 4; ++j) own[j] = fminf(max, tile[0][j]);"),
        ("arithmetic", "b[i] = own[2];"),
    ]:
        assert (operator, line) in changes, (operator, line)
    assert not any("33" not in m.source or "own[4] = {}" not in m.source for m in found)
    assert not any("for (int j = 0; true" in m.source for m in found)  # it would not end
    assert len({(m.function, m.change) for m in found}) == len(found) == len({m.source for m in found})
    assert users(SOURCE, "twice") == {"twice", "k"} and users(SOURCE, "other") == {"other"}
