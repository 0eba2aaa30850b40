"""Turn a Metal source into C++ for the lab's runtime, line by line in its place.

A kernel's [[attributes]] are taken off its parameters and become a launcher, which passes what the attribute
stands
for: a buffer, threadgroup memory, or a position. A `threadgroup` variable becomes a reference into the
runtime's shared memory; in all other places the address spaces are left out, since C++ has only one.
"""

import re
from dataclasses import dataclass

from course_lib.kernels.lab.cuda import Kernel, Translation, refuse, refuse_includes, shared_reference
from course_lib.kernels.lab.errors import CompileError, Unsupported
from course_lib.kernels.lab.text import closing, depth_at, line_at, masked, split

# Attributes of a position or a size that the runtime knows, by the function lab_… of runtime/metal.h.
POSITIONS = (
    "thread_position_in_grid",
    "thread_position_in_threadgroup",
    "thread_index_in_threadgroup",
    "threadgroup_position_in_grid",
    "threads_per_threadgroup",
    "dispatch_threads_per_threadgroup",
    "threads_per_grid",
    "threadgroups_per_grid",
    "thread_index_in_simdgroup",
    "simdgroup_index_in_threadgroup",
    "threads_per_simdgroup",
    "thread_execution_width",
    "simdgroups_per_threadgroup",
)
_REFUSED = (
    (r"\btexture(1d|2d|3d|cube|_buffer)\w*\b|\bsampler\b", "textures", "read the array through a pointer"),
    (
        r"\b(vertex|fragment|mesh|object)\s+\w+\s+\w+\s*\(|\[\[\s*(vertex|fragment)\s*\]\]",
        "graphics functions",
        "write a kernel",
    ),
    (r"\bfunction_constant\b", "function constants", "pass the number as an argument"),
    (
        r"\bhost_name\b|\btemplate\s*<[^>]*>\s*(\[\[[^\]]*\]\]\s*)?kernel\b",
        "templates of kernels",
        "write a kernel for each type",
    ),
    (r"\bquad_\w+\s*\(|\bquadgroup\w*", "quadgroups", "use the simd_… functions"),
    (
        r"\braytracing\b|\bintersector\b|\bvisible_function_table\b|\bindirect_command_buffer\b",
        "ray tracing and tables",
        "the lab runs compute kernels",
    ),
    (r"\bimageblock\w*|\btensor_ops\b|\bmpp::", "tiles and tensors of newer chips", "use simdgroup_matrix"),
    (
        r"\bnew\b|\bdelete\b|\bvirtual\b|\b(try|throw|catch)\b",
        "C++ that Metal leaves out",
        "a kernel has none of it",
    ),
    (r"\basm\b", "assembly", "write the operation in Metal"),
    (
        r"\blab_\w+|\bLab[A-Z]\w*|\bLAB_\w+|\b__tsan\w+|\b__attribute__",
        "the lab's own names",
        "write the kernel in Metal",
    ),
    (r"#\s*include\s*\"", "an #include of a file", "write what you need in the kernel's own file"),
)
_KERNEL = re.compile(r"(?:\bkernel\s+|\[\[\s*kernel\s*\]\]\s*)void\s+(\w+)\s*\(")
_ATTRIBUTE = re.compile(r"\[\[\s*(\w+)\s*(?:\(\s*(\d+)\s*\))?\s*\]\]")


@dataclass(frozen=True)
class _Parameter:
    kind: str  # "pointer", "value", "threadgroup", "position"
    type: str
    name: str
    attribute: str
    index: int


def translate(source: str, label: str) -> Translation:
    """C++ from Metal. Unsupported names what is out of scope; CompileError, what can't be read."""
    code = masked(source)
    refuse(source, code, label, _REFUSED)
    refuse_includes(source, label)
    out, kernels, launchers, at = [], [], [], 0
    for match in _KERNEL.finditer(code):
        end = closing(code, match.end() - 1)
        line = line_at(code, match.start())
        parameters = [_parameter(p, label, line) for p in split(code[match.end() : end]) if p.strip()]
        kernel, launcher = _launcher(match.group(1), parameters, line)
        kernels.append(kernel)
        launchers.append(launcher)
        # The parameters without their attributes; what is left keeps its lines.
        plain = _ATTRIBUTE.sub(lambda m: " " * len(m.group()), code[match.end() : end])
        out += [_spaces(source[at : match.start()], code[at : match.start()], label, line_at(code, at))]
        out += [f"void {match.group(1)}(", plain.replace("threadgroup ", "            ")]
        at = end
    if not kernels:
        raise CompileError(f"{label}: there is no kernel function in it, so nothing can be launched")
    out += [_spaces(source[at:], code[at:], label, line_at(code, at), code[:at])]
    return Translation("".join(out) + "\n" + "\n".join(launchers), tuple(kernels))


def _parameter(text: str, label: str, line: int) -> _Parameter:
    attribute = _ATTRIBUTE.search(text)
    plain = _ATTRIBUTE.sub(" ", text)
    read = re.match(r"\s*(.*?)([A-Za-z_]\w*)\s*$", plain, re.DOTALL)
    if read is None or not read.group(1).strip():
        raise CompileError(f"{label}, line {line}: the lab can't read the parameter {text.strip()!r}", line)
    declared, name = " ".join(read.group(1).split()), read.group(2)
    said, index = (attribute.group(1), int(attribute.group(2) or 0)) if attribute else ("", -1)
    bare = re.sub(r"\b(device|constant|threadgroup|thread|const|restrict|volatile)\b", " ", declared)
    element = " ".join(bare.replace("*", " ").replace("&", " ").split())
    if said in POSITIONS:
        return _Parameter("position", element, name, said, 0)
    if said == "threadgroup":
        return _Parameter("threadgroup", element, name, said, index)
    if said not in ("", "buffer"):
        raise Unsupported(f"{label}, line {line}: the kernel lab does not know [[{said}]].", line)
    constant = "const " if re.search(r"\b(constant|const)\b", declared) else ""
    if "*" in declared or ("&" in declared and "device" in declared):
        kind = "pointer" if "*" in declared else "reference"
        return _Parameter(kind, f"{constant}{element}*", name, said, index)
    if "&" in declared or not said:
        return _Parameter("value", element, name, said, index)
    raise CompileError(
        f"{label}, line {line}: a buffer is a pointer or a reference, not {text.strip()!r}", line
    )


def _launcher(name: str, parameters: list[_Parameter], line: int) -> tuple[Kernel, str]:
    """The function that Python launches: the buffers in the order of their numbers."""
    passed = [p for p in parameters if p.kind in ("pointer", "reference", "value")]
    # Without a number of its own a buffer gets that of its place.
    numbers = [p.index if p.index >= 0 else i for i, p in enumerate(passed)]
    order = sorted(range(len(passed)), key=lambda i: (numbers[i], i))
    passed = [passed[i] for i in order]
    calls = {
        "pointer": lambda p: p.name,
        "reference": lambda p: f"*{p.name}",
        "value": lambda p: p.name,
        "threadgroup": lambda p: f'({p.type}*)lab_threadgroup_argument({p.index}, "{p.name}", {line})',
        "position": lambda p: f"lab_index<{p.type}>::of(lab_{p.attribute}())",
    }
    head = ", ".join(f"{p.type} {p.name}" for p in passed)
    body = ", ".join(calls[p.kind](p) for p in parameters)
    kernel = Kernel(name, line, tuple(p.name for p in passed), buffers=tuple(sorted(numbers)))
    return kernel, f"static void lab_kernel_{name}({head}) {{ {name}({body}); }}"


def _spaces(source: str, code: str, label: str, first: int, before: str = "") -> str:
    """The text with threadgroup variables made references, and the other uses of the word left out."""
    out, last = [], 0
    for match in re.finditer(r"\bthreadgroup\b(?!_)", code):
        end = code.find(";", match.end())
        declaration = code[match.end() : end] if end >= 0 else ""
        line = first + code.count("\n", 0, match.start())
        starts = code[: match.start()].rstrip()[-1:] in ("", ";", "{", "}")
        plain = re.sub(r"\[[^\]]*\]", "", declaration)
        variable = starts and end >= 0 and not re.search(r"[*&=()]", plain)
        out.append(source[last : match.start()])
        if variable and depth_at(before + code, len(before) + match.start()) > 0:
            # Numbered by its place: the name must differ from all others of the file.
            out.append(shared_reference(declaration, label, line, line * 1000 + match.start() % 1000))
            out.append("\n" * code.count("\n", match.start(), end))
            last = end + 1
        else:
            last = match.end()
    out.append(source[last:])
    return "".join(out)
