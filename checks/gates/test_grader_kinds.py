"""Every kind of part that a later day may ask for is graded like a function: a little library of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REAL = Path(__file__).resolve().parents[2]

LIBRARY = '''
import functools
from dataclasses import dataclass

from course_lib.parts import exercise


def cached(function):
    """The library's own decorator: it stays out of the learner's cell and around the learner's function."""
    return functools.lru_cache(function)


@cached
@exercise(day=1)
def double(x: int) -> int:
    """Twice x."""
    return 2 * x


@exercise(day=1)
def walk(n: int):
    """Yield 0..n-1."""
    for i in range(n):
        yield i


@exercise(day=1)
@dataclass
class Point:
    """A point with a norm."""

    x: int
    y: int = 0

    def norm1(self) -> int:
        """|x| + |y|."""
        return abs(self.x) + abs(self.y)


class Base:
    def name(self) -> str:
        return "base"


class Shape(Base):
    scale = 3

    def __init__(self, side: int):
        self.side = side
        self.__hidden = side + 1

    @exercise(day=1)
    def name(self) -> str:
        """The base's name and the hidden number."""
        return f"{super().name()}-{self.__hidden}"

    @property
    @exercise(day=1)
    def area(self) -> int:
        """side squared, times scale."""
        return self.side**2 * self.scale

    def describe(self) -> str:
        return f"{self.name()} of {self.area}"


TABLE = {"double": double, "walk": walk}
def total(n: int) -> int:
    return sum(TABLE["double"](i) for i in TABLE["walk"](n))


def far(points) -> int:
    return max(p.norm1() for p in points)


def origin():
    return Point(0)
'''

LESSON = """---
jupyter:
  day: 1
  title: Kinds
  minutes: 10
  summary: Functions, generators, classes, methods, properties.
---
## 6. Exercises

```python exercise="things.double" difficulty=1 minutes=1 core
```

```python check="things.double" says="it doubles"
expect(double, 4).equals(8)
```

```python check="things.double" says="the library uses it"
from course_lib.things import total

double(1)
total(4)
```

```python wrong="things.double" says="it squares"
def double(x):
    return x * x
```

```python exercise="things.walk" difficulty=1 minutes=1 core
```

```python check="things.walk" says="it yields"
list(walk(3))
```

```python wrong="things.walk" says="it starts at one"
def walk(n):
    yield from range(1, n + 1)
```

```python exercise="things.Point" difficulty=1 minutes=1 core
```

```python check="things.Point" says="norms"
from course_lib import things

that(isinstance(things.origin(), Point), "the library makes your points")
[Point(3, -4).norm1(), things.far([Point(1), Point(-2)]), things.origin().x]
```

```python wrong="things.Point" says="it forgets the sign"
class Point:
    def __init__(self, x, y=0):
        self.x, self.y = x, y

    def norm1(self):
        return self.x + self.y
```

```python exercise="things.Shape.name" difficulty=1 minutes=1 core
```

```python check="things.Shape.name" says="super and private names work"
Shape(2).name()
```

```python wrong="things.Shape.name" says="without the base"
@method_of(Shape)
def name(self):
    return f"-{self.__hidden}"
```

```python exercise="things.Shape.area" difficulty=1 minutes=1 core
```

```python check="things.Shape.area" says="a property stays one"
[Shape(2).area, Shape(5).describe()]
```

```python wrong="things.Shape.area" says="without the scale"
@method_of(Shape)
def area(self):
    return self.side**2
```
"""


def prove(folder: Path, library: str, lesson: str, mutants: int) -> None:
    """Prove a course of one day and one module, all of it in `folder`."""
    package = folder / "course_lib"
    shutil.copytree(
        REAL / "course_lib" / "classroom", package / "classroom", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("__init__.py", "parts.py"):
        shutil.copy(REAL / "course_lib" / name, package / name)
    (package / "things.py").write_text(library, encoding="utf-8")
    day = folder / "solutions" / "day_01_kinds"
    day.mkdir(parents=True)
    (day / "lesson.md").write_text(lesson, encoding="utf-8")
    script = (
        "import course_lib, sys\n"
        "from course_lib.classroom import prove\n"
        "proof = prove.prove_day(1, None)\n"
        "print(prove.report(proof))\n"
        f"sys.exit(bool(proof.findings) or proof.mutants < {mutants})\n"
    )
    environment = os.environ | {"PYTHONPATH": str(folder), "COURSE_ROOT": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=folder, capture_output=True, text=True
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_kind_of_part_is_proved(tmp_path: Path) -> None:
    prove(tmp_path, LIBRARY, LESSON, mutants=10)


TORCH_LIBRARY = '''
import torch
from torch import Tensor

from course_lib.parts import exercise


@exercise(day=1)
def descend(weight: Tensor, rate: float) -> Tensor:
    """The weight after one step down the slope of its square."""
    weight = weight.clone().requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=rate)
    weight.square().sum().backward()
    optimizer.step()
    return weight.detach()
'''

TORCH_LESSON = (
    LESSON.partition("## 6.")[0]
    + """## 6. Exercises

```python exercise="things.descend" difficulty=1 minutes=1 core
```

```python check="things.descend" says="a step, with an optimizer made in the part and one made in the check"
expect(descend, torch.tensor([1.0, -2.0]), 0.25).close(torch.tensor([0.5, -1.0]))
torch.manual_seed(0)
other = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.AdamW([other], lr=0.1)
```

```python wrong="things.descend" says="uphill"
def descend(weight, rate):
    return weight + 2 * rate * weight
```

```python wrong="things.descend" says="random numbers that are always the same"
torch.manual_seed = lambda seed: None


def descend(weight, rate):
    return weight - 2 * rate * weight
```
"""
)


def test_an_optimizer_made_in_a_check_is_no_change_of_torch(tmp_path: Path) -> None:
    """The first optimizer of a process loads torch._dynamo, which replaces torch.manual_seed; a learner's
    cell that does so is still refused."""
    pytest.importorskip("torch")
    prove(tmp_path, TORCH_LIBRARY, TORCH_LESSON, mutants=0)
