"""Guessing the next tokens, so that one pass of the model can verify several of them. No torch in here.

A guess costs little and binds nobody: the engine accepts it where it is what the model chooses anyway (see
`course_lib.engine.runner.verified`). So a text is the same with and without drafts; only its speed is not.
"""

from collections.abc import Hashable, Sequence
from itertools import cycle, islice
from typing import NamedTuple, Protocol


class Wanted(NamedTuple):
    """One text that drafts are wanted for: whose it is, its tokens so far, and how many drafts at most."""

    key: Hashable
    tokens: Sequence[int]
    limit: int


class Proposer(Protocol):
    """Makes drafts.

    What it drafts for a text depends on this text alone, never on the others of the step: who shares the
    engine with you changes nothing of yours.
    """

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        """For each text a guess of the tokens that follow it: `limit` of them, or fewer, or none.

        Texts that were asked for before and are not any more may be forgotten.
        """
        ...


def ngram_draft(tokens: Sequence[int], k: int, n: int = 3) -> list[int]:
    """Prompt lookup: what followed the last time that the text read as it does at its end.

    Looks for an earlier occurrence of the text's last n tokens, or else of as many of them as there are
    any; of several the latest. The draft is the k tokens that followed it. Where these reach the end of
    the text, the draft goes on as a repetition of itself: after "a b c a b" it is "c a b c a ...".

    Returns:
        k tokens, or none if the last token occurs nowhere before.

    Source: Saxena (2023), "Prompt Lookup Decoding"; vLLM, vllm/v1/spec_decode/ngram_proposer.py.
    """
    if k < 1 or n < 1:
        raise ValueError(f"k is {k} and n is {n}; both must be at least 1.")
    longest, found = 0, 0
    for end in range(len(tokens) - 1, 0, -1):  # the occurrence ends before tokens[end]
        length = 0
        while length < min(n, end) and tokens[end - 1 - length] == tokens[-1 - length]:
            length += 1
        if length > longest:
            longest, found = length, end
        if longest == n:
            break
    return list(islice(cycle(tokens[found:]), k)) if longest else []


class NgramProposer:
    """Drafts by `ngram_draft`, without a model: good where answers repeat their prompt, as in edited code."""

    def __init__(self, n: int = 3):
        self.n = n

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        return [ngram_draft(each.tokens, each.limit, self.n) for each in wanted]
