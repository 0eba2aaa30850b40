"""The classroom: lessons, exercises, checks, grading and progress. It imports nothing of the engine.

What a notebook needs comes from here, at first use, so that importing the package costs nothing:

    from course_lib.classroom import answer, check, drill, hint, measured, predict, solution
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from course_lib.classroom.bonus import needs
    from course_lib.classroom.notebook import answer, check, drill, hint, measured, predict, solution

__all__ = ["answer", "check", "drill", "hint", "measured", "needs", "predict", "solution"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "bonus" if name == "needs" else "notebook"
    value = getattr(import_module(f"course_lib.classroom.{module}"), name)
    globals()[name] = value
    return value
