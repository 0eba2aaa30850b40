"""`python -m checks.lines`: lines of code by room, without blank lines, comments and docstrings."""

import ast
import io
import tokenize
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "course_lib"
SILENT = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(source: str) -> int:
    """How many lines hold code; a statement over three lines counts as three."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {n for t in tokens if t.type not in SILENT for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def rooms() -> dict[str, int]:
    """Code lines of every room, that is folder, of the library."""
    files = (path for path in LIBRARY.rglob("*.py") if "mine" not in path.parts)
    counts: dict[str, int] = {}
    for path in sorted(files):
        room = path.relative_to(LIBRARY).parts[0]
        counts[room] = counts.get(room, 0) + code_lines(path.read_text(encoding="utf-8"))
    return counts


if __name__ == "__main__":
    for room, count in rooms().items():
        print(f"{room:14}{count:7,}")
