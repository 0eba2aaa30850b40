"""Streamed text: stop strings wherever tokens are cut, and nothing told that is not certain."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_lib.engine.text import TextStream, begun
from course_lib.tokenizer import IncrementalDetokenizer


class Pieces:
    """A pretended detokenizer: token i is pieces[i]."""

    def __init__(self, pieces: list[str]):
        self.pieces = pieces

    def push(self, token_id: int) -> str:
        return self.pieces[token_id]

    def flush(self) -> str:
        return ""


def stream(pieces: list[str], stop: list[str]) -> tuple[list[str], bool]:
    """What is certain after each token and at the end; whether a stop string ended it."""
    text, told = TextStream(Pieces(pieces), stop), []
    for token in range(len(pieces)):
        ended = text.push(token)
        told.append(text.text)
        if ended:
            break
    text.finish()
    return [*told, text.text], text.stopped


def test_a_stop_string_that_spans_tokens():
    told, stopped = stream(["Hel", "lo #", "#", "# more"], ["###"])
    assert told == ["Hel", "Hello ", "Hello ", "Hello ", "Hello "] and stopped


def test_what_was_held_back_comes_when_it_cannot_be_a_stop_string():
    told, stopped = stream(["a#", "#", "b", "#"], ["###"])
    assert told == ["a", "a", "a##b", "a##b", "a##b#"] and not stopped


def test_the_earliest_of_several_stop_strings_counts():
    assert stream(["one two three"], ["three", "two"])[0][-1] == "one "
    assert stream(["xab", "c"], ["abcd", "b"]) == (["xa", "xa"], True)
    assert stream(["xabc", "d"], ["abcd", "zz"]) == (["x", "x", "x"], True)


def test_a_stop_string_made_of_split_characters():
    """The bytes of an emoji arrive one by one; the stop string is complete with the last of them."""
    data = "ok 🚀 go".encode()
    text = TextStream(IncrementalDetokenizer({i: bytes([i]) for i in range(256)}), ["🚀"])
    ended = [text.push(byte) for byte in data]
    assert (text.text, ended.index(True)) == ("ok ", 6)


def test_a_token_without_text():
    text = TextStream(IncrementalDetokenizer({0: b"a"}), [])
    assert not text.push(0) and not text.push(99) and text.text == "a"


@pytest.mark.parametrize(
    ("text", "stop", "length"),
    [("ab", "bc", 1), ("aa", "aaa", 2), ("abc", "abc", 0), ("", "a", 0), ("x", "a", 0)],
)
def test_begun(text, stop, length):
    assert begun(text, stop) == length


@given(
    pieces=st.lists(st.text(alphabet="ab#", max_size=4), max_size=12),
    stop=st.lists(st.text(alphabet="ab#", min_size=1, max_size=4), max_size=3),
)
def test_any_cut_gives_the_text_before_the_first_stop_string(pieces, stop):
    whole = "".join(pieces)
    told, stopped = stream(pieces, stop)
    if (
        stopped
    ):  # found as soon as its last character had come: an earlier, longer one may still have been open
        seen = "".join(pieces[: len(told) - 1])
        assert told[-1] == seen[: min(seen.find(text) for text in stop if text in seen)]
    else:
        assert told[-1] == whole and not any(text in whole for text in stop)
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(told))
