"""pytest + nbval over checks/day_NN.ipynb: only the cells that matter, one JSON line a verdict.

    python -m course_lib.classroom.nbval_plugin checks/day_05.ipynb

nbval alone is silent where a person would expect an error (FACTS: a marker in a cell without execution count,
text after a marker, NBVAL_RAISES_EXCEPTION that raises nothing); `lint` refuses such notebooks first.
"""

import json
import os
import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

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
    from course_lib.classroom.expect import has_golden

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


def _write(record: dict[str, Any]) -> None:
    path = os.environ.get("COURSE_VERDICTS")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Leave out exercises without an attempt; refuse a notebook in which nothing is checked."""
    path = os.environ.get("COURSE_CELLS")
    cells = json.loads(Path(path).read_text(encoding="utf-8")) if path else None
    kept: list[Any] = []
    dropped: list[Any] = []
    checks = 0
    for item in items:
        head = check_head(item.cell.source) if hasattr(item, "cell") else None
        checks += head is not None and head[0] != "together"
        own = head is None or head[0].rpartition(".")[2] == "together" or cells is None or head[0] in cells
        (kept if own else dropped).append(item)
    if not checks:
        raise pytest.UsageError(
            "no check was collected: a notebook without checks would pass whatever one writes"
        )
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: pytest.CallInfo[Any]) -> Generator[None, Any, None]:
    """Write what nbval thinks of the cell: its golden compared, its kernel alive."""
    result = yield
    report = result.get_result()
    head = check_head(item.cell.source) if hasattr(item, "cell") else ("setup", 0)
    if report.when != "call" and report.passed:
        return
    # After a cell ran out of nbval's time it expects failure of the rest (xfail), which pytest counts as
    # skipped.
    outcome = "failed" if hasattr(report, "wasxfail") else report.outcome
    text = str(call.excinfo.value) if call.excinfo is not None else ""
    name, index = head or ("setup", 0)
    _write({"exercise": name, "index": index, "nbval": outcome, "text": text, "seconds": report.duration})


def main(arguments: list[str]) -> int:
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]  # an optional grammar of jsonschema: a second to build
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    notebook = Path(arguments[0]).resolve()
    options = ["-p", "nbval.plugin", "-p", "course_lib.classroom.nbval_plugin", "-p", "no:cacheprovider"]
    options += ["-q", "--no-header", "--noconftest", "-c", os.devnull, f"--rootdir={notebook.parent}"]
    options += ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=180"]
    return int(pytest.main([*options, *arguments[1:], str(notebook)]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
