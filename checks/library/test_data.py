"""course_lib.train's data: shards, the loader, near-duplicates, packing, mixing, cleaning."""

import json
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import assets
from course_lib.tokenizer import Tokenizer
from course_lib.train import data
from course_lib.train.clean import clean_text, quality_problems
from course_lib.train.data import ShardError, prepare
from course_lib.train.dedup import clusters, jaccard, minhash_duplicates, shingles
from course_lib.train.loader import TokenLoader
from course_lib.train.mixing import mix
from course_lib.train.packing import document_ids, document_mask, loss_mask, pack_documents

TEXTS = ["Full fathom five thy father lies;", "", "Of his bones are coral made;\n" * 40, "Ding-dong. é€"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 300, special=["<|endoftext|>"])


@pytest.fixture
def make_shards(tmp_path):
    """Shards of consecutive integers, so that a token says where it comes from."""

    def make(*sizes: int) -> list[Path]:
        start, paths = 0, []
        for i, size in enumerate(sizes):
            paths.append(tmp_path / f"shard_{i:05}.npy")
            np.save(paths[-1], np.arange(start, start + size, dtype=np.uint32))
            start += size
        return paths

    return make


# shards


@pytest.mark.parametrize("shard_tokens", [7, 100, 10**6])
def test_the_shards_hold_every_document_followed_by_its_end(tokenizer, tmp_path, shard_tokens):
    corpus = prepare(TEXTS, tokenizer, tmp_path / "tokens", shard_tokens)
    ids = np.concatenate([np.load(path) for path in corpus.paths])
    assert tokenizer.decode_bytes(ids.tolist()) == b"".join(t.encode() + b"<|endoftext|>" for t in TEXTS)
    assert [len(np.load(path)) for path in corpus.paths[:-1]] == [shard_tokens] * (len(corpus.paths) - 1)
    assert ids.dtype == np.uint16
    assert corpus.tokens == len(ids)
    assert corpus.documents == 4
    assert corpus.text_bytes == sum(len(t.encode()) for t in TEXTS)


def test_a_vocabulary_beyond_two_bytes_is_stored_in_four(tmp_path):
    wide = Tokenizer({b"a": 0, b"b": 70_000}, {})
    corpus = prepare(["abba"], wide, tmp_path)
    shard = np.load(corpus.paths[0])
    assert (shard.dtype, shard.tolist()) == (np.uint32, [0, 70_000, 70_000, 0])


def test_what_fits_is_used_again_and_what_does_not_is_made_anew(tokenizer, tmp_path, monkeypatch):
    first = prepare(TEXTS, tokenizer, tmp_path, 50)
    calls = []

    def encode(self: Tokenizer, text: str) -> list[int]:
        calls.append(text)
        return [1, 2]

    monkeypatch.setattr(Tokenizer, "encode", encode)
    assert prepare(TEXTS, tokenizer, tmp_path, 50) == first
    assert not calls
    prepare(TEXTS[:3], tokenizer, tmp_path, 50)
    assert calls == TEXTS[:3]
    assert len(list(tmp_path.glob("*.npy"))) == 1  # the other shards of the first time are gone
    other = Tokenizer(tokenizer.tokens, dict(list(tokenizer.ranks.items())[:-1]))
    prepare(TEXTS[:3], other, tmp_path, 50)
    assert len(calls) == 6


def test_texts_that_can_be_read_only_once_are_refused(tokenizer, tmp_path):
    with pytest.raises(TypeError, match="only once"):
        prepare((text for text in TEXTS), tokenizer, tmp_path)
    with pytest.raises(ValueError, match="not one token"):
        prepare([], tokenizer, tmp_path)


@pytest.mark.parametrize(
    "harm", ["truncated", "one bit", "header", "missing", "no manifest", "no JSON", "wrong keys"]
)
def test_a_damaged_folder_is_an_error_and_prepare_mends_it(tokenizer, tmp_path, harm):
    corpus = prepare(TEXTS, tokenizer, tmp_path, 50)
    shard, manifest = corpus.paths[1], tmp_path / "manifest.json"
    content = bytearray(shard.read_bytes())
    match harm:
        case "truncated":
            shard.write_bytes(content[:-3])
        case "one bit":
            content[-1] ^= 4
            shard.write_bytes(content)
        case "header":
            shard.write_bytes(b"\0" * len(content))
        case "missing":
            shard.unlink()
        case "no manifest":
            manifest.unlink()
        case "no JSON":
            manifest.write_text("{")
        case "wrong keys":
            manifest.write_text(json.dumps({"tokens": 5}))
    with pytest.raises(
        ShardError,
        match="manifest.json" if "manifest" in harm or "JSON" in harm or "keys" in harm else shard.name,
    ):
        data.load(tmp_path)
    assert prepare(TEXTS, tokenizer, tmp_path, 50) == corpus
    assert data.load(tmp_path) == corpus


def test_a_file_that_is_no_shard_is_named(tmp_path):
    for name, array in (("floats", np.zeros(9)), ("table", np.zeros((3, 3), np.uint16))):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ShardError, match=name):
            TokenLoader([tmp_path / f"{name}.npy"], 1, 2)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    place = tmp_path / "file"
    place.write_text("before")

    def fill() -> None:
        with data.whole_file(place) as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"cannot write .*No space left") as caught:
        fill()
    assert caught.value.errno == 28
    assert place.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_process_killed_while_writing_leaves_no_whole_folder(tokenizer, tmp_path):
    """It dies inside the second shard; what is there is not taken for a corpus, and is replaced."""
    program = f"""
import os, signal, numpy as np
from course_lib.tokenizer import Tokenizer
from course_lib.train import data
tokenizer = Tokenizer.load({str(tmp_path / "tokenizer.json")!r})
save, calls = np.save, []
def dying(file, array):
    calls.append(1)
    save(file, array[:3] if len(calls) == 2 else array)
    if len(calls) == 2:
        file.flush(); os.kill(os.getpid(), signal.SIGKILL)
np.save = dying
data.prepare({TEXTS!r}, tokenizer, {str(tmp_path / "tokens")!r}, 50)
"""
    tokenizer.save(tmp_path / "tokenizer.json")
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -9
    assert len(list((tmp_path / "tokens").iterdir())) == 2  # a whole shard, and a .part
    with pytest.raises(ShardError, match="never finished"):
        data.load(tmp_path / "tokens")
    corpus = prepare(TEXTS, tokenizer, tmp_path / "tokens", 50)
    assert not list((tmp_path / "tokens").glob("*.part"))
    assert data.load(tmp_path / "tokens") == corpus


# the loader


def draw(loader: TokenLoader, steps: int) -> list[list[list[int]]]:
    """The inputs of some steps, the targets compared with them on the way."""
    found = []
    for _ in range(steps):
        x, y = loader.next_batch()
        assert x.shape == y.shape == (loader.batch_size, loader.block_size)
        assert x.dtype == y.dtype == np.int64
        np.testing.assert_array_equal(y, x + 1)  # the shards count upwards
        found.append(x.tolist())
    return found


def epochs(loader: TokenLoader, count: int) -> list[list[int]]:
    """The first token of each window, for `count` whole epochs of a loader of one window a step."""
    assert loader.batch_size == loader.world_size == 1
    found: list[list[int]] = [[] for _ in range(count)]
    while True:
        x, _ = loader.next_batch()
        if loader.epoch == count:
            return found
        found[loader.epoch].append(int(x[0, 0]))


@settings(max_examples=40)
@given(
    st.lists(st.integers(40, 200), min_size=1, max_size=3),
    st.integers(1, 7),
    st.integers(1, 20),
    st.integers(0, 3),
    st.integers(0, 60),
)
def test_a_loader_goes_on_exactly_from_any_position(tmp_path_factory, sizes, batch, block, seed, steps):
    folder = tmp_path_factory.mktemp("shards")
    paths, start = [], 0
    for i, size in enumerate(sizes):
        paths.append(folder / f"{i}.npy")
        np.save(paths[-1], np.arange(start, start + size, dtype=np.uint16))
        start += size
    first = TokenLoader(paths, batch, block, seed)
    draw(first, steps)
    state = json.loads(json.dumps(first.state_dict()))
    second = TokenLoader(paths, batch, block, seed)
    second.load_state_dict(state)
    assert second.state_dict() == state
    for _ in range(5):
        (x1, y1), (x2, y2) = first.next_batch(), second.next_batch()
        np.testing.assert_array_equal(x1, x2)
        np.testing.assert_array_equal(y1, y2)
    assert (first.epoch, first.position) == (second.epoch, second.position)


def test_every_window_comes_once_an_epoch_and_the_next_epoch_cuts_elsewhere(make_shards):
    loader = TokenLoader(make_shards(500, 333), 1, 10, seed=3)
    starts = epochs(loader, 3)
    for here in starts:
        assert len(set(here)) == len(here)  # none twice
        for low, high in ((0, 500), (500, 833)):
            cut = sorted(s for s in here if low <= s < high)
            assert set(np.diff(cut)) == {10}  # none left out
            assert cut[0] < low + 10
            assert cut[-1] + 10 < high <= cut[-1] + 20
        assert here != sorted(here)
    assert len({tuple(sorted(here)) for here in starts}) > 1


@pytest.mark.parametrize(("world", "batch"), [(2, 3), (3, 2), (6, 1)])
def test_ranks_partition_what_one_reader_of_the_same_batch_sees(make_shards, world, batch):
    paths = make_shards(400, 250)
    alone = draw(TokenLoader(paths, world * batch, 8, seed=1), 30)  # passes through more than two epochs
    ranks = [draw(TokenLoader(paths, batch, 8, 1, rank, world), 30) for rank in range(world)]
    assert [[row for rank in ranks for row in rank[step]] for step in range(30)] == alone


def test_a_run_goes_on_with_another_number_of_ranks(make_shards):
    paths = make_shards(2000)
    whole = TokenLoader(paths, 1, 8, seed=5)
    want = [row for batch in draw(whole, 60) for row in batch]
    four = [TokenLoader(paths, 2, 8, 5, rank, 4) for rank in range(4)]
    got = [row for _ in range(3) for loader in four for row in draw(loader, 1)[0]]  # 24 windows
    states = [loader.state_dict() for loader in four]
    assert all(state == states[0] for state in states)
    two = TokenLoader(paths, 3, 8, 5, 0, 1)
    two.load_state_dict(states[0])
    got += [row for batch in draw(two, 12) for row in batch]
    assert got == want


def test_seeds_and_epochs_are_independent(make_shards):
    paths = make_shards(3000)
    first, second = (epochs(TokenLoader(paths, 1, 8, seed), 2) for seed in (0, 1))
    assert (
        len({tuple(order) for order in (*first, *second)}) == 4
    )  # epoch 1 of seed 0 is not epoch 0 of seed 1


def test_a_loader_refuses_what_it_cannot_do(make_shards):
    paths = make_shards(100)
    for options in (
        {"rank": 2, "world_size": 2},
        {"rank": -1},
        {"batch_size": 0},
        {"block_size": 0},
        {"block_size": 51},
    ):
        with pytest.raises(ValueError):
            TokenLoader(paths, **{"batch_size": 2, "block_size": 8} | options)
    with pytest.raises(ValueError, match="0 tokens"):
        TokenLoader([], 2, 8)
    state = TokenLoader(paths, 2, 8).state_dict()
    for other in (
        TokenLoader(paths, 2, 9),
        TokenLoader(paths, 2, 8, seed=1),
        TokenLoader([*paths, *paths], 2, 8),
    ):
        with pytest.raises(ValueError, match="not the same"):
            other.load_state_dict(state)
    loader = TokenLoader(paths, 2, 8)
    with pytest.raises(ValueError, match=r"lacks \['block_size', 'epoch', 'position', 'seed', 'tokens'\]"):
        loader.load_state_dict({})
    for position in (-1, len(loader.order) + 1):
        with pytest.raises(ValueError, match=f"window {position} of epoch 0: expected 0 to"):
            loader.load_state_dict(state | {"position": position})
    assert loader.state_dict() == state  # a refused state leaves the loader where it was


def test_the_data_rooms_never_import_torch():
    program = (
        "import sys; from course_lib.train import TokenLoader, prepare, minhash_duplicates, pack_documents, "
        "fit_scaling_law, LossScaler, mfu, mix, clean_text, AdamW; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# near-duplicates


@pytest.fixture(scope="module")
def speeches():
    text = (assets.path("corpus") / "valid.txt").read_text()
    found = [speech.partition(":\n")[2] for speech in text.strip().split("\n\n")]
    return [speech for speech in found if len(speech.split()) >= 10]


def test_minhash_finds_what_comparing_every_pair_finds_in_the_corpus(speeches):
    speeches = speeches[-600:]  # Macbeth
    sets = [shingles(speech, 2) for speech in speeches]
    truth = {
        (i, j): s for i, j in combinations(range(len(sets)), 2) if (s := jaccard(sets[i], sets[j])) >= 0.5
    }
    found = {(i, j): e for i, j, e in minhash_duplicates(speeches, 0.4, bands=64, rows=3, size=2)}
    assert len(truth) >= 3  # the witches say "Double, double toil and trouble" three times
    assert set(truth) <= set(found)
    for i, j in found:
        assert found[i, j] == pytest.approx(jaccard(sets[i], sets[j]), abs=0.15)  # 192 hashes: 4 sd are 0.14


def test_the_estimate_is_the_jaccard_similarity_on_average():
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(5000)])
    gaps = []
    for k in range(60):
        text = rng.choice(words, size=60)
        other = text.copy()
        other[rng.choice(60, size=3, replace=False)] = "changed"
        pair = [" ".join(text), " ".join(other)]
        truth = jaccard(shingles(pair[0]), shingles(pair[1]))
        ((_, _, estimate),) = minhash_duplicates(pair, 0.0, bands=128, rows=1, seed=k)
        gaps.append(estimate - truth)
    assert abs(np.mean(gaps)) < 0.015  # a single one has a standard deviation of 0.04
    assert 0.02 < np.std(gaps) < 0.06


def test_bands_find_pairs_as_often_as_their_formula_says():
    rng = np.random.default_rng(1)
    words = np.array([f"w{i}" for i in range(50_000)])
    documents, expected = [], []
    for _ in range(300):
        text = rng.choice(words, size=40)
        other = text.copy()
        other[rng.choice(40, size=4, replace=False)] = "changed"
        documents += [" ".join(text), " ".join(other)]
        s = jaccard(shingles(documents[-2]), shingles(documents[-1]))
        expected.append(1 - (1 - s**4) ** 8)
    found = {(i, j) for i, j, _ in minhash_duplicates(documents, 0.0, bands=8, rows=4)}
    hits = sum((2 * k, 2 * k + 1) in found for k in range(300))
    assert hits == pytest.approx(sum(expected), abs=4 * sum(p * (1 - p) for p in expected) ** 0.5)


def test_texts_without_words_are_like_nothing_and_short_ones_are_one_shingle():
    assert shingles("  ...\n") == set()
    assert shingles("Ding-dong!", 3) == {"ding dong"}
    assert jaccard(set(), set()) == 0
    assert minhash_duplicates(["", "...", "", "Ding, dong", "ding dong"]) == [(3, 4, 1.0)]
    assert minhash_duplicates([]) == []


def test_near_duplicates_are_the_same_in_every_process(speeches):
    program = (
        "import sys, json; from course_lib.train.dedup import minhash_duplicates; "
        "print(json.dumps(minhash_duplicates(json.load(sys.stdin), 0.3, size=2)))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(speeches[:400]),
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    ]
    assert outputs[0] == outputs[1]


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20))
def test_clusters_are_the_connected_components(edges):
    groups = clusters(12, [(i, j, 1.0) for i, j in edges])
    assert sorted(i for group in groups for i in group) == list(range(12))
    of = {i: k for k, group in enumerate(groups) for i in group}
    assert all(of[i] == of[j] for i, j in edges)
    reached = np.eye(12, dtype=bool)
    for i, j in edges:
        reached[i, j] = reached[j, i] = True
    for _ in range(12):
        reached = reached @ reached
    assert all(reached[i, j] == (of[i] == of[j]) for i in range(12) for j in range(12))


# packing

DOCUMENTS = st.lists(st.lists(st.integers(1, 40), max_size=12), max_size=8)


@given(DOCUMENTS, st.integers(1, 9))
def test_packing_loses_no_token_and_counts_positions_from_each_beginning(documents, block):
    end, pad = 99, 77
    packed = pack_documents(documents, block, end, pad)
    assert all(a.shape == packed.tokens.shape and a.dtype == np.int64 for a in packed)
    flat = [a.reshape(-1) for a in packed]
    want = [(token, i) for i, document in enumerate(documents) for token in (*document, end)]
    assert list(zip(flat[0][: len(want)].tolist(), flat[1][: len(want)].tolist(), strict=True)) == want
    assert len(flat[0]) - len(want) < block
    assert set(flat[0][len(want) :]) <= {pad}
    assert set(flat[1][len(want) :]) <= {-1}
    for owners, positions in zip(packed.documents, packed.positions, strict=True):
        seen: Counter[int] = Counter()
        for owner, position in zip(owners.tolist(), positions.tolist(), strict=True):
            assert position == (0 if owner < 0 else seen[owner])
            seen[owner] += 1


@given(DOCUMENTS, st.integers(1, 9))
def test_documents_are_found_again_in_the_tokens_alone(documents, block):
    packed = pack_documents(documents, block, end_id=99, pad_id=98)
    ids = document_ids(packed.tokens, 99)
    assert ids.shape == packed.tokens.shape
    for here, owners in zip(ids, packed.documents, strict=True):
        owners[owners < 0] = len(documents)  # padding follows an end, so it gets a number of its own
        assert here[0] == 0
        np.testing.assert_array_equal(np.diff(here), np.diff(owners))


def test_a_packed_row_attends_as_its_documents_do_alone():
    """Attention under the mask gives each document what it gets in a row of its own."""
    from course_lib.model.attention import scaled_dot_product

    rng = np.random.default_rng(0)
    table, places = rng.normal(size=(50, 8)), rng.normal(size=(16, 8))
    documents = [[3, 1, 4], [1, 5, 9, 2], [6]]
    packed = pack_documents(documents, 16, end_id=49)
    x = table[packed.tokens] + places[packed.positions]
    mixed = scaled_dot_product(x, x, x, document_mask(packed.documents))
    for i, document in enumerate(documents):
        alone = table[[*document, 49]] + places[: len(document) + 1]
        want = scaled_dot_product(alone, alone, alone, np.tri(len(alone), dtype=bool))
        np.testing.assert_allclose(mixed[packed.documents == i], want, rtol=1e-12)


def test_the_loss_counts_ends_but_no_first_token():
    packed = pack_documents([[1, 2], [3]], 7, end_id=9)
    assert packed.tokens.tolist() == [[1, 2, 9, 3, 9, 0, 0]]
    assert loss_mask(packed.documents).tolist() == [[True, True, False, True, False, False]]


def test_a_row_needs_a_token():
    with pytest.raises(ValueError, match="block_size is 0"):
        pack_documents([[1]], 0, 9)


# mixing and cleaning


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=5).filter(lambda w: sum(w) > 1e-3), st.integers(0, 200)
)
def test_every_source_has_its_share_at_every_moment(weights, count):
    order = mix(weights, count)
    assert len(order) == count
    share = np.array(weights) / sum(weights)
    taken = np.cumsum(order[:, None] == np.arange(len(weights)), axis=0)
    late = share * np.arange(1, count + 1)[:, None] - taken
    # Taking the one furthest behind: the others' debts add up to the leads of those that are ahead.
    assert (late < len(weights) - 1 + 1e-9).all()
    assert (late > -1 - 1e-9).all()
    assert all(share[source] > 0 for source in order)
    np.testing.assert_array_equal(mix(weights, count)[: count // 2], mix(weights, count // 2))


def test_a_mixture_needs_weights():
    for weights in ([], [0, 0], [1, -1], [1, np.nan], [np.inf]):
        with pytest.raises(ValueError, match="weights"):
            mix(weights, 3)


def test_cleaning_makes_one_text_of_two_that_look_alike():
    assert clean_text("e\u0301t\u00e9\u200b \t x  \r\n\r\n\n\n\ny\x00\n") == "\u00e9t\u00e9 x\n\ny"
    assert clean_text("\ufeffa\u00a0b") == "a b"
    assert clean_text("\tdef f():\n\n    return 1\n") == "def f():\n\nreturn 1"


@given(st.text())
def test_cleaning_twice_changes_nothing_more(text):
    once = clean_text(text)
    assert clean_text(once) == once


def test_gophers_rules_pass_prose_and_name_what_is_wrong(speeches):
    long = [speech for speech in speeches if len(speech.split()) >= 80]
    assert sum(not quality_problems(speech) for speech in long) > 0.9 * len(long)
    bad = {
        "words; 50": "Too short to be a page.",
        "characters on average": "a b c d e f g h of the " * 10,
        "hash sign": "# the of word thing " * 20,
        "bullet": "\n".join(["- of the same words here"] * 20),
        "breaks off": "\n".join(["the rest of this ..."] * 20),
        "no letter": "the of 1 2 3 and thing 5 6 7 12345 " * 10,
        "commonest": "buy cheap watches online today " * 20,
    }
    for reason, text in bad.items():
        assert any(reason in problem for problem in quality_problems(text)), reason
    assert quality_problems("  ") == ["it is empty"]
