"""Small mistakes, made by a script in a kernel's source: what a lab that can be trusted has to find.

    barrier     one barrier less
    bound       a comparison one off, or turned into true or false
    index       .x for .y, [a][b] swapped, row and column swapped in a * n + b, a subscript one off
    arithmetic  another operator, a number one off, another start of a maximum

Only the bodies of functions are changed, in the source as it is written; comments are left alone.
"""

import re
from collections import Counter
from dataclasses import dataclass

from course_lib.kernels.lab import local_arrays
from course_lib.kernels.lab.text import closing, line_at, masked

BARRIER, BOUND, INDEX, ARITHMETIC = OPERATORS = ("barrier", "bound", "index", "arithmetic")


@dataclass(frozen=True)
class Mutant:
    """A source with one mistake. `change`: its line before and after; with `function` it names the mutant."""

    operator: str
    function: str
    change: str
    line: int
    source: str


@dataclass(frozen=True)
class Function:
    """A function: the places of its body's braces, and the functions of the same source that it calls."""

    name: str
    start: int
    end: int
    calls: frozenset[str]


_SIMPLE = (
    (BARRIER, r"\b(?:__sync(?:threads|warp)\w*|threadgroup_barrier|simdgroup_barrier)\s*\([^;]*\)\s*;", ";"),
    (BOUND, r" < ", " <= "),
    (BOUND, r" <= ", " < "),
    (BOUND, r" > ", " >= "),
    (BOUND, r" >= ", " > "),
    (BOUND, r" == ", " != "),
    (BOUND, r" != ", " == "),
    (INDEX, r"(?<=Idx|Dim)\.x\b", ".y"),
    (INDEX, r"(?<=Idx|Dim)\.[yz]\b", ".x"),
    (INDEX, r"(?<![\w.])([\w.]+|\([^()]*\)) \* ([\w.]+) \+ ([\w.]+)\b(?!\()", r"\3 * \2 + \1"),
    (ARITHMETIC, r" \+ ", " - "),
    (ARITHMETIC, r" - ", " + "),
    (ARITHMETIC, r" \* ", " + "),
    (ARITHMETIC, r" / ", " * "),
    (ARITHMETIC, r" % ", " / "),
    (ARITHMETIC, r" >> ", " << "),
    (ARITHMETIC, r" ([+*/-])= ", " = "),
    (ARITHMETIC, r"\+\+", "--"),
    (ARITHMETIC, r"\bf?max(f?)\(", r"fmin\1("),
    (ARITHMETIC, r"-INFINITY\b", "0.0f"),
    (ARITHMETIC, r"(?<![\w.])(\d+)(?![\w.])", lambda m: str(int(m[1]) + 1)),
    (ARITHMETIC, r"(?<![\w.])0\.0f\b", "1.0f"),
)
_COMPARED = re.compile(r" (?:<|<=|>|>=|==|!=) ")
_NO_FUNCTION = {"if", "for", "while", "switch", "namespace", "struct", "do", "else"}


def functions(source: str) -> list[Function]:
    """The functions of a source, in order."""
    code = masked(source)
    found, at = [], 0
    while (start := code.find("{", at)) >= 0:
        end = closing(code, start)
        head = code[max(code.rfind(c, 0, start) for c in ";}") + 1 : start]
        named = re.search(
            r"\b([A-Za-z_]\w*)\s*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)\s*(?:const\s*)?$", head
        )
        if end < 0:
            break
        if named and named[1] not in _NO_FUNCTION:
            found.append((named[1], start, end))
            at = end
        else:
            at = start + 1
    names = {name for name, _, _ in found}
    return [
        Function(name, start, end, frozenset(names & set(re.findall(r"\w+", code[start:end]))) - {name})
        for name, start, end in found
    ]


def users(source: str, name: str) -> set[str]:
    """The functions that call `name`, or call one that does, and itself."""
    every, found = functions(source), {name}
    while more := {f.name for f in every if f.calls & found} - found:
        found |= more
    return found


def mutants(source: str) -> list[Mutant]:
    """Each mistake by itself, in the order of the operators, without repetitions."""
    code = masked(source)
    found: dict[str, Mutant] = {}
    named: Counter[tuple[str, str]] = Counter()
    for function in functions(source):
        for operator, start, end, instead in _changes(code, function.start + 1, function.end):
            changed = source[:start] + instead + source[end:]
            line = line_at(source, start)
            before, after = code[code.rfind("\n", 0, start) + 1 : start], code[end : _line_end(code, end)]
            old, new = before + code[start:end] + after, before + instead + after
            change = f"{' '.join(old.split())} => {' '.join(new.split())}"
            if changed in found:
                continue
            named[function.name, change] += 1
            if named[function.name, change] > 1:  # equal lines of one function
                change += f" ({named[function.name, change]})"
            found[changed] = Mutant(operator, function.name, change, line, changed)
    order = {operator: i for i, operator in enumerate(OPERATORS)}
    return sorted(found.values(), key=lambda m: (order[m.operator], m.line))


def _line_end(source: str, at: int) -> int:
    end = source.find("\n", at)
    return end if end >= 0 else len(source)


def _changes(code: str, start: int, end: int) -> list[tuple[str, int, int, str]]:
    """(operator, where it begins, where it ends, what stands there instead) between two places."""
    found: list[tuple[str, int, int, str]] = []
    sizes = _lengths(code, start, end)
    for operator, pattern, instead in _SIMPLE:
        for match in re.compile(pattern).finditer(code, start, end):
            if any(first <= match.start() < last for first, last in sizes):
                continue
            text = instead(match) if callable(instead) else match.expand(instead)
            found.append((operator, match.start(), match.end(), text))
    for match in _COMPARED.finditer(code, start, end):
        left, right = _operand(code, match.start(), -1), _operand(code, match.end(), 1)
        if not _in_a_loop(code, left, start):
            found += [(BOUND, left, right, value) for value in ("true", "false")]
    for match in re.compile(r"(?<=[\w\])])\[").finditer(code, start, end):
        if any(first <= match.start() < last for first, last in sizes):
            continue
        close = closing(code, match.start())
        inside = code[match.end() : close]
        found.append((INDEX, match.end(), close, f"{inside} + 1"))
        if code[close + 1 : close + 2] == "[":
            last = closing(code, close + 1)
            other = code[close + 2 : last]
            if other != inside:
                found.append((INDEX, match.start(), last + 1, f"[{other}][{inside}]"))
    return found


_AROUND = re.compile(r"[?:=,;{}&|]|\breturn\b")


def _operand(code: str, at: int, step: int) -> int:
    """Where the operand of a comparison begins (step -1) or ends (step 1): at its own depth of brackets."""
    inner, outer = (")]", "([") if step < 0 else ("([", ")]")
    i, depth = at - (step < 0), 0
    while depth or not (code[i] in outer or _AROUND.match(code, i)):
        depth += (code[i] in inner) - (code[i] in outer)
        i += step
    if step > 0:
        return i - (code[i - 1] == " ")
    found = _AROUND.match(code, i)
    i = found.end() if found else i + 1
    return i + (code[i] == " ")


def _in_a_loop(code: str, at: int, start: int) -> bool:
    """Whether a place is the condition of a for or while: without it they would not end."""
    depth = 0
    for i in range(at - 1, start, -1):
        if code[i] == ")":
            depth += 1
        elif code[i] == "(":
            depth -= 1
            if depth < 0:
                return re.search(r"\b(for|while)\s*$", code[:i]) is not None
        elif code[i] in "{}":
            break
    return False


def _lengths(code: str, start: int, end: int) -> list[tuple[int, int]]:
    """The stretches that give lengths of declared arrays, or declare shared memory."""
    arrays = [(at, closing(code, at)) for at in local_arrays.lengths(code) if start <= at < end]
    shared = [
        m.span() for m in re.compile(r"\b(__shared__|threadgroup)\b[^;=]*[;=]").finditer(code, start, end)
    ]
    return arrays + shared
