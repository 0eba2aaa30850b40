"""A request as the engine sees it: a list of tokens and a counter that chases its length."""

import enum
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from course_lib.cache.blocks import BlockTable
from course_lib.engine.text import TextStream

if TYPE_CHECKING:
    from course_lib.decode.logprobs import TokenLogprobs
    from course_lib.decode.params import SamplingParams
    from course_lib.decode.structured import Guide
    from course_lib.decode.text import Text

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Status(enum.Enum):
    WAITING = "waiting"  # new, or preempted: it holds no blocks
    RUNNING = "running"  # it holds blocks, and advances by a token or more every step
    FINISHED = "finished"


@dataclass
class Output:
    """What one step has brought one request: its new tokens, and the text that has become certain."""

    request: "Request"
    token_ids: list[int]
    text: str
    finish_reason: FinishReason | None
    logprobs: "list[TokenLogprobs]" = field(default_factory=list)


@dataclass(eq=False)
class Request:
    """One text to be continued.

    There is no phase in it, only counters. `num_computed_tokens` of its `num_tokens` tokens have their
    keys and values in the cache; the rest is pending: a whole prompt at first, one token for each new one
    afterwards, everything again after a preemption. Source: vLLM v1, vllm/v1/request.py.

    Fields:
        id: names the request to whoever sent it.
        tokens: the prompt's, then those that have been chosen.
        params: how tokens are chosen, and when to stop; with a seed, if they are drawn at random.
        priority: a larger one goes first and is preempted last.
        salt: requests of different salts never share cached blocks.
        stop_ids: tokens that end the text. They are in `tokens`, and not in the text.
        stream: makes the text; None if only tokens are wanted.
        index: which of the `n` continuations of one prompt this is.
        siblings: the others, until the prompt has been computed, which they share.
        draft: guesses for the next tokens, to be verified in the same step.
        draftable: whether the engine may make such guesses.
        history: what the sampler must know of the text; None where the parameters ask for nothing of it.
        guide: holds the answer to its form.
        logprobs: of each chosen token, if the parameters ask for them.
    """

    id: str
    tokens: list[int]
    params: "SamplingParams"
    priority: int = 0
    salt: str = ""
    stop_ids: frozenset[int] = frozenset()
    stream: TextStream | None = None
    index: int = 0
    siblings: list["Request"] = field(default_factory=list)
    draft: list[int] = field(default_factory=list)
    draftable: bool = True
    history: "Text | None" = None
    guide: "Guide | None" = None
    logprobs: "list[TokenLogprobs]" = field(default_factory=list)

    # the scheduler's books
    status: Status = Status.WAITING
    arrival: int = 0  # counts requests in the order in which they came
    num_computed_tokens: int = 0
    table: BlockTable | None = None
    num_preemptions: int = 0
    num_cached_tokens: int = 0  # of the prompt, found in the prefix cache when it was first admitted
    finish_reason: FinishReason | None = None
    error: str = ""

    # what has been told, and when things happened (seconds of time.perf_counter)
    arrived: float = field(default_factory=time.perf_counter)
    first_token_at: float = 0.0
    last_token_at: float = 0.0

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.tokens)
        self.told_tokens = len(self.tokens)
        self.told_text = 0

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_pending_tokens(self) -> int:
        """How many tokens wait to be computed, drafted ones included."""
        return len(self.tokens) + len(self.draft) - self.num_computed_tokens

    @property
    def output_ids(self) -> list[int]:
        """The tokens that have been chosen so far."""
        return self.tokens[self.num_prompt_tokens :]

    @property
    def rank(self) -> tuple[int, int, int]:
        """Sorts requests: by priority, then by arrival; the last is the first to be preempted."""
        return (-self.priority, self.arrival, self.index)

    @property
    def text(self) -> str:
        return self.stream.text if self.stream else ""

    def append(self, token: int) -> FinishReason | None:
        """Take the token that has been chosen; returns why the text ends with it, if it does.

        Where its grammar or its detokenizer fails, it ends with an error, and no other request does.
        """
        self.tokens.append(token)
        self.last_token_at = time.perf_counter()
        if not self.first_token_at:
            self.first_token_at = self.last_token_at
        try:
            return self._follow(token)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            return "error"

    def _follow(self, token: int) -> FinishReason | None:
        """Let the form and the text follow the newest token."""
        count = len(self.tokens) - self.num_prompt_tokens
        complete = self.guide is not None and self.guide.take(token)
        if self.guide is not None and self.guide.error:
            self.error = self.guide.error
            return "error"
        stopped = self.stream is not None and self.stream.push(token, count > self.params.min_tokens)
        if complete or stopped or token in self.stop_ids:
            return "stop"
        return "length" if count >= self.params.max_tokens else None

    def emit(self) -> Output:
        """What has come since the last call."""
        text = self.text[self.told_text :]
        new = slice(self.told_tokens - self.num_prompt_tokens, len(self.tokens) - self.num_prompt_tokens)
        output = Output(self, self.tokens[self.told_tokens :], text, self.finish_reason, self.logprobs[new])
        self.told_tokens, self.told_text = len(self.tokens), self.told_text + len(text)
        return output
