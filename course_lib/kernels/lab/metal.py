"""Turn a Metal source into C++ for the lab's runtime, line by line in its place.

A kernel's [[attributes]] are taken off its parameters and become a launcher, which passes what the attribute
stands for: a buffer, threadgroup memory, or a position. A `threadgroup` variable becomes a reference into the
runtime's shared memory; in all other places the address spaces are left out, since C++ has only one. The
kernels of a template are those that an instantiation gives a [[host_name]], by itself or in a macro.
"""

import re
from dataclasses import dataclass, replace

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
_TEMPLATE = re.compile(r"\btemplate\s*<([^;{}]*)>\s*$")
# template [[host_name("softmax_half")]] [[kernel]] decltype(softmax<half>) softmax<half>; or, in place of the
# decltype, void and the parameters' types after the name.
_INSTANCE = re.compile(
    r"\btemplate[\s\\]*\[\[[\s\\]*host_name[\s\\]*\(([^()]*)\)[\s\\]*\]\][\s\\]*"
    r"(?:kernel\b|\[\[[\s\\]*kernel[\s\\]*\]\])[\s\\]*(?:void|decltype\s*\([^()]*\))[\s\\]*"
    r"(\w+)[\s\\]*<([^;()]*)>[\s\\]*(?:\([^;]*\)[\s\\]*)?;"
)
_SHARED = re.compile(r"(?:^|[;{}])\s*(threadgroup\s+[\w:]+(?:\s*<[^;<>]*>)?\s+\w+\s*[\[;,])")
_MACRO = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)\(([^()]*)\)((?:\\\n|[^\n])*)", re.MULTILINE)


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
    instances = _instances(source, code, label)
    source, code = _blank(source, code), _blank(code, code)
    _refuse_shared_outside(source, code, label)
    out, kernels, launchers, at = [], [], [], 0
    for match in _KERNEL.finditer(code):
        end = closing(code, match.end() - 1)
        line = line_at(code, match.start())
        parameters = [_parameter(p, label, line) for p in split(code[match.end() : end]) if p.strip()]
        template = _TEMPLATE.search(code[: match.start()])
        kernel, launcher = _launcher(match.group(1), parameters, line, template.group(1) if template else "")
        if template:
            name = kernel.name
            named = [replace(kernel, name=n, instance=f"{f}<{a}>") for n, f, a in instances if f == name]
            if not named:
                raise CompileError(
                    f"{label}, line {line}: {name} is a template, and no kernel is made of it. Add, say, "
                    f'template [[host_name("{name}_float")]] [[kernel]] decltype({name}<float>) '
                    f"{name}<float>;",
                    line,
                )
            kernels += named
        else:
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


def _refuse_shared_outside(source: str, code: str, label: str) -> None:
    """Metal has threadgroup variables in kernels only: other functions are given a pointer."""
    bodies = []
    for match in _KERNEL.finditer(code):
        start = code.find("{", closing(code, match.end() - 1))
        bodies.append((start, closing(code, start)))
    for match in _SHARED.finditer(code):
        if not any(start < match.start(1) < end for start, end in bodies):
            line = line_at(code, match.start(1))
            raise CompileError(
                f"{label}, line {line}: a threadgroup variable is declared in a kernel: declare it there and "
                f"pass a threadgroup pointer.\n    {source.splitlines()[line - 1].strip()}",
                line,
            )


def _instances(source: str, code: str, label: str) -> list[tuple[str, str, str]]:
    """The instantiations of kernel templates: the host's name, the function, its template arguments."""
    macros = [m for m in _MACRO.finditer(code) if _INSTANCE.search(m.group(3))]
    found = []
    for match in _INSTANCE.finditer(code):
        if not any(m.start() <= match.start() < m.end() for m in macros):
            found.append((source[match.start(1) : match.end(1)], match.group(2), match.group(3)))
    for macro in macros:
        names = [p.strip() for p in macro.group(2).split(",")]
        bodies = [
            (source[macro.start(3) + m.start(1) : macro.start(3) + m.end(1)], m.group(2), m.group(3))
            for m in _INSTANCE.finditer(macro.group(3))
        ]
        for use in re.finditer(rf"^[ \t]*{macro.group(1)}\s*(\()", code, re.MULTILINE):
            end = closing(code, use.start(1))
            given = [p.strip() for p in split(source[use.end() : end])]
            if len(given) != len(names):
                line = line_at(code, use.start())
                said = f"{macro.group(1)} takes {len(names)} arguments, not {len(given)}"
                raise CompileError(f"{label}, line {line}: {said}", line)
            values = dict(zip(names, given, strict=True))
            for host, function, arguments in bodies:
                host, arguments = _substituted(host, values), _substituted(arguments, values)
                found.append((host, _substituted(function, values), arguments))
    return [
        ("".join(re.findall(r'"([^"]*)"', host)), function, " ".join(arguments.split()))
        for host, function, arguments in found
    ]


def _substituted(text: str, values: dict[str, str]) -> str:
    """A macro's text with its parameters in place; `#T` becomes a string."""

    def value(match: re.Match[str]) -> str:
        given = values.get(match.group(2))
        if given is None:
            return match.group()
        return f'"{given}"' if match.group(1) else given

    return re.sub(r"(#?)\b([A-Za-z_]\w*)\b", value, text.replace("\\\n", " "))


def _blank(text: str, code: str) -> str:
    """The text without its instantiations of kernel templates; what is left keeps its place."""
    for match in _INSTANCE.finditer(code):
        gone = re.sub(r"[^\n\\]", " ", match.group())
        text = text[: match.start()] + gone + text[match.end() :]
    return text


def _launcher(name: str, parameters: list[_Parameter], line: int, template: str) -> tuple[Kernel, str]:
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
    parts = [p.split("=")[0].split()[-1] for p in split(template)] if template else []
    before = f"template <{template}> " if parts else ""
    which = f"<{', '.join(parts)}>" if parts else ""
    return kernel, f"{before}static void lab_kernel_{name}({head}) {{ {name}{which}({body}); }}"


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
