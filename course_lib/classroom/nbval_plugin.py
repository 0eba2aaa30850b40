"""pytest + nbval over checks/day_NN.ipynb: only the cells that matter, one JSON line a verdict.

    python -m course_lib.classroom.nbval_plugin checks/day_05.ipynb

nbval alone is silent where a person would expect an error (FACTS: a marker in a cell without execution count,
text after a marker, NBVAL_RAISES_EXCEPTION that raises nothing); `lint` refuses such notebooks first.
"""

import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from course_lib.classroom.goldens import check_head, lint

# Formats that jsonschema could check, and no notebook has: a grammar that takes a second to build, and dates.
SLOW = ("rfc3987_syntax", "isoduration")


def _write(record: dict[str, Any]) -> None:
    path = os.environ.get("COURSE_VERDICTS")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def pytest_configure() -> None:
    """nbval formats each message for a debug log that nobody reads: a fifth of its own time."""
    import nbval.kernel

    nbval.kernel.pformat = str


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
    for name in SLOW:
        sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    notebook = Path(arguments[0]).resolve()
    options = ["-p", "nbval.plugin", "-p", "course_lib.classroom.nbval_plugin", "-p", "no:cacheprovider"]
    options += ["-q", "--no-header", "--noconftest", "-c", os.devnull, f"--rootdir={notebook.parent}"]
    options += ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=180"]
    return int(pytest.main([*options, *arguments[1:], str(notebook)]))


__all__ = ["check_head", "lint", "main"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
