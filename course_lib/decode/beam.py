"""Beam search: keep the most probable texts of each length instead of the most probable token."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch

from course_lib.cache.contiguous import ContiguousCache
from course_lib.model.decoder import Decoder


class Candidate(NamedTuple):
    """A token that could come next, and its log-probability there."""

    token: int
    logprob: float


class Beams(Protocol):
    """Whoever runs the model: `CachedBeams` below, or the engine's `PagedBeams`."""

    def begin(self, count: int) -> list[Candidate]:
        """Read the prompt; the `count` most probable tokens after it."""
        ...

    def extend(self, steps: Sequence[tuple[int, int]], count: int) -> list[list[Candidate]]:
        """From now on beam i is what beam steps[i][0] was, with the token steps[i][1] appended.

        Returns for each the `count` most probable tokens after it, the most probable first.
        """
        ...


@dataclass(frozen=True)
class Beam:
    """A continuation of the prompt; `logprob` is that of all its tokens together."""

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    finish_reason: Literal["stop", "length"] | None = None

    def score(self, length_penalty: float) -> float:
        """logprob / length^length_penalty: 0 ranks by probability alone, more favors longer texts."""
        return self.logprob / max(1, len(self.token_ids)) ** length_penalty


def beam_search(
    beams: Beams,
    beam_width: int,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    length_penalty: float = 1.0,
) -> list[Beam]:
    """The most probable continuations that keeping `beam_width` of them at a time can find.

    Of all one-token extensions of the kept texts the best that do not end are kept; those that do are set
    aside, the best `beam_width` of them. It ends when no kept text can overtake these any more: a
    log-probability only falls, so its score stays below logprob / (its best length)^length_penalty.

    Args:
        beams: runs the model.
        max_tokens: the longest continuation; kept texts end there with finish reason "length".
        stop_ids: tokens that end a text; they count as a part of it.

    Returns:
        At most `beam_width` beams, the best score first.

    Raises:
        ValueError: beam_width or max_tokens is below 1, or length_penalty is not a finite number.

    Source: Wu et al. (2016), "Google's Neural Machine Translation System", section 7, with Hugging Face's
    simpler penalty.
    """
    if beam_width < 1 or max_tokens < 1 or not math.isfinite(length_penalty):
        raise ValueError(
            f"beam_width is {beam_width}, max_tokens {max_tokens}, length_penalty {length_penalty}: the "
            "first two must be at least 1, the last a finite number."
        )

    def best(several: list[Beam]) -> list[Beam]:
        return sorted(several, key=lambda beam: -beam.score(length_penalty))[:beam_width]

    count = beam_width + len(stop_ids)  # so many of a beam's candidates suffice: at most stop_ids end it
    kept, ended = [Beam()], list[Beam]()
    choices = [beams.begin(count)]
    for length in range(1, max_tokens + 1):
        extended = [
            (beam.logprob + logprob, parent, token)
            for parent, beam in enumerate(kept)
            for token, logprob in choices[parent]
            if logprob > -math.inf
        ]
        extended.sort(key=lambda entry: -entry[0])
        steps: list[tuple[int, int]] = []
        survivors: list[Beam] = []
        for logprob, parent, token in extended:
            ids = (*kept[parent].token_ids, token)
            if token in stop_ids:
                ended.append(Beam(ids, logprob, "stop"))
            elif len(survivors) < beam_width:
                survivors.append(Beam(ids, logprob))
                steps.append((parent, token))
        kept, ended = survivors, best(ended)
        at_best = max_tokens if length_penalty > 0 else length + 1
        hope = max((beam.logprob / at_best**length_penalty for beam in kept), default=-math.inf)
        full = len(ended) == beam_width and hope <= ended[-1].score(length_penalty)
        if full or not kept or length == max_tokens:
            break
        choices = beams.extend(steps, count)
    if length == max_tokens:
        ended += [Beam(beam.token_ids, beam.logprob, "length") for beam in kept]
    return best(ended)


class CachedBeams:
    """Beams as a batch over one `ContiguousCache`, which is copied whenever beams change places."""

    def __init__(self, model: Decoder, prompt: Sequence[int]):
        if not prompt:
            raise ValueError("The prompt is empty: the model needs at least one token to continue from.")
        self.model = model
        self.prompt = list(prompt)
        self.cache = ContiguousCache(model.config, len(prompt) + 1, 1, model.dtype, model.device)

    def begin(self, count: int) -> list[Candidate]:
        return self._run([self.prompt], count)[0]

    def extend(self, steps: Sequence[tuple[int, int]], count: int) -> list[list[Candidate]]:
        parents = [parent for parent, _ in steps]
        self.cache.keys, self.cache.values = self.cache.keys[:, parents], self.cache.values[:, parents]
        return self._run([[token] for _, token in steps], count)

    @torch.inference_mode()
    def _run(self, ids: list[list[int]], count: int) -> list[list[Candidate]]:
        """One pass of the model over the new tokens of each beam."""
        tokens = torch.tensor(ids, device=self.model.device)
        logprobs = torch.log_softmax(self.model(tokens, self.cache, logits_to_keep=1)[:, -1].float(), -1)
        top = logprobs.topk(min(count, logprobs.shape[-1]), dim=-1)
        return [
            [Candidate(*pair) for pair in zip(tokens, values, strict=True)]
            for tokens, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
