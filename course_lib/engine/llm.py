"""`LLM`: a model, its tokenizer, its template and an engine, behind two methods: `stream`, `generate`."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from course_lib.cache.paged import PAGED_CACHES
from course_lib.cache.radix import RadixPrefixCache
from course_lib.decode.beam import beam_search
from course_lib.decode.draft_model import DraftModel, check_same_vocabulary
from course_lib.decode.logprobs import TokenLogprobs
from course_lib.decode.params import SamplingParams
from course_lib.engine.beam import PagedBeams
from course_lib.engine.calibrate import fastest_threads
from course_lib.engine.chat_template import Message
from course_lib.engine.choose import choose
from course_lib.engine.engine import Engine, EngineConfig
from course_lib.engine.load import load
from course_lib.engine.model_runner import ModelRunner
from course_lib.engine.request import FinishReason, Request
from course_lib.hardware.detect import detect
from course_lib.model.config import ModelConfig
from course_lib.quant.linear import Scheme

Prompt = str | Sequence[Message]
POOL_SHARE = {"cpu": 0.125, "mps": 0.125, "cuda": 0.8}  # of the memory; on CUDA of what is free of it
UNKNOWN_MEMORY = 8 << 30  # bytes


@dataclass
class Completion:
    """One answer. Times are in seconds; `reused` tokens of the prompt were in the cache already.

    `index` tells the `n` answers to one prompt apart.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "cancelled"
    prompt_tokens: int = 0
    reused: int = 0
    time_to_first_token: float = 0.0
    decode_seconds: float = 0.0
    index: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of each token, if asked for
    cumulative_logprob: float | None = None  # of all tokens together; of beams only

    @classmethod
    def of(cls, request: Request) -> "Completion":
        """What has become of a request so far."""
        began = bool(request.first_token_at)
        return cls(
            text=request.text,
            token_ids=request.output_ids,
            finish_reason=request.finish_reason or "cancelled",
            prompt_tokens=request.num_prompt_tokens,
            reused=request.num_cached_tokens,
            time_to_first_token=request.first_token_at - request.arrived if began else 0.0,
            decode_seconds=request.last_token_at - request.first_token_at,
            index=request.index,
            logprobs=request.logprobs[: request.num_tokens - request.num_prompt_tokens],
        )

    @property
    def tokens_per_second(self) -> float:
        """Speed of decoding: the first token belongs to reading the prompt and is not counted."""
        return (len(self.token_ids) - 1) / self.decode_seconds if self.decode_seconds else 0.0


class Stream:
    """Iterate over it for the text as it comes; several streams of one engine advance together.

    Leaving the loop early, or `stop` from wherever, ends the request.
    """

    def __init__(self, engine: Engine, request: Request):
        self.engine = engine
        self.request = request
        self.stopped = False
        self.pieces = self._run()

    @property
    def completion(self) -> Completion:
        return Completion.of(self.request)

    def __iter__(self) -> Iterator[str]:
        return self.pieces

    def stop(self) -> None:
        """End the request after the step that is running now."""
        self.stopped = True

    def finish(self) -> Completion:
        """Run to the end and return the whole answer."""
        for _ in self.pieces:
            pass
        return self.completion

    def _run(self) -> Iterator[str]:
        told = 0
        try:
            while not self.stopped:
                if piece := self.request.text[told:]:
                    told += len(piece)
                    yield piece
                elif self.request.finish_reason:
                    return
                else:
                    self.engine.step()
        finally:
            self.engine.cancel(self.request)


class LLM:
    """A language model ready to answer.

    A string is continued as it stands; a list of messages goes through the model's chat template. Blocks of
    keys and values stay while there is room: a prompt that begins like an earlier one, as the next turn of
    a chat does, reads only what is new.
    """

    def __init__(
        self,
        model: str | Path = "smollm2",
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        config: EngineConfig | None = None,
        quantize: Scheme | Literal["off"] = "off",
        group_size: int = 32,
    ):
        """`model` is a name, a path, or a model's id at the Hugging Face Hub.

        For it, `quantize` and `group_size` see `load`.

        Raises:
            CheckpointError: the model's files cannot be used.
            ValueError: unknown device or dtype, a model that cannot be quantized like that, or a draft
                model (`config.speculative`) of another vocabulary.
        """
        self.choice = choose(device, dtype, threads)
        torch.set_num_threads(1)  # loading is many short loops: threads would mostly wait for each other
        loaded = load(model, self.choice.device, self.choice.dtype, self.choice.pack, quantize, group_size)
        self.name, self.model, self.config = loaded.name, loaded.model, loaded.config
        self.tokenizer, self.chat_template, self.prefix = (
            loaded.tokenizer,
            loaded.chat_template,
            loaded.prefix,
        )
        if self.choice.device.type == "cpu" and self.choice.threads is None:
            count, why = fastest_threads(self.step, detect().cores)
            self.choice = replace(self.choice, threads=count, threads_why=why)
        torch.set_num_threads(self.choice.threads or detect().cores)
        config = config or EngineConfig()
        drafter = None if config.speculative in ("off", "ngram") else self.draft_model(config.speculative)
        blocks = config.num_blocks or pool_blocks(self.config, config, self.choice.dtype, self.choice.device)
        self.runner = ModelRunner(
            self.model, blocks, config.block_size, config.kv_cache_dtype, config.attention
        )
        self.engine = Engine(
            self.runner,
            blocks,
            config,
            self.tokenizer,
            self.config.eos_token_ids,
            self.config.max_position_embeddings,
            drafter,
        )

    def draft_model(self, name: str) -> DraftModel:
        """Load a small model that drafts for this one. ValueError if it has another vocabulary."""
        drafter = load(name, self.choice.device, self.choice.dtype, pack=self.choice.pack)
        check_same_vocabulary(drafter.tokenizer.vocab, self.tokenizer.vocab)
        return DraftModel(drafter.model)

    @torch.inference_mode()
    def step(self) -> None:
        """The work of one token, for measuring."""
        self.model(torch.zeros(1, 1, dtype=torch.long))

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; what a user typed never becomes a special token."""
        if isinstance(prompt, str):
            return [*self.prefix, *self.tokenizer.encode(prompt)]
        if self.chat_template is None:
            raise ValueError(f"{self.name} has no chat template: give it a text to continue, not messages.")
        return self.chat_template.encode(prompt, self.tokenizer)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Stream:
        """Start an answer. Its text comes from iterating; leaving the loop early stops the work.

        Raises:
            ValueError: the prompt is empty, or longer than what the model or the pool can hold; or n > 1.
        """
        params = params or SamplingParams()
        if params.n > 1:
            raise ValueError(f"n is {params.n}; a stream is one text. Use generate for several.")
        return Stream(self.engine, self.engine.add(self.encode(prompt), params)[0])

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Answer one prompt or several, all at once; `params` for all, or one for each.

        Returns:
            The answers in the order of the prompts; with n > 1 the n answers to a prompt follow one another.

        Raises:
            ValueError: one of the prompts is impossible; then none is answered.
        """
        one = isinstance(prompts, str) or isinstance(next(iter(prompts), None), Mapping)
        several: list[Prompt] = [prompts] if one else list(prompts)  # type: ignore[list-item, arg-type]
        each = (
            [params] * len(several) if params is None or isinstance(params, SamplingParams) else list(params)
        )
        if len(each) != len(several):
            raise ValueError(
                f"There are {len(several)} prompts and {len(each)} SamplingParams: give one for each."
            )
        ids = [self.encode(prompt) for prompt in several]
        order = list(range(len(ids)))
        if isinstance(cache := self.engine.prefix_cache, RadixPrefixCache):
            order = cache.depth_first(ids)
        requests: dict[int, list[Request]] = {}
        with contextlib.ExitStack() as cleaning:
            for index in order:
                requests[index] = self.engine.add(ids[index], each[index])
                for request in requests[index]:
                    cleaning.callback(self.engine.cancel, request)
            unfinished = [request for family in requests.values() for request in family]
            while unfinished:
                if unfinished[-1].finish_reason:
                    unfinished.pop()
                else:
                    self.engine.step()
        return [Completion.of(request) for index in range(len(ids)) for request in requests[index]]

    def beam_search(
        self,
        prompt: Prompt,
        beam_width: int = 4,
        max_tokens: int = 64,
        length_penalty: float = 1.0,
    ) -> list[Completion]:
        """The `beam_width` best continuations that beam search finds, the best first.

        Raises:
            ValueError: see `course_lib.decode.beam_search`; or there is no room for the prompt or the beams.
        """
        ids = self.encode(prompt)
        room = max(1, self.engine.scheduler.max_len - len(ids))
        stops = self.config.eos_token_ids
        with PagedBeams(self.engine, ids, beam_width) as beams:
            found = beam_search(beams, beam_width, min(max_tokens, room), stops, length_penalty)
        return [
            Completion(
                text=self.tokenizer.decode(beam.token_ids, skip_special=True),
                token_ids=list(beam.token_ids),
                finish_reason=beam.finish_reason or "length",
                prompt_tokens=len(ids),
                index=index,
                cumulative_logprob=beam.logprob,
            )
            for index, beam in enumerate(found)
        ]

    def forget(self) -> None:
        """Empty the cache: the next prompt is read as if it were the first."""
        self.engine.prefix_cache.clear()


def pool_blocks(model: ModelConfig, config: EngineConfig, dtype: torch.dtype, device: torch.device) -> int:
    """How many blocks the cache gets: for as many whole texts as may run at once, if there is the memory."""
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0]
    else:
        memory = detect().memory or UNKNOWN_MEMORY
    longest = min(model.max_position_embeddings, config.max_model_len or model.max_position_embeddings)
    block = config.block_size * PAGED_CACHES[config.kv_cache_dtype].bytes_per_token(model, dtype)
    return max(
        1,
        min(
            int(POOL_SHARE[device.type] * memory // block),
            config.max_num_seqs * -(-longest // config.block_size),
        ),
    )
