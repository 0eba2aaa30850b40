"""Watch the arrays that a thread has for itself: `float sum[4]` in a function, a struct or at the top.

The sanitizer tells of memory that others can reach; a thread's own arrays are registers to it. So each of
their subscripts is put into a call, `sum[lab_at<decltype(sum), 0>(i, …)]`, which compares it with the length
that the compiler knows. The declarations stay as they are, lines keep their numbers, and what can't be read
as a declaration is left alone.
"""

import re

from course_lib.kernels.lab.text import closing, line_at, masked, split

_NOT_A_TYPE = (
    "return|else|case|goto|do|throw|typedef|using|new|delete|sizeof|operator|template|extern|namespace"
    "|co_return|co_yield|if|for|while|switch|__shared__"
)
_HEAD = re.compile(
    r"\s*(?:(?:case\b[^:;]*|default|public|private|protected)\s*:\s*)*"
    r"(?:(?:const|volatile|constexpr|static|inline|thread|constant|unsigned|signed|struct|typename"
    r"|__constant__|__device__|(?:alignas|__align__)\s*\([^()]*\))\s+)*"
    rf"(?!(?:{_NOT_A_TYPE})\b)[A-Za-z_]\w*(?:\s*::\s*\w+)*(?:\s*<[^;{{}}]*?>)?"
    r"(?:\s+(?:const|volatile|int|long|char|short))*[\s*&]+(?=[A-Za-z_]\w*\s*(?:\[|=|,|\{))"
)
_DIRECTIVE = r"(?m)^[ \t]*#(?:[^\n\\]|\\.|\\\n)*"
_BEFORE = re.compile(r"([A-Za-z_]\w*)\s+\Z")
_DECLARATOR = re.compile(r"\s*[*&]?\s*([A-Za-z_]\w*)\s*(?=\[)")


def watch(code: str) -> str:
    """The C++ source with each subscript of such an array checked."""
    text = _without_directives(masked(code))
    names, bounds = _declared(text)
    if not names:
        return code
    chain = re.compile(
        rf"(?<!->)(?<![\w.\])])(?:[A-Za-z_]\w*\s*(?:\.|->)\s*)*(?:{'|'.join(sorted(names))})\b\s*(?=\[)"
    )
    return _watched(code, text, chain, bounds, 0, len(code))


def lengths(code: str) -> set[int]:
    """Where in masked code the brackets stand that give lengths of such arrays."""
    return _declared(_without_directives(code))[1]


def _without_directives(code: str) -> str:
    return re.sub(_DIRECTIVE, lambda m: re.sub(r"[^\n]", " ", m.group()), code)


def _declared(text: str) -> tuple[set[str], set[int]]:
    """The names of arrays, and where the brackets stand that give their lengths."""
    names, bounds = set(), set()
    for start, end in _statements(text):
        head = _HEAD.match(text, start, end)
        if head is None:
            continue
        at = head.end()
        for piece in split(text[at:end]):
            found = _DECLARATOR.match(piece)
            bracket = at + found.end() if found else 0
            while found and text[bracket : bracket + 1] == "[":
                names.add(found.group(1))
                bounds.add(bracket)
                bracket = _after(text, closing(text, bracket) + 1)
            at += len(piece) + 1
    return names, bounds


def _statements(text: str) -> list[tuple[int, int]]:
    """Where statements begin and end; braces of an initializer are part of theirs."""
    found, start, i = [], 0, 0
    while i < len(text):
        inner = text[i] in "([" or (
            text[i] == "{" and re.search(r"(?:[=,(\]{]|\breturn)$", text[start:i].rstrip())
        )
        if inner:
            i = max(i, closing(text, i))
        elif text[i] in ";{}":
            found.append((start, i))
            start = i + 1
        i += 1
    return found


def _watched(code: str, text: str, chain: re.Pattern[str], bounds: set[int], start: int, end: int) -> str:
    out, at = [], start
    while found := chain.search(text, at, end):
        bracket, dimension = found.end(), 0
        out.append(code[at:bracket])
        at = bracket
        before = _BEFORE.search(text, max(0, found.start() - 80), found.start())
        if bracket in bounds or (before and before.group(1) not in _NOT_A_TYPE.split("|")):
            out.append("[")  # a declaration: its length may have subscripts of its own
            at = bracket + 1
            continue
        name = " ".join(found.group().split())
        while at < end and text[at] == "[":
            close = closing(text, at)
            if close < 0:
                break
            inside = _watched(code, text, chain, bounds, at + 1, close)
            of = f"decltype({name}), {dimension}"
            out.append(
                f'[lab_at<{of}>({inside}, LAB_WHERE({name}), "{name}", {line_at(code, found.start())})]'
            )
            dimension += 1
            at = close + 1
            after = _after(text, at)
            if text[after : after + 1] == "[":
                out.append(code[at:after])
                at = after
    return "".join([*out, code[at:end]])


def _after(text: str, at: int) -> int:
    """The place of the next character that is not space."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at
