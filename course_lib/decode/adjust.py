"""What changes the logits before a token is chosen: penalties, biases, bans, and the masks of grammars.

A batch asks for little of this: everything is gathered as (row, token, number) triples, so that the cost is a
few small indexed operations, whatever the vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from course_lib.decode.text import Row


def adjust(logits: Float[Tensor, "B V"], rows: Sequence[Row | None]) -> Float[Tensor, "B V"]:
    """Logits as the rows' parameters want them: biases, then penalties, then bans, as in vLLM.

    Rows that are None, or ask for nothing, stay as they are; `logits` itself is not changed.
    """
    asking = [(i, row) for i, row in enumerate(rows) if row and row.text.params.changes_logits]
    if not asking:
        return logits
    logits = logits.float().clone()
    add_biases(logits, asking)
    penalize(logits, [(i, row) for i, row in asking if row.text.params.penalizes])
    ban(logits, asking)
    return logits


def add_biases(logits: Float[Tensor, "B V"], rows: Sequence[tuple[int, Row]]) -> None:
    triples = [(i, token, bias) for i, row in rows for token, bias in row.text.params.biases.items()]
    if triples:
        index, tokens, biases = zip(*triples, strict=True)
        logits[list(index), list(tokens)] += torch.tensor(biases, device=logits.device)


def penalize(logits: Float[Tensor, "B V"], rows: Sequence[tuple[int, Row]]) -> None:
    """Repetition over prompt and answer, frequency and presence over the answer; see `SamplingParams`."""
    if not rows:
        return
    parts = []
    for i, (text, ahead) in rows:
        counts = text.count()
        if ahead:
            counts = dict(counts)
            for token in ahead:
                counts[token] = counts.get(token, 0) + 1
        tokens = np.fromiter(counts.keys(), np.int64, len(counts))
        times = np.fromiter(counts.values(), np.float32, len(counts))
        p = text.params
        less = p.frequency_penalty * times + p.presence_penalty * (times > 0)
        factors = np.full(len(counts), p.repetition_penalty, np.float32)
        parts.append((i * logits.shape[1] + tokens, factors, less.astype(np.float32)))
    columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)]
    where, factor, subtracted = (column.to(logits.device) for column in columns)
    flat = logits.view(-1)
    found = flat[where]
    flat[where] = torch.where(found > 0, found / factor, found * factor) - subtracted


def ban(logits: Float[Tensor, "B V"], rows: Sequence[tuple[int, Row]]) -> None:
    """Minus infinity for what may not be chosen."""
    pairs: list[tuple[int, int]] = []
    for i, (text, ahead) in rows:
        params = text.params
        if params.allowed_token_ids is not None:
            allowed = list(params.allowed_token_ids)
            kept = logits[i, allowed]
            logits[i] = -torch.inf
            logits[i, allowed] = kept
        if text.guide is not None:
            mask = torch.from_numpy(text.guide.allowed(ahead)).to(logits.device)
            logits[i].masked_fill_(~mask, -torch.inf)
        pairs += [(i, token) for token in params.bad_token_ids]
        if len(text.tokens) - text.num_prompt_tokens + len(ahead) < params.min_tokens:
            pairs += [(i, token) for token in text.stop_ids]
    if pairs:
        index, tokens = zip(*pairs, strict=True)
        logits[list(index), list(tokens)] = -torch.inf
