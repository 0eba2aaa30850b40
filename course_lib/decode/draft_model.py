"""A small model that drafts for a large one."""

from collections.abc import Hashable, Mapping, Sequence

import torch

from course_lib.cache.contiguous import ContiguousCache
from course_lib.decode.speculative import Wanted
from course_lib.model.decoder import Decoder


def check_same_vocabulary(draft: Mapping[int, bytes], target: Mapping[int, bytes]) -> None:
    """Raise ValueError where two models do not mean the same by their token ids."""
    if draft == target:
        return
    differing = len(set(draft.items()) ^ set(target.items()))
    raise ValueError(
        f"The draft model's vocabulary has {len(draft):,} tokens and the model's {len(target):,}, and "
        f"{differing:,} entries are in one of them only: drafted ids would mean something else. Choose a "
        "draft model that was trained with the same tokenizer, or speculate by 'ngram'."
    )


class Follower:
    """A text as the draft model has read it: `tokens`, whose keys and values are in `cache`."""

    def __init__(self, cache: ContiguousCache):
        self.cache = cache
        self.tokens: list[int] = []

    def catch_up(self, tokens: Sequence[int]) -> list[int]:
        """Forget what the text has not become; returns what is still to be read, at least its last token."""
        known = 0
        for ours, theirs in zip(self.tokens, tokens[:-1], strict=False):
            if ours != theirs:
                break
            known += 1
        del self.tokens[known:]
        self.cache.truncate(known)
        return list(tokens[known:])


class DraftModel:
    """Drafts the tokens that a small model finds most probable, one pass for each.

    It follows every text with a contiguous cache of its own, and lets go of those that it is no longer
    asked about. Drafts are made one text after the other: what a text gets depends on no other.
    Source: Leviathan et al. (2023), "Fast Inference from Transformers via Speculative Decoding".
    """

    def __init__(self, model: Decoder):
        self.model = model
        self.followers: dict[Hashable, Follower] = {}

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        known = self.followers
        self.followers = {each.key: known.get(each.key) or self.follower() for each in wanted}
        return [self.draft(self.followers[each.key], each.tokens, each.limit) for each in wanted]

    def follower(self) -> Follower:
        return Follower(ContiguousCache(self.model.config, 64, 1, self.model.dtype, self.model.device))

    @torch.inference_mode()
    def draft(self, follower: Follower, tokens: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens, and no more than the draft model has positions for."""
        count = min(count, self.model.config.max_position_embeddings - len(tokens) + 1)
        drafted: list[int] = []
        unread = follower.catch_up(tokens)
        for _ in range(count):
            ids = torch.tensor([unread], device=self.model.device)
            logits = self.model(ids, follower.cache, logits_to_keep=1)  # (1, 1, V)
            follower.tokens += unread
            unread = [int(logits[0, -1].argmax())]
            drafted += unread
        return drafted
