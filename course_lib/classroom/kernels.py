"""Kernel exercises: cells of CUDA or Metal, whose answers are the files of kernels_cuda/ and kernels_metal/.

Such a cell begins with the magic `%%cuda kernels_cuda/vector_add.cu`, and the rest of it is the source. The
classroom only moves that text: it hands it to the checks as `source`, and the checks, which are the lesson's
own cells, compile and launch it in the kernel lab. So nothing here imports a room of the engine. What the lab
has to say comes back in two ways: its exceptions carry `of_the_kernel`, and the source remembers what it ran
on.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from course_lib.classroom.lesson import Exercise

ENDINGS = {"cuda": ".cu", "metal": ".metal"}
NAME = re.compile(r"^kernels_(cuda|metal)/[a-z]\w*\.(cu|metal)$")
# What the set-up cell of a day with kernels imports: text here, run in the lesson's own cells.
IMPORTS = (("course_lib.kernels.lab", "KernelFault"), ("course_lib.kernels.lab", "Module"))
_MAGIC = re.compile(r"^\s*%%(cuda|metal)\b[^\n]*\n?")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_WORDS = re.compile(r"\w+")


class KernelSource(str):
    """A learner's source as the checks see it: text that knows its language and name.

    `ran_on` collects what executed it; the lab's Module fills it in.
    """

    language: str
    name: str
    ran_on: set[str]

    @classmethod
    def of(cls, text: str, language: str, name: str) -> "KernelSource":
        source = cls(text)
        source.language, source.name, source.ran_on = language, name, set()
        return source


def is_kernel_file(name: str) -> bool:
    """Whether a name is that of a kernel's file, with the ending of its folder."""
    match = NAME.match(name)
    return match is not None and ENDINGS[match[1]] == f".{match[2]}"


def kernel_file(name: str) -> Path:
    """The reference of a kernel exercise, beside course_lib."""
    return Path(__file__).resolve().parents[2] / name


def cell(exercise: "Exercise", text: str) -> str:
    """The text of a kernel's cell: its magic and its source."""
    return f"%%{exercise.language} {exercise.name}\n{text.strip()}"


def without_magic(text: str) -> str:
    """The source in a cell; where the magic stood there is an empty line, so that lines keep their
    numbers."""
    return _MAGIC.sub("\n", text, count=1)


def bare(text: str) -> str:
    """A source without magic, comments and layout: equal for cells that differ in these only."""
    return " ".join(_COMMENT.sub(" ", without_magic(text)).split())


def cell_line(text: str, exercise: "Exercise") -> int | None:
    """The line on which a cell says that it is this exercise's, or None."""
    match = _MAGIC.match(text)
    said = match.group().split() if match else []
    return 1 if len(said) == 2 and said[1] == exercise.name else None


def stub(text: str, message: str) -> str:
    """The source with the body of each function replaced by a comment; a lesson may give a skeleton
    instead."""
    out, at = [], 0
    for start, end in _bodies(text):
        out += [text[at : start + 1], f"\n    // {message}\n"]
        at = end
    return "".join([*out, text[at:]]).strip()


def body_lines(text: str) -> set[str]:
    """What the functions of a source say, line by line, without comments: the secret of a solution."""
    inside = _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)
    rows = {row.strip() for start, end in _bodies(inside) for row in inside[start + 1 : end].split("\n")}
    # A declaration of the index, or a lone brace, gives nothing away.
    return {row for row in rows if len(_WORDS.findall(row)) >= 4 and not row.startswith("for (")}


# A small mistake a line: what is looked for in the code, and what stands there instead.
_MISTAKES = (
    (re.compile(r"\b(?:__syncthreads|__syncwarp|threadgroup_barrier|simdgroup_barrier)\([^;]*\);"), ""),
    (re.compile(r" < "), " <= "),
    (re.compile(r" >= "), " > "),
    (re.compile(r" \+ "), " - "),
    (re.compile(r" \* "), " + "),
    (re.compile(r" / "), " * "),
    (re.compile(r" \+= "), " = "),
    (re.compile(r"(?<=Idx)\.x\b"), ".y"),
    (re.compile(r"(?<=Idx)\.y\b"), ".x"),
)


def mutants(text: str, file: str) -> list[tuple[str, str]]:
    """(what was changed, the source with it) for each small mistake in the kernel that the file is named
    after and in
    the functions that it calls; the file's other kernels are left alone.
    """
    code = _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)
    stem, found = Path(file).stem, []
    for start, end in _bodies(text):
        head = code[max(code.rfind("}", 0, start), code.rfind(";", 0, start)) + 1 : start]
        if re.search(r"__global__|\bkernel\b", head) and not re.search(rf"\b{stem}\s*\(", head):
            continue
        for pattern, instead in _MISTAKES:
            for match in pattern.finditer(code, start, end):
                mutant = text[: match.start()] + instead + text[match.end() :]
                line = text.count("\n", 0, match.start())
                old, new = (t.split("\n")[line].strip() for t in (text, mutant))
                found.append((f"line {line}: {old} => {new}", mutant))
    return list(dict(found).items())


def _bodies(text: str) -> list[tuple[int, int]]:
    """(position of the opening brace, of the closing one) of each function at the top level."""
    code = _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)
    found, depth, start = [], 0, 0
    for i, c in enumerate(code):
        if c == "{":
            if depth == 0:
                start = i
            depth += 1
        elif c == "}":
            depth -= 1
            if depth == 0 and code[:start].rstrip().endswith(")"):
                found.append((start, i))
    return found
