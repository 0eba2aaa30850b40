"""Text from a stream of token ids, never half a character."""

from collections.abc import Mapping

from course_lib.parts import exercise


@exercise(day=5)
class IncrementalDetokenizer:
    """Turns token ids into text, and holds back a character until all its bytes have come.

    `vocab` maps an id to its token's bytes. Whatever the ids, the texts returned by all calls of
    `push` and one `flush` join to `decode(ids, vocab)`: invalid bytes become U+FFFD exactly where
    they do there.
    """

    def __init__(self, vocab: Mapping[int, bytes]) -> None:
        self.vocab = vocab
        self.held = b""

    def push(self, token_id: int) -> str:
        """Take one id and return the text that is certain now, possibly "".

        Held back is only an unfinished character at the end: a first byte that announces more bytes
        than have come, with the continuation bytes after it. That is three bytes at most.
        """
        data = self.held + self.vocab[token_id]
        cut = len(data)
        for back in range(1, min(3, len(data)) + 1):
            first = data[-back]
            if 0x80 <= first <= 0xBF:
                continue  # a continuation byte: its character starts further left
            if 0xC2 <= first <= 0xDF:
                length = 2
            elif 0xE0 <= first <= 0xEF:
                length = 3
            elif 0xF0 <= first <= 0xF4:
                length = 4
            else:
                length = 1  # ASCII, or a byte that UTF-8 never uses
            if back < length:
                cut = len(data) - back
            break
        self.held = data[cut:]
        return data[:cut].decode("utf-8", errors="replace")

    def flush(self) -> str:
        """Return what is held, as U+FFFD since it never became a character, and start afresh."""
        text = self.held.decode("utf-8", errors="replace")
        self.held = b""
        return text
