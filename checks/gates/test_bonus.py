"""Bonus notebooks: built beside the lesson's, not graded, and skipped where a package is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from course_lib.bench.forward import random_model
from course_lib.classroom import build
from course_lib.classroom.bonus import Skipped, needs
from course_lib.classroom.lesson import LessonError, available_days, bonuses, find_day, load_bonus
from course_lib.model.numpy_gpt import GPTConfig, gpt_forward

REPOSITORY = Path(__file__).resolve().parents[2]
BONUS = """---
jupyter:
  day: 1
  title: The same in JSON
  minutes: 5
  summary: One sentence about it.
  needs: {package}
---

## Begin

```python name="sum"
print(1 + 1)
```

```python name="time" volatile
import time

print(time.time())
```
"""
LEARNER = Path("days/day_01_small/bonus_x.ipynb")
SOLVED = Path("solutions/day_01_small/bonus_x.ipynb")


@pytest.fixture
def course(tmp_path, monkeypatch):
    shutil.copytree(Path(__file__).with_name("small_course"), tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    return tmp_path


def write(course: Path, text: str) -> Path:
    path = course / "solutions" / "day_01_small" / "bonus_x.md"
    path.write_text(text)
    return path


def test_both_notebooks_are_built_and_again_the_same(course):
    write(course, BONUS.format(package="json"))
    changed = build.build_day(1)
    assert {LEARNER, SOLVED} < set(changed)
    learner, solved = (nbformat.read(course / path, as_version=4) for path in (LEARNER, SOLVED))
    assert "# Day 1, bonus: The same in JSON" in learner.cells[0].source
    assert "needs `json`, and is skipped without" in learner.cells[0].source
    assert "(../../days/day_01_small/bonus_x.ipynb)" in solved.cells[0].source
    assert learner.cells[1].source == 'from course_lib.classroom import needs\n\nneeds("json")'
    assert [c.source for c in learner.cells[1:]] == [c.source for c in solved.cells[1:]]
    assert all(not c.outputs for c in learner.cells if c.cell_type == "code")
    assert [[o.text for o in c.outputs] for c in solved.cells if c.cell_type == "code"] == [[], ["2\n"], []]
    assert build.build_day(1) == []  # the same to the byte
    assert build.build_day(1, always=False) == []
    write(course, BONUS.format(package="json").replace("1 + 1", "1 + 2"))
    assert set(build.build_day(1, always=False)) == {LEARNER, SOLVED}


def test_without_the_package_the_published_output_stays(course, capsys):
    write(course, BONUS.format(package="no_such_package"))
    (course / SOLVED).write_text("published")
    built = build.make(1)
    assert LEARNER in built.files
    assert SOLVED not in built.files
    assert "bonus_x.md: no_such_package is not installed here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  needs: json\n", "", "lacks 'needs'"),
        (
            '```python name="sum"',
            '```python quiz="day01.q" kind="integer" minutes=1',
            "a quiz in a bonus notebook",
        ),
    ],
)
def test_a_bonus_that_asks_for_something_is_refused(course, old, new, message):
    path = write(course, BONUS.format(package="json").replace(old, new))
    with pytest.raises(LessonError, match=message):
        load_bonus(path)


def test_a_missing_package_ends_the_run_with_a_reason_and_no_traceback():
    needs("json")
    with pytest.raises(Skipped, match=r"pip install -c \.setup/constraints\.txt no_such_package"):
        needs("no_such_package")
    cells = ['from course_lib.classroom import needs\nneeds("no_such_package")', "print('never')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    with pytest.raises(CellExecutionError):
        NotebookClient(notebook, timeout=60, kernel_name="python3").execute(
            env=os.environ | {"PYTHONPATH": path}
        )
    (shown,) = notebook.cells[0].outputs
    assert shown.traceback[0].startswith("skipped: this notebook needs no_such_package")
    assert len(shown.traceback) == 1
    assert notebook.cells[1].outputs == []


@pytest.mark.parametrize("day", available_days(REPOSITORY))
def test_every_bonus_can_be_read(day):
    for path in bonuses(find_day(day, REPOSITORY)):
        assert load_bonus(path).day == day
        assert path.with_suffix(".ipynb").is_file()


@pytest.fixture(scope="module")
def in_jax() -> dict[str, Any]:
    """What Day 7's bonus notebook defines, without the cells that load course-10m."""
    pytest.importorskip("jax", reason="Day 7's bonus notebook needs jax")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    bonus = load_bonus(find_day(7, REPOSITORY) / "bonus_jax.md")
    cells = {block.name: block.source for block in bonus.blocks if block.kind == "code"}
    names: dict[str, Any] = {}
    exec(cells["arrays"] + "\n" + cells["parts"] + "\n" + cells["block"], names)
    exec(cells["forward"].split("\n\n\nheads = ")[0], names)
    return names


@pytest.mark.parametrize("shape", [(101, 19, 42, 2, 3), (13, 7, 8, 1, 1), (257, 33, 64, 3, 4)])
def test_the_jax_model_equals_numpys(in_jax, shape):
    config = GPTConfig(*shape)
    model = random_model(config, seed=3)
    jnp, tree = in_jax["jnp"], in_jax["jax"].tree
    blocks = tree.map(lambda *leaves: jnp.stack(leaves), *[model.layer(i) for i in range(config.n_layer)])
    params = {
        "wte": jnp.asarray(model.weights["wte.weight"]),
        "wpe": jnp.asarray(model.weights["wpe.weight"]),
        "blocks": blocks,
        "ln_f": (model.weights["ln_f.weight"], model.weights["ln_f.bias"]),
    }
    ids = np.random.default_rng(0).integers(0, config.vocab_size, size=config.n_positions)
    want = gpt_forward(model, ids)
    got = np.asarray(in_jax["forward"](params, ids, config.n_head))
    assert got.dtype == np.float32
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_importing_the_classrooms_helper_loads_nothing_heavy():
    code = (
        "import sys; from course_lib.classroom import needs; "
        "sys.exit(bool({'course_lib.classroom.notebook', 'numpy', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
