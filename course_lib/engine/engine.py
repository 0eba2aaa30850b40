"""The engine: requests go in, and every step brings some of them a token further."""

import contextlib
import functools
import itertools
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, Unpack

import numpy as np

from course_lib.cache.blocks import BlockAllocator
from course_lib.cache.prefix import HashPrefixCache, NoPrefixCache, PrefixCache
from course_lib.cache.radix import RadixPrefixCache
from course_lib.decode.params import SamplingParams
from course_lib.decode.speculative import NgramProposer, Proposer, Wanted
from course_lib.decode.text import Text
from course_lib.engine.request import FinishReason, Output, Request, Status
from course_lib.engine.runner import Runner
from course_lib.engine.scheduler import ImpossibleRequest, Schedule, Scheduler
from course_lib.engine.text import Detokenizer, TextStream
from course_lib.tokenizer import Tokenizer

if TYPE_CHECKING:
    from course_lib.decode.structured import Guides

PREFIX_CACHES: dict[str, Callable[[BlockAllocator, int], PrefixCache]] = {
    "hash": HashPrefixCache,
    "radix": RadixPrefixCache,
    "off": NoPrefixCache,
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs.

    block_size: tokens a block of the key/value cache.
    num_blocks: blocks in the pool; None lets whoever loads the model choose by the memory there is.
    max_num_batched_tokens: the most tokens a step computes. More make reading prompts faster and keep
        those who are writing waiting for longer.
    max_num_seqs: the most requests that run at once; others wait.
    max_model_len: the most tokens of a text; None: as many as the model has positions.
    prefix_cache: how known beginnings are found: "hash", "radix" or "off".
    kv_cache_dtype: how keys and values are kept: "auto", in the model's own number format, or "int8", which
        holds nearly twice as many tokens as 16 bits. Whoever makes the runner gives it this, too.
    attention: who attends for requests that compute one token: "torch", "triton" (on an NVIDIA GPU; elsewhere
        its interpreter, for tests), or "auto": Triton on an NVIDIA GPU, if it agrees with torch in a trial.
    speculative: who drafts the next tokens: "off", "ngram" (prompt lookup), or the name of a small model
        with the same vocabulary. It changes the speed, and not the text.
    draft_tokens: how many tokens are drafted at a time.
    debug: compare all books after every step.
    """

    block_size: int = 16
    num_blocks: int | None = None
    max_num_batched_tokens: int = 512
    max_num_seqs: int = 256
    max_model_len: int | None = None
    prefix_cache: Literal["hash", "radix", "off"] = "hash"
    kv_cache_dtype: Literal["auto", "int8"] = "auto"
    attention: Literal["auto", "torch", "triton"] = "auto"
    speculative: str = "off"
    draft_tokens: int = 4
    debug: bool = False

    def __post_init__(self) -> None:
        at_least_one = ("block_size", "num_blocks", "max_num_batched_tokens", "max_num_seqs")
        for name in (*at_least_one, "max_model_len", "draft_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if self.prefix_cache not in PREFIX_CACHES:
            raise ValueError(f"prefix_cache is {self.prefix_cache!r}; choose {', '.join(PREFIX_CACHES)}.")
        if self.kv_cache_dtype not in ("auto", "int8"):
            raise ValueError(f"kv_cache_dtype is {self.kv_cache_dtype!r}; choose auto or int8.")


class RequestOptions(TypedDict, total=False):
    """What a request may have besides its prompt and its parameters; see `Request`."""

    id: str | None
    priority: int
    salt: str


class TextMaker(Protocol):
    """The part of a tokenizer that the engine needs."""

    def detokenizer(self) -> Detokenizer: ...


@dataclass
class Counters:
    """What the engine has done since it was started, for metrics."""

    steps: int = 0
    computed_tokens: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0  # that were verified
    accepted_tokens: int = 0  # of these: what the model would have chosen
    failed_steps: int = 0
    failed_drafts: int = 0
    finished: Counter[FinishReason] = field(default_factory=Counter)


class Engine:
    """A runner under a scheduler. Not for several threads at once: see `AsyncEngine`."""

    def __init__(
        self,
        runner: Runner,
        num_blocks: int,
        config: EngineConfig | None = None,
        tokenizer: TextMaker | None = None,
        stop_ids: Collection[int] = (),
        max_model_len: int = 1 << 30,
        proposer: Proposer | None = None,
    ):
        """`runner` has a pool of `num_blocks` blocks. `stop_ids` are the model's own end tokens.

        `proposer` drafts tokens where `config.speculative` names a model; "ngram" needs none.

        Raises:
            ValueError: `config.speculative` names a model, and there is no proposer; or the runner keeps keys
                and values in another format than `config` says.
        """
        self.config = config or EngineConfig()
        if (kept := getattr(runner, "kv_cache_dtype", "auto")) != (asked := self.config.kv_cache_dtype):
            raise ValueError(f"kv_cache_dtype is {asked!r}; this runner keeps keys and values as {kept!r}.")
        self.runner = runner
        self.tokenizer = tokenizer
        self.proposer = NgramProposer() if self.config.speculative == "ngram" else proposer
        if self.proposer is None and self.config.speculative != "off":
            raise ValueError(
                f"speculative is {self.config.speculative!r}: that is a model, which the engine cannot load "
                "itself. Give the model as `proposer`, use LLM, or choose 'ngram' or 'off'."
            )
        self.stop_ids = frozenset(stop_ids)
        size = self.config.block_size
        self.allocator = BlockAllocator(num_blocks)
        self.prefix_cache = PREFIX_CACHES[self.config.prefix_cache](self.allocator, size)
        self.scheduler = Scheduler(
            self.allocator,
            self.prefix_cache,
            size,
            self.config.max_num_batched_tokens,
            min(self.config.max_num_seqs, self.config.max_num_batched_tokens),
            min(max_model_len, self.config.max_model_len or max_model_len),
        )
        self.counters = Counters()
        self.failed: list[Request] = []  # those of the latest step that failed
        self.names = itertools.count(1)

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def add(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[Request]:
        """Let a prompt wait for its turn; returns its `params.n` requests.

        Raises:
            ImpossibleRequest: it can never be served; the message says why.
        """
        family = self.requests(prompt_ids, params, **options)
        self.scheduler.add(family[0])
        return family

    def requests(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        id: str | None = None,
        priority: int = 0,
        salt: str = "",
    ) -> list[Request]:
        """As `add`, but they do not wait yet. Any thread may call this."""
        params = params or SamplingParams()
        seed = secrets.randbits(64) if params.seed is None else params.seed
        id = id or f"request-{next(self.names)}"
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.stop_ids)
        self.refuse_unsupported(params, stops)
        self.refuse_unknown(prompt_ids)
        family = [
            Request(
                id=id,
                tokens=list(prompt_ids),
                params=replace(params, seed=sibling_seed(seed, index)),
                priority=priority,
                salt=salt,
                stop_ids=stops,
                stream=TextStream(self.tokenizer.detokenizer(), params.stop) if self.tokenizer else None,
                index=index,
            )
            for index in range(params.n)
        ]
        for request in family:
            if params.structured_outputs is not None:
                request.guide = self.guides.guide(params.structured_outputs)
            if params.changes_logits:
                request.history = Text(request.params, request.tokens, sorted(stops), request.guide)
        family[0].siblings = family[1:]
        self.scheduler.refuse_impossible(family[0])
        return family

    def refuse_unsupported(self, params: SamplingParams, stops: Collection[int]) -> None:
        """Raise ValueError for parameters that this model or this engine cannot do as they say."""
        self.runner.refuse(params)
        params.check_vocabulary(self.runner.vocab_size)
        if params.stop and self.tokenizer is None:
            raise ValueError("stop needs an engine with a tokenizer; this one knows token ids only.")
        if params.min_tokens and params.allowed_token_ids and not set(params.allowed_token_ids) - set(stops):
            raise ValueError(
                "allowed_token_ids are all stop tokens, and min_tokens forbids these: no token is left."
            )

    def refuse_unknown(self, prompt_ids: Sequence[int]) -> None:
        """Raise ImpossibleRequest for tokens that the model does not have: they would end the whole step."""
        size = self.runner.vocab_size
        for place, token in enumerate(prompt_ids):
            if not 0 <= token < size:
                raise ImpossibleRequest(
                    f"Token {place} of the prompt is {token}; this model's are 0 to {size - 1}."
                )

    @functools.cached_property
    def guides(self) -> "Guides":
        """What holds answers to their form; made when the first request asks for it."""
        from course_lib.decode.structured import Guides

        if not isinstance(self.tokenizer, Tokenizer):
            raise ValueError("structured_outputs needs an engine with a tokenizer; this one knows ids only.")
        return Guides(self.tokenizer, sorted(self.stop_ids))

    def step(self) -> list[Output]:
        """Compute one step; returns what it brought to whom. Without work it does nothing."""
        self.draft()
        schedule = self.scheduler.schedule()
        with self.undone_on_failure(schedule):
            logits = self.runner.execute(schedule)
            tokens = self.runner.sample(logits, schedule)
        self.counters.drafted_tokens += sum(max(0, chunk.samples - 1) for chunk in schedule.chunks)
        self.counters.accepted_tokens += sum(len(chosen) - 1 for chosen in tokens)
        told = self.scheduler.update(schedule, tokens)
        self.count(schedule, told)
        return [request.emit() for request in told]

    def draft(self) -> None:
        """Let the proposer guess for every text that is at its last known token.

        Drafts come from the text alone. How many of them a step verifies may depend on who else is there,
        by its budget and its blocks; the text does not, since every draw is by seed and position. Nobody is
        preempted for the sake of drafts: they are made while blocks last, after one for everybody's next.
        A proposer that fails costs speed only: those it was asked about go on without drafts.
        """
        if self.proposer is None:
            return
        wanted: list[tuple[Request, Wanted]] = []
        blocks = len(self.scheduler.running)
        for request in self.scheduler.running:
            written = request.num_tokens - request.num_prompt_tokens
            count = min(
                self.config.draft_tokens,
                request.params.max_tokens - written - 1,  # one more is chosen behind the drafts
                self.scheduler.max_len - request.num_tokens - 1,
            )
            may = request.draftable and not request.siblings  # who would need the drafts as their own
            if count < 1 or request.num_pending_tokens != 1 or not may:
                continue
            assert request.table is not None  # a running request holds blocks
            blocks += request.table.missing(request.num_tokens + count)
            if not self.prefix_cache.make_available(blocks):
                break
            wanted.append((request, Wanted(request, request.tokens, count)))
        try:
            drafts = self.proposer.propose([each for _, each in wanted])
            for (request, each), draft in zip(wanted, drafts, strict=True):
                request.draft = self.possible(request, draft[: each.limit])
        except Exception as error:
            self.counters.failed_drafts += 1
            logger.warning(
                "The proposer has failed, so %d requests go on without drafts: %r", len(wanted), error
            )
            for request, _ in wanted:
                request.draft, request.draftable = [], False

    def possible(self, request: Request, draft: Sequence[int]) -> list[int]:
        """The beginning of a draft that consists of the model's own tokens, and that the form allows."""
        size = self.runner.vocab_size
        known = list(itertools.takewhile(lambda token: 0 <= token < size, draft))
        return known if request.guide is None else known[: request.guide.fitting(known)]

    def cancel(self, request: Request, reason: FinishReason = "cancelled") -> None:
        """End a request, whatever its state: its blocks are free at once. Again, it changes nothing."""
        if request.status is not Status.FINISHED:
            self.scheduler.finish(request, reason)
            self.counters.finished[reason] += 1

    @contextlib.contextmanager
    def undone_on_failure(self, schedule: Schedule) -> Iterator[None]:
        """If a step fails, nothing of it counts: its requests wait again, and the exception goes on."""
        try:
            yield
        except BaseException:
            self.counters.failed_steps += 1
            self.failed = [chunk.request for chunk in schedule.chunks]
            self.scheduler.abandon(schedule)
            raise

    def count(self, schedule: Schedule, told: list[Request]) -> None:
        """Keep the counters; in debug mode compare all books."""
        counters = self.counters
        counters.steps += 1
        counters.computed_tokens += schedule.num_tokens
        counters.preemptions += len(schedule.preempted)
        for request in told:
            if request.finish_reason:
                counters.finished[request.finish_reason] += 1
        if self.config.debug:
            self.scheduler.check()


def sibling_seed(seed: int, index: int) -> int:
    """The seed of the index-th of n texts; the first has the request's own, so n changes nothing for it."""
    return seed if index == 0 else int(np.random.Philox(key=seed, counter=(index, 0, 0, 1)).random_raw())
