"""`Tokenizer`: text to ids and back, over any published byte-level BPE vocabulary or one of our own."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

from course_lib.tokenizer.bpe import Pair, decode, encode_chunk, encode_long_chunk, train_bpe
from course_lib.tokenizer.detokenize import IncrementalDetokenizer
from course_lib.tokenizer.formats import byte_to_unicode, pair_ranks, read_ranks, unicode_to_byte
from course_lib.tokenizer.pretokenize import CL100K_PATTERN, PRETOKENIZERS
from course_lib.tokenizer.special import split_special_tokens

LONG_CHUNK = 128  # bytes; from about here on the heap is faster than the plain loop
CACHED_CHUNKS = 1 << 17  # chunks of text follow Zipf's law: a few thousand make up almost all of a corpus
CONTROL_TOKEN = 3  # GGUF's token types: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


class Tokenizer:
    """A byte-level BPE tokenizer.

    tokens            token -> id, without the special tokens
    ranks             pair of tokens -> rank; the lowest rank merges first
    pretokenizer      a name in `PRETOKENIZERS`: how text is cut into chunks before any merge
    special           special token -> id
    whole_chunk_first a chunk that is itself a token is not merged but looked up (as tiktoken does)
    """

    def __init__(
        self,
        tokens: Mapping[bytes, int],
        ranks: Mapping[Pair, int],
        pretokenizer: str = "gpt2",
        special: Mapping[str, int] | None = None,
        whole_chunk_first: bool = False,
    ) -> None:
        if pretokenizer not in PRETOKENIZERS:
            raise ValueError(f"unknown pretokenizer {pretokenizer!r}; there are {', '.join(PRETOKENIZERS)}")
        self.tokens = dict(tokens)
        self.ranks = dict(ranks)
        self.pretokenizer = pretokenizer
        self.special_tokens = dict(special or {})
        self.whole_chunk_first = whole_chunk_first
        self.vocab: dict[int, bytes] = {i: token for token, i in self.tokens.items()}
        self.vocab |= {i: token.encode() for token, i in self.special_tokens.items()}
        if len(self.vocab) != len(self.tokens) + len(self.special_tokens):
            raise ValueError("two tokens share an id; every token needs one of its own")
        self.printed = self.vocab | dict.fromkeys(self.special_tokens.values(), b"")  # what a reader is shown
        self.missing_bytes = bytes(byte for byte in range(256) if bytes([byte]) not in self.tokens)
        self._cut = PRETOKENIZERS[pretokenizer]
        self._chunk_ids = _ChunkCache(self._encode_chunk)

    def __repr__(self) -> str:
        special = len(self.special_tokens)
        return f"Tokenizer({len(self.vocab)} tokens, {special} of them special, {self.pretokenizer})"

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the number of rows an embedding table needs."""
        return max(self.vocab) + 1

    def encode(self, text: str, allowed_special: Collection[str] | Literal["all"] = ()) -> list[int]:
        """Return the ids of `text`.

        Only the special tokens that `allowed_special` names are recognized; the others' characters are
        ordinary text. So what a user types can never end a turn or open a new one.
        """
        if allowed_special == "all":
            allowed_special = self.special_tokens
        unknown = [token for token in allowed_special if token not in self.special_tokens]
        if unknown:
            raise ValueError(f"not special tokens of this vocabulary: {', '.join(map(repr, unknown))}")
        ids: list[int] = []
        for piece, is_special in split_special_tokens(text, allowed_special):
            if is_special:
                ids.append(self.special_tokens[piece])
            else:
                ids.extend(chain.from_iterable(map(self._chunk_ids.__getitem__, self._cut(piece))))
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD. `KeyError` for an unknown id."""
        return decode(ids, self.printed if skip_special else self.vocab)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of `ids`: unlike `decode` this loses nothing."""
        return b"".join(self.vocab[i] for i in ids)

    def detokenizer(self, skip_special: bool = True) -> IncrementalDetokenizer:
        """A new `IncrementalDetokenizer` for one stream of ids."""
        return IncrementalDetokenizer(self.printed if skip_special else self.vocab)

    def _encode_chunk(self, chunk: str) -> Sequence[int]:
        try:
            data = chunk.encode()
        except UnicodeEncodeError:  # half a surrogate pair has no UTF-8: U+FFFD, as in tiktoken
            data = chunk.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        if self.whole_chunk_first and data in self.tokens:
            return [self.tokens[data]]
        if self.missing_bytes:
            data = data.translate(None, self.missing_bytes)  # Hugging Face's tokenizers drops them too
        encode = encode_chunk if len(data) < LONG_CHUNK else encode_long_chunk
        return encode(data, self.ranks, self.tokens)

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        vocab_size: int,
        pretokenizer: str = "gpt2",
        special: Collection[str] = (),
    ) -> Self:
        """Train on one text or several; of the `vocab_size` tokens the last are the special ones."""
        cut = PRETOKENIZERS[pretokenizer]
        chunks: Counter[bytes] = Counter()
        for text in [texts] if isinstance(texts, str) else texts:
            for chunk, n in Counter(cut(text)).items():
                chunks[chunk.encode()] += n
        merges = train_bpe(chunks, vocab_size - len(special))
        tokens = {bytes([byte]): byte for byte in range(256)}
        for left, right in merges:
            tokens.setdefault(left + right, len(tokens))
        first = len(tokens)
        return cls(
            tokens,
            {pair: rank for rank, pair in enumerate(merges)},
            pretokenizer,
            {token: first + i for i, token in enumerate(special)},
        )

    @classmethod
    def from_ranks(
        cls,
        ranks: Mapping[bytes, int] | str | Path,
        pretokenizer: str,
        special: Mapping[str, int] | None = None,
    ) -> Self:
        """A tiktoken vocabulary: a table token -> rank (or its file); a token's rank is its id too."""
        table = read_ranks(ranks) if isinstance(ranks, str | Path) else ranks
        return cls(table, pair_ranks(table), pretokenizer, special, whole_chunk_first=True)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """The tokenizer that a GGUF file carries in its metadata, under the keys `tokenizer.ggml.*`.

        `ValueError` if it is not byte-level BPE (`tokenizer.ggml.model` other than "gpt2"), or if we do
        not know its pre-tokenizer.
        """
        if (model := metadata.get("tokenizer.ggml.model")) != "gpt2":
            raise ValueError(f"a GGUF tokenizer of kind {model!r}; we read byte-level BPE ('gpt2') only")
        name = metadata.get("tokenizer.ggml.pre", "gpt2")
        pretokenizer = {"gpt-2": "gpt2", "default": "gpt2", "gpt-4": "cl100k"}.get(name, name)
        strings: Sequence[str] = metadata["tokenizer.ggml.tokens"]
        types = metadata.get("tokenizer.ggml.token_type") or [1] * len(strings)
        special = {s: i for i, s in enumerate(strings) if types[i] == CONTROL_TOKEN}
        to_byte = unicode_to_byte()
        as_bytes = {s: bytes(map(to_byte.__getitem__, s)) for s in strings if s not in special}
        tokens = {as_bytes[s]: i for i, s in enumerate(strings) if s not in special}
        ranks = {}
        for rank, merge in enumerate(metadata["tokenizer.ggml.merges"]):
            left, right = merge.split(" ")
            ranks[as_bytes[left], as_bytes[right]] = rank
        return cls(tokens, ranks, pretokenizer, special)

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json` that `load` reads, and Hugging Face's `tokenizers` too."""
        alphabet = byte_to_unicode()

        def written(token: bytes) -> str:
            return "".join(alphabet[byte] for byte in token)

        def order(pair: Pair) -> tuple[int, int, int]:
            return self.ranks[pair], self.tokens[pair[0]], self.tokens[pair[1]]

        tokens = sorted(self.tokens.items(), key=lambda item: item[1])
        special = sorted(self.special_tokens.items(), key=lambda item: item[1])
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        content = {
            "version": "1.0",
            "added_tokens": [{"id": i, "content": token, **plain, "special": True} for token, i in special],
            "normalizer": None,
            "pre_tokenizer": _hugging_face_pretokenizer(self.pretokenizer),
            "post_processor": None,
            "decoder": BYTE_LEVEL,
            "model": {
                "type": "BPE",
                "ignore_merges": self.whole_chunk_first,
                "vocab": {written(token): i for token, i in tokens},
                "merges": [[written(left), written(right)] for left, right in sorted(self.ranks, key=order)],
            },
        }
        Path(path).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. `ValueError` if its pre-tokenizer is none of ours."""
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        known = [
            name for name in PRETOKENIZERS if _hugging_face_pretokenizer(name) == content["pre_tokenizer"]
        ]
        if not known:
            raise ValueError(f"{path}: we do not know the pre-tokenizer {content['pre_tokenizer']}")
        to_byte = unicode_to_byte()

        def read(token: str) -> bytes:
            return bytes(map(to_byte.__getitem__, token))

        model = content["model"]
        tokens = {read(token): i for token, i in model["vocab"].items()}
        ranks: dict[Pair, int] = {}
        for rank, (left, right) in enumerate(model["merges"]):
            pair = (read(left), read(right))
            # In a tiktoken vocabulary all cuts of a token share its rank, which is its id.
            ranks[pair] = tokens[pair[0] + pair[1]] if model["ignore_merges"] else rank
        special = {token["content"]: token["id"] for token in content["added_tokens"]}
        return cls(tokens, ranks, known[0], special, model["ignore_merges"])


class _ChunkCache(dict[str, Sequence[int]]):
    """Remembers the ids of chunks; `cache[chunk]` runs at C speed when it knows the chunk already."""

    def __init__(self, encode: Any) -> None:
        super().__init__()
        self.encode = encode

    def __missing__(self, chunk: str) -> Sequence[int]:
        ids = self.encode(chunk)
        if len(chunk) < LONG_CHUNK:  # long chunks rarely come twice, and would let one text fill the memory
            if len(self) >= CACHED_CHUNKS:
                self.clear()
            self[chunk] = ids
        return ids


def _hugging_face_pretokenizer(name: str) -> dict[str, Any]:
    """Our pretokenizers in the terms of a `tokenizer.json`."""
    if name == "gpt2":
        return BYTE_LEVEL
    if name == "smollm":
        steps = [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]
    else:
        pattern = {"Regex": CL100K_PATTERN}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        steps = [split, BYTE_LEVEL | {"use_regex": False}]
    return {"type": "Sequence", "pretokenizers": steps}
