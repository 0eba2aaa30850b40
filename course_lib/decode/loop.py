"""The loop that writes text: run the model, choose a token, append it, again."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from course_lib.decode.params import SamplingParams
from course_lib.decode.sampler import Sampler
from course_lib.decode.text import Row, Text
from course_lib.model.decoder import Decoder
from course_lib.model.layers import KVCache

# A long prompt is read in pieces of this many tokens: the attention mask stays small and Ctrl-C is
# noticed between them.
PREFILL_CHUNK = 512


def generate_uncached(
    model: Decoder, prompt: Sequence[int], params: SamplingParams, stop_ids: Sequence[int] = ()
) -> Iterator[int]:
    """The definition: for every new token, run the model over the whole sequence.

    The work grows with the square of the length.
    """
    ids = nonempty(prompt, params)

    def next_logits() -> Tensor:
        return model(torch.tensor([ids], device=model.device), logits_to_keep=1)[:, -1]

    return write(ids, next_logits, params, stop_ids)


def generate_cached(
    model: Decoder,
    prompt: Sequence[int],
    params: SamplingParams,
    cache: KVCache,
    stop_ids: Sequence[int] = (),
) -> Iterator[int]:
    """The same tokens, each computed once: the model reads the prompt into the cache, then token by token.

    What the cache holds already must be the beginning of `prompt`; at least one token must be left to
    read, since logits come only from running the model. Yields the tokens as they are chosen, a stop
    token included; the last one yielded is never in the cache.
    """
    ids = nonempty(prompt, params)
    if cache.length >= len(ids):
        raise ValueError(
            f"The cache holds {cache.length} tokens, the prompt only {len(prompt)}: nothing left to run."
        )

    def next_logits() -> Tensor:
        logits = None
        while cache.length < len(ids):
            chunk = ids[cache.length : cache.length + PREFILL_CHUNK]
            logits = model(torch.tensor([chunk], device=model.device), cache=cache, logits_to_keep=1)
        assert logits is not None
        return logits[:, -1]

    return write(ids, next_logits, params, stop_ids)


def nonempty(prompt: Sequence[int], params: SamplingParams) -> list[int]:
    """The prompt as a list, unless it or the parameters ask for what a loop over token ids cannot do."""
    if not prompt:
        raise ValueError("The prompt is empty: the model needs at least one token to continue from.")
    for name, off in (("stop", ()), ("n", 1), ("logprobs", None), ("structured_outputs", None)):
        if getattr(params, name) != off:
            raise ValueError(f"This loop knows one text and its token ids only; {name} needs an engine.")
    return list(prompt)


def write(
    ids: list[int], next_logits: Callable[[], Tensor], params: SamplingParams, stop_ids: Sequence[int]
) -> Iterator[int]:
    """Append to `ids` what `params` chooses from `next_logits()`, until a stop token or `max_tokens`."""
    sampler = Sampler([params])
    stops = {*params.stop_token_ids, *(() if params.ignore_eos else stop_ids)}
    row = Row(Text(params, ids, sorted(stops)))
    for _ in range(params.max_tokens):
        with torch.inference_mode():
            token = int(sampler(next_logits(), [len(ids)], [row]))
        ids.append(token)
        yield token
        if token in stops:
            return
