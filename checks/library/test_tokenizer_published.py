"""Ids identical to those of the published tokenizers: tiktoken's GPT-2 and cl100k, SmolLM2's."""

import json
import sys
import unicodedata

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public
from tokenizers import Tokenizer as HuggingFaceTokenizer

from course_lib import assets
from course_lib.model.gguf_file import read_gguf
from course_lib.tokenizer import Tokenizer, encode_chunk, encode_long_chunk, pair_ranks, read_ranks

CL100K_SPECIAL = {
    "<|endoftext|>": 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}
CL100K_PUBLISHED = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
# tiktoken's Rust, Hugging Face's and Python's `regex` each bring a Unicode table of their own age. A
# character that one of them does not know yet has no category there: only long assigned ones compare.
UNCERTAIN = ("Cn", "Cs", "Co")  # not assigned, half a surrogate pair, private use
ASSIGNED = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in UNCERTAIN]
UNICODE = st.text(st.sampled_from(ASSIGNED), max_size=40)
SPACES = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\xa0",
    "\u2003",
    "\u200b",
    "\ufeff",
    "\x00",
    "\x1c",
    "\x85",
    "\u180e",
]
WORDS = ["'s", "'S", "'ſ", "'ll", "'LL", "don't", "x", "É", "é", "日本語", "한국어", "हिन्दी"]
OTHERS = ["<|endoftext|>", *["1", "12", "1234", "١", "½", "!", "...", "{", "😀", "👩\u200d💻"]]
LONG = ["a" * 150, " " * 130, "\n" * 101]
AWKWARD = st.lists(st.sampled_from(SPACES + WORDS + OTHERS + LONG), max_size=12).map("".join)
BYTES = st.one_of(st.binary(min_size=1, max_size=300), st.sampled_from([b"a" * 97, b"ab" * 97, b" \n" * 97]))


@pytest.fixture(scope="module")
def corpus_text():
    folder = assets.path("corpus")
    return "".join((folder / name).read_text(encoding="utf-8") for name in ("train.txt", "valid.txt"))


@pytest.fixture(scope="module")
def smollm2_metadata():
    return read_gguf(assets.path("smollm2")).metadata


@pytest.fixture(scope="module")
def gpt2():
    ranks = read_ranks(assets.path("gpt2_ranks"))
    special = {"<|endoftext|>": 50256}
    theirs = tiktoken.Encoding(
        "gpt2", pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens=special
    )
    return Tokenizer.from_ranks(ranks, "gpt2", special), theirs


@pytest.fixture(scope="module")
def cl100k():
    ranks = read_ranks(assets.path("cl100k_ranks"))
    theirs = tiktoken.Encoding(
        "cl100k", pat_str=CL100K_PUBLISHED, mergeable_ranks=ranks, special_tokens=CL100K_SPECIAL
    )
    return Tokenizer.from_ranks(assets.path("cl100k_ranks"), "cl100k", CL100K_SPECIAL), theirs


@pytest.fixture(scope="module")
def smollm2(smollm2_metadata):
    """SmolLM2's vocabulary in Hugging Face's library, set up as its published tokenizer.json does."""
    tokens, types = smollm2_metadata["tokenizer.ggml.tokens"], smollm2_metadata["tokenizer.ggml.token_type"]
    special = [(i, token) for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == 3]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    theirs = HuggingFaceTokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [{"id": i, "content": token, **flags} for i, token in special],
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
                },
                "decoder": byte_level,
                "model": {
                    "type": "BPE",
                    "vocab": {token: i for i, token in enumerate(tokens)},
                    "merges": [merge.split(" ") for merge in smollm2_metadata["tokenizer.ggml.merges"]],
                },
            }
        )
    )
    return Tokenizer.from_gguf(smollm2_metadata), theirs


@pytest.mark.parametrize("name", ["gpt2", "cl100k"])
def test_the_whole_corpus_has_tiktokens_ids(name, request, corpus_text):
    ours, theirs = request.getfixturevalue(name)
    ids = ours.encode(corpus_text)
    assert ids == theirs.encode_ordinary(corpus_text)
    assert ours.decode(ids) == corpus_text


@pytest.mark.parametrize("name", ["gpt2", "cl100k"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_random_unicode_has_tiktokens_ids(name, request, data):
    ours, theirs = request.getfixturevalue(name)
    text = data.draw(st.one_of(UNICODE, AWKWARD))
    ids = ours.encode(text)
    assert ids == theirs.encode_ordinary(text)
    assert ours.decode_bytes(ids) == text.encode()
    assert ours.encode(text, allowed_special="all") == theirs.encode(text, allowed_special="all")


@pytest.mark.parametrize("name", ["gpt2", "cl100k"])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_random_bytes_have_tiktokens_ids(name, request, data):
    ours, theirs = request.getfixturevalue(name)
    chunk = data.draw(BYTES)
    want = theirs._encode_single_piece(chunk)
    assert encode_chunk(chunk, ours.ranks, ours.tokens) == want
    assert encode_long_chunk(chunk, ours.ranks, ours.tokens) == want
    assert ours.decode(want) == theirs.decode(want)


def test_merging_reaches_every_token_of_both_vocabularies(gpt2, cl100k):
    for ours, _ in (gpt2, cl100k):
        unreachable = [
            t for t, i in ours.tokens.items() if encode_long_chunk(t, ours.ranks, ours.tokens) != [i]
        ]
        assert unreachable == []


def test_smollm2_has_hugging_faces_ids_over_the_corpus(smollm2, corpus_text):
    ours, theirs = smollm2
    sample = corpus_text[:1_000_000]
    ids = ours.encode(sample)
    assert ids == theirs.encode(sample).ids
    assert ours.decode(ids) == sample


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(UNICODE, AWKWARD, st.text("0123 x.\n", max_size=20)))
def test_smollm2_has_hugging_faces_ids_on_random_unicode(smollm2, text):
    ours, theirs = smollm2
    assert ours.encode(text, allowed_special="all") == theirs.encode(text).ids


def test_smollm2_lacks_bytes_and_says_so(smollm2):
    ours, theirs = smollm2
    assert len(ours.missing_bytes) == 21
    assert ours.encode("a\x04b\x16!\x1d?") == theirs.encode("a\x04b\x16!\x1d?").ids
    assert ours.decode(ours.encode("a\x04b")) == "ab"
    assert (ours.vocab_size, len(ours.special_tokens)) == (49152, 17)


def test_a_chat_turn_as_the_model_saw_it(smollm2):
    ours, theirs = smollm2
    turn = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    ids = ours.encode(turn, allowed_special="all")
    assert ids == theirs.encode(turn).ids
    assert ids.count(1) == 2
    assert ids.count(2) == 1
    assert ours.decode(ids) == turn


@pytest.mark.parametrize("name", ["gpt2", "cl100k", "smollm2"])
def test_saved_tokenizers_load_here_and_in_hugging_faces_library(name, request, tmp_path, corpus_text):
    ours, _ = request.getfixturevalue(name)
    ours.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    theirs = HuggingFaceTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = corpus_text[:100_000] + " Zwölf Boxkämpfer 12345 日本語 😀\n\n\tx"
    ids = ours.encode(text)
    assert again.encode(text) == ids
    assert theirs.encode(text).ids == ids
    assert (again.vocab, again.ranks, again.special_tokens) == (ours.vocab, ours.ranks, ours.special_tokens)


def test_a_trained_tokenizer_works_in_hugging_faces_library(tmp_path, corpus_text):
    ours = Tokenizer.train(corpus_text[:200_000], 600, special=["<|endoftext|>"])
    ours.save(tmp_path / "tokenizer.json")
    theirs = HuggingFaceTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = corpus_text[200_000:260_000] + "<|endoftext|> naïve 😀 007"
    assert ours.vocab_size == 600
    assert theirs.encode(text).ids == ours.encode(text, allowed_special="all")


def test_gguf_vocabularies_we_cannot_read_are_refused(smollm2_metadata):
    with pytest.raises(ValueError, match="'llama'"):
        Tokenizer.from_gguf({"tokenizer.ggml.model": "llama"})
    with pytest.raises(ValueError, match="'deepseek-llm'"):
        Tokenizer.from_gguf({**smollm2_metadata, "tokenizer.ggml.pre": "deepseek-llm"})


def test_pairs_of_a_ranks_table():
    table = {b"a": 0, b"b": 1, b"ab": 2, b"aba": 3}
    assert pair_ranks(table) == {(b"a", b"b"): 2, (b"ab", b"a"): 3}
