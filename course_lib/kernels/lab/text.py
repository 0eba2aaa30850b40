"""Reading C-like source as text: what is code, which bracket closes which, on which line."""

import re

_TOKEN = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)
_OPEN = {"(": ")", "[": "]", "{": "}", "<": ">"}


def masked(source: str) -> str:
    """The source with comments and the insides of strings blanked out, every character in its place."""

    def blank(match: re.Match[str]) -> str:
        text = match.group()
        if text[0] in "\"'":
            return text[0] + " " * (len(text) - 2) + text[-1]
        return re.sub(r"[^\n]", " ", text)

    return _TOKEN.sub(blank, source)


def line_at(source: str, position: int) -> int:
    """The number of the line that holds a position, from 1."""
    return source.count("\n", 0, position) + 1


def closing(code: str, start: int) -> int:
    """The position of the bracket that closes the one at `start`, or -1. `code` is masked."""
    opening, wanted = code[start], _OPEN[code[start]]
    depth = 0
    for i in range(start, len(code)):
        if code[i] == opening:
            depth += 1
        elif code[i] == wanted:
            depth -= 1
            if depth == 0:
                return i
    return -1


def split(code: str, separator: str = ",") -> list[str]:
    """Cut at the separators that stand outside all brackets, `<…>` of a template included."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(code):
        if c in "([{<":
            depth += 1
        elif c in ")]}" or (c == ">" and code[i - 1 : i] != "-"):
            depth -= 1
        elif c == separator and depth == 0:
            parts.append(code[start:i])
            start = i + 1
    return [*parts, code[start:]]


def depth_at(code: str, position: int) -> int:
    """How many braces are open at a position, not counting those of namespaces and `extern "C"`."""
    open_braces: list[bool] = []
    for brace in re.finditer(r"[{}]", code[:position]):
        if brace.group() == "{":
            before = code[max(0, brace.start() - 200) : brace.start()].rstrip()
            outer = re.search(r"(namespace(\s+\w+)*|extern\s*\"[^\"]*\")$", before)
            open_braces.append(outer is None)
        elif open_braces:
            open_braces.pop()
    return sum(open_braces)


_OUTSIDE = (
    ("", r"extern\s*\"[^\"]*\"$|\bnamespace$"),
    ("namespace", r"\bnamespace\s[\s\w:]*$"),
    ("class", r"\b(class|struct)\b[^;{}()]*$"),
)


def enclosing(code: str, position: int) -> str:
    """What a position stands inside of: "namespace", "class" or "function".

    "" at the top, in extern "C" and in a namespace without a name.
    """
    opened: list[str] = []
    for brace in re.finditer(r"[{}]", code[:position]):
        if brace.group() == "}":
            del opened[-1:]
            continue
        head = code[: brace.start()][-200:].rstrip()
        opened.append(next((kind for kind, pattern in _OUTSIDE if re.search(pattern, head)), "function"))
    return next((kind for kind in reversed(opened) if kind), "")
