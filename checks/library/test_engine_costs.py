"""What a learner's part costs in a run: counted once, beside the reference, in the terminal."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from course_lib import assets, parts
from course_lib.engine import costs

ROOT = Path(__file__).parents[2]
SLOW = """
import time

def block_key(parent, tokens):
    time.sleep(0.002)
    return blake2b(array("q", tokens).tobytes(), key=parent, digest_size=16).digest()
"""


class Recursive:
    """A part whose methods call one another."""

    def outer(self, depth: int) -> int:
        time.sleep(0.001)
        return self.inner(depth)

    def inner(self, depth: int) -> int:
        return self.outer(depth - 1) if depth else 0


def test_time_inside_a_part_is_counted_once(monkeypatch):
    part = parts.Part("here:Recursive", "here", "Recursive", 1, Recursive)
    monkeypatch.setattr(parts, "REGISTRY", {part.key: part})
    started = time.perf_counter()
    found = costs.measure(lambda: [Recursive().outer(5) for _ in range(3)])
    assert found[part.key].calls == 3
    assert 18 * 0.001 <= found[part.key].seconds <= time.perf_counter() - started


def test_parts_that_do_not_run_cost_nothing(monkeypatch):
    part = parts.Part("here:Recursive", "here", "Recursive", 1, Recursive)
    monkeypatch.setattr(parts, "REGISTRY", {part.key: part})
    assert costs.measure(lambda: None) == {}


def answer(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    arguments = ["--model", "course-10m", "--prompt", "MACBETH:\nIs this a dagger " * 6, "--max-tokens", "4"]
    command = [sys.executable, "-m", "course_lib.engine", *arguments, "--threads", "1", *options]
    environment = os.environ | {"PARTS": "mine", "COURSE_MINE": str(folder), "COLUMNS": "120"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


def test_the_terminal_says_what_a_slow_part_costs(tmp_path):
    try:
        assets.path("course-10m")
    except assets.AssetError as error:
        pytest.skip(f"the model is not here: {error}")
    parts_before = dict(os.environ)
    os.environ["COURSE_MINE"] = str(tmp_path)
    parts.save_mine("cache.prefix.block_key", SLOW, key="course_lib.cache.prefix:block_key", day=24)
    os.environ.clear()
    os.environ.update(parts_before)
    done = answer(tmp_path, "--costs")
    assert done.returncode == 0, done.stderr
    row = re.search(r"block_key\D+([\d,]+)\s*│\s*([\d.]+)\s*│\s*([\d.]+)\s*│\s*([\d.]+)", done.stderr)
    assert row, done.stderr
    calls, yours, reference, ratio = (float(number.replace(",", "")) for number in row.groups())
    assert yours >= 2 * calls > 0 and ratio == pytest.approx(yours / max(reference, 0.05), rel=2)
    assert done.stdout == answer(tmp_path).stdout
