"""Kernel exercises: the same gates as for Python, on a lesson with one kernel and one repair."""

import io
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from rich.console import Console

from course_lib.classroom import (
    build,
    checking,
    diagnose,
    grade,
    kernels,
    notebook,
    prove,
    scoreboard,
    sources,
)
from course_lib.classroom.lesson import Lesson, LessonError, load_lesson
from course_lib.classroom.sandbox import Sandbox

LESSON = """---
jupyter:
  day: 17
  title: Kernels
  minutes: 20
  summary: A kernel and a repair of one.
---

## 6. Exercises

```cuda exercise="kernels_cuda/vector_add.cu" difficulty=2 minutes=10 core
```

```cuda skeleton="kernels_cuda/vector_add.cu"
__global__ void vector_add(const float* a, const float* b, float* c, int n) {
    // day 17: each thread adds one element
}
```

```text hint="kernels_cuda/vector_add.cu"
Which element is this thread's?
```

```python check="kernels_cuda/vector_add.cu" says="adds vectors of every length"
module = Module(source)
for n in (1, 31, 1003):
    a, b = rng(n).standard_normal((2, n), dtype=np.float32)
    c = np.full(n, np.nan, np.float32)
    report = module.launch("vector_add", -(-n // 256), 256, a, b, c, n)
    close(c, a + b, given=f"n = {n}")
print(report)
```

```python check="kernels_cuda/vector_add.cu" says="neighbors read neighbors: no sector is moved in vain"
n = 1024
a, b = rng(0).standard_normal((2, n), dtype=np.float32)
report = Module(source).launch("vector_add", 4, 256, a, b, np.zeros(n, np.float32), n)
that(report.sectors == report.ideal_sectors, f"{report.ideal_sectors} sectors would do")
report.sectors
```

```cuda wrong="kernels_cuda/vector_add.cu" says="the last block runs past the end"
__global__ void vector_add(const float* a, const float* b, float* c, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    c[i] = a[i] + b[i];
}
```

```cuda wrong="kernels_cuda/vector_add.cu" says="neighbors are far apart: each touches a sector of its own"
__global__ void vector_add(const float* a, const float* b, float* c, int n) {
    int i = threadIdx.x * gridDim.x + blockIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}
```

```cuda wrong="kernels_cuda/vector_add.cu" says="every block adds the first elements again"
__global__ void vector_add(const float* a, const float* b, float* c, int n) {
    int i = threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}
```

```cuda exercise="day17.repair_sum" repairs="kernels_cuda/reduce_sum.cu" difficulty=2 minutes=10 core
```

```cuda skeleton="day17.repair_sum"
__global__ void reduce_sum(const float* x, float* out, int n) {
    __shared__ float partial[256];
    float sum = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    partial[threadIdx.x] = sum;
    for (int half = blockDim.x / 2; half > 0; half /= 2)
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    if (threadIdx.x == 0) atomicAdd(out, partial[0]);
}
```

```python check="day17.repair_sum" says="the sum is right, and no two threads race"
x, out = rng(1).standard_normal(1000, dtype=np.float32), np.zeros(1, np.float32)
Module(source).launch("reduce_sum", 2, 256, x, out, x.size)
that(abs(out[0] - x.sum(dtype=np.float64)) < 1e-3, "the sum is right")
```
"""


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lesson]:
    """A course of this lesson alone, and COURSE_ROOT set to it."""
    folder: Path = tmp_path_factory.mktemp("course")
    (folder / "solutions" / "day_17_kernels").mkdir(parents=True)
    (folder / "solutions" / "day_17_kernels" / "lesson.md").write_text(LESSON, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_ROOT", str(folder))
        yield load_lesson(17)


@pytest.fixture(scope="module")
def sandbox(lesson: Lesson) -> Iterator[Sandbox]:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("there is no C++ compiler here")
    with Sandbox(17) as box:
        yield box


ADD, SUM = "kernels_cuda/vector_add.cu", "day17.repair_sum"


def test_a_kernel_is_an_exercise_with_a_file(lesson: Lesson) -> None:
    add, repair = lesson.exercises[ADD], lesson.exercises[SUM]
    assert (add.kind, add.language, add.file, add.part, add.number) == ("kernel", "cuda", ADD, None, 1)
    assert repair.is_repair and not add.is_repair and repair.file == "kernels_cuda/reduce_sum.cu"
    assert "Module" in sources.setup_source(lesson)
    assert sources.solved_source(add).startswith(f"%%cuda {ADD}\n//")
    assert sources.stub_source(add).startswith(f"%%cuda {ADD}\n__global__ void vector_add")


def test_the_stub_is_not_attempted_and_a_comment_is_no_attempt(lesson: Lesson) -> None:
    add = lesson.exercises[ADD]
    stub = sources.stub_source(add)
    assert checking.not_attempted(add, stub)
    assert checking.not_attempted(add, stub.replace("each thread adds", "/* mine */ each\n// thread adds"))
    assert checking.not_attempted(add, f"%%cuda {ADD}\n// nothing")
    assert not checking.not_attempted(add, stub.replace("// day 17", "c[0] = 1; //"))


@pytest.mark.parametrize("name", [ADD, SUM])
def test_the_checks_hold(lesson: Lesson, sandbox: Sandbox, name: str) -> None:
    problems, tried = prove.prove_exercise(sandbox, lesson.exercises[name])
    assert problems == [] and tried > 4


def test_the_verdict_says_where_the_kernel_ran(lesson: Lesson, sandbox: Sandbox) -> None:
    add = lesson.exercises[ADD]
    verdict = checking.check_exercise(sandbox, add, sources.solved_source(add))
    assert verdict.passed and verdict.reason == "in the kernel lab"
    first = verdict.checks[0].outcome
    assert first is not None and "vector_add: grid 4, block 256" in first.stdout


def test_a_fault_is_told_at_the_cells_own_line(lesson: Lesson, sandbox: Sandbox) -> None:
    add = lesson.exercises[ADD]
    cell = kernels.cell(add, add.wrongs[0].source)
    verdict = checking.check_exercise(sandbox, add, cell)
    assert verdict.status == checking.FAILED
    assert "vector_add.cu, line 4: vector_add: thread" in verdict.reason
    assert verdict.diagnosis == add.wrongs[0].says
    cell = kernels.cell(add, "__global__ void vector_add() { nothing; }")
    broken = checking.check_exercise(sandbox, add, cell)
    assert "line 2: 'nothing' was not declared" in broken.reason


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("adds nothing", "Adds nothing."),
        ("vector_add.cu, line 5: a[9] is out", "vector_add.cu, line 5: a[9] is out."),
        ("softmax.metal, line 2: too far.", "softmax.metal, line 2: too far."),
        ("add.cu, line 5: expected ';'\n    c[0] = 1", "add.cu, line 5: expected ';'\n    c[0] = 1"),
        ("", ""),
    ],
)
def test_a_message_is_a_sentence_but_for_files_and_source_lines(message: str, said: str) -> None:
    assert notebook._sentence(message) == said


NEIGHBOR = """
__global__ void vector_add(const float* a, const float* b, float* c, int n) {
    __shared__ float tile[256];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float sum = 0;
    for (int step = 0; step < 2; ++step) {
        tile[threadIdx.x] = i < n ? (step ? b[i] : a[i]) : 0.0f;
        __syncthreads();  // first
        sum += tile[threadIdx.x ^ 32];
        __syncthreads();  // second
    }
    if ((i ^ 32) < n) c[i ^ 32] = sum;
}
"""


def test_two_missing_barriers_are_told_apart(lesson: Lesson, sandbox: Sandbox) -> None:
    add = lesson.exercises[ADD]
    assert checking.check_exercise(sandbox, add, kernels.cell(add, NEIGHBOR)).passed
    wrongs = [
        replace(add.wrongs[0], source=NEIGHBOR.replace(f"__syncthreads();  // {which}", ""), says=which)
        for which in ("first", "second")
    ]
    add = replace(add, wrongs=wrongs)
    for wrong in wrongs:
        verdict = checking.check_exercise(sandbox, add, kernels.cell(add, wrong.source))
        assert "race on byte" in verdict.reason and verdict.diagnosis == wrong.says


def test_nothing_is_named_while_another_mistake_may_be_it(
    lesson: Lesson, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = lesson.exercises[ADD]
    verdict = checking.check_exercise(sandbox, add, kernels.cell(add, add.wrongs[0].source))
    assert verdict.diagnosis == add.wrongs[0].says
    monkeypatch.setattr(diagnose, "_known", {})
    # The clock stands still until the first wrong solution has been compared.
    clock = iter([0.0] * (1 + len(add.checks)))
    monkeypatch.setattr(diagnose, "time", SimpleNamespace(monotonic=lambda: next(clock, 9.0)))
    assert diagnose.looks_as_if(sandbox, add, verdict, budget=1.0) == ""
    assert len(diagnose._known) == len(add.checks)


def test_a_repair_run_as_handed_out_shows_what_the_checks_find(lesson: Lesson, sandbox: Sandbox) -> None:
    repair = lesson.exercises[SUM]
    cell = sources.stub_source(repair)
    assert all(c.outcome is None for c in checking.check_exercise(sandbox, repair, cell).checks)
    verdict = checking.check_exercise(sandbox, repair, cell, show_broken=True)
    assert verdict.status == checking.NOT_ATTEMPTED
    said = notebook._verdict_text(lesson, repair, notebook.RunCell(cell, 1), verdict, 0.0)
    assert said.startswith("not attempted") and "race on byte" in said and "mend it" in said
    add = lesson.exercises[ADD]
    verdict = checking.check_exercise(sandbox, add, sources.stub_source(add), show_broken=True)
    assert verdict.status == checking.NOT_ATTEMPTED and verdict.first_failure is None
    empty = f"%%cuda {SUM}\n// nothing"
    assert checking.check_exercise(sandbox, repair, empty, show_broken=True).first_failure is None


def test_most_small_mistakes_are_noticed(lesson: Lesson, sandbox: Sandbox) -> None:
    add = lesson.exercises[ADD]
    found = prove.mutants_of(add)
    names = [m.name for m in found]
    assert any("threadIdx.y" in n for n in names) and any("i <= n" in n for n in names)
    assert not any("float4" in n for n in names)  # another kernel of the file
    for mutant in found:
        verdict = checking.check_exercise(sandbox, add, mutant.source, diagnose=False, stop_at_first=True)
        assert verdict.status == checking.FAILED, mutant.name


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ('cuda exercise="kernels_metal/x.metal" difficulty=1 minutes=1 core', "names no kernel"),
        ('cuda exercise="vector_add" difficulty=1 minutes=1 core', "names no kernel"),
        ('cuda exercise="kernels_cuda/x.cu" difficulty=1 minutes=1 core forbid="a.b"', "forbid="),
        ('cuda exercise="x" repairs="kernels_cuda/reduce_sum.cu" difficulty=1 minutes=1 core', "day17."),
        ('cuda check="kernels_cuda/vector_add.cu" says="x"', "```python"),
    ],
)
def test_what_a_lesson_may_not_say(tmp_path: Path, info: str, says: str) -> None:
    path = tmp_path / "lesson.md"
    path.write_text(LESSON.split("```cuda")[0] + f"```{info}\n```\n", encoding="utf-8")
    with pytest.raises(LessonError, match=says):
        load_lesson(path)


@pytest.fixture(scope="module")
def notebooks(lesson: Lesson, sandbox: Sandbox) -> Path:
    """The lesson's three notebooks, written; the solved one executed."""
    learner, solved = build._learner_and_solved(lesson)
    checks = build._checks(lesson)
    made = {"days/day_17_kernels/lesson.ipynb": build._notebook(lesson, learner)}
    made["solutions/day_17_kernels/lesson.ipynb"] = build._notebook(lesson, solved)
    made["checks/day_17.ipynb"] = build._notebook(lesson, checks)
    build._execute(lesson, made["solutions/day_17_kernels/lesson.ipynb"], solved)
    build._golden_outputs(lesson, made["checks/day_17.ipynb"], checks)
    root = lesson.path.parents[2]
    for name, written in made.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(nbformat.writes(written), encoding="utf-8")
    return root


def test_running_the_cell_checks_it_and_shows_the_report(notebooks: Path) -> None:
    solved = nbformat.read(notebooks / "solutions/day_17_kernels/lesson.ipynb", as_version=4)
    (cell,) = [c for c in solved.cells if c.id == build.slug(ADD)]
    said = "".join(o.text for o in cell.outputs)
    assert cell.source.startswith(f"%%cuda {ADD}")
    assert f"passed in the kernel lab  {ADD}: all 2 checks" in said and "sectors" in said


def test_a_day_is_graded_from_the_learners_notebook(notebooks: Path) -> None:
    path = notebooks / "days/day_17_kernels/lesson.ipynb"
    untouched = grade.grade_day(17, path, keep=False)
    assert [e.status for e in untouched.exercises] == ["not attempted", "not attempted"]
    notebook = nbformat.read(path, as_version=4)
    lesson = load_lesson(17)
    for cell in notebook.cells:
        if cell.id == build.slug(ADD):
            cell.source = sources.solved_source(lesson.exercises[ADD])
        if cell.id == build.slug(SUM):
            cell.source = cell.source.replace("out, partial[0]", "out, 2 * partial[0]")
    nbformat.write(notebook, path)
    report = grade.grade_day(17, path, keep=False)
    assert [e.status for e in report.exercises] == ["passed", "failed"]
    assert report.exercises[0].reason == "in the kernel lab"
    text = io.StringIO()
    scoreboard.show(report, Console(file=text, width=80))
    assert "passed in the kernel lab" in " ".join(text.getvalue().split())
    assert "race on byte" in report.exercises[1].reason
