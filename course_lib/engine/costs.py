"""What each of the learner's parts costs in a run, beside the reference in the same run.

Both are measured by the profiler in processes of their own, which differ in PARTS alone. It makes short calls
look dearer than they are, the learner's and the reference's alike: read the ratios.
"""

import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from rich.table import Table

from course_lib import parts

Place = tuple[str, int, str]  # file, line, name: what the profiler calls a function


class Cost(NamedTuple):
    """How often a part was called from outside, and the seconds until it returned, all it called included."""

    calls: int
    seconds: float


def measure(run: Callable[[], object]) -> dict[str, Cost]:
    """Run something; the costs of all parts that were called in it, by their key."""
    profile = cProfile.Profile(builtins=False)
    profile.runcall(run)
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    found = {key: cost(stats, set(places(part.obj))) for key, part in parts.REGISTRY.items()}
    return {key: each for key, each in found.items() if each.calls}


def cost(stats: dict[Place, Any], own: set[Place]) -> Cost:
    """The cost of a part made of the functions `own`; their calls of one another do not count twice."""
    calls, seconds = 0, 0.0
    for place in own & stats.keys():
        for caller, (count, _, _, cumulative) in stats[place][4].items():
            if caller not in own:
                calls, seconds = calls + count, seconds + cumulative
    return Cost(calls, seconds)


def places(part: Any) -> Iterator[Place]:
    """Where the profiler finds a function, or the methods of a class."""
    members = vars(part).values() if isinstance(part, type) else [part]
    for member in members:
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            yield code.co_filename, code.co_firstlineno, code.co_name


def of_reference(arguments: list[str]) -> dict[str, Cost]:
    """Run `python -m course_lib.engine` with these arguments on the reference's parts; their costs."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "costs.json"
        command = [sys.executable, "-m", "course_lib.engine", *arguments, "--costs-to", str(out)]
        subprocess.run(
            command,
            env=os.environ | {"PARTS": "reference"},
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        return {key: Cost(*numbers) for key, numbers in json.loads(out.read_text(encoding="utf-8")).items()}


def table(mine: dict[str, Cost], reference: dict[str, Cost]) -> Table:
    """The learner's parts of a run, the dearest first."""
    shown = Table("your part", "calls", "ms", "reference ms", "yours / reference")
    yours = [key for key in mine if parts.owner(key) == "yours"]
    for key in sorted(yours, key=lambda key: -mine[key].seconds):
        part, other = parts.REGISTRY[key], reference.get(key)
        shown.add_row(
            part.name or part.qualname,
            f"{mine[key].calls:,}",
            f"{1e3 * mine[key].seconds:,.1f}",
            f"{1e3 * other.seconds:,.1f}" if other else "not called",
            f"{mine[key].seconds / other.seconds:.2f}" if other and other.seconds else "",
        )
    return shown
