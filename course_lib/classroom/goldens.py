"""Reading checks notebooks: which checks end in a recorded value, and what nbval would silently ignore.

Apart from `expect` and the plugin, since reading a notebook needs neither NumPy nor pytest.
"""

import ast
import json
import re
from pathlib import Path


def has_golden(source: str) -> bool:
    """Whether a check's last statement is an expression whose value is recorded (not an expectation, which
    has none).
    """
    body = ast.parse(source).body
    if not body or not isinstance(body[-1], ast.Expr):
        return False
    node: ast.AST = body[-1].value
    while isinstance(node, (ast.Call, ast.Attribute)):
        if isinstance(node, ast.Attribute) and node.attr == "value":
            return True  # expect(f, x).value.shape
        node = node.func if isinstance(node, ast.Call) else node.value
    return not (isinstance(node, ast.Name) and node.id in ("expect", "same", "close", "that", "print"))


MARKER = "NBVAL_CHECK_OUTPUT"
_MARKERS = re.compile(r"^\s*#+.*NBVAL", re.IGNORECASE)


def check_head(source: str) -> tuple[str, int] | None:
    """(exercise, index) of a `%%check` cell, ("together", 0) of `%together`, None for another cell."""
    words = source.partition("\n")[0].split()
    if words == ["%together"]:
        return "together", 0
    if len(words) == 3 and words[0] == "%%check" and words[2].isdigit():
        return words[1], int(words[2])
    return None


def lint(path: Path) -> list[str]:
    """What makes a checks notebook prove less than it seems to; a sentence for each finding."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return [f"{path.name} cannot be read as a notebook ({problem}); `make lessons` builds it"]
    found: list[str] = []
    checks = 0
    for number, cell in enumerate(cells):
        if cell.get("cell_type") != "code":
            continue
        source = "".join(cell.get("source", ""))
        here = f"{path.name}, cell {number}"
        head = check_head(source)
        if head is None and source.lstrip().startswith("%%check"):
            found.append(f"{here}: expected %%check NAME INDEX, its first line is {source.splitlines()[0]!r}")
        checks += head is not None and head[0] != "together"
        tags = cell.get("metadata", {}).get("tags", [])
        bad_tags = [tag for tag in tags if tag.lower().startswith("nbval") or tag == "raises-exception"]
        if bad_tags:
            found.append(f"{here}: the tag {bad_tags[0]!r} changes what nbval compares; write no nbval tags")
        marked = False
        for line in source.splitlines():
            if not _MARKERS.match(line):
                continue
            if line.strip() == f"# {MARKER}":
                marked = True
            else:
                found.append(f"{here}: nbval misreads the marker {line.strip()!r}; it must be `# {MARKER}`")
        outputs = cell.get("outputs", [])
        if marked and cell.get("execution_count") is None:
            found.append(f"{here}: {MARKER} in a cell that was never executed passes whatever comes out")
        if marked and not outputs:
            found.append(f"{here}: {MARKER} without a recorded output")
        if outputs and not marked:
            found.append(f"{here}: it has an output that nothing compares; mark it `# {MARKER}`")
        if any(output.get("output_type") != "execute_result" for output in outputs):
            found.append(f"{here}: it records an output that is no value ({outputs[0].get('output_type')})")
        if head is not None and not marked:
            try:
                if has_golden(source.partition("\n")[2]):
                    found.append(f"{here}: its last line has a value, and no marker `# {MARKER}` compares it")
            except SyntaxError as problem:
                found.append(f"{here}: not valid Python: {problem.msg}")
    if not checks:
        found.append(f"{path.name} holds no check: it would pass whatever one writes")
    return found
