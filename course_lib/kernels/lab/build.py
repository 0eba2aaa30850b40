"""Compile a translated source and keep the result: the same source is compiled once.

Three steps. The compiler turns the C++ into assembly with -fsanitize=thread, which puts a call before every
load and store. Before each such call we write one instruction that loads the number of the call site, so that
the runtime knows at once which line it serves. The result is linked with the runtime in place of the
sanitizer's.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from course_lib.kernels.lab import local_arrays
from course_lib.kernels.lab.cuda import RUNTIME, Kernel, Translation
from course_lib.kernels.lab.errors import CompileError, NoCompiler, Unsupported
from course_lib.kernels.lab.text import masked

KEPT = 400  # compiled modules in the cache; the oldest go first

_COMMON = (
    "-std=gnu++20",
    "-fPIC",
    "-fsigned-char",
    "-Werror=vla",  # all other warnings pass unread
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-stack-protector",
    "-fstack-clash-protection",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-delete-null-pointer-checks",
    "-fno-finite-loops",
    "-fwrapv",
)
# What would change the number of accesses between levels of optimization is switched off.
_WATCHED = ("-g1", "-fsanitize=thread")
_GCC = (
    "--param=tsan-instrument-func-entry-exit=0",
    "-fno-tree-sra",
    "-fno-tree-vectorize",
    "-fno-tree-loop-distribute-patterns",
    "-fcf-protection=none",
)
_CLANG = (
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
    "-fno-unroll-loops",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-fno-builtin-memcpy",
    "-fno-builtin-memset",
    "-fno-sanitize=undefined",
)

_CALL = re.compile(r"^\s*(?:callq?|jmp|bl|b)\s+_?(__tsan_\w+|memcpy|memmove|memset)(@PLT)?\s*$")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?')
_LOC = re.compile(r"^\s*\.loc\s+(\d+)\s+(\d+)")
_MOVES = re.compile(r"(?:__tsan_)?(memcpy|memmove|memset)$")


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: how it is called, and of which family it is ("g++" or "clang++")."""

    command: tuple[str, ...]
    family: str

    @property
    def identity(self) -> str:
        """Changes when the compiler is another one; asks the file system only."""
        found = shutil.which(self.command[0]) or self.command[0]
        try:
            status = os.stat(found)
        except OSError:
            return " ".join(self.command)
        return f"{' '.join(self.command)} {os.path.realpath(found)} {status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class Built:
    """A compiled module on disk: the library, the line of each call site, the kernels in their order."""

    library: Path
    lines: tuple[int, ...]
    kernels: tuple[Kernel, ...]


@functools.cache
def find_compiler(name: str | None = None) -> Compiler:
    """The compiler called `name`, else COURSE_CXX, g++, clang++ or c++, whichever is here. NoCompiler."""
    wanted = name or os.environ.get("COURSE_CXX")
    for candidate in [wanted] if wanted else ["g++", "clang++", "c++"]:
        command = tuple(candidate.split())
        if shutil.which(command[0]) is None:
            continue
        text = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
        if text:
            return Compiler(command, "clang++" if "clang" in text else "g++")
    raise NoCompiler(
        f"the kernel lab compiles kernels with a C++ compiler, and {wanted or 'none'} was found. Install "
        "one: "
        "`sudo apt-get install g++` (Debian, Ubuntu), `sudo dnf install gcc-c++` (Fedora), "
        "`xcode-select --install` (macOS)."
    )


def cache_folder() -> Path:
    """Where compiled modules lie: the environment's COURSE_KERNELS, or .course/kernels in the repository."""
    folder = os.environ.get("COURSE_KERNELS")
    return Path(folder) if folder else Path(__file__).resolve().parents[3] / ".course" / "kernels"


def build(
    translation: Translation,
    label: str,
    source: str,
    language: str,
    *,
    watched: bool = True,
    optimize: str = "1",
    instances: tuple[str, ...] = (),
    compiler: Compiler | None = None,
) -> Built:
    """Compile, or find what was compiled before.

    `instances` are kernels of templates: `tile<float, 16>`, or a host's name.

    Raises CompileError with the compiler's words at the lines of `source`, NoCompiler if there is none.
    """
    compiler = compiler or find_compiler()
    flags = _flags(compiler, watched, optimize)
    plain = _whole(translation.code, translation.kernels, label, language, instances)
    code = plain
    if watched:
        seen = local_arrays.watch(translation.code)
        code = _whole(seen, translation.kernels, label, language, instances)
    key = _digest(code, language, label, " ".join(flags), compiler.identity, runtime_digest())
    folder = cache_folder()
    library, notes = folder / f"{key}.so", folder / f"{key}.json"
    if library.is_file() and notes.is_file():
        os.utime(library)  # in use: among the last to be removed
    else:
        _compile(code, plain, label, source, language, compiler, flags, watched, library, notes)
    read = json.loads(notes.read_text(encoding="utf-8"))
    named = {k.name: k for k in translation.kernels}
    kernels = tuple(k for k in translation.kernels if not (k.template or k.instance))
    kernels += tuple(_instance(named[i.split("<")[0].strip()], i) for i in instances)
    return Built(library, tuple(read["lines"]), kernels)


def _instance(kernel: Kernel, name: str) -> Kernel:
    return Kernel(**{**asdict(kernel), "name": name, "template": False})


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@functools.cache
def runtime_digest() -> str:
    """Changes when any file of the runtime does."""
    files = sorted(p for p in RUNTIME.rglob("*") if p.is_file() and p.suffix in (".h", ".cpp", ".inc"))
    return _digest(*(f"{p.relative_to(RUNTIME)}\0{p.read_text(encoding='utf-8')}" for p in files))


def _flags(compiler: Compiler, watched: bool, optimize: str) -> list[str]:
    own = _GCC if compiler.family == "g++" else _CLANG
    if watched:
        return [*_COMMON, f"-O{optimize}", *_WATCHED, *own]
    # Without the sanitizer nothing of its options is left but what keeps floating point the same.
    return [*_COMMON, "-O2"]


def _whole(
    body: str, kernels: tuple[Kernel, ...], label: str, language: str, instances: tuple[str, ...]
) -> str:
    """The translation unit: the prelude, the source under its own name, the launchers."""
    prefix = "lab_kernel_" if language == "metal" else ""
    made = {k.name: k.instance for k in kernels if k.instance}
    names = [prefix + k.name for k in kernels if not (k.template or k.instance)]
    names += [prefix + made.get(i, i) for i in instances]
    public = '__attribute__((visibility("default"), no_sanitize("thread")))'
    launchers = "".join(
        f'extern "C" {public} const LabParameter* lab_parameters_{i}(uint32_t* n) '
        f"{{ return lab_parameters(&{name}, n); }}\n"
        f'extern "C" {public} void lab_call_{i}(void** v) '
        f"{{ lab_invoke(&{name}, v); }}\n"
        for i, name in enumerate(names)
    )
    return f'#line 1 "{label}"\n{body}\n#line 1 "launchers"\n{launchers}'


def _compile(
    code: str,
    plain: str,
    label: str,
    source: str,
    language: str,
    compiler: Compiler,
    flags: list[str],
    watched: bool,
    library: Path,
    notes: Path,
) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=library.parent) as folder:
        unit, assembly = Path(folder, "unit.cpp"), Path(folder, "unit.s")
        runtime = _start_runtime(compiler, library.parent)
        headers = [
            "-include",
            str(RUNTIME / f"{language}.h"),
            "-I",
            str(RUNTIME / "include"),
            "-I",
            str(RUNTIME),
        ]
        command = [*compiler.command, *flags, *headers, "-S", str(unit), "-o", str(assembly)]
        # Where the watched text is wrong, the learner's own is: it gives the messages. (Were it right, it
        # would run, and only the threads' own arrays would go unwatched.)
        for text in dict.fromkeys((code, plain)):
            unit.write_text(text, encoding="utf-8")
            done = _run(command)
            if not done.returncode:
                break
        else:
            raise compile_error(done.stderr, label, source)
        text = assembly.read_text(encoding="utf-8")
        lines: list[int] = []
        _refuse_the_host(text, label, source)
        if watched:
            text, lines = number_sites(text, label)
            assembly.write_text(text, encoding="utf-8")
        linked = Path(folder, "module.so")
        done = _run(
            [
                *compiler.command,
                "-shared",
                "-fPIC",
                str(assembly),
                str(_finish_runtime(*runtime)),
                "-o",
                str(linked),
                "-lm",
                *(["-Wl,-Bsymbolic", "-ldl"] if os.uname().sysname == "Linux" else []),
            ]
        )
        if done.returncode:
            raise CompileError(f"{label}: the module does not link: {done.stderr.strip()[-600:]}")
        listing = Path(folder, "notes.json")
        listing.write_text(json.dumps({"lines": lines}), encoding="utf-8")
        os.replace(listing, notes)
        os.replace(linked, library)
    _prune(library.parent)


# Macros and templates can grow without end: a compiler gets so many seconds and bytes (where sh can tell it).
_SECONDS, _KILOBYTES = 20, 4 << 20
_LIMITED = f'ulimit -t {_SECONDS} 2>/dev/null; ulimit -v {_KILOBYTES} 2>/dev/null; exec "$@"'


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    # Messages in English, whatever the language of the machine: they are read below.
    environment = {**os.environ, "LC_ALL": "C"}
    limited = ["sh", "-c", _LIMITED, "sh", *command]
    return subprocess.run(limited, capture_output=True, text=True, check=False, env=environment)


def _start_runtime(compiler: Compiler, folder: Path) -> tuple[Path, Path, subprocess.Popen[str] | None]:
    """Compile the runtime, if this compiler has not yet, beside the kernel."""
    target = folder / f"runtime-{_digest(runtime_digest(), compiler.identity)}.o"
    if target.is_file():
        return target, target, None
    handle, name = tempfile.mkstemp(prefix="building-", suffix=".o", dir=folder)
    os.close(handle)
    flags = ["-std=gnu++20", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-w"]
    if compiler.family == "clang++":
        flags.append("-fno-sanitize=undefined")
    command = [*compiler.command, *flags, "-c", str(RUNTIME / "runtime.cpp"), "-o", name]
    return target, Path(name), subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def _finish_runtime(target: Path, made: Path, process: subprocess.Popen[str] | None) -> Path:
    if process is not None:
        said = process.communicate()[1]
        if process.returncode:
            made.unlink(missing_ok=True)
            raise CompileError(f"the lab's own runtime does not compile on this machine:\n{said[-2000:]}")
        os.replace(made, target)
    return target


def _prune(folder: Path) -> None:
    """Remove the oldest modules, but none that another process may be about to load."""
    aged = []
    for path in folder.glob("*.so"):
        with contextlib.suppress(FileNotFoundError):  # another process prunes, too
            aged.append((path.stat().st_mtime, path))
    for age, old in sorted(aged)[:-KEPT]:
        if time.time() - age > 600:
            old.unlink(missing_ok=True)
            old.with_suffix(".json").unlink(missing_ok=True)


# What compiled code may ask of the machine beside the lab: mathematics, and what compilers need themselves.
_MATH = (
    "a?(?:sin|cos|tan)h?|atan2|exp(?:2|10|m1)?|log(?:2|10|1p|b)?|pow|sqrt|cbrt|hypot|erfc?|[tl]gamma|floor|ceil|trunc"
    "|l?l?r(?:ound|int)|nearbyint|fmod|remainder|remquo|fma|fmin|fmax|fdim|fabs|copysign|[lf]rexp|ldexp|scalbl?n"
    "|modf|nextafter|ilogb|sincos|[jy][01n]|_*sincosf?(?:pi)?_stret"
)
_ALLOWED = re.compile(
    rf"_?(?:(?:{_MATH})[fl]?|lab_\w+|__tsan_\w+|mem(?:cpy|move|set|cmp)|(?:thread|block)Idx|(?:block|grid)Dim"
    r"|_*GLOBAL_OFFSET_TABLE_|__dso_handle|__(?:[a-z]+[sdhbxt][fi][sdhbxt]?[fi]?[234]?|(?:mul|div)[sdxt]c3|powi[sdxt]f2))"
)
_SYMBOL = re.compile(
    r"^\s*(?:callq?|jmp|bl?)\s+(?P<call>[A-Za-z_$][\w.$]*)|(?P<got>[A-Za-z_$][\w.$]*)@(?:PLT|GOT)|:got:(?P<arm>[\w.$]+)"
    r"|^\s*\.(?:quad|xword|long)\s+(?P<data>[A-Za-z_$][\w.$]*)\s*$",
    re.MULTILINE,
)


# Code that runs when the module is loaded, but for the sanitizer's own (of priority 99; with clang 0).
_INITIAL = re.compile(r"^\s*\.section\s+\.(?:init_array|ctors)(?!\.(?:00099|0)\b)")


_DEFINED = re.compile(r"^([A-Za-z_.$][\w.$]*):|^\s*\.(?:set|l?comm)\s+([\w.$]+)", re.MULTILINE)


def _refuse_the_host(assembly: str, label: str, source: str) -> None:
    """Raise for what a GPU has not: functions of the host, assembly, and code that runs before the kernel.

    Looked for in what the compiler made, so that no spelling of it in the source is missed.
    """
    defined = {name for pair in _DEFINED.findall(assembly) for name in pair}
    own: set[str] = set()
    line = 0
    for text in assembly.splitlines():
        if place := _LOC.match(text):
            if place.group(1) in own and place.group(2) != "0":
                line = int(place.group(2))
        elif file := _FILE.match(text):
            if (file.group(3) or file.group(2)).endswith(label):
                own.add(file.group(1))
        elif text.startswith(("#APP", "\t#APP", "\t## InlineAsm Start", "\t//APP")):
            raise _unsupported(label, line, source, "assembly", "write the operation in C++")
        elif _INITIAL.search(text):
            what = "variables whose first value is computed before the kernel runs"
            raise _unsupported(label, 0, source, what, "make them constexpr, or compute them in the kernel")
        elif found := _SYMBOL.search(text):
            name = found["call"] or found["got"] or found["arm"] or found["data"]
            if name in defined or _ALLOWED.fullmatch(name) or name.startswith((".L", "L")):
                continue
            if bare := re.match(r"_?_ZN?K?\d*(?:\d+[A-Za-z_]+?)??(\d+)([A-Za-z_]\w*)", name):
                what = bare.group(2)[: int(bare.group(1))]
                where = f"{label}, line {line}" if line else label
                raise CompileError(f"{where}: {what} is declared and used, and nowhere defined.", line)
            what = f"{name.removeprefix('_') if name[1:] in source else name}(), a function of the host"
            raise _unsupported(label, line, source, what, "a kernel has the device's functions only")


def _unsupported(label: str, line: int, source: str, what: str, instead: str) -> Unsupported:
    texts = source.splitlines()
    where = f"{label}, line {line}" if line else label
    shown = f"\n    {texts[line - 1].strip()}" if 0 < line <= len(texts) else ""
    return Unsupported(f"{where}: the kernel lab does not run {what}: {instead}.{shown}", line)


def number_sites(assembly: str, label: str) -> tuple[str, list[int]]:
    """Give every call of the sanitizer's a number, in the register of a fourth argument.

    Returns the assembly and, for each number, the line of the source. A line of one of the lab's headers
    stands for the source's line before it.
    """
    arm = re.search(r"^\s*bl\s", assembly, re.MULTILINE) is not None
    own: set[str] = set()
    out: list[str] = []
    lines: list[int] = []
    line = 0
    for text in assembly.splitlines():
        if ".loc" in text:
            place = _LOC.match(text)
            if place and place.group(1) in own and place.group(2) != "0":
                line = int(place.group(2))
        elif ".file" in text:
            file = _FILE.match(text)
            if file and (file.group(3) or file.group(2)).endswith(label):
                own.add(file.group(1))
        elif call := _CALL.match(text):
            name = call.group(1)
            moves = _MOVES.match(name)
            if moves:
                text = text.replace(name, f"lab_{moves.group(1)}")
            if moves or not name.startswith(("__tsan_init", "__tsan_func")):
                number = len(lines)
                lines += [line, line] if moves else [line]  # a copy reads at one site and writes at the next
                out.append(f"\tmov\tw3, #{number}" if arm else f"\tmovl\t${number}, %ecx")
        out.append(text)
    return "\n".join(out) + "\n", lines


_ERROR = re.compile(r"^(.*?):(\d+):(?:\d+:)? (?:fatal )?error: (.*)$")
_NOTE = re.compile(r"^(.*?):(\d+):(?:\d+:)? +required from here")


def compile_error(said: str, label: str, source: str, most: int = 3) -> CompileError:
    """The compiler's errors, each at the learner's line, with the text of that line."""
    texts = source.splitlines()
    found: list[tuple[int, str]] = []
    pending = 0
    for row in said.splitlines():
        place = _NOTE.match(row)
        if place and place.group(1).endswith(label):
            pending = int(place.group(2))
        error = _ERROR.match(row)
        if error is None:
            continue
        line = int(error.group(2)) if error.group(1).endswith(label) else pending
        entry = (line, re.sub(r"lab_type_\d+", "this type", error.group(3)).split(" [-W")[0])
        if entry not in found:
            found.append(entry)
    code = masked(source)
    if code.count("{") > code.count("}"):
        return CompileError(f"{label}: there are more {{ than }}: a }} is missing", line=len(texts))
    if not found and re.search(r"[Kk]illed|memory|signal", said):
        return CompileError(
            f"{label}: the compiler needed more than {_SECONDS} s or {_KILOBYTES >> 20} GB: does a macro or "
            "a template grow without end?"
        )
    if not found:
        return CompileError(f"{label} does not compile:\n{said.strip()[:1000]}")
    parts = []
    for line, what in found[:most]:
        where = f"{label}, line {line}: {what}" if line else f"{label}: {what}"
        shown = f"\n    {texts[line - 1].strip()}" if 0 < line <= len(texts) else ""
        parts.append(where + shown)
    if len(found) > most:
        parts.append(f"… and {len(found) - most} more errors, which may go away with these.")
    return CompileError("\n".join(parts), found[0][0])
