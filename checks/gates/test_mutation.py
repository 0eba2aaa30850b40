"""The checks are strong: of the references' mutants only those survive that are shown to be equivalent."""

import os
from pathlib import Path

import pytest

from course_lib.classroom import prove
from course_lib.classroom.lesson import available_days, load_lesson
from course_lib.classroom.mutate import mutants
from course_lib.classroom.sources import part_source

EVERYTHING = os.environ.get("PROVE") == "all"
# Mutants try the checks, not the grader: a change of the grader alone needs none.
DAYS = available_days() if EVERYTHING else prove.changed_days(grader=False)
WEAK = """---
jupyter:
  day: 1
  title: Weak
  minutes: 10
  summary: Its one check looks at one row only, so the axis is never tried.
---
## 6. Exercises

```python exercise="numerics.softmax" difficulty=1 minutes=5 core
```

```python check="numerics.softmax" says="sums to 1"
p = expect(softmax, np.array([1.0, 2.0, 3.0])).value
close(p.sum(), 1.0)
p.shape
```
"""


@pytest.mark.parametrize("day", DAYS)
def test_mutants_do_not_survive(day: int) -> None:
    proof = prove.Proof(day)
    prove.prove_mutants(proof, load_lesson(day), None if EVERYTHING else prove.BUDGET)
    print(prove.report(proof))
    assert proof.survivors == []
    assert proof.stale == []
    assert proof.mutants >= min(50, proof.possible - proof.equivalent) or not proof.possible


def test_a_weak_check_lets_mutants_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "solutions" / "day_01_weak"
    folder.mkdir(parents=True)
    (folder / "lesson.md").write_text(WEAK, encoding="utf-8")
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    monkeypatch.setattr(prove, "allow_list", lambda: tmp_path / "none.yaml")
    proof = prove.Proof(1)
    prove.prove_mutants(proof, load_lesson(1), None)
    assert proof.mutants == proof.possible > 10
    survivors = {mutant for _, mutant in proof.survivors}
    assert any("axis=axis" in mutant.partition("=>")[0] for mutant in survivors)
    assert 0 < len(survivors) < proof.mutants
    assert not proof.holds


def test_excuses_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry for a mutant that dies, or that does not exist, is reported: the list cannot rot."""
    folder = tmp_path / "solutions" / "day_01_weak"
    folder.mkdir(parents=True)
    (folder / "lesson.md").write_text(WEAK, encoding="utf-8")
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    listed = tmp_path / "listed.yaml"
    names = [m.name for m in mutants(part_source("numerics.softmax"))]
    dies = next(name for name in names if name.endswith("=> return"))
    listed.write_text(
        f'numerics.softmax:\n  - mutants: ["no such mutant", "{dies}"]\n    why: because\n', encoding="utf-8"
    )
    monkeypatch.setattr(prove, "allow_list", lambda: listed)
    proof = prove.Proof(1)
    prove.prove_mutants(proof, load_lesson(1), None)
    assert len(proof.stale) == 2
    listed.write_text("numerics.softmax:\n  - mutants: [x]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="why"):
        prove.equivalents()


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("a < b", {"a <= b", "a >= b"}),
        ("a + b", {"a - b"}),
        ("x = 3", {"x = 4", "x = 2", "pass"}),
        ("x[1:n]", {"x[:n]", "x[1:]", "x[2:n]", "x[0:n]", "pass"}),
        ("f(a, b)", {"f(b, a)", "pass"}),
        ("f(a, k=b)", {"f(a)", "pass"}),
        (
            "if a:\n    b()",
            {"if not a:\n    b()", "if True:\n    b()", "if False:\n    b()", "if a:\n    pass"},
        ),
        ("not a", {"not not a", "pass"}),
        ("-a", {"+a", "pass"}),
        ("a and b", {"a or b", "a", "b", "pass"}),
        ("x += 1", {"x -= 1", "x += 2", "x += 0", "pass"}),
        ("min(x)", {"max(x)", "pass"}),
        ("f(min(a, b))", {"f(max(a, b))", "pass"}),
        ("raise ValueError(f'{3 + x}')", {"pass"}),
        ("[i for i in a if i]", {"[i for i in a]", "pass"}),
        ("while a:\n    break", {"while not a:\n    break", "while a:\n    continue"}),
    ],
)
def test_what_is_mutated(source: str, changed: set[str]) -> None:
    found = {m.source for m in mutants(source)}
    assert changed <= found, found
    assert source not in found


def test_what_is_left_alone() -> None:
    source = '''
@decorated(1)
def f(x: "3 + 4" = None) -> "a < b":
    """1 < 2"""
    return x
'''
    assert [m.name.partition(" => ")[2] for m in mutants(source)] == ["return"]
    assert "min(b, a)" not in {m.source for m in mutants("min(a, b)")}


def test_names_are_unique_and_the_order_is_fixed() -> None:
    source = part_source("numerics.sample_categorical")
    found = mutants(source)
    assert found == mutants(source)
    assert len({m.name for m in found}) == len(found) == len({m.source for m in found})
