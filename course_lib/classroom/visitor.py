"""The notebook's side of an examiner's desk (examiner.py), small since each grading's kernel imports it.

What crosses the desk: a question is (exercise, check's index, source), or TOGETHER; an answer is a golden,
None, or the `CheckFailed` to raise.
"""

from multiprocessing.connection import Client, Connection

TOGETHER = "together"


class CheckFailed(Exception):
    """A check did not pass. Shown in the notebook as its message alone."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class NotRun(CheckFailed):
    """A check was left out, with the reason."""


class Golden:
    """A recorded value, shown as one line of text."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Visitor:
    """Asks at a desk, and returns or raises what the examiner said."""

    def __init__(self, where: str):
        key, _, address = where.partition("@")
        self.wire: Connection = Client(address, authkey=bytes.fromhex(key))

    def close(self) -> None:
        self.wire.close()

    def check(self, name: str, index: int, source: str) -> Golden | None:
        return self._ask((name, index, source))

    def together(self) -> None:
        self._ask(TOGETHER)

    def _ask(self, question: object) -> Golden | None:
        self.wire.send(question)
        answer = self.wire.recv()
        if isinstance(answer, CheckFailed):
            raise answer
        assert answer is None or isinstance(answer, Golden)
        return answer
