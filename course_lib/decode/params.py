"""What one request asks of the sampler, and when its text is to end. Names are vLLM's and OpenAI's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class StructuredOutputsParams:
    """The form that an answer must have; exactly one of them.

    json: a JSON schema, as a dict or as text; keys come in the schema's order, spaced as by `json.dumps`.
    regex: a regular expression that the whole answer matches (Rust's syntax: no look-around, no
        back-references; \\d and \\w mean those of all scripts).
    choice: the answer is one of these texts.
    grammar: a context-free grammar, in Lark's notation or llama.cpp's (GBNF).
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"structured_outputs has {' and '.join(given) or 'nothing'}; give exactly one of json, "
                "regex, choice, grammar."
            )
        kinds: dict[str, tuple[type, ...]] = {"json": (str, Mapping), "regex": (str,), "grammar": (str,)}
        name, value = given[0], getattr(self, given[0])
        if name == "choice":
            if isinstance(value, str) or not value or not all(isinstance(c, str) and c for c in value):
                raise ValueError(f"choice is {value!r}; it must be a list of texts, none of them empty.")
        elif not isinstance(value, kinds[name]):
            wanted = " or ".join("a dict" if kind is Mapping else "a text" for kind in kinds[name])
            raise ValueError(f"{name} is {value!r}; it must be {wanted}.")


@dataclass(frozen=True)
class SamplingParams:
    """How one request wants its tokens chosen, and when it wants to stop.

    temperature: 0 takes the most probable token; 1 draws from the model's own distribution; lower is sharper.
    top_k: draw only from the k most probable tokens (0: from all).
    top_p: draw only from the fewest tokens that together have probability p (1: from all).
    min_p: draw only from tokens at least min_p times as probable as the most probable one (0: from all).
    seed: the same seed gives the same text; None takes a fresh one.
    max_tokens: end after so many tokens. stop_token_ids: end at these, besides the model's own end tokens.
    ignore_eos: go on at the model's own end tokens (for benchmarks).
    stop: end where one of these texts begins; a single text is taken as a list of one.
    n: so many texts for one prompt, which is computed once.
    min_tokens: no stop token is chosen, and no stop text ends the answer, before there are so many.
    repetition_penalty: divides positive logits of tokens that prompt or answer have already, and multiplies
        negative ones: above 1 they become less probable. Source: Keskar et al. (2019), "CTRL", section 4.1.
    frequency_penalty: subtracted from a token's logit once for each time the answer has it already.
    presence_penalty: subtracted once from the logits of all tokens that the answer has already.
    logit_bias: token id -> added to its logit, from -100 (as good as never) to 100 (as good as always).
    allowed_token_ids: choose among these only; None: among all. bad_token_ids: never choose these.
    logprobs: tell the log-probability of each chosen token, and of so many of the most probable ones in its
        place (0: only its own; None: nothing). They are the model's own: before temperature, penalties,
        filters and bans.
    structured_outputs: the answer has this form, and ends where it is complete.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 256
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    n: int = 1
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        for name in ("stop_token_ids", "allowed_token_ids", "bad_token_ids"):
            if (ids := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(ids))
        self._check_ranges()
        self._check_together()

    def _check_ranges(self) -> None:
        def must(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {rule}.")

        must(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "a number from 0 up")
        must(whole(self.top_k) and self.top_k >= 0, "top_k", "0 (off) or a number of tokens")
        must(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        must(0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        must(whole(self.max_tokens) and self.max_tokens >= 1, "max_tokens", "at least 1")
        must(whole(self.n) and self.n >= 1, "n", "at least 1")
        must(all(isinstance(text, str) and text for text in self.stop), "stop", "texts, none of them empty")
        right = self.seed is None or (whole(self.seed) and 0 <= self.seed < 2**64)
        must(right, "seed", "None or a whole number from 0 to 2^64 - 1")
        enough = whole(self.min_tokens) and 0 <= self.min_tokens <= self.max_tokens
        must(enough, "min_tokens", f"between 0 and max_tokens, which is {self.max_tokens}")
        penalty = self.repetition_penalty
        must(math.isfinite(penalty) and penalty > 0, "repetition_penalty", "above 0 (1 is off)")
        for name in ("frequency_penalty", "presence_penalty"):
            must(-2 <= getattr(self, name) <= 2, name, "between -2 and 2")
        for name in ("stop_token_ids", "allowed_token_ids", "bad_token_ids"):
            right = all(whole(token) and token >= 0 for token in getattr(self, name) or ())
            must(right, name, "token ids: whole numbers from 0 up")
        must(self.allowed_token_ids != (), "allowed_token_ids", "None (all) or one token id at least")
        right = all(whole(token) and token >= 0 and -100 <= b <= 100 for token, b in self.biases.items())
        must(right, "logit_bias", "token ids, each with a number between -100 and 100")
        right = self.logprobs is None or (whole(self.logprobs) and self.logprobs >= 0)
        must(right, "logprobs", "None, or how many of the most probable tokens to tell")

    def _check_together(self) -> None:
        """Refuse what contradicts itself."""
        if self.allowed_token_ids and not set(self.allowed_token_ids) - set(self.bad_token_ids):
            raise ValueError("Every one of allowed_token_ids is also in bad_token_ids: no token is left.")
        others = ("allowed_token_ids", "bad_token_ids", "min_tokens", "ignore_eos", "stop", "stop_token_ids")
        given = [name for name in others if getattr(self, name)]
        if given and self.structured_outputs is not None:
            raise ValueError(
                f"structured_outputs does not go together with {given[0]}: the form alone decides which "
                "tokens are possible and where the answer ends."
            )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    @property
    def biases(self) -> Mapping[int, float]:
        return self.logit_bias or {}

    @property
    def penalizes(self) -> bool:
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def changes_logits(self) -> bool:
        """Whether choosing a token takes more than the logits: see `adjust`."""
        return bool(
            self.penalizes
            or self.logit_bias
            or self.allowed_token_ids is not None
            or self.bad_token_ids
            or self.min_tokens
            or self.structured_outputs
        )

    def check_vocabulary(self, size: int) -> None:
        """Raise ValueError if a token is named that a vocabulary of `size` tokens does not have."""
        for name in ("stop_token_ids", "allowed_token_ids", "bad_token_ids", "logit_bias"):
            if wrong := [token for token in getattr(self, name) or () if token >= size]:
                raise ValueError(f"{name} names token {wrong[0]}; this model's are 0 to {size - 1}.")
        if self.logprobs is not None and self.logprobs > size:
            raise ValueError(f"logprobs is {self.logprobs}; this model has {size} tokens in all.")


def whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
