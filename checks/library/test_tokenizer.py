"""The parts of the tokenizer against slow, plain definitions of the same thing."""

import codecs
import time
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import assets
from course_lib.tokenizer import (
    IncrementalDetokenizer,
    Tokenizer,
    byte_to_unicode,
    decode,
    encode_chunk,
    encode_long_chunk,
    merge_pair,
    pair_counts,
    pair_ranks,
    pretokenize_cl100k,
    pretokenize_gpt2,
    pretokenize_smollm,
    read_ranks,
    split_special_tokens,
    train_bpe,
    unicode_to_byte,
)

SINGLE = {bytes([byte]): byte for byte in range(256)}
# Two letters make every kind of overlap and tie; a third keeps some pairs rare.
SMALL_CORPORA = st.dictionaries(
    st.text("abc", min_size=1, max_size=12).map(str.encode), st.integers(1, 5), max_size=8
)


@pytest.fixture(scope="module")
def corpus_text():
    return (assets.path("corpus") / "train.txt").read_text(encoding="utf-8")


def brute_force_merges(chunks, vocab_size):
    """Count everything again for every merge: the definition, in nine lines."""
    words = [([bytes([byte]) for byte in chunk], n) for chunk, n in chunks.items()]
    merges = []
    vocab = set(SINGLE)
    while len(vocab) < vocab_size:
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for tokens, n in words:
            for i in range(len(tokens) - 1):
                counts[tokens[i], tokens[i + 1]] += n
        if not counts:
            break
        best = sorted(counts, key=lambda pair: (-counts[pair], pair))[0]
        merges.append(best)
        vocab.add(best[0] + best[1])
        words = [(merge_by_replacing(tokens, best), n) for tokens, n in words]
    return merges


def merge_by_replacing(tokens, pair):
    """The same with `str.replace`, which goes from left to right: a token becomes a delimited name."""
    joined = "".join(f"<{token.hex()}>" for token in tokens)
    joined = joined.replace(f"<{pair[0].hex()}><{pair[1].hex()}>", f"<{(pair[0] + pair[1]).hex()}>")
    return [bytes.fromhex(name) for name in joined.strip("<>").split("><")] if joined else []


@given(
    st.lists(st.sampled_from([b"a", b"b", b"ab"]), max_size=12), st.sampled_from([b"a", b"b"]), st.just(b"a")
)
def test_merge_pair_replaces_from_left_to_right(tokens, left, right):
    kept = list(tokens)
    assert merge_pair(tokens, (left, right)) == merge_by_replacing(tokens, (left, right))
    assert tokens == kept


def test_pair_counts_weighs_words_and_stays_inside_them():
    words = [([b"a", b"a", b"a"], 10), ([b"a", b"b"], 1), ([b"b"], 7), ([], 3)]
    assert pair_counts(words) == {(b"a", b"a"): 20, (b"a", b"b"): 1}


@settings(max_examples=300, deadline=None)
@given(SMALL_CORPORA, st.integers(256, 290))
def test_training_equals_brute_force(chunks, vocab_size):
    assert train_bpe(chunks, vocab_size) == brute_force_merges(chunks, vocab_size)


def test_training_equals_brute_force_on_real_text(corpus_text):
    chunks = Counter(chunk.encode() for chunk in pretokenize_gpt2(corpus_text[:40_000]))
    assert train_bpe(chunks, 400) == brute_force_merges(chunks, 400)


def test_4096_tokens_of_the_whole_corpus_take_seconds(corpus_text):
    started = time.process_time()
    trained = Tokenizer.train(corpus_text, 4096)
    assert trained.vocab_size == 4096
    assert time.process_time() - started < 60  # it takes about 5; the promise is a minute


def test_ties_go_to_the_smallest_pair_of_bytes():
    assert train_bpe({b"zy": 1, b"ab": 1, b"ba": 1}, 259) == [(b"a", b"b"), (b"b", b"a"), (b"z", b"y")]
    # (ab, a) and (b, c) both occur twice after the first merge; b"ab" < b"b".
    assert train_bpe({b"aba": 2, b"bc": 2, b"ab": 1}, 259)[1] == (b"ab", b"a")


def test_training_refuses_fewer_tokens_than_bytes():
    with pytest.raises(ValueError, match="255"):
        train_bpe({b"ab": 1}, 255)
    assert train_bpe({b"ab": 1}, 256) == []
    assert train_bpe({}, 300) == []


@settings(max_examples=200, deadline=None)
@given(SMALL_CORPORA, st.binary(max_size=40), st.text("abc", max_size=60), st.randoms(use_true_random=False))
def test_long_and_short_encoders_agree_whatever_the_ids(chunks, noise, text, random):
    merges = train_bpe(chunks, 290)
    ranks = {pair: 3 * rank + 1 for rank, pair in enumerate(merges)}
    tokens = sorted({*SINGLE, *(left + right for left, right in merges)})
    ids = dict(zip(tokens, random.sample(range(10_000), len(tokens)), strict=True))
    for chunk in (text.encode(), noise, text.encode() + noise):
        short = encode_chunk(chunk, ranks, ids)
        assert encode_long_chunk(chunk, ranks, ids) == short
        assert decode(short, {i: token for token, i in ids.items()}) == chunk.decode(
            "utf-8", errors="replace"
        )


def test_equal_ranks_merge_the_leftmost_pair():
    # A hand-made table in which two tokens share a rank: the leftmost pair must win in both encoders.
    ranks = pair_ranks({**SINGLE, b"ab": 300, b"ba": 300, b"aba": 301})
    ids = {**SINGLE, b"ab": 1000, b"ba": 1001, b"aba": 1002}
    for encode in (encode_chunk, encode_long_chunk):
        assert encode(b"abab", ranks, ids) == [1000, 1000]
        assert encode(b"bab", ranks, ids) == [1001, ids[b"b"]]


def test_a_token_without_an_id_is_a_key_error():
    with pytest.raises(KeyError):
        encode_chunk(b"a", {}, {})
    with pytest.raises(KeyError):
        decode([7], {})


TOKENS = st.one_of(
    st.binary(max_size=5),
    st.text(max_size=3).map(str.encode),
    st.sampled_from(["€", "😀", "e\u0301"]).map(str.encode),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(TOKENS, max_size=12))
def test_streaming_joins_to_the_whole_and_holds_only_an_unfinished_character(tokens):
    vocab = dict(enumerate(tokens))
    stream = IncrementalDetokenizer(vocab)
    shown = ""
    arrived = b""
    for i, token in vocab.items():
        shown += stream.push(i)
        arrived += token
        held = stream.held
        assert arrived.endswith(held)
        assert len(held) <= 3
        # What is shown can no longer change: it is the decoding of all bytes but the held ones.
        assert shown == arrived[: len(arrived) - len(held)].decode("utf-8", errors="replace")
        if held:
            assert held[0] >= 0xC2
            assert all(0x80 <= byte <= 0xBF for byte in held[1:])
    shown += stream.flush()
    assert shown == arrived.decode("utf-8", errors="replace") == decode(vocab, vocab)
    assert stream.flush() == ""


@given(st.text(), st.randoms(use_true_random=False))
def test_streaming_valid_text_equals_pythons_own_incremental_decoder(text, random):
    data = text.encode("utf-8", errors="replace")
    cuts = sorted(random.sample(range(len(data) + 1), min(5, len(data))))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    stream = IncrementalDetokenizer(dict(enumerate(pieces)))
    python = codecs.getincrementaldecoder("utf-8")(errors="strict")
    assert [stream.push(i) for i in range(len(pieces))] == [python.decode(piece) for piece in pieces]
    assert stream.flush() == ""


SPECIAL = ["<|im|>", "<|im|>x", "a.b", "(", "]", "\\", "|"]


@given(st.text("<|im>xa.b(]\\ \n", max_size=30), st.sets(st.sampled_from(SPECIAL)))
def test_special_tokens_are_cut_out_and_nothing_is_lost(text, special):
    pieces = split_special_tokens(text, special)
    assert "".join(piece for piece, _ in pieces) == text
    assert all(piece for piece, _ in pieces)
    assert all((piece in special) == is_special for piece, is_special in pieces if is_special)
    for piece, is_special in pieces:
        assert is_special or not any(token in piece for token in special)
    assert not any(a[1] == b[1] is False for a, b in pairwise(pieces))


def test_the_longest_special_token_wins():
    assert split_special_tokens("<|im|>x<|im|>", ["<|im|>", "<|im|>x"]) == [
        ("<|im|>x", True),
        ("<|im|>", True),
    ]
    assert split_special_tokens("a.b axb", ["a.b"]) == [("a.b", True), (" axb", False)]
    assert split_special_tokens("text", []) == [("text", False)]
    assert split_special_tokens("", ["<|im|>"]) == []


@pytest.mark.parametrize("pretokenize", [pretokenize_gpt2, pretokenize_cl100k, pretokenize_smollm])
@given(text=st.text())
@settings(deadline=None)
def test_chunks_join_to_the_text(pretokenize, text):
    assert "".join(pretokenize(text)) == text


def test_patterns_cut_where_the_published_ones_do():
    text = "It's 2026:  don't   panic\n\n  12345"
    assert pretokenize_gpt2(text) == [
        "It", "'s", " 2026", ":", " ", " don", "'t", "  ", " panic", "\n\n ", " 12345",
    ]  # fmt: skip
    assert pretokenize_cl100k(text) == [
        "It", "'s", " ", "202", "6", ":", " ", " don", "'t", "  ", " panic", "\n\n", " ", " ", "123", "45",
    ]  # fmt: skip
    assert pretokenize_smollm(text)[-6:] == ["\n\n  ", "1", "2", "3", "4", "5"]


def test_the_byte_alphabet_is_one_to_one():
    alphabet = byte_to_unicode()
    assert sorted(alphabet) == list(range(256))
    assert len(set(alphabet.values())) == 256
    assert (alphabet[0x20], alphabet[0x0A], alphabet[0x41]) == ("Ġ", "Ċ", "A")
    assert all(unicode_to_byte()[character] == byte for byte, character in alphabet.items())


def test_a_bad_ranks_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "broken.tiktoken"
    path.write_text("YQ== 0\nnot base64 at all 1\n")
    with pytest.raises(ValueError, match="line 2"):
        read_ranks(path)


def test_special_tokens_are_text_unless_allowed():
    tokenizer = Tokenizer.train("aaa bbb aaa", 262, special=["<|end|>", "<|end|>!"])
    assert tokenizer.special_tokens == {
        "<|end|>": tokenizer.vocab_size - 2,
        "<|end|>!": tokenizer.vocab_size - 1,
    }
    typed = tokenizer.encode("a<|end|>!")
    assert not set(typed) & set(tokenizer.special_tokens.values())
    assert tokenizer.decode(typed) == "a<|end|>!"
    last = tokenizer.special_tokens["<|end|>!"]
    assert tokenizer.encode("a<|end|>!", allowed_special="all")[-1] == last
    ids = tokenizer.encode("a<|end|>!", allowed_special=["<|end|>"])
    assert tokenizer.decode(ids) == "a<|end|>!"
    assert tokenizer.decode(ids, skip_special=True) == "a!"
    stream = tokenizer.detokenizer()
    assert "".join([*map(stream.push, ids), stream.flush()]) == "a!"
    with pytest.raises(ValueError, match="'<nothing>'"):
        tokenizer.encode("a", allowed_special=["<nothing>"])


def test_half_a_surrogate_pair_becomes_the_replacement_character():
    tokenizer = Tokenizer.train("abc", 256)
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode_bytes(tokenizer.encode("\ud83d\ude00")) == "😀".encode()


def test_two_tokens_may_not_share_an_id():
    with pytest.raises(ValueError, match="share an id"):
        Tokenizer(SINGLE, {}, special={"<|end|>": 65})
    with pytest.raises(ValueError, match="gpt2, cl100k, smollm"):
        Tokenizer(SINGLE, {}, pretokenizer="unheard-of")


def test_the_cache_is_bounded(monkeypatch):
    from course_lib.tokenizer import tokenizer as module

    monkeypatch.setattr(module, "CACHED_CHUNKS", 4)
    tokenizer = Tokenizer.train("abc", 256)
    text = " ".join(f"w{chr(97 + i)}" for i in range(20)) + " " + "x" * 500
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer._chunk_ids) <= 4
