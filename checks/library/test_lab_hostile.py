"""Whatever a learner writes ends with a sentence: a refusal, an error at a line, or a finding."""

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest

from course_lib.kernels.lab import (
    CompileError,
    KernelFault,
    LabError,
    Module,
    Unsupported,
    cuda,
    local_arrays,
    metal,
)

KERNELS = Path(__file__).resolve().parents[2] / "kernels_cuda"
K = "__global__ void k(float* a, int n) "

REFUSED = [
    # the source, the line, what is said
    (
        'extern "C" int system(const char*);\n' + K + '{ system("true"); }',
        2,
        r"system\(\), a function of the host",
    ),
    (
        'extern "C" int fork();\n' + K + "{ int (*f)() = fork; a[0] = f(); }",
        2,
        r"fork\(\), a function of the host",
    ),
    ('extern "C" void exit(int);\n' + K + "{\n    exit(0);\n}", 3, r"exit\(\), a function of the host"),
    (f'#define A as##m\n{K}{{ A("nop"); }}', 2, "assembly"),
    (f'{K}{{ __asm("nop"); }}', 1, "PTX"),
    (f"{K}{{ float* p = (float*)__builtin_alloca(n); a[0] = p[0]; }}", 1, "alloca"),
    ("struct S { S() { while (1); } } s;\n" + K + "{}", 0, "computed before the kernel runs"),
    ("namespace mine {\n" + K + "{}\n}", 2, "inside a namespace"),
    ("struct S {\n    static " + K + "{}\n};", 2, "inside a class"),
    (K + "{}\n__global__ void k(int* a) {}", 2, "two kernels called k"),
]
WRONG = [
    (f"{K}{{\n    float x[n];\n    a[0] = x[0];\n}}", 2, "variable length array 'x'"),
    (
        "__device__ float f(float);\n" + K + "{ a[0] = f(1); }",
        2,
        "f is declared and used, and nowhere defined",
    ),
    (K + ";", 0, "k is declared and used, and nowhere defined"),
    ("__global__ int k(float* a) { return 1; }", 1, "a kernel returns nothing"),
    (K + "{ a[0] = 1;", 1, "a } is missing"),
    (K + "{ a[0] = 1; } /*", 1, "unterminated comment"),
    ("__global__", 1, "a name should follow __global__"),
    (
        "template <int N> struct B { static constexpr int v = B<N + 1>::v; };\n" + K + "{ a[0] = B<0>::v; }",
        1,
        "depth",
    ),
    (
        "constexpr int f() { while (true) {} return 0; }\n" + K + "{ constexpr int x = f(); a[0] = x; }",
        1,
        "limit",
    ),
]
FAULTS = {
    "floods": ('while (true) printf("%d", n);', "endless loop"),
    "prints_nothing_there": ('printf("%s", n);', "null"),
    "counts_launches": ("static int count = 0; a[0] = ++count;", "misuse"),
    "changes_code": ("*(int*)(void*)&changes_code = n;", "misuse"),
    "large": ("float x[1 << 20]; for (int i = 0; i < 1 << 20; ++i) x[i] = i; a[0] = x[n];", "stack overflow"),
    "calls_nothing": ("void (*f)() = nullptr; f();", "null"),
    "traps": ("__builtin_trap();", "crash"),
    "smashes": ("int x[2]; fill(x, 1 << 15); a[0] = x[0];", "wild address"),
    "copies_too_much": ("float x[4]; memset(x, 0, 1 << 20); a[0] = x[n];", "wild address"),
    "overflows": ("int x = (int)a[1]; a[0] = x / n;", "division by zero"),
    "waits_for_a_block": ("while (atomicAdd(a, 0.0f) == 0) {}", "endless loop"),
    "ends_late": ("struct D { ~D() { while (1); } } d; a[0] = 1;", "endless loop"),
}


@pytest.mark.parametrize(("source", "line", "says"), REFUSED)
def test_what_a_gpu_has_not_is_refused(source: str, line: int, says: str) -> None:
    with pytest.raises(Unsupported, match=says) as caught:
        Module(source)
    assert caught.value.line == line


@pytest.mark.parametrize(("source", "line", "says"), WRONG)
def test_what_does_not_compile_says_why(source: str, line: int, says: str) -> None:
    with pytest.raises(CompileError, match=says) as caught:
        Module(source)
    assert caught.value.line == line and "lab_" not in str(caught.value)


@pytest.fixture(scope="module")
def hostile() -> Module:
    return Module(
        "__device__ __noinline__ void fill(int* p, int n) { while (n) p[n--] = n; }\n"
        + "\n".join(f"__global__ void {k}(float* a, int n) {{ {body} }}" for k, (body, _) in FAULTS.items())
    )


@pytest.mark.parametrize("kernel", FAULTS)
def test_what_goes_wrong_is_a_finding(hostile: Module, kernel: str) -> None:
    a = np.array([0, -(2**31), 0, 0], np.float32)
    with pytest.raises(KernelFault) as caught:
        hostile.launch(kernel, 1, 1, a, -1 if kernel == "overflows" else 3, time_limit=0.3)
    assert caught.value.findings[0].kind == FAULTS[kernel][1], caught.value


def test_a_compiler_that_does_not_come_to_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    from course_lib.kernels.lab import build

    monkeypatch.setattr(build, "_LIMITED", build._LIMITED.replace(f"-t {build._SECONDS}", "-t 1"))
    grows = "\n".join(f"#define A{i} A{i - 1},A{i - 1},A{i - 1},A{i - 1}" for i in range(1, 30))
    with pytest.raises(CompileError, match="does a macro or a template grow without end"):
        Module(f"#define A0 1,1,1,1\n{grows}\n{K}{{ int x[] = {{A29}}; a[0] = x[n]; }}")


@pytest.mark.parametrize("seed", range(4))
def test_no_text_breaks_the_translators(seed: int) -> None:
    """Reference sources with stretches cut out, doubled or moved: a translation, or an error of the lab's."""
    rng = random.Random(seed)
    texts = [path.read_text(encoding="utf-8") for path in sorted(KERNELS.glob("*.cu"))]
    read = 0
    for _ in range(40):
        text = rng.choice(texts)
        for _ in range(rng.randrange(1, 6)):
            a, b, c = sorted(rng.randrange(len(text)) for _ in range(3))
            b = min(b, a + rng.choice((1, 3, 40)))
            text = rng.choice(
                (text[:a] + text[b:], text[:c] + text[a:b] + text[c:], text[:a] + "[{(<"[c % 4] + text[a:])
            )
        for translate in (cuda.translate, metal.translate):
            with contextlib.suppress(LabError):
                code = local_arrays.watch(translate(text, "k").code)
                assert code.count("\n") >= text.count("\n")
                read += 1
    assert read > 0
