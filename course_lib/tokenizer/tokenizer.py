"""`Tokenizer`: text to ids and back, over any published byte-level BPE vocabulary or one of our own."""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

from course_lib.tokenizer.bpe import Pair, decode, encode_chunk, encode_long_chunk, train_bpe
from course_lib.tokenizer.detokenize import IncrementalDetokenizer
from course_lib.tokenizer.formats import byte_to_unicode, pair_ranks, read_ranks, unicode_to_byte
from course_lib.tokenizer.pretokenize import ALL_PRETOKENIZERS, BYTE_LEVEL, described, from_description
from course_lib.tokenizer.special import split_special_tokens

LONG_CHUNK = 128  # bytes; from about here on the heap is faster than the plain loop
CACHED_CHUNKS = 1 << 17  # chunks of text follow Zipf's law: a few thousand make up almost all of a corpus
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # GGUF's and SentencePiece's kinds
# llama.cpp's names of pre-tokenizers -> ours.
GGUF_PRETOKENIZERS = {
    "gpt-2": "gpt2",
    "default": "gpt2",
    "gpt-4": "cl100k",
    "llama-bpe": "llama3",
    "llama-v3": "llama3",
    "smaug-bpe": "llama3",
}


class Tokenizer:
    """A byte-level BPE tokenizer.

    tokens            token -> id, without the special tokens
    ranks             pair of tokens -> rank; the lowest rank merges first
    pretokenizer      how text is cut into chunks before any merge: a name in `ALL_PRETOKENIZERS`, or steps as
                      a `tokenizer.json` describes them
    special           special token -> id
    whole_chunk_first a chunk that is itself a token is not merged but looked up (as tiktoken does)
    added             token -> id: strings that are one token wherever they stand, without being special
    normal_form       a form of Unicode, such as "NFC", that text is brought into first
    """

    def __init__(
        self,
        tokens: Mapping[bytes, int],
        ranks: Mapping[Pair, int],
        pretokenizer: str | Mapping[str, Any] = "gpt2",
        special: Mapping[str, int] | None = None,
        whole_chunk_first: bool = False,
        added: Mapping[str, int] | None = None,
        normal_form: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = None,
    ) -> None:
        if isinstance(pretokenizer, str) and pretokenizer not in ALL_PRETOKENIZERS:
            raise ValueError(
                f"unknown pretokenizer {pretokenizer!r}; there are {', '.join(ALL_PRETOKENIZERS)}"
            )
        self.tokens = dict(tokens)
        self.ranks = dict(ranks)
        self.pretokenizer = pretokenizer
        self.special_tokens = dict(special or {})
        self.whole_chunk_first = whole_chunk_first
        self.added = dict(added or {})
        self.normal_form = normal_form
        self.vocab: dict[int, bytes] = {i: token for token, i in self.tokens.items()}
        self.vocab |= {i: token.encode() for token, i in (self.special_tokens | self.added).items()}
        if len(self.vocab) != len(self.tokens) + len(self.special_tokens) + len(self.added):
            raise ValueError("two tokens share an id; every token needs one of its own")
        self.printed = self.vocab | dict.fromkeys(self.special_tokens.values(), b"")  # what a reader is shown
        self.missing_bytes = bytes(byte for byte in range(256) if bytes([byte]) not in self.tokens)
        self._cut: Callable[[str], list[str]]
        if isinstance(pretokenizer, str):
            self._cut = ALL_PRETOKENIZERS[pretokenizer]
        else:
            self._cut = from_description(pretokenizer)
        self._chunk_ids = _ChunkCache(self._encode_chunk)

    def __repr__(self) -> str:
        special = len(self.special_tokens)
        cut = self.pretokenizer if isinstance(self.pretokenizer, str) else "its own pre-tokenizer"
        return f"Tokenizer({len(self.vocab)} tokens, {special} of them special, {cut})"

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
        at = 0
        for piece, is_whole in split_special_tokens(text, [*allowed_special, *self.added]):
            if is_whole:
                ids.append(self.special_tokens[piece] if piece in self.special_tokens else self.added[piece])
            else:
                ids.extend(self._encode_text(piece, first=at == 0))
            at += len(piece)
        return ids

    def _encode_text(self, text: str, first: bool) -> Iterable[int]:
        """Ids of a text that holds no whole tokens; `first`: nothing stands before it."""
        if self.normal_form and not unicodedata.is_normalized(self.normal_form, text):
            text = unicodedata.normalize(self.normal_form, text)
        return chain.from_iterable(map(self._chunk_ids.__getitem__, self._cut(text)))

    def cover(self, size: int) -> None:
        """Let every id below `size` be decoded: those without a token stand for nothing.

        Embedding tables are often longer than the vocabulary, and nothing keeps a model from choosing a row
        that has no token.
        """
        for i in range(size):
            self.vocab.setdefault(i, b"")
            self.printed.setdefault(i, b"")

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
        cut = ALL_PRETOKENIZERS[pretokenizer]
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
        """The byte-level tokenizer that a GGUF file carries in its metadata, under `tokenizer.ggml.*`.

        `ValueError` if it is not byte-level BPE (`tokenizer.ggml.model` other than "gpt2"), or if we do
        not know its pre-tokenizer. For any kind there is `course_lib.tokenizer.files.tokenizer_from_gguf`.
        """
        if (model := metadata.get("tokenizer.ggml.model")) != "gpt2":
            raise ValueError(f"a GGUF tokenizer of kind {model!r}; we read byte-level BPE ('gpt2') here")
        name = metadata.get("tokenizer.ggml.pre", "gpt2")
        pretokenizer = GGUF_PRETOKENIZERS.get(name, name)
        strings: Sequence[str] = metadata["tokenizer.ggml.tokens"]
        types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(strings)
        special = {s: i for i, s in enumerate(strings) if types[i] == CONTROL}
        added = {s: i for i, s in enumerate(strings) if types[i] == USER_DEFINED}
        to_byte = unicode_to_byte()
        tokens = {
            bytes(map(to_byte.__getitem__, s)): i for i, s in enumerate(strings) if types[i] in (NORMAL, BYTE)
        }
        ranks = {}
        for rank, merge in enumerate(metadata["tokenizer.ggml.merges"]):
            left, right = (bytes(map(to_byte.__getitem__, part)) for part in merge.split(" "))
            ranks[left, right] = rank
        return cls(
            tokens,
            ranks,
            pretokenizer,
            special,
            whole_chunk_first=pretokenizer == "llama3",
            added=added,
            normal_form="NFC" if pretokenizer == "qwen2" else None,
        )

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json` that `load` reads, and Hugging Face's `tokenizers` too."""
        alphabet = byte_to_unicode()

        def written(token: bytes) -> str:
            return "".join(alphabet[byte] for byte in token)

        def order(pair: Pair) -> tuple[int, int, int]:
            return self.ranks[pair], self.tokens[pair[0]], self.tokens[pair[1]]

        tokens = sorted(self.tokens.items(), key=lambda item: item[1])
        special = sorted((self.special_tokens | self.added).items(), key=lambda item: item[1])
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        content = {
            "version": "1.0",
            "added_tokens": [
                {"id": i, "content": token, **plain, "special": token in self.special_tokens}
                for token, i in special
            ],
            "normalizer": {"type": self.normal_form} if self.normal_form else None,
            "pre_tokenizer": (
                described(self.pretokenizer) if isinstance(self.pretokenizer, str) else self.pretokenizer
            ),
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
        """Read a `tokenizer.json` of byte-level BPE, as `save` or Hugging Face's `tokenizers` writes it.

        Raises:
            ValueError: it holds something that we would get wrong; for SentencePiece-style BPE there is
                `course_lib.tokenizer.files.read_tokenizer_json`.
        """
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        model = content["model"]
        check_model(model)
        special, added = added_tokens(content)
        names = [name for name in ALL_PRETOKENIZERS if described(name) == content["pre_tokenizer"]]
        to_byte = unicode_to_byte()

        def read(token: str) -> bytes:
            try:
                return bytes(map(to_byte.__getitem__, token))
            except KeyError as error:
                raise ValueError(
                    f"the token {token!r:.80} is not written in GPT-2's alphabet of bytes"
                ) from error

        whole = special | added
        tokens = {read(token): i for token, i in model["vocab"].items() if token not in whole}
        pairs = [(read(left), read(right)) for left, right in split_merges(model["merges"])]
        order: Sequence[int] = range(len(pairs))
        if first := model.get("ignore_merges", False):
            # In a tiktoken vocabulary all cuts of a token share its rank, which is its id.
            ids = [tokens.get(left + right, -1) for left, right in pairs]
            order = ids if ids == sorted(ids) else order
        ranks = dict(zip(pairs, order, strict=True))
        return cls(
            tokens,
            ranks,
            names[0] if names else content["pre_tokenizer"],
            special,
            first,
            added,
            normal_form(content.get("normalizer")),
        )


def added_tokens(content: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """(special tokens, other added tokens) of a `tokenizer.json`."""
    special: dict[str, int] = {}
    added: dict[str, int] = {}
    for token in content.get("added_tokens") or []:
        if odd := [name for name in ("single_word", "lstrip", "rstrip") if token.get(name)]:
            raise ValueError(
                f"the added token {token['content']!r} is to be found by {odd[0]}, which we do not do"
            )
        (special if token.get("special") else added)[token["content"]] = token["id"]
    return special, added


def check_model(model: Mapping[str, Any]) -> None:
    """Refuse what is not plain BPE."""
    if (kind := model.get("type", "BPE")) != "BPE":
        raise ValueError(f"a vocabulary of kind {kind!r}; we read BPE only")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise ValueError(f"BPE with {option} = {model[option]!r}, which we do not do")


def split_merges(merges: Iterable[str | Sequence[str]]) -> Iterable[tuple[str, str]]:
    """Older files write a merge as "a b", newer ones as ["a", "b"]."""
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def normal_form(step: Mapping[str, Any] | None) -> Any:
    """The form of Unicode that a `tokenizer.json` asks for as its normalizer."""
    if step and step.get("type") == "Sequence" and len(step["normalizers"]) <= 1:
        step = step["normalizers"][0] if step["normalizers"] else None
    if step is None:
        return None
    if step.get("type") not in ("NFC", "NFD", "NFKC", "NFKD"):
        raise ValueError(f"we do not know the normalizer {step!r:.300}")
    return step["type"]


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
