"""Tokenizers from files: the ids of `tokenizers` and `sentencepiece` for any text; damaged files say so."""

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from course_lib import assets
from course_lib.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    read_tokenizer,
    read_tokenizer_json,
    tokenizer_from_gguf,
)
from course_lib.tokenizer.files import tokens_before_text
from course_lib.tokenizer.pretokenize import LLAMA3_PATTERN, QWEN2_PATTERN
from course_lib.tokenizer.sentencepiece import SPACE, read_model_file

ROOT = Path(__file__).parents[2]
CORPUS = [*(ROOT / "README.md").read_text(encoding="utf-8").splitlines(keepends=True)] + [
    "naïve café, Übermut; \t tabs\n\n\n  and    spaces   \r\n",
    "for i in range(1234567):\n    print('it\\'s  late')\n",
    "日本語のテキスト と 한국어, हिन्दी ١٢٣ ½ 🙂👩‍🚀\n",
] * 20
# Decomposed letters, spaces of all kinds, other scripts' digits, control characters, special tokens.
PIECES = [
    *(" ", "  ", "   ", "\n", "\r\n", "\t", "\xa0", "\u2003", "\x00", "\x1c", "\x85", "\ufeff"),
    *(
        "don't",
        "DON'T",
        "'ll",
        "the",
        " the",
        "The",
        "x1",
        "12345",
        "١٢",
        "½",
        "!",
        "...",
        "é",
        "e\u0301",
        "ﬁ",
    ),
    *(
        "日本",
        "한국",
        "क्षि",
        "🙂",
        "👩\u200d🚀",
        "ſ",
        "'ſ",
        "▁",
        " ▁",
        "<0x41>",
        "<unk>",
        "<|end|>",
        "</s>",
        "<tool>",
    ),
    *("aaaaaaa", "ab" * 70, " " * 70),
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=10).map("".join), st.text("aetTH .é1▁\n", max_size=30)
)

SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]
ADDED = ["<tool>", "  \n"]


def llama2(**options: Any) -> tuple[Any, Any, Any]:
    """(normalizer, pre-tokenizer, decoder): as in Llama 2's file and those that followed."""
    back = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if options["strip"] else []),
        ]
    )
    return options["normalizer"], options.get("pre"), back


REPLACE = normalizers.Replace(" ", SPACE)
CHARACTERS = {
    "llama 2": llama2(normalizer=normalizers.Sequence([normalizers.Prepend(SPACE), REPLACE]), strip=True),
    "gemma": llama2(normalizer=REPLACE, pre=pre_tokenizers.Split(" ", "merged_with_previous"), strip=False),
    "mistral": llama2(
        normalizer=None, pre=pre_tokenizers.Metaspace(prepend_scheme="first", split=False), strip=True
    ),
    "metaspace always": llama2(
        normalizer=None, pre=pre_tokenizers.Metaspace(prepend_scheme="always", split=False), strip=True
    ),
    "metaspace never": llama2(
        normalizer=None, pre=pre_tokenizers.Metaspace(prepend_scheme="never", split=False), strip=False
    ),
    "words": llama2(normalizer=None, pre=pre_tokenizers.Metaspace(prepend_scheme="first"), strip=True),
}
SPLIT = {
    name: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for name, pattern in {"llama3": LLAMA3_PATTERN, "qwen2": QWEN2_PATTERN, "own": r"[a-z]{2}|\s"}.items()
}
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES: dict[str, tuple[Any, Any, Any]] = {
    "gpt2": (None, GPT2, None),
    "smollm": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), None),
    "llama3": (None, SPLIT["llama3"], None),
    "qwen2": (normalizers.NFC(), SPLIT["qwen2"], None),
    "own": (normalizers.Sequence([normalizers.NFKC()]), SPLIT["own"], None),
    "numbers": (
        None,
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), GPT2]),
        None,
    ),
}


def trained(kind: str) -> tokenizers.Tokenizer:
    """A small tokenizer of the `tokenizers` package, set up as the published ones are."""
    of_bytes = kind in BYTES
    normalizer, pre, decoder = (BYTES | CHARACTERS)[kind]
    theirs = tokenizers.Tokenizer(
        models.BPE(
            unk_token=None if of_bytes else "<unk>",
            byte_fallback=not of_bytes,
            fuse_unk=not of_bytes,
            ignore_merges=kind == "llama3",
        )
    )
    if normalizer is not None:
        theirs.normalizer = normalizer
    if pre is not None:
        theirs.pre_tokenizer = pre
    theirs.decoder = decoders.ByteLevel() if of_bytes else decoder
    own_bytes = [] if of_bytes else [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if of_bytes else []
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL + own_bytes, initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator(CORPUS, trainer)
    # The trainer made special tokens of the bytes, which they are not in the published files.
    content = json.loads(theirs.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    theirs.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in ADDED])
    return theirs


@pytest.fixture(scope="module", params=[*BYTES, *CHARACTERS])
def pair(request, tmp_path_factory):
    """(ours, theirs) of the same tokenizer.json."""
    folder = tmp_path_factory.mktemp("tokenizer")
    theirs = trained(request.param)
    theirs.save(str(folder / "tokenizer.json"))
    return read_tokenizer(folder), theirs


@settings(max_examples=120, deadline=None)
@given(text=TEXTS)
def test_tokenizer_json_gives_the_ids_of_tokenizers(pair, text):
    ours, theirs = pair
    ids = ours.encode(text, allowed_special="all")
    assert ids == theirs.encode(text).ids
    assert ours.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)


def test_tokenizer_json_over_a_whole_text(pair):
    ours, theirs = pair
    text = "".join(CORPUS)
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids
    assert ours.vocab_size == theirs.get_vocab_size()


def test_special_tokens_only_where_allowed(pair):
    ours, theirs = pair
    end = theirs.token_to_id("<|end|>")
    assert end not in ours.encode("a<|end|>b")
    assert ours.encode("a<|end|>b", allowed_special=["<|end|>"]).count(end) == 1
    assert theirs.token_to_id("<tool>") in ours.encode("a<tool>b")
    assert ours.decode([end, end], skip_special=True) == ""
    stream = ours.detokenizer()
    ids = ours.encode("x 🙂 naïve", allowed_special="all")
    assert "".join([*map(stream.push, ids), stream.flush()]).lstrip(" ") == ours.decode(ids)


def gguf_metadata(theirs: tokenizers.Tokenizer, pre: str) -> dict[str, Any]:
    """A byte-level vocabulary as llama.cpp's converter stores it."""
    content = json.loads(theirs.to_str())
    strings = [theirs.id_to_token(i) for i in range(theirs.get_vocab_size())]
    kinds = {token["content"]: 3 if token["special"] else 4 for token in content["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": strings,
        "tokenizer.ggml.token_type": [kinds.get(string, 1) for string in strings],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in content["model"]["merges"]],
    }


@pytest.mark.parametrize(
    ("pre", "kind"), [("gpt-2", "gpt2"), ("smollm", "smollm"), ("llama-bpe", "llama3"), ("qwen2", "qwen2")]
)
def test_byte_level_vocabularies_of_gguf(pre, kind):
    theirs = trained(kind)
    ours = tokenizer_from_gguf(gguf_metadata(theirs, pre))

    @settings(max_examples=120, deadline=None)
    @given(text=TEXTS)
    def same(text: str) -> None:
        assert ours.encode(text, allowed_special="all") == theirs.encode(text).ids

    same()


# SentencePiece


@pytest.fixture(scope="module", params=[(True, True), (False, True), (True, False)])
def sentencepiece_pair(request, tmp_path_factory):
    """(a model that SentencePiece trained, its bytes); with and without a space in front, and bytes."""
    prefix, fallback = request.param
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line.rstrip("\n") for line in CORPUS]),
        model_writer=out,
        model_type="bpe",
        vocab_size=800 if fallback else 500,
        byte_fallback=fallback,
        character_coverage=0.999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=["<tool>", "▁▁▁"],
        control_symbols=["<|end|>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue()), out.getvalue()


def plain(text: str) -> str:
    """SentencePiece's own interface never finds a control symbol in a text; a NUL would end it."""
    return text.replace("\x00", "")


def test_sentencepiece_models(sentencepiece_pair, tmp_path):
    theirs, data = sentencepiece_pair
    (tmp_path / "tokenizer.model").write_bytes(data)
    ours = read_tokenizer(tmp_path)
    model = read_model_file(data)
    gguf = tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": model.pieces,
            "tokenizer.ggml.scores": model.scores,
            "tokenizer.ggml.token_type": model.kinds,
            "tokenizer.ggml.add_space_prefix": model.add_dummy_prefix,
        }
    )

    @settings(max_examples=250, deadline=None)
    @given(text=TEXTS.map(plain))
    def same(text: str) -> None:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert gguf.encode(text) == ids
        if theirs.unk_id() not in ids:
            assert ours.decode(ids) == text.replace(SPACE, " ")

    same()
    text = "".join(CORPUS)
    assert ours.encode(text) == theirs.encode(text)
    assert ours.special_tokens["<|end|>"] == theirs.piece_to_id("<|end|>")


def test_mistrals_own_model():
    try:
        path = assets.path("mistral_spm")
    except (assets.AssetError, KeyError) as error:
        pytest.skip(f"the vocabulary is not here: {error}")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = SentencePieceTokenizer.from_model_file(path)
    for text in ["".join(CORPUS), *CORPUS[-3:], "", " ", "▁ ▁▁", "<s> typed </s>", "\n" * 30]:
        assert ours.encode(text) == theirs.encode(text)
    assert ours.vocab_size == 32_000


def test_tokens_before_a_text(tmp_path):
    theirs = trained("llama3")
    assert tokens_before_text(tmp_path) == []
    theirs.post_processor = processors.Sequence(
        [
            processors.ByteLevel(),
            processors.TemplateProcessing("<s> $A", "<s> $A $B", special_tokens=[("<s>", 1)]),
        ]
    )
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert tokens_before_text(tmp_path) == ["<s>"]


# What we would get wrong, and what is damaged


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("gpt2", {"model": {"type": "Unigram", "vocab": []}}, "of kind 'Unigram'"),
        ("gpt2", {"normalizer": {"type": "Lowercase"}}, "normalizer .*Lowercase"),
        ("gpt2", {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "pre-tokenizer .*True"),
        ("own", {"pre_tokenizer": {"type": "BertPreTokenizer", "x": "ByteLevel"}}, "pre-tokenizer .*Bert"),
        ("gemma", {"pre_tokenizer": {"type": "Whitespace"}}, "do not know the normalizer"),
        (
            "gpt2",
            {"added_tokens": [{"content": "x", "id": 1, "lstrip": True}]},
            "'x' is to be found by lstrip",
        ),
        ("gpt2", {"model": {"vocab": {"日": 0}, "merges": []}}, "'日' is not written in GPT-2's alphabet"),
        ("gpt2", {"model": {}}, "damaged .KeyError"),
        ("gpt2", {"model": 5}, "damaged .AttributeError"),
        ("gpt2", {"model": {"vocab": {"a": 0}, "merges": [["a"]]}}, "tokenizer.json"),
        (
            "gpt2",
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"},
                        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                    ],
                }
            },
            "no regular expression",
        ),
    ],
)
def test_tokenizer_json_that_we_would_get_wrong(kind, change, message, tmp_path):
    content = json.loads(trained(kind).to_str()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_tokenizer(tmp_path)


def test_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"has no tokenizer\.json and no tokenizer\.model"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "of kind 1; we read BPE"),
        ({"model_type": "bpe"}, "a table of normalizations"),
        ({"model_type": "bpe", "normalization_rule_name": "identity"}, "squeezing of spaces"),
    ],
)
def test_sentencepiece_models_that_we_would_get_wrong(options, message, tmp_path):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=out, vocab_size=300, minloglevel=2, **options
    )
    (tmp_path / "tokenizer.model").write_bytes(out.getvalue())
    with pytest.raises(ValueError, match=message):
        read_tokenizer(tmp_path)


@settings(max_examples=200, deadline=None)
@given(
    cut=st.integers(0, 3000),
    changes=st.lists(st.tuples(st.integers(0, 12_000), st.integers(0, 255)), max_size=3),
)
def test_damaged_sentencepiece_model_loads_or_says_why(sentencepiece_pair, tmp_path_factory, cut, changes):
    data = bytearray(sentencepiece_pair[1])
    for at, value in changes:
        data[at % len(data)] = value
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "tokenizer.model").write_bytes(data[: len(data) - cut] if cut < 2900 else data)
    with contextlib.suppress(ValueError):
        read_tokenizer(folder).encode("some text 🙂")


@pytest.mark.parametrize(
    "piece",
    [
        b"\x0a\x01a\x12\x03abc",  # the score as three bytes
        b"\x08\x01",  # the text as a number
        b"\x0a\x01a\x1a\x01b",  # the kind as a text
    ],
)
def test_damaged_sentencepiece_piece(piece):
    with pytest.raises(ValueError, match="piece 0 of this SentencePiece model is damaged"):
        read_model_file(b"\x0a" + bytes([len(piece)]) + piece)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_tokenizer_json_loads_or_says_why(pair, data, tmp_path_factory):
    """Any entry of the file, at any depth, replaced by any value."""
    content = json.loads(pair[1].to_str())
    place: Any = content
    for _ in range(data.draw(st.integers(0, 3))):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys)) if keys else None
        if key is None or not isinstance(place[key], dict | list):
            break
        place = place[key]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    if keys:
        place[data.draw(st.sampled_from(keys))] = data.draw(JSON)
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.json"
    path.write_text(json.dumps(content))
    with contextlib.suppress(ValueError):
        tokenizer = read_tokenizer_json(path)
        assert isinstance(copy.copy(tokenizer), Tokenizer)
