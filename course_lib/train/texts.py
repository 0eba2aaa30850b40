"""What to train on: the course's plays, a text of your own, or a known one by name."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from course_lib import assets
from course_lib.assets import AssetError
from course_lib.train.data import END_OF_TEXT, whole_file

HELD_OUT_SHARE = 0.05
SMALLEST = 10_000  # bytes: with less, not even a tokenizer has anything to learn from
TIMEOUT = 30  # seconds without a byte until a download counts as broken
SUFFIXES = (".txt", ".md", ".py", ".rst", ".org", ".tex")


@dataclass(frozen=True)
class Text:
    """Documents to train on, and one text that is held out."""

    name: str
    train: list[str]
    held_out: str


@dataclass(frozen=True)
class Download:
    """A text that others publish: what it is, its page, and how its documents come over the network."""

    title: str
    page: str
    documents: Callable[[], Iterator[str]]
    size: int  # bytes that are fetched at most


def read_text(source: str | Path) -> Text:
    """Read what `source` names: "corpus" (the plays), one of DOWNLOADS, a text file, or a folder of them.

    The plays come with their own held-out text. Of everything else the last twentieth is held out: the last
    documents of a folder, or the end of a single one, cut at an empty line where there is one.

    Raises:
        FileNotFoundError: there is no such name, file or folder.
        ValueError: the text is not UTF-8, or shorter than 10 kB.
        AssetError: a text by name is not here and cannot be fetched.
    """
    if source == "corpus":
        folder = assets.path("corpus")
        train, held_out = ((folder / name).read_text(encoding="utf-8") for name in ("train.txt", "valid.txt"))
        return Text("corpus", [train], held_out)
    if source in DOWNLOADS:
        return split(str(source), fetched(str(source)))
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise FileNotFoundError(f"{path} holds no text file ({', '.join(SUFFIXES)}).")
    elif path.is_file():
        files = [path]
    else:
        raise FileNotFoundError(
            f"There is no text {str(source)!r}: give a file, a folder, or one of corpus, "
            f"{', '.join(DOWNLOADS)}."
        )
    documents = []
    for file in files:
        try:
            documents.append(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as problem:
            raise ValueError(f"{file} is not UTF-8 text ({problem}); convert it, or leave it out.") from None
    return split(path.stem, documents)


def split(name: str, documents: list[str]) -> Text:
    """Hold out the end of the documents: whole ones if there are enough, else the end of the last."""
    documents = [document for document in documents if document.strip()]
    total = sum(len(document) for document in documents)
    if total < SMALLEST:
        raise ValueError(f"{name} has {total:,} characters of text; expected {SMALLEST:,} or more.")
    held_out: list[str] = []
    while len(documents) > 1 and sum(map(len, held_out)) + len(documents[-1]) <= HELD_OUT_SHARE * total:
        held_out.insert(0, documents.pop())
    if not held_out:
        last = documents.pop()
        cut = max(len(last) - int(HELD_OUT_SHARE * total), len(last) // 2)
        paragraph = last.find("\n\n", cut)
        cut = paragraph + 2 if 0 <= paragraph < len(last) - 100 else cut
        documents.append(last[:cut])
        held_out = [last[cut:]]
    return Text(name, documents, "\n\n".join(held_out))


def fetched(name: str) -> list[str]:
    """The documents of a text by name, from data/texts/ or, the first time, from the network."""
    path = assets.data_folder() / "texts" / f"{name}.txt"
    if not path.is_file():
        download = DOWNLOADS[name]
        if os.environ.get("COURSE_OFFLINE"):
            raise AssetError(
                f"{name} ({download.title}) is not at {path}, and COURSE_OFFLINE forbids to fetch it."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            documents = list(download.documents())
        except (urllib.error.URLError, TimeoutError, ConnectionError, json.JSONDecodeError) as problem:
            raise AssetError(
                f"{name} ({download.title}) could not be fetched from {download.page}: {problem}. "
                f"Try again online, or save the text as {path}."
            ) from problem
        with whole_file(path) as file:
            file.write(END_OF_TEXT.join(documents).encode())
    return path.read_text(encoding="utf-8").split(END_OF_TEXT)


def one_file(url: str, limit: int) -> Iterator[str]:
    """The documents of a text file on the web, up to `limit` bytes; END_OF_TEXT stands between them."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        rest = ""
        read = 0
        data = b""
        while read < limit and (piece := answer.read(1 << 20)):
            read += len(piece)
            # A character may be cut in two by the end of a piece: its first bytes wait for the rest.
            data += piece
            text = data.decode("utf-8", errors="ignore")
            data = data[len(text.encode("utf-8")) :]
            *whole, rest = (rest + text).split(END_OF_TEXT)
            yield from (document.strip() for document in whole)
    if rest.strip():
        yield rest


def rows(dataset: str, config: str, documents: int) -> Iterator[str]:
    """The first documents of a dataset on the Hugging Face Hub, through its viewer's API, 100 a request."""
    query = f"https://datasets-server.huggingface.co/rows?dataset={dataset}&config={config}&split=train"
    for offset in range(0, documents, 100):
        with urllib.request.urlopen(f"{query}&offset={offset}&length=100", timeout=TIMEOUT) as answer:
            for row in json.load(answer)["rows"]:
                yield row["row"]["text"].replace(END_OF_TEXT, "")


CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_STORIES = (
    "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-train.txt"
)
DOWNLOADS = {
    "tinyshakespeare": Download(
        "a megabyte of Shakespeare",
        "https://github.com/karpathy/char-rnn",
        partial(one_file, CHAR_RNN, 2**21),
        2**21,
    ),
    "tinystories": Download(
        "short stories in a small child's words, the first 100 MB",
        "https://huggingface.co/datasets/roneneldan/TinyStories",
        partial(one_file, TINY_STORIES, 100_000_000),
        100_000_000,
    ),
    "fineweb-edu": Download(
        "web pages of educational value, the first 5,000 of the sample",
        "https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu",
        partial(rows, "HuggingFaceFW/fineweb-edu", "sample-10BT", 5000),
        30_000_000,
    ),
}
