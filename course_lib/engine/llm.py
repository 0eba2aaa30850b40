"""`LLM`: a model, its tokenizer and its chat template, behind two methods: `stream` and `generate`."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from course_lib import assets
from course_lib.cache.contiguous import ContiguousCache
from course_lib.decode.loop import generate_cached
from course_lib.decode.sampler import SamplingParams
from course_lib.engine.calibrate import fastest_threads
from course_lib.engine.chat_template import ChatTemplate, Message
from course_lib.engine.choose import choose
from course_lib.hardware.detect import detect
from course_lib.model.errors import CheckpointError
from course_lib.model.load import GGUFCheckpoint, load_model, open_checkpoint
from course_lib.tokenizer import Tokenizer

Prompt = str | Sequence[Message]
MODELS = ("smollm2",)


@dataclass
class Completion:
    """One answer. Times are in seconds; `reused` tokens of the prompt were in the cache already."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: Literal["stop", "length", "cancelled"] = "cancelled"
    prompt_tokens: int = 0
    reused: int = 0
    time_to_first_token: float = 0.0
    decode_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of decoding: the first token belongs to reading the prompt and is not counted."""
        return (len(self.token_ids) - 1) / self.decode_seconds if self.decode_seconds else 0.0


class Stream:
    """Iterate over it for the text as it comes; `completion` grows along and is whole at the end."""

    def __init__(self, llm: "LLM", prompt_ids: list[int], params: SamplingParams):
        self.completion = Completion(prompt_tokens=len(prompt_ids))
        self.pieces = llm.run(prompt_ids, params, self.completion)

    def __iter__(self) -> Iterator[str]:
        return self.pieces

    def finish(self) -> Completion:
        """Run to the end and return the whole answer."""
        for _ in self.pieces:
            pass
        return self.completion


class LLM:
    """A language model ready to answer.

    A string is continued as it stands; a list of messages goes through the model's chat template. The
    keys and values of the last request stay: a next one that begins with the same tokens, as the next
    turn of a chat does, reads only what is new.
    """

    def __init__(
        self,
        model: str | Path = "smollm2",
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
    ):
        """`model` is "smollm2" or the path of a GGUF file.

        Raises:
            CheckpointError: the model's files cannot be used.
            ValueError: unknown device or dtype.
        """
        self.choice = choose(device, dtype, threads)
        torch.set_num_threads(1)  # loading is many short loops: threads would mostly wait for each other
        checkpoint = open_checkpoint(model_path(model))
        if not isinstance(checkpoint, GGUFCheckpoint):
            raise CheckpointError(
                f"{model} is a folder: its weights can be loaded, its tokenizer.json not yet. Give a GGUF."
            )
        known = assets.CATALOG.get(str(model))
        self.name = known.title if known else checkpoint.path.stem
        self.config = checkpoint.config
        try:
            self.tokenizer = Tokenizer.from_gguf(checkpoint.metadata)
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"The vocabulary of {checkpoint.path.name} is of no use: {error}."
            ) from error
        begins = checkpoint.metadata.get("tokenizer.ggml.add_bos_token", False)
        bos = self.config.bos_token_id
        self.prefix = [bos] if begins and bos is not None else []
        self.model = load_model(checkpoint, self.choice.device, self.choice.dtype, pack=self.choice.pack)
        template = checkpoint.metadata.get("tokenizer.chat_template")
        vocab = self.tokenizer.vocab
        names = {
            "bos_token": vocab[token].decode() if (token := self.config.bos_token_id) in vocab else "",
            "eos_token": "".join(vocab[token].decode() for token in self.config.eos_token_ids[:1]),
        }
        self.chat_template = ChatTemplate(template, names) if template else None
        self.cache = ContiguousCache(self.config, 256, dtype=self.choice.dtype, device=self.choice.device)
        self.sequence: list[int] = []  # the latest request's tokens: the cache holds the first of them
        if self.choice.device.type == "cpu" and self.choice.threads is None:
            count, why = fastest_threads(self.step, detect().cores)
            self.choice = replace(self.choice, threads=count, threads_why=why)
        torch.set_num_threads(self.choice.threads or detect().cores)

    def step(self) -> None:
        """The work of one token, for measuring; leaves nothing in the cache."""
        self.model(torch.zeros(1, 1, dtype=torch.long), self.cache)
        self.cache.truncate(0)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; what a user typed never becomes a special token."""
        if isinstance(prompt, str):
            return self.prefix + self.tokenizer.encode(prompt)
        if self.chat_template is None:
            raise ValueError(f"{self.name} has no chat template: give it a text to continue, not messages.")
        return self.chat_template.encode(prompt, self.tokenizer)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Stream:
        """Start an answer. Its text comes from iterating; leaving the loop early stops the work.

        There is one cache, so an answer that is not read to its end is over once the next one begins.

        Raises:
            ValueError: the prompt is empty or longer than the model's context.
        """
        ids = self.encode(prompt)
        room = self.config.max_position_embeddings - len(ids)
        if not ids:
            raise ValueError("The prompt is empty: the model needs at least one token to continue from.")
        if room < 1:
            raise ValueError(
                f"The prompt has {len(ids)} tokens; {self.name} has room for "
                f"{self.config.max_position_embeddings}, one of them for the answer."
            )
        params = params or SamplingParams()
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(64))
        return Stream(self, ids, replace(params, max_tokens=min(params.max_tokens, room)))

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[Completion]:
        """Answer one prompt or several, one after the other; always returns a list."""
        one = isinstance(prompts, str) or isinstance(next(iter(prompts), None), Mapping)
        streams = (self.stream(prompt, params) for prompt in ([prompts] if one else prompts))  # type: ignore[arg-type]
        return [stream.finish() for stream in streams]

    def run(self, ids: list[int], params: SamplingParams, completion: Completion) -> Iterator[str]:
        """Yield text as soon as it is certain, and keep the books in `completion`."""
        started = first = time.perf_counter()
        completion.reused = self.rewind(ids)
        self.sequence = sequence = list(ids)
        stops = {*params.stop_token_ids, *(() if params.ignore_eos else self.config.eos_token_ids)}
        detokenizer = self.tokenizer.detokenizer()
        for token in generate_cached(self.model, ids, params, self.cache, self.config.eos_token_ids):
            now = time.perf_counter()
            if not completion.token_ids:
                first, completion.time_to_first_token = now, now - started
            completion.decode_seconds = now - first
            completion.token_ids.append(token)
            sequence.append(token)
            if token in stops:
                completion.finish_reason = "stop"
                break
            if piece := detokenizer.push(token):
                completion.text += piece
                yield piece
                if self.sequence is not sequence:
                    raise RuntimeError("Another answer has begun since: this one cannot go on.")
        else:
            completion.finish_reason = "length"
        if piece := detokenizer.flush():
            completion.text += piece
            yield piece

    def rewind(self, ids: list[int]) -> int:
        """Cut the cache back to what it shares with the beginning of `ids`; returns how many tokens that is.

        At least the last token of the prompt is computed again, since its logits choose the next one.
        """
        shared = 0
        for old, new in zip(self.sequence[: self.cache.length], ids[:-1], strict=False):
            if old != new:
                break
            shared += 1
        self.cache.truncate(shared)
        return shared

    def forget(self) -> None:
        """Empty the cache: the next prompt is read as if it were the first."""
        self.cache.truncate(0)


def model_path(model: str | Path) -> Path:
    if str(model) in MODELS:
        return assets.path(str(model))
    path = Path(model)
    if not path.exists():
        raise CheckpointError(
            f"There is no model {str(model)!r}. Known: {', '.join(MODELS)}; or give the path of a GGUF file."
        )
    return path
