"""The torch runner: a `Decoder`, a paged cache, and the sampler, under the scheduler."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from course_lib.cache.paged import KVCacheDtype, Step
from course_lib.cache.paged_triton import Attention, choose_cache
from course_lib.decode.logprobs import token_logprobs
from course_lib.decode.params import SamplingParams
from course_lib.decode.sampler import Sampler
from course_lib.decode.text import Row
from course_lib.engine.request import Request
from course_lib.engine.runner import Batch, flatten, verified
from course_lib.engine.scheduler import Schedule
from course_lib.model.decoder import Decoder


class ModelRunner:
    """Runs steps of a `Decoder` on a pool of `num_blocks` blocks of `block_size` tokens."""

    def __init__(
        self,
        model: Decoder,
        num_blocks: int,
        block_size: int = 16,
        kv_cache_dtype: KVCacheDtype = "auto",
        attention: Attention = "auto",
    ):
        self.model = model
        self.vocab_size = model.config.vocab_size
        self.kv_cache_dtype = kv_cache_dtype
        cache, self.attention = choose_cache(
            attention, kv_cache_dtype, model.config, block_size, model.dtype, model.device
        )
        self.cache = cache(model.config, num_blocks, block_size, model.dtype, model.device)

    def refuse(self, params: SamplingParams) -> None:
        """This runner does all that `SamplingParams` can ask for."""

    @torch.inference_mode()
    def execute(self, schedule: Schedule) -> Float[Tensor, "rows vocab"] | None:
        if not schedule.chunks:
            return None
        if schedule.copies:
            self.cache.copy(schedule.copies)
        return self.forward(self.prepare(schedule))

    def prepare(self, schedule: Schedule) -> Batch:
        """Lay the step's tokens in one row, and tell the cache which of them is whose."""
        batch = flatten(schedule)
        self.cache.begin(Step.build(batch.slots, batch.tables(), self.model.device))
        return batch

    def forward(self, batch: Batch) -> Float[Tensor, "rows vocab"]:
        """One pass of the model over all tokens; logits of those that are asked for."""

        def tensor(numbers: list[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.long, device=self.model.device)

        ids, positions, rows = tensor(batch.token_ids), tensor(batch.positions), tensor(batch.rows)
        return self.model(ids[None], self.cache, positions=positions, rows=rows)[0]

    @torch.inference_mode()
    def sample(self, logits: Float[Tensor, "rows vocab"] | None, schedule: Schedule) -> list[list[int]]:
        """One row of logits for every token that may be chosen; siblings choose from the same rows."""
        chunks = [chunk for chunk in schedule.chunks if chunk.samples]
        if logits is None or not chunks:
            return []
        writers: list[tuple[Request, int]] = []  # of each row: whose it is, and how many drafts lie before it
        rows: list[int] = []
        first = 0
        for chunk in chunks:
            for member in (chunk.request, *chunk.request.siblings):
                writers += [(member, ahead) for ahead in range(chunk.samples)]
                rows += range(first, first + chunk.samples)
            first += chunk.samples
        if len(rows) > first:
            logits = logits[torch.tensor(rows, device=logits.device)]
        params = [member.params for member, _ in writers]
        positions = [member.num_tokens + ahead for member, ahead in writers]
        texts = [
            None if member.history is None else Row(member.history, member.draft[:ahead])
            for member, ahead in writers
        ]
        chosen = Sampler(params)(logits, positions, texts).tolist()
        told = iter(token_logprobs(logits, chosen, [p.logprobs for p in params]))
        tokens = iter(chosen)
        verdicts = []
        for chunk in chunks:
            for member in (chunk.request, *chunk.request.siblings):
                taken = verified(chunk, list(itertools.islice(tokens, chunk.samples)))
                logprobs = list(itertools.islice(told, chunk.samples))[: len(taken)]
                member.logprobs += [each for each in logprobs if each]
                verdicts.append(taken)
        return verdicts
