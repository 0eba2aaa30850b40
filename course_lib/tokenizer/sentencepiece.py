"""SentencePiece's BPE: Llama 2's, Mistral's and Gemma's tokenizers.

It merges characters where byte-level BPE merges bytes. A space is written as ▁ (U+2581) and is a character
like any other, so no pattern cuts the text first; a character that the vocabulary lacks becomes its UTF-8
bytes, for each of which there is a token.

The vocabulary comes in three forms: SentencePiece's own file (`tokenizer.model`), GGUF's metadata, and
Hugging Face's `tokenizer.json`. The first two hold scores, not merges: two neighbors may merge if their
concatenation is a token, and the highest score goes first.

Source: Kudo and Richardson (2018), "SentencePiece"; google/sentencepiece `src/bpe_model.cc`.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from course_lib.tokenizer.bpe import Ranks, merge_with_heap
from course_lib.tokenizer.special import split_special_tokens
from course_lib.tokenizer.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Tokenizer,
    added_tokens,
    check_model,
    split_merges,
)

SPACE = "▁"
# What is put before a text: nothing; a space, before each stretch between whole tokens or only before the
# first one; or a space wherever there is none already.
Prefix = Literal["never", "always", "first", "always unless there", "first unless there"]


class ScoreRanks:
    """Ranks of pairs by the score of what they make, as `merge_with_heap` asks for them."""

    def __init__(self, scores: Mapping[str, float]):
        self.scores = scores

    def __contains__(self, pair: tuple[str, str]) -> bool:
        return pair[0] + pair[1] in self.scores

    def __getitem__(self, pair: tuple[str, str]) -> float:
        return -self.scores[pair[0] + pair[1]]


class SentencePieceTokenizer(Tokenizer):
    """BPE over characters, with bytes for those that the vocabulary lacks.

    pieces        token, with ▁ for a space -> id; also those that are single bytes or unknown
    ranks         pair of tokens -> rank
    byte_ids      the tokens of the 256 bytes, or none
    unknown       the token of what can't be written otherwise; several in a row count once
    user_defined  tokens that are cut out before any merge, with ▁ for a space
    prefix        see `Prefix`
    cut_at_spaces no merge goes from one word into the next
    """

    def __init__(
        self,
        pieces: Mapping[str, int],
        ranks: Ranks[str],
        special: Mapping[str, int],
        byte_ids: Sequence[int] = (),
        unknown: int | None = None,
        added: Mapping[str, int] | None = None,
        user_defined: Mapping[str, int] | None = None,
        prefix: Prefix = "never",
        cut_at_spaces: bool = False,
    ) -> None:
        super().__init__({}, {}, special=special, added=added)
        self.pieces = dict(pieces)
        self.piece_ranks = ranks
        self.byte_ids = list(byte_ids)
        self.unknown = unknown
        self.user_defined = dict(user_defined or {})
        self.prefix = prefix
        self.cut_at_spaces = cut_at_spaces
        written = {i: piece.replace(SPACE, " ").encode() for piece, i in self.pieces.items()}
        written |= {i: piece.replace(SPACE, " ").encode() for piece, i in self.user_defined.items()}
        written |= {i: bytes([byte]) for byte, i in enumerate(self.byte_ids)}
        if unknown is not None:
            written.setdefault(unknown, b"<unk>")
        self.vocab = written | self.vocab
        self.printed = written | self.printed

    def __repr__(self) -> str:
        special = len(self.special_tokens)
        return f"SentencePieceTokenizer({len(self.vocab)} tokens, {special} of them special)"

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Return the text of `ids`, less the space that `encode` put before it.

        A `detokenizer` leaves that space: what it writes goes on from a text before it.
        """
        text = super().decode(ids, skip_special)
        return text if self.prefix == "never" else text.removeprefix(" ")

    def save(self, path: str | Path) -> None:
        raise NotImplementedError(
            "only byte-level vocabularies can be saved; keep the file this one came from"
        )

    def _encode_text(self, text: str, first: bool) -> Iterator[int]:
        text = text.encode("utf-16", "surrogatepass").decode(
            "utf-16", "replace"
        )  # see Tokenizer._encode_chunk
        escaped = text.replace(" ", SPACE)
        scheme, _, unless_there = self.prefix.partition(" ")
        wanted = scheme == "always" or (scheme == "first" and first)
        if wanted and not (unless_there and escaped.startswith(SPACE)):
            escaped = SPACE + escaped
        for piece, is_whole in split_special_tokens(escaped, self.user_defined):
            if is_whole:
                yield self.user_defined[piece]
            else:
                for word in words(piece) if self.cut_at_spaces else [piece]:
                    yield from self._chunk_ids[word]

    def _encode_chunk(self, chunk: str) -> list[int]:
        ids: list[int] = []
        for piece in merge_with_heap(list(chunk), self.piece_ranks):
            if piece in self.pieces:
                ids.append(self.pieces[piece])
            elif self.byte_ids:
                ids += [self.byte_ids[byte] for byte in piece.encode()]
            elif self.unknown is not None and ids[-1:] != [self.unknown]:
                ids.append(self.unknown)
        return ids

    @classmethod
    def from_pieces(
        cls,
        pieces: Sequence[str],
        scores: Sequence[float],
        kinds: Sequence[int],
        prefix: Prefix,
    ) -> Self:
        """From the three lists that a `tokenizer.model` and a GGUF file hold, by id."""
        if not len(pieces) == len(scores) == len(kinds):
            raise ValueError(
                f"{len(pieces)} tokens, {len(scores)} scores and {len(kinds)} kinds; expected as many of each"
            )
        of_kind: dict[int, dict[str, int]] = {kind: {} for kind in range(NORMAL, BYTE + 1)}
        for i, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)):
            if kind not in of_kind:
                raise ValueError(f"token {i} is of the unknown kind {kind}")
            of_kind[kind].setdefault(piece, i)
        known = of_kind[NORMAL] | of_kind[UNUSED]
        unknown = next(iter(of_kind[UNKNOWN].values()), None)
        return cls(
            known,
            ScoreRanks({piece: scores[i] for piece, i in of_kind[NORMAL].items()}),
            special=of_kind[CONTROL] | of_kind[UNKNOWN],
            byte_ids=byte_table(of_kind[BYTE]),
            unknown=unknown,
            user_defined=of_kind[USER_DEFINED],
            prefix=prefix,
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """The tokenizer of kind "llama" that a GGUF file carries in its metadata."""
        spaced = metadata.get("tokenizer.ggml.add_space_prefix", True)
        return cls.from_pieces(
            metadata["tokenizer.ggml.tokens"],
            metadata["tokenizer.ggml.scores"],
            metadata["tokenizer.ggml.token_type"],
            "always" if spaced else "never",
        )

    @classmethod
    def from_model_file(cls, path: str | Path) -> Self:
        """A `tokenizer.model` as SentencePiece writes it.

        Raises:
            ValueError: damaged, not BPE, or with a normalization that we do not do.
        """
        model = read_model_file(Path(path).read_bytes())
        return cls.from_pieces(
            model.pieces, model.scores, model.kinds, "first" if model.add_dummy_prefix else "never"
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A `tokenizer.json` of SentencePiece-style BPE.

        Raises:
            ValueError: it holds something that we would get wrong.
        """
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        model = content["model"]
        check_model(model)
        prefix, cut_at_spaces = spacing(content.get("normalizer"), content.get("pre_tokenizer"))
        special, added = added_tokens(content)
        whole = special | added
        # An added token may be a piece too, which merges can make: it keeps its place among them.
        pieces: dict[str, int] = model["vocab"]
        fallback = bool(model.get("byte_fallback"))
        own = [f"<0x{byte:02X}>" for byte in range(256)]
        byte_ids = [pieces[name] for name in own] if fallback and all(name in pieces for name in own) else []
        ranks = {(left, right): rank for rank, (left, right) in enumerate(split_merges(model["merges"]))}
        tokenizer = cls(
            pieces,
            ranks,
            special,
            byte_ids,
            pieces.get(model.get("unk_token") or ""),
            added,
            prefix=prefix,
            cut_at_spaces=cut_at_spaces,
        )
        tokenizer.vocab |= {i: token.encode() for token, i in whole.items()}
        return tokenizer


def words(text: str) -> list[str]:
    """Cut before every ▁."""
    first, *rest = text.split(SPACE)
    return ([first] if first else []) + [SPACE + word for word in rest]


def byte_table(tokens: Mapping[str, int]) -> list[int]:
    """`<0x41>` and its like -> the ids of the 256 bytes, or nothing where there are none."""
    if not tokens:
        return []
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in tokens]
    if missing:
        raise ValueError(f"there are tokens for single bytes, but not for byte {missing[0]}")
    return [tokens[f"<0x{byte:02X}>"] for byte in range(256)]


def spacing(normalizer: Any, pre_tokenizer: Any) -> tuple[Prefix, bool]:
    """What a `tokenizer.json` does with spaces: (what it puts before a text, whether it cuts at spaces)."""
    steps = normalizer["normalizers"] if normalizer and normalizer.get("type") == "Sequence" else [normalizer]
    steps = [step for step in steps if step is not None]
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    match pre_tokenizer:
        case None | {"type": "Split", "pattern": {"String": " "}}:  # a normalizer has left no space to cut at
            if steps == [prepend, replace]:
                return "always", False
            if steps == [replace]:
                return "never", False
        case {"type": "Metaspace", "replacement": "▁"} if not steps:
            scheme = pre_tokenizer.get("prepend_scheme")
            if scheme is None:
                scheme = "always" if pre_tokenizer.get("add_prefix_space", True) else "never"
            cut = pre_tokenizer.get("split", True)
            if scheme == "never":
                return "never", cut
            if scheme in ("always", "first"):
                return ("always unless there" if scheme == "always" else "first unless there"), cut
    raise ValueError(f"we do not know the normalizer {normalizer!r:.200} with {pre_tokenizer!r:.200}")


@dataclass
class ModelFile:
    """What we need of a `tokenizer.model`."""

    pieces: list[str]
    scores: list[float]
    kinds: list[int]
    add_dummy_prefix: bool = True


def read_model_file(data: bytes) -> ModelFile:
    """Read SentencePiece's file: a message in Google's protocol buffers, three fields of which matter.

    Field 1, repeated, is a piece: 1 its text, 2 its score, 3 its kind. Field 2 holds how it was trained: 3
    the kind of model (2: BPE), 24 whether spaces come at the end of words. Field 3 says how text is
    normalized: 2 a compiled table, 3 whether a space is put before it, 4 whether spaces are squeezed, 5
    whether they become ▁. Source: google/sentencepiece `src/sentencepiece_model.proto`.
    """
    model = ModelFile([], [], [])
    training: dict[int, Any] = {}
    normalization: dict[int, Any] = {}
    for field, value in fields(data):
        if field in (1, 2, 3) and not isinstance(value, bytes):
            raise ValueError("this is no SentencePiece model, or a damaged one")
        if field == 1:
            piece = {1: b"", 2: bytes(4), 3: NORMAL, **dict(fields(value))}
            text, score, kind = piece[1], piece[2], piece[3]
            if not (
                isinstance(text, bytes)
                and isinstance(score, bytes)
                and len(score) == 4
                and isinstance(kind, int)
            ):
                raise ValueError(f"piece {len(model.pieces)} of this SentencePiece model is damaged")
            model.pieces.append(text.decode("utf-8"))
            model.scores.append(struct.unpack("<f", score)[0])
            model.kinds.append(kind)
        elif field == 2:
            training = dict(fields(value))
        elif field == 3:
            normalization = dict(fields(value))
    if not model.pieces:
        raise ValueError("this is no SentencePiece model: it holds no pieces")
    if (kind := training.get(3, 1)) != 2:
        raise ValueError(f"a SentencePiece model of kind {kind}; we read BPE, which is 2, and not Unigram, 1")
    refused = {
        "spaces at the end of words": training.get(24, 0),
        "a table of normalizations": normalization.get(2, b""),
        "squeezing of spaces": normalization.get(4, 1),
        "spaces left as they are": not normalization.get(5, 1),
    }
    for what, wanted in refused.items():
        if wanted:
            raise ValueError(f"this SentencePiece model wants {what}, which we do not do")
    model.add_dummy_prefix = bool(normalization.get(3, 1))
    return model


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protocol-buffer message: integers, and bytes for all else."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ValueError("the SentencePiece model ends in the middle of a number: it is damaged")
            value |= (data[at] & 127) << shift
            at += 1
            if data[at - 1] < 128:
                return value
            shift += 7

    while at < len(data):
        tag = varint()
        size = {1: 8, 5: 4}.get(tag & 7)
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        if tag & 7 == 2:
            size = varint()
        if size is None or size > len(data) - at:
            raise ValueError(f"the SentencePiece model is damaged at byte {at} of {len(data)}")
        at += size
        yield tag >> 3, data[at - size : at]
