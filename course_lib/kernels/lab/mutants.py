"""How far the kernel lab can be trusted: each small mistake in each reference kernel, and what found it.

    python -m course_lib.kernels.lab.mutants                  # the table of all kernels
    python -m course_lib.kernels.lab.mutants softmax --write  # one file anew, into the committed record

A mutant (see `mutate`) is compiled and launched on every problem that the catalog has for its kernel. What
tells it from the reference: a finding of the lab's, a wrong result, or a count that differs (bytes, sectors,
wavefronts, barriers, atomics, warp operations). A barrier that is missing must show in one of the first two:
that the number of barriers fell is no discovery. The rest survive, and each survivor needs a reason in the
record: why nobody could tell it from the reference.
"""

import argparse
import functools
import hashlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from course_lib.kernels.catalog import Kernel, cuda, metal
from course_lib.kernels.catalog.case import ROOT
from course_lib.kernels.lab import CompileError, LaunchError, Module, Report, build
from course_lib.kernels.lab import metal as metal_source
from course_lib.kernels.lab.module import Language
from course_lib.kernels.lab.mutate import BARRIER, OPERATORS, Mutant, mutants, users
from course_lib.kernels.lab.text import masked

RECORD = ROOT / "checks" / "gates" / "kernel_mutants.json"
MOST = 0.05  # of the mutants may survive
SECONDS = 1.0  # of processor time a launch: the references need a fifth of it
OUTCOMES = ("finding", "result", "count", "survived", "does not compile")
FINDING, RESULT, COUNT, SURVIVED, INVALID = OUTCOMES

Counts = dict[Any, tuple[int, ...]]


@dataclass
class Tally:
    """What became of a file's mutants: `outcomes` by (operator, outcome), `kinds` of findings."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=lambda: {o: Counter() for o in OPERATORS})
    survivors: list[Mutant] = field(default_factory=list)

    def add(self, mutant: Mutant, outcome: str) -> None:
        kind, _, what = outcome.partition(": ")
        self.outcomes[mutant.operator, kind] += 1
        if what:
            self.kinds[mutant.operator][what] += 1
        if kind == SURVIVED:
            self.survivors.append(mutant)

    def number(self, outcome: str, operator: str) -> int:
        return self.outcomes[operator, outcome]


def sources() -> list[str]:
    """The files of the catalog's kernels, from the repository's root."""
    return list(dict.fromkeys(kernel.file for kernel in kernels()))


def kernels() -> tuple[Kernel, ...]:
    return cuda.KERNELS + metal.KERNELS


def language(file: str) -> Language:
    return "metal" if file.endswith(".metal") else "cuda"


def bare_digest(source: str) -> str:
    """Changes when the code does: comments and layout are left out."""
    return hashlib.sha256(" ".join(masked(source).split()).encode()).hexdigest()[:16]


@functools.cache
def cases(file: str) -> tuple[tuple[Kernel, tuple[Any, ...], frozenset[str]], ...]:
    """(kernel, shape, the functions that it launches) for each problem of a file's kernels."""
    found = []
    for kernel in kernels():
        if kernel.file == file:
            for shape in (*kernel.shapes, kernel.counted):
                launched = frozenset(_function(file, launch.kernel) for launch in kernel.at(*shape).launches)
                found.append((kernel, shape, launched))
    return tuple(found)


def _function(file: str, kernel: str) -> str:
    """The function behind a kernel's name: "softmax" of "softmax<128>", or of a name that a host uses."""
    return _instances(file).get(kernel, kernel).split("<")[0].strip()


@functools.cache
def _instances(file: str) -> dict[str, str]:
    if language(file) == "cuda":
        return {}
    translation = metal_source.translate((ROOT / file).read_text(encoding="utf-8"), file)
    return {kernel.name: kernel.instance for kernel in translation.kernels if kernel.instance}


@functools.cache
def _reference(file: str) -> Module:
    return Module(ROOT / file)


def counts(reports: Sequence[Report]) -> Counts:
    """Everything that the lab counted in some launches, but times."""
    found: Counts = {}
    for number, report in enumerate(reports):
        for row in report.rows:
            key = (number, row.variable, row.kind)
            new = (row.requests, row.accesses, row.bytes, row.sectors, row.wavefronts)
            found[key] = tuple(a + b for a, b in zip(found.get(key, (0,) * 5), new, strict=True))
        found[number] = (report.barriers, report.atomics, report.warp_operations)
    return found


@functools.cache
def _reference_counts(file: str, number: int) -> Counts:
    kernel, shape, _ = cases(file)[number]
    return counts(kernel.at(*shape).run(_reference(file), time_limit=60.0))


def judge(file: str, mutant: Mutant) -> str:
    """What tells a mutant from the reference: "finding: race", "result", "count", or "survived"."""
    source = (ROOT / file).read_text(encoding="utf-8")
    affected = users(source, mutant.function)
    try:
        module = Module(mutant.source, language(file), name=Path(file).name)
    except CompileError:
        return INVALID
    miscounted = False
    for number, (kernel, shape, launched) in enumerate(cases(file)):
        if not launched & affected:
            continue
        case = kernel.at(*shape)
        try:
            reports = case.run(module, check=False, time_limit=SECONDS)
        except CompileError:
            return INVALID
        except LaunchError:
            return f"{FINDING}: refused"
        findings = [finding for report in reports for finding in report.findings]
        if findings:
            return f"{FINDING}: {findings[0].kind}"
        if case.wrong():
            return RESULT
        if mutant.operator != BARRIER:
            miscounted |= counts(reports) != _reference_counts(file, number)
    return COUNT if miscounted else SURVIVED


def every_mutant(files: Sequence[str], operators: Sequence[str] = OPERATORS) -> list[tuple[str, Mutant]]:
    """(file, mutant) for each mutant of the files by these operators, the barriers first."""
    found = [(f, m) for f in files for m in mutants((ROOT / f).read_text(encoding="utf-8"))]
    return sorted(
        ((f, m) for f, m in found if m.operator in operators),
        key=lambda pair: OPERATORS.index(pair[1].operator),
    )


def judge_all(
    wanted: Sequence[tuple[str, Mutant]], processes: int, cache: dict[str, str]
) -> Iterator[tuple[str, Mutant, str]]:
    """(file, mutant, outcome) for each; what `cache` knows is not run again."""
    waiting = []
    for file, mutant in wanted:
        known = cache.get(key(file, mutant))
        if known:
            yield file, mutant, known
        else:
            waiting.append((file, mutant))
    with (
        tempfile.TemporaryDirectory(prefix="kernel-mutants-") as folder,
        ProcessPoolExecutor(processes, initializer=_start, initargs=(folder,)) as pool,
    ):
        running = {pool.submit(judge, file, mutant): (file, mutant) for file, mutant in waiting}
        try:
            for done in as_completed(running):
                file, mutant = running[done]
                cache[key(file, mutant)] = done.result()
                yield file, mutant, done.result()
        finally:  # of an error, or of who listens no longer: the rest is not waited for
            pool.shutdown(cancel_futures=True)


def _start(folder: str) -> None:
    """Compiled mutants go to a folder of their own, not to the learner's cache."""
    os.environ["COURSE_KERNELS"] = folder


def key(file: str, mutant: Mutant) -> str:
    """Names a mutant and the problems that it runs on. (Not the lab's version: for that there is --anew.)"""
    problems = repr([(kernel.name, shape) for kernel, shape, _ in cases(file)])
    return hashlib.sha256("\0".join((file, mutant.source, mutant.change, problems)).encode()).hexdigest()[:24]


# the record: what is committed


def read_record() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def entry(file: str, tally: Tally, operators: Sequence[str], before: dict[str, Any]) -> dict[str, Any]:
    """What the record says about a file; of operators that were not run, what it said `before`."""
    why = {(s["function"], s["change"]): s["why"] for s in before.get("survivors", [])}
    digest = bare_digest((ROOT / file).read_text(encoding="utf-8"))
    kept = before if before.get("code") == digest else {}
    outcomes, findings, survivors = {}, dict(kept.get("findings", {})), []
    for operator in OPERATORS:
        if operator not in operators:
            if operator in kept.get("outcomes", {}):
                outcomes[operator] = kept["outcomes"][operator]
                survivors += [s for s in kept["survivors"] if s["operator"] == operator]
            continue
        counted = {o: tally.number(o, operator) for o in OUTCOMES}
        outcomes[operator] = {o: n for o, n in counted.items() if n}
        findings[operator] = dict(sorted(tally.kinds[operator].items()))
        for m in sorted(tally.survivors, key=lambda m: (m.line, m.change)):
            if m.operator == operator:
                reason = why.get((m.function, m.change), "")
                said = {"operator": operator, "function": m.function, "change": m.change, "why": reason}
                survivors.append(said)
    return {"code": digest, "outcomes": outcomes, "findings": findings, "survivors": survivors}


def table(record: dict[str, Any]) -> str:
    """The record as a table of 80 columns: a row a file, and one an operator."""
    lines = [f"{'kernels':<35}" + "".join(f"{c:>9}" for c in ("mutants", FINDING, RESULT, COUNT, SURVIVED))]
    files = {file: Counter[str]() for file in record}
    operators = {operator: Counter[str]() for operator in OPERATORS}
    for file, said in record.items():
        for operator, outcomes in said["outcomes"].items():
            files[file].update(outcomes)
            operators[operator].update(outcomes)
    every = sum(operators.values(), Counter[str]())
    for part in (files, operators, {"all": every}):
        for name, n in part.items():
            number = sum(n[o] for o in (FINDING, RESULT, COUNT, SURVIVED))
            if number:
                cells = (number, n[FINDING], n[RESULT], n[COUNT], n[SURVIVED])
                lines.append(f"{name.removeprefix('kernels_'):<35}" + "".join(f"{c:>9,}" for c in cells))
        lines.append("")
    number = sum(every[o] for o in (FINDING, RESULT, COUNT, SURVIVED))
    unexplained = sum(not s["why"] for said in record.values() for s in said["survivors"])
    lines.append(f"{every[SURVIVED] / max(1, number):.1%} survive; {unexplained} of them without a reason.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m course_lib.kernels.lab.mutants", description=__doc__.split("\n")[0]
    )
    parser.add_argument("names", nargs="*", help="parts of files' names; without any, all kernels")
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=OPERATORS, help="of mistakes")
    parser.add_argument("--write", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    parser.add_argument("--anew", action="store_true", help="run again what ran before: the lab has changed")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    files = [f for f in sources() if not given.names or any(name in f for name in given.names)]
    if not files:
        print(f"no kernel's file is called {' or '.join(given.names)}; there are {', '.join(sources())}.")
        return 2
    stored = build.cache_folder().parent / "kernel_mutants.json"
    cache = json.loads(stored.read_text()) if stored.is_file() and not given.anew else {}
    tallies = {file: Tally() for file in files}
    try:
        wanted = every_mutant(files, given.operators)
        for n, (file, mutant, outcome) in enumerate(judge_all(wanted, given.processes, cache), 1):
            tallies[file].add(mutant, outcome)
            if sys.stderr.isatty():
                print(f"\r{n} mutants", end="", file=sys.stderr)
            if n % 100 == 0:
                _store(stored, cache)
    finally:
        _store(stored, cache)
    record = read_record()
    new = {file: entry(file, tallies[file], given.operators, record.get(file, {})) for file in files}
    print(table(new))
    for file, said in new.items():
        for survivor in said["survivors"]:
            if not survivor["why"]:
                print(f"{file}: {survivor['function']}: {survivor['change']}")
    if given.write:
        record = {file: said for file, said in (record | new).items() if file in sources()}
        RECORD.write_text(
            json.dumps(dict(sorted(record.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return 0


def _store(path: Path, cache: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(cache), encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
