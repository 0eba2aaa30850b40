"""Turn a CUDA source into C++ for the lab's runtime, line by line in its place.

The source stays as it is, but for what C++ has no word for: a `__shared__` array becomes a reference into the
shared memory of the runtime. At the end stands one launcher a kernel. What the lab does not run is refused by
name, before the compiler could make something else of it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from course_lib.kernels.lab.errors import CompileError, Unsupported
from course_lib.kernels.lab.text import closing, depth_at, enclosing, line_at, masked, split

# What is refused: a pattern, its name, and what to do instead.
_REFUSED = (
    (r"\b(__)?asm(__)?\b|\b__asm\b", "inline PTX (asm)", "write the operation in C++"),
    (r"<<<", "a launch from C++ (<<<…>>>)", "launch from Python: module.launch(…); keep host code out"),
    (
        r"\bcuda(Malloc|Free|Memcpy|Memset|DeviceSynchronize|GetLast|Launch|Stream|Event|Func)\w*",
        "the CUDA host API",
        "the lab passes NumPy arrays: keep host code out of the kernel's file",
    ),
    (r"\bint\s+main\s*\(", "host code (main)", "keep host code out of the kernel's file"),
    (
        r"\btexture\s*<|\bcudaTextureObject_t\b|\btex[123]D\w*\b",
        "textures",
        "read the array through a pointer",
    ),
    (r"\bcudaSurfaceObject_t\b|\bsurf[123]D\w*\b", "surfaces", "write the array through a pointer"),
    (
        r"\bcp_async_bulk\w*|\bCUtensorMap\b|\bcuda::device\b|\bcuda::ptx\b",
        "TMA (bulk tensor copies)",
        "copy with loads, or with __pipeline_memcpy_async",
    ),
    (
        r"\b__cluster_dims__\b|\bthis_cluster\b|\bcluster_group\b|\bcluster\.sync\b",
        "thread block clusters",
        "use blocks that do not share memory",
    ),
    (
        r"\bthis_grid\b|\bgrid_group\b|\bgrid\.sync\b",
        "grid synchronization",
        "end the kernel and launch another one",
    ),
    (
        r"\bcooperative_groups\b|\bcoalesced_threads\b",
        "cooperative groups",
        "use __syncthreads(), __syncwarp() and the __shfl_*_sync functions",
    ),
    (
        r"\bcuda::(barrier|pipeline|memcpy_async|atomic|std)\b|#\s*include\s*<cuda/",
        "libcu++ (cuda::…)",
        "use __pipeline_memcpy_async, __pipeline_commit and __pipeline_wait_prior",
    ),
    (
        r"#\s*include\s*<(thrust|cub|cutlass|cute)/",
        "a library of kernels (Thrust, CUB, CUTLASS)",
        "write it yourself",
    ),
    (
        r"\bwgmma\b|\btcgen05\b|\bmma\.sync\b|\bldmatrix\b",
        "tensor core instructions in PTX",
        "use nvcuda::wmma",
    ),
    (r"\b__nv_fp[84]\w*|\bcuda_fp8\.h", "FP8 and FP4", "use half or __nv_bfloat16"),
    (r"\bclock(64)?\s*\(|\bglobaltimer\b", "the clock", "the lab does not measure time"),
    (
        r"\b__activemask\s*\(",
        "__activemask",
        "it depends on how the warp runs: say which lanes take part by a mask of your own",
    ),
    (
        r"\b__shfl(_up|_down|_xor)?\s*\(|\b__(any|all|ballot)\s*\(",
        "warp operations without a mask",
        "they are deprecated since CUDA 9 and gone from Volta on: use the functions that end in _sync",
    ),
    (r"\b__managed__\b", "managed variables", "pass the array as an argument"),
    (
        r"\b(malloc|free)\s*\(|\bnew\b|\bdelete\b",
        "memory from the device's heap",
        "pass an array as an argument",
    ),
    (r"\b(__builtin_)?alloca\w*\s*\(", "alloca", "use an array of a constant size"),
    (
        r"\b(try|throw|catch)\b|\btypeid\b|\bdynamic_cast\b|\bvirtual\b",
        "exceptions and run-time types",
        "a kernel has none",
    ),
    (
        r"\bthread_local\b|\bco_await\b|\bstd::(vector|string|thread|mutex)\b|#\s*include\s*<(vector|string|iostream)>",
        "the C++ standard library of the host",
        "a kernel has arrays and functions only",
    ),
    (r"\blab_\w+|\bLab[A-Z]\w*|\bLAB_\w+|\b__tsan\w+", "the lab's own names", "write the kernel in CUDA"),
    (
        r"\b__attribute__|\[\[\s*(gnu|clang)|#\s*pragma\s+(GCC|clang)",
        "attributes of the host's compiler",
        "leave them out",
    ),
    (r"\b__usad\w*|\b__v[a-z]+[24]\s*\(", "SIMD-in-a-word intrinsics", "write the operation per element"),
)

RUNTIME = Path(__file__).with_name("runtime")
_PLAIN_HEADERS = ("stdint.h", "stddef.h", "float.h", "limits.h")
_SHARED = re.compile(r"(?:\b(?:extern|static|volatile)\s+)*\b__shared__\b")
_ALIGN = re.compile(r"\b(?:__align__|alignas)\s*\(\s*([^()]*(?:\([^()]*\))?[^()]*)\)")


@dataclass(frozen=True)
class Kernel:
    """A kernel as its source names it.

    Of Metal: `buffers` holds the numbers of [[buffer(i)]], and `instance` what a [[host_name]] stands for, as
    "softmax<half>".
    """

    name: str
    line: int
    parameters: tuple[str, ...]
    template: bool = False
    buffers: tuple[int, ...] = ()
    instance: str = ""


@dataclass(frozen=True)
class Translation:
    """C++ for the runtime, and the kernels in it."""

    code: str
    kernels: tuple[Kernel, ...]


def translate(source: str, label: str) -> Translation:
    """C++ from CUDA. Unsupported names what is out of scope; CompileError, what can't be read."""
    code = masked(source)
    refuse(source, code, label, _REFUSED)
    refuse_includes(source, label)
    _refuse_device_variables(code, label)
    kernels = find_kernels(code, label)
    if not kernels:
        raise CompileError(f"{label}: there is no __global__ function in it, so nothing can be launched")
    return Translation(_shared_arrays(source, code, label), tuple(kernels))


def refuse(source: str, code: str, label: str, table: tuple[tuple[str, str, str], ...]) -> None:
    """Raise Unsupported for the first thing of the table that the source uses."""
    hits = []
    for pattern, name, instead in table:
        found = re.search(pattern, code)
        if found:
            hits.append((line_at(source, found.start()), name, instead))
    if hits:
        line, name, instead = min(hits, key=lambda hit: hit[0])  # of one line, the first of the table
        text = source.splitlines()[line - 1].strip()
        raise Unsupported(
            f"{label}, line {line}: the kernel lab does not run {name}: {instead}.\n    {text}", line
        )


def refuse_includes(source: str, label: str) -> None:
    """Raise Unsupported for an #include of anything but the lab's own headers: by no spelling of it."""
    known = {p.name for p in (RUNTIME / "include").iterdir()} | set(_PLAIN_HEADERS)
    code = masked(source.replace("\\\n", ""))  # a line may go on in the middle of a word
    for found in re.finditer(r"(?:#|%:)\s*(?:include|include_next|import|embed)\b\s*(?:<([^>\n]*)>)?", code):
        if found.group(1) not in known or "_next" in found.group():
            line = line_at(code, found.start())
            what = f"the header <{found.group(1)}>" if found.group(1) else "an #include of a file"
            raise Unsupported(
                f"{label}, line {line}: the kernel lab does not take {what}: write what you need in the "
                "kernel's own file.",
                line,
            )


def _refuse_device_variables(code: str, label: str) -> None:
    for found in re.finditer(r"\b__(device|constant)__\b[^;{}()=]*(=|;)", code):
        if found.group(1) == "device":
            what = "__device__ variables, which live on between launches: pass an array as an argument"
        elif found.group(2) == ";":
            what = (
                "__constant__ memory set by the host: give it an initializer, or pass an array as an argument"
            )
        else:
            continue
        line = line_at(code, found.start())
        raise Unsupported(f"{label}, line {line}: the kernel lab does not run {what}.", line)


def find_kernels(code: str, label: str) -> list[Kernel]:
    """The __global__ functions of masked source, each once, in their order."""
    found: dict[str, Kernel] = {}
    taken: dict[str, str] = {}
    for match in re.finditer(r"\b__global__\b", code):
        at = match.end()
        while True:
            name = re.compile(r"\s*(\w+)\s*").match(code, at)
            if name is None:
                line = line_at(code, at)
                raise CompileError(f"{label}, line {line}: a name should follow __global__", line)
            at = name.end()
            if at < len(code) and code[at] == "(":
                end = closing(code, at)
                if name.group(1) not in ("__launch_bounds__", "__cluster_dims__", "alignas", "__attribute__"):
                    break
                at = end + 1
        inside = code[at + 1 : end]
        parameters = tuple(_last_name(p) for p in split(inside)) if inside.strip() not in ("", "void") else ()
        before = code[: match.start()]
        template = re.search(r"\btemplate\s*<[^;{}]*>\s*(?:(?:static|inline)\s+)*$", before) is not None
        kernel = Kernel(name.group(1), line_at(code, match.start()), parameters, template)
        _refuse_kernel(code, label, kernel, match.start(), end)
        types = re.sub(r"\s+", "", inside)
        if code[end + 1 :].lstrip()[:1] == "{" and taken.setdefault(kernel.name, types) != types:
            said = f"there are two kernels called {kernel.name}: give each a name of its own"
            raise Unsupported(f"{label}, line {kernel.line}: {said}.", kernel.line)
        found.setdefault(kernel.name, kernel)
    return list(found.values())


def _refuse_kernel(code: str, label: str, kernel: Kernel, start: int, end: int) -> None:
    """Raise for a kernel that cannot be launched by its name."""
    where = f"{label}, line {kernel.line}: {kernel.name}"
    head = code[code.rfind("\n", 0, start) + 1 : end]
    if not re.search(r"\bvoid\b", head):
        raise CompileError(
            f"{where}: a kernel returns nothing: say `__global__ void {kernel.name}(…)`", kernel.line
        )
    outer = enclosing(code, start)
    if outer:
        raise Unsupported(
            f"{where}: the kernel lab does not run kernels inside a {outer}: put it outside.", kernel.line
        )


def _last_name(parameter: str) -> str:
    names = re.findall(r"[A-Za-z_]\w*", parameter.split("=")[0].split("[")[0])
    return names[-1] if names else ""


def _shared_arrays(source: str, code: str, label: str) -> str:
    """The source with its shared variables turned into references; lines keep their numbers."""
    out, last = [], 0
    for number, match in enumerate(_SHARED.finditer(code)):
        end = code.find(";", match.end())
        line = line_at(code, match.start())
        if end < 0:
            raise CompileError(f"{label}, line {line}: a ; is missing after __shared__", line)
        outside = depth_at(code, match.start()) == 0
        text = shared_reference(code[match.end() : end], label, line, 100 * number, match.group(), outside)
        out += [source[last : match.start()], text, "\n" * code.count("\n", match.start(), end)]
        last = end + 1
    return "".join([*out, source[last:]])


def shared_reference(
    declaration: str, label: str, line: int, number: int, qualifiers: str = "", outside: bool = False
) -> str:
    """C++ for the variables of one shared declaration: `float tile[32][33], sum`. On one line.

    `number` makes names of its own; `outside` is for one that stands outside all functions.
    """
    declaration = _ALIGN.sub(" ", declaration)
    if "=" in re.sub(r"\[[^\]]*\]", "", declaration):
        raise CompileError(f"{label}, line {line}: a shared variable can't have an initial value", line)
    pieces = split(declaration)
    head = re.match(r"(.*?)([A-Za-z_]\w*)\s*((?:\[[^\]]*\]\s*)*)$", pieces[0].strip(), re.DOTALL)
    unread = CompileError(f"{label}, line {line}: the lab can't read this shared declaration", line)
    if head is None or not head.group(1).strip():
        raise unread
    kind = " ".join(head.group(1).split())
    if "volatile" in qualifiers:
        kind = f"volatile {kind}"
    names = [(head.group(2), " ".join(head.group(3).split()))]
    for piece in pieces[1:]:
        more = re.match(r"\s*([A-Za-z_]\w*)\s*((?:\[[^\]]*\]\s*)*)$", piece)
        if more is None:
            raise unread
        names.append((more.group(1), " ".join(more.group(2).split())))
    dynamic = "extern" in qualifiers
    return " ".join(
        _reference(kind, name, sizes, dynamic, outside, number + i, line, label)
        for i, (name, sizes) in enumerate(names)
    )


def _reference(
    kind: str, name: str, sizes: str, dynamic: bool, outside: bool, number: int, line: int, label: str
) -> str:
    if dynamic and outside:
        return (
            f"static struct {{ operator {kind}*() const {{ return ({kind}*)lab_dynamic_shared"
            f'("{name}", {line}); }} }} {name};'
        )
    if dynamic:
        return f'{kind}* {name} = ({kind}*)lab_dynamic_shared("{name}", {line});'
    if outside:
        raise Unsupported(
            f"{label}, line {line}: the kernel lab does not run __shared__ variables outside a function: "
            "declare it in the kernel.",
            line,
        )
    return (
        f"typedef {kind} lab_type_{number}{sizes}; static char lab_key_{number}; lab_type_{number}& {name} = "
        f'*(lab_type_{number}*)lab_shared(&lab_key_{number}, "{name}", sizeof(lab_type_{number}), '
        f"alignof({kind}), {line});"
    )
