"""Answers of a given form: which tokens may come next, by llguidance.

A grammar speaks of characters and a model of tokens, each of which is several bytes, often across the
grammar's own borders. llguidance walks through the tree of all tokens with the grammar's parser at every
step; the mask that comes out makes an ill-formed answer impossible, whatever the model.
Source: Willard and Louf (2023), "Efficient Guided Generation for Large Language Models";
guidance-ai/llguidance.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper, grammar_from

from course_lib.decode.params import StructuredOutputsParams
from course_lib.tokenizer import Tokenizer

# Spaces as `json.dumps` puts them, and nowhere else: a small model that may write any number of them does.
SPACING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Guides:
    """Makes guides for one vocabulary; building its tree of tokens takes a moment, so keep it."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]):
        """`stop_ids`, the model's own end tokens, are allowed where an answer is complete.

        Raises:
            ValueError: there are none.
        """
        if not stop_ids:
            raise ValueError("structured_outputs needs a model with an end token, and this one has none.")
        self.size = tokenizer.vocab_size
        self.table = LLTokenizer(
            TokenizerWrapper(Vocabulary(tokenizer, stop_ids[0])), self.size, list(stop_ids)
        )

    def guide(self, params: StructuredOutputsParams) -> "Guide":
        """A guide at the beginning of an answer.

        Raises:
            ValueError: the schema, expression or grammar has an error, asks for something that is not
                supported, or can never be satisfied.
        """
        grammar = compiled(params)
        if error := LLMatcher.validate_grammar(grammar, self.table):
            raise ValueError(f"structured_outputs: {error}")
        guide = Guide(LLMatcher(self.table, grammar, log_level=0), self.size)
        guide.allowed()
        if guide.error:
            raise ValueError("structured_outputs: no answer has this form.")
        return guide


class Guide:
    """One answer on its way through its grammar."""

    def __init__(self, matcher: LLMatcher, size: int):
        self.matcher = matcher
        self.size = size

    @property
    def error(self) -> str:
        """Why the grammar cannot be followed any further, or nothing."""
        return str(self.matcher.get_error()).partition("\n")[0]

    def take(self, token: int) -> bool:
        """Go on by a token that was allowed; True if nothing can follow, so that the answer is complete."""
        self.matcher.consume_token(token)
        return bool(self.matcher.is_stopped())

    def fitting(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first on, would be allowed one after the other."""
        return int(self.matcher.validate_tokens(list(tokens)))

    def allowed(self, ahead: Sequence[int] = ()) -> Bool[np.ndarray, " V"]:
        """Which tokens may come next, once `ahead` has been taken, too.

        After tokens that are not allowed themselves everything is: nobody will choose there.
        """
        taken = self.matcher.try_consume_tokens(list(ahead)) if ahead else 0
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8) if taken == len(ahead) else None
        if taken:
            self.matcher.rollback(taken)
        if bits is None:
            return np.ones(self.size, dtype=bool)
        return np.unpackbits(bits, count=self.size, bitorder="little").view(bool)


class Vocabulary:
    """Our tokenizer, as llguidance wants to see one."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos: int):
        self.eos_token_id = eos
        self.tokens = [tokenizer.vocab.get(i, b"") for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_tokens.values())
        self.tokenizer = copy.copy(tokenizer)
        if hasattr(self.tokenizer, "prefix"):  # SentencePiece's: no space is put before what continues a text
            self.tokenizer.prefix = "never"

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("this tokenizer reads text, not bytes")
        return self.tokenizer.encode(text)


def compiled(params: StructuredOutputsParams) -> str:
    """The grammar in llguidance's own form."""
    if params.json is not None:
        return LLMatcher.grammar_from_json_schema(json.dumps(schema_of(params.json)), overrides=SPACING)
    if params.regex is not None:
        return LLMatcher.grammar_from_regex(params.regex)
    if params.choice is not None:
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, params.choice)))
    try:
        return str(grammar_from("grammar", params.grammar or ""))
    except ValueError as error:
        raise ValueError(f"structured_outputs: {error}") from None


def schema_of(schema: str | Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema as a dict."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ValueError(f"structured_outputs: the schema is not JSON: {error}") from None
    if not isinstance(schema, Mapping):
        raise ValueError(f"structured_outputs: the schema is {schema!r}; it must be an object.")
    return dict(schema)
