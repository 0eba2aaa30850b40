"""`%%check`: the cell magic in which checks/day_NN.ipynb is written.

The kernel only reads the cells and hands each check to an examiner, which runs it in a child process of its
own. A check that passes shows its golden value, if it has one, for nbval to compare; a check that fails
raises. COURSE_EXAMINER leads to the examiner of `make check-day`, who has the learner's cells; without it the
solutions are checked, which is how the goldens are recorded.
"""

import ast
import os
import sys
from typing import TYPE_CHECKING, Any

from course_lib.classroom.visitor import CheckFailed, Golden, Visitor

if TYPE_CHECKING:
    from course_lib.classroom.examiner import Examiner

_examiner: "Examiner | Visitor | None" = None


def current() -> "Examiner | Visitor":
    if _examiner is None:
        raise CheckFailed("the day isn't known: run the first cell, %course_day N")
    return _examiner


def course_day(line: str) -> None:
    """`%course_day 5`: which day's checks follow."""
    global _examiner
    if _examiner is not None:
        _examiner.close()
    if desk := os.environ.get("COURSE_EXAMINER"):
        _examiner = Visitor(desk)
    else:
        from course_lib.classroom.examiner import Examiner

        _examiner = Examiner(int(line))


def check(line: str, cell: str = "") -> Golden | None:
    """`%%check tokenizer.merge_pair 0`, with the check's source below."""
    name, _, index = line.strip().partition(" ")
    return current().check(name, int(index or 0), cell if ast.parse(cell).body else "")


def together(line: str) -> None:
    """`%together`: all passed parts at once."""
    current().together()


def load_ipython_extension(shell: Any) -> None:
    """Called by `%load_ext course_lib.classroom.magic`."""
    shell.register_magic_function(course_day, "line", "course_day")
    shell.register_magic_function(check, "cell", "check")
    shell.register_magic_function(together, "line", "together")


def unload_ipython_extension(shell: Any) -> None:
    if _examiner is not None:
        _examiner.close()
    sys.modules.pop(__name__, None)
