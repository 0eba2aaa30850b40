"""Is the answer to a question right, and if not, what mistake does it look like? The key itself is never
told.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any

from course_lib.classroom.expect import CheckFailure, describe, fingerprint, show


def wrong(message: str, got: Any = None) -> CheckFailure:
    mark = "answer: " + fingerprint(got)
    return CheckFailure(message, got="" if got is None else show(got), kind="answer", fingerprint=mark)


def judge(exercise: Any, given: Any, evaluate: Callable[[str], Any]) -> None:
    """Return if `given` answers the quiz, else raise CheckFailure with the reason.

    `evaluate` computes the value of a block of the lesson: the key (`exercise.body`) or a typical wrong
    answer.
    """
    if given is ...:
        raise wrong(
            f'not answered yet: put your answer in place of the ... in answer("{exercise.name}", ...)'
        )
    kind = exercise.tolerance["kind"]
    if kind == "choice":
        value: Any = given.strip().lower() if isinstance(given, str) else given
        letters = ", ".join(exercise.options)
        if value not in list(exercise.options):
            raise wrong(
                f"{show(given)} is not among the options: answer with one of the letters {letters}", given
            )
    else:
        value = given.item() if hasattr(given, "item") and getattr(given, "size", 1) == 1 else given
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise wrong(f"the answer is a number, and this is {describe(given)}", given)
        if not math.isfinite(value):
            raise wrong(f"the answer is a finite number, and this is {value}", given)
        if kind == "integer" and value != round(float(value)):
            raise wrong(f"the answer is a whole number, and this is {value!r}", given)
    if _agrees(exercise.tolerance, value, evaluate(exercise.body)):
        return
    for mistake in exercise.wrongs:
        if _agrees(exercise.tolerance, value, evaluate(mistake.source)):
            raise wrong(mistake.says, given)
    raise wrong("that is not it", given)


def _agrees(tolerance: dict[str, Any], value: Any, key: Any) -> bool:
    if tolerance["kind"] == "number":
        value, key = float(value), float(key)
        return abs(value - key) <= tolerance.get("rtol", 0.0) * abs(key) + tolerance.get("atol", 0.0)
    return bool(value == key)
