"""From a request's tokens to its text: piece by piece, and never more than is certain."""

from collections.abc import Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """`course_lib.tokenizer.IncrementalDetokenizer`, or anything like it."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class TextStream:
    """The text of one request, which ends before the first of its stop strings.

    A stop string may begin in one token and end in another. So whatever could still become one is held
    back: the longest end of the text that a stop string begins with.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = ()):
        self.detokenizer = detokenizer
        self.stop = stop
        self.text = ""  # what is certain
        self.held = ""  # what may be the beginning of a stop string
        self.stopped = False

    def push(self, token: int, may_stop: bool = True) -> bool:
        """Take the next token; True if a stop string is complete, which ends the text.

        Up to the last token that may not stop it, stop strings are text like any other.
        """
        try:
            piece = self.detokenizer.push(token)
        except KeyError:  # a row of the embedding table that pads it to a round size, and has no text
            piece = ""
        if may_stop:
            self._add(piece)
        else:
            self.text += piece
        return self.stopped

    def finish(self) -> None:
        """No more tokens will come: nothing is held back any longer."""
        self._add(self.detokenizer.flush())
        self.text, self.held = self.text + self.held, ""

    def _add(self, piece: str) -> None:
        if self.stopped:
            return
        window = self.held + piece
        found = [at for stop in self.stop if (at := window.find(stop)) >= 0]
        if found:
            self.text += window[: min(found)]
            self.held, self.stopped = "", True
            return
        keep = max((begun(window, stop) for stop in self.stop), default=0)
        self.text += window[: len(window) - keep]
        self.held = window[len(window) - keep :]


def begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`, without being all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
