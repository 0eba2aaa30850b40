"""Text on disk as the training loop reads it: shards of tokens, with a manifest that says what they hold.

    corpus = prepare([text], tokenizer, Path("data/tokens/train"))
    loader = TokenLoader(corpus.paths, batch_size=16, block_size=256)

A folder of shards is complete exactly when its `manifest.json` is there, because that is written last.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt

from course_lib.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
SHARD_TOKENS = 50_000_000  # 100 MB in uint16
FORMAT = 1


class ShardError(ValueError):
    """A file of tokens that is not what it should be. The message says which, and what to do."""


@dataclass(frozen=True)
class Shard:
    """One file of tokens, as the manifest describes it."""

    name: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """What a prepared folder holds.

    tokens      all tokens, one <|endoftext|> a document included
    text_bytes  bytes of UTF-8 that they stand for
    documents   how many texts there were
    """

    folder: Path
    tokens: int
    text_bytes: int
    documents: int
    shards: tuple[Shard, ...]

    @property
    def paths(self) -> list[Path]:
        """The shards' files, in order."""
        return [self.folder / shard.name for shard in self.shards]

    @property
    def bytes_per_token(self) -> float:
        """Bits per byte are a loss in nats a token, divided by ln 2 and by this."""
        return self.text_bytes / self.tokens


def prepare(
    texts: Iterable[str], tokenizer: Tokenizer, folder: str | Path, shard_tokens: int = SHARD_TOKENS
) -> Corpus:
    """Encode documents into shards under `folder`, or find that this has been done.

    Each document is followed by `<|endoftext|>`, if the tokenizer has that token. What the folder holds is
    used again if its manifest is of the same texts, tokenizer and shard size, and its files are whole.

    Args:
        texts: one document each; gone through twice, so a list or anything else that can be.
        tokenizer: ids below 65,536 are stored in two bytes, others in four.
        folder: made if it is not there. Any shards in it that do not fit are replaced.
        shard_tokens: how many tokens a file holds; the last one holds the rest.

    Raises:
        TypeError: `texts` is a generator or another iterator, which can be gone through only once.
        ValueError: there is no token at all.
        OSError: the disk is full or not writable. No half-written shard is ever taken for a whole one.
    """
    folder = Path(folder)
    texts = [texts] if isinstance(texts, str) else texts
    if iter(texts) is texts:
        raise TypeError(f"texts is a {type(texts).__name__}, which can be read only once; give a list")
    wanted = {
        "format": FORMAT,
        "texts_sha256": _digest(text.encode() for text in texts),
        "tokenizer": _describe(tokenizer),
        "shard_tokens": shard_tokens,
    }
    manifest = folder / "manifest.json"
    if manifest.is_file():
        try:
            stored = _read(manifest)
            if all(stored.get(key) == value for key, value in wanted.items()):
                return load(folder)
        except ShardError:
            pass  # the texts are at hand: make the shards anew
        manifest.unlink()

    folder.mkdir(parents=True, exist_ok=True)
    for half in folder.glob("*.part"):  # of a process that was killed
        half.unlink()
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    shards: list[Shard] = []
    for tokens in _cut(_encoded(texts, tokenizer), shard_tokens, dtype):
        path = folder / f"shard_{len(shards):05}.npy"
        with whole_file(path) as file:
            np.save(file, tokens)
        shards.append(Shard(path.name, len(tokens), _sha256(path)))
    if not shards:
        raise ValueError("texts holds not one token; give at least one document that is not empty")
    for stray in folder.glob("shard_*.npy"):
        if stray.name not in {shard.name for shard in shards}:
            stray.unlink()
    sizes = [len(text.encode()) for text in texts]
    content = wanted | {
        "tokens": sum(shard.tokens for shard in shards),
        "text_bytes": sum(sizes),
        "documents": len(sizes),
        "shards": [asdict(shard) for shard in shards],
    }
    with whole_file(manifest) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
    return load(folder, verify=False)


def load(folder: str | Path, verify: bool = True) -> Corpus:
    """Read a prepared folder's manifest and see that its shards are there and whole.

    With `verify` every byte is read and compared with its sha256 (about a second a gigabyte); without, sizes
    only.

    Raises:
        ShardError: there is no manifest, or a shard is missing, truncated or corrupt.
    """
    folder = Path(folder)
    content = _read(folder / "manifest.json")
    try:
        shards = tuple(Shard(**shard) for shard in content["shards"])
        corpus = Corpus(folder, content["tokens"], content["text_bytes"], content["documents"], shards)
    except (KeyError, TypeError) as problem:
        raise ShardError(f"{folder / 'manifest.json'} is not a manifest of ours: {problem!r}") from None
    for shard, path in zip(shards, corpus.paths, strict=True):
        if (found := len(open_shard(path))) != shard.tokens:
            raise ShardError(f"{path} holds {found:,} tokens, its manifest says {shard.tokens:,}; {AGAIN}")
        if verify and _sha256(path) != shard.sha256:
            raise ShardError(f"{path} is corrupt: its sha256 is not the manifest's; {AGAIN}")
    return corpus


AGAIN = "delete the folder and prepare it again"


def open_shard(path: str | Path) -> UInt[np.ndarray, " tokens"]:
    """Map a shard into memory: nothing is read until it is used.

    Raises:
        ShardError: the file is missing, truncated, or no 1-D array of uint16 or uint32.
    """
    try:
        # As a plain array over the map: indexing np.memmap itself costs ten times as much.
        shard = np.asarray(np.load(path, mmap_mode="r"))
    except FileNotFoundError:
        raise ShardError(f"{path} is missing; {AGAIN}") from None
    except (ValueError, EOFError, OSError) as problem:
        raise ShardError(f"{path} cannot be read as a .npy file ({problem}); {AGAIN}") from None
    if shard.ndim != 1 or shard.dtype not in (np.uint16, np.uint32):
        raise ShardError(
            f"{path} holds {shard.dtype} of shape {shard.shape}; expected one axis of uint16 or uint32"
        )
    return shard


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when all of it is on the disk.

    If anything goes wrong meanwhile, a full disk or a kill, what stood there before is still there.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as problem:
        error = OSError(f"cannot write {path} ({problem}); is the disk full?")
        error.errno = problem.errno
        raise error from problem
    finally:
        part.unlink(missing_ok=True)


def _encoded(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    end = tokenizer.special_tokens.get(END_OF_TEXT)
    for text in texts:
        ids = tokenizer.encode(text)
        yield ids if end is None else [*ids, end]


def _cut(documents: Iterable[list[int]], size: int, dtype: type) -> Iterator[np.ndarray]:
    """The documents as one stream, cut into arrays of `size` tokens and a rest."""
    waiting: list[int] = []
    for ids in documents:
        waiting += ids
        while len(waiting) >= size:
            yield np.array(waiting[:size], dtype=dtype)
            waiting = waiting[size:]
    if waiting:
        yield np.array(waiting, dtype=dtype)


def _read(manifest: Path) -> dict[str, Any]:
    try:
        content = json.loads(manifest.read_bytes())
    except FileNotFoundError:
        raise ShardError(f"{manifest} is missing, so the folder was never finished; {AGAIN}") from None
    except ValueError as problem:
        raise ShardError(f"{manifest} cannot be read ({problem}); {AGAIN}") from None
    if not isinstance(content, dict):
        raise ShardError(f"{manifest} is not a manifest of ours; {AGAIN}")
    return content


def _describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer's identity: two with the same description encode alike."""
    rows = [f"{token.hex()} {i}" for token, i in sorted(tokenizer.tokens.items())]
    rows += [f"{a.hex()} {b.hex()} {rank}" for (a, b), rank in sorted(tokenizer.ranks.items())]
    rows += [f"{token} {i}" for token, i in sorted(tokenizer.special_tokens.items())]
    rows += [
        json.dumps(tokenizer.pretokenizer, sort_keys=True, default=dict),
        str(tokenizer.whole_chunk_first),
    ]
    return {"vocab_size": tokenizer.vocab_size, "sha256": _digest(row.encode() for row in rows)}


def _digest(pieces: Iterable[bytes]) -> str:
    """One sha256 of all pieces; their lengths count, so that ab + c is not a + bc."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(len(piece).to_bytes(8, "little"))
        total.update(piece)
    return total.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
