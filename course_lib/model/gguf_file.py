"""Reads GGUF, the one-file model format of llama.cpp: metadata, then a tensor directory, then the weights.

The layout, all little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):

    magic "GGUF" | version u32 | tensor count u64 | metadata count u64
    metadata:   key string | value type u32 | value                        (a string is: length u64, bytes)
    directory:  name string | dimensions u32 | sizes u64... | type u32 | offset u64
    padding to the alignment, then every tensor at its offset

Nothing in the file is believed before it is checked against the file's size, and nothing in it is executed.
"""

import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_lib.model.errors import CheckpointError
from course_lib.model.gguf_blocks import DECODERS, TYPE_NAMES

# Metadata value types 0 to 12; 8 is a string and 9 an array of another type.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4


class Reader:
    """Walks through the header; refuses to step over the end of the file."""

    def __init__(self, data: mmap.mmap, path: Path):
        self.data, self.path, self.at = data, path, 0

    def take(self, size: int, what: str) -> bytes:
        if size > len(self.data) - self.at:
            raise CheckpointError(
                f"{self.path.name} ends inside {what}: {size} bytes are needed at byte {self.at} of "
                f"{len(self.data)}. The file is truncated or damaged; fetch it again."
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def scalar(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def string(self, what: str) -> str:
        return self.take(self.scalar("Q", what), what).decode("utf-8", errors="replace")

    def value(self, kind: int, what: str) -> Any:
        if kind == STRING:
            return self.string(what)
        if kind in SCALARS:
            return self.scalar(SCALARS[kind], what)
        if kind != ARRAY:
            raise CheckpointError(f"{self.path.name}: {what} has the unknown value type {kind}.")
        kind, count = self.scalar("I", what), self.scalar("Q", what)
        if kind in SCALARS:  # one unpack for the whole array: vocabularies hold 50,000 of them and more
            size = struct.calcsize("<" + SCALARS[kind])
            return list(struct.unpack(f"<{count}{SCALARS[kind]}", self.take(count * size, what)))
        if kind != STRING:
            raise CheckpointError(f"{self.path.name}: {what} is an array of the unsupported type {kind}.")
        return [self.string(what) for _ in range(min(count, len(self.data)))]


@dataclass(frozen=True)
class GGUFTensor:
    """One entry of the directory. `shape` is in PyTorch's order: rows first (GGUF stores it reversed)."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: Tensor  # uint8, a view of the mapped file

    def dequantize(self) -> Tensor:
        """The weights as float32, of shape `shape`."""
        _, size, decode = DECODERS[self.type]
        return decode(self.data.view(-1, size)).reshape(self.shape)


@dataclass(frozen=True)
class GGUFFile:
    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf(path: str | Path) -> GGUFFile:
    """Read the header of a GGUF file (version 2 or 3); the weights stay on disk until they are asked for.

    Raises:
        CheckpointError: not a GGUF file, truncated, or with a tensor type that we cannot decode.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    if path.stat().st_size < 24:
        raise CheckpointError(f"{path.name} is {path.stat().st_size} bytes long: too short for a GGUF file.")
    with path.open("rb") as file:
        # A private copy-on-write map: torch wants writable memory, the file itself is never written.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    reader = Reader(mapped, path)
    if (magic := reader.take(4, "the magic number")) != b"GGUF":
        raise CheckpointError(f"{path.name} does not start with 'GGUF' but with {magic!r}: not a GGUF file.")
    if (version := reader.scalar("I", "the version")) not in (2, 3):
        raise CheckpointError(f"{path.name} is GGUF version {version}; versions 2 and 3 are supported.")
    tensor_count = reader.scalar("Q", "the tensor count")
    metadata_count = reader.scalar("Q", "the metadata count")

    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key = reader.string("a metadata key")
        if key in metadata:
            raise CheckpointError(f"{path.name} holds the metadata {key!r} twice; it is damaged.")
        metadata[key] = reader.value(reader.scalar("I", key), f"the metadata {key!r}")

    entries = []
    for _ in range(tensor_count):
        name = reader.string("a tensor's name")
        dimensions = reader.scalar("I", name)
        if dimensions > MAX_DIMENSIONS:
            raise CheckpointError(
                f"{path.name}: tensor {name} claims {dimensions} dimensions; at most 4 exist."
            )
        sizes = [reader.scalar("Q", name) for _ in range(dimensions)]
        entries.append((name, tuple(reversed(sizes)), reader.scalar("I", name), reader.scalar("Q", name)))

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise CheckpointError(
            f"{path.name} gives the alignment {alignment!r}; expected a whole number from 1 up."
        )
    start = -(-reader.at // alignment) * alignment
    raw = torch.frombuffer(mapped, dtype=torch.uint8)
    tensors: dict[str, GGUFTensor] = {}
    spans = []
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise CheckpointError(f"{path.name} holds the tensor {name} twice; it is damaged.")
        size = tensor_bytes(name, shape, kind, path)
        if start + offset + size > len(mapped):
            raise CheckpointError(
                f"{path.name} ends inside tensor {name}: it should reach byte {start + offset + size}, "
                f"but the file has {len(mapped)}. The file is truncated; fetch it again."
            )
        tensors[name] = GGUFTensor(name, shape, kind, raw[start + offset : start + offset + size])
        spans.append((offset, offset + size, name))
    for (_, end, name), (begin, _, other) in pairwise(sorted(spans)):
        if begin < end:
            raise CheckpointError(
                f"{path.name}: the tensors {name} and {other} overlap; the file is damaged."
            )
    return GGUFFile(path, metadata, tensors)


def tensor_bytes(name: str, shape: tuple[int, ...], kind: int, path: Path) -> int:
    """Bytes that a tensor of this shape and type takes in the file."""
    if kind not in DECODERS:
        raise CheckpointError(
            f"{path.name}: tensor {name} has the GGUF type {kind}, which is not supported. Supported are "
            f"{', '.join(sorted(TYPE_NAMES[known] for known in DECODERS))}."
        )
    block, size, _ = DECODERS[kind]
    row = shape[-1] if shape else 1
    if row % block:
        raise CheckpointError(
            f"{path.name}: tensor {name} has rows of {row} weights, "
            f"no multiple of {TYPE_NAMES[kind]}'s {block}."
        )
    count = 1
    for length in shape:
        count *= length
    return count // block * size
