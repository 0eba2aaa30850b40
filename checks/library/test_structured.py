"""Answers of a given form, by models that know nothing: what comes out is right because nothing else can."""

import json
import re

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.decode import SamplingParams, StructuredOutputsParams
from course_lib.decode.structured import Guide, Guides
from course_lib.engine import Engine, EngineConfig, ModelRunner, Request
from course_lib.model import ModelConfig
from course_lib.model.decoder import init_weights
from course_lib.tokenizer import Tokenizer
from course_lib.tokenizer.sentencepiece import ScoreRanks, SentencePieceTokenizer

TEXT = 'The name is "Ada", {"age": 36, "tags": ["a", "b"], "ok": true, "none": null}. Ünïcode 日本 too. ' * 3


def byte_level() -> Tokenizer:
    return Tokenizer.train(TEXT, 300, special=["<|end|>", "<|other|>"])


def sentencepiece() -> SentencePieceTokenizer:
    """Pieces with ▁ for a space, all 256 bytes, and a space put before every text that is encoded."""
    pieces = [*sorted(set(TEXT.replace(" ", "▁"))), "▁{", '▁"', '":', '",', "tr", "true", "▁true", "▁[", "}]"]
    ids = {piece: i for i, piece in enumerate(pieces)}
    first = len(ids)
    return SentencePieceTokenizer(
        ids,
        ScoreRanks({piece: -float(i) for piece, i in ids.items()}),
        special={"<s>": first + 256, "</s>": first + 257},
        byte_ids=range(first, first + 256),
        prefix="always",
    )


TOKENIZERS = {"byte-level": (byte_level(), "<|end|>"), "sentencepiece": (sentencepiece(), "</s>")}


@pytest.fixture(scope="module", params=TOKENIZERS)
def engine(request) -> Engine:
    tokenizer, end = TOKENIZERS[request.param]
    size = tokenizer.vocab_size + 3  # rows of the embedding table that have no token
    tokenizer.cover(size)
    config = ModelConfig(
        model_type="llama",
        vocab_size=size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    model = init_weights(config, seed=1, std=0.3).eval().requires_grad_(False)
    stops = [tokenizer.special_tokens[end]]
    return Engine(ModelRunner(model, 256), 256, EngineConfig(debug=True), tokenizer, stops, 512)


def answers(engine: Engine, form: dict, n: int = 1, max_tokens: int = 300, seed: int = 0, **options):
    """(text, finish reason) of each answer; temperature 3 makes the model's own wishes weak."""
    wanted = StructuredOutputsParams(**form)
    options = {"temperature": 3.0, "seed": seed, "n": n, "max_tokens": max_tokens} | options
    requests = engine.add([1, 2, 3], SamplingParams(structured_outputs=wanted, **options))
    while engine.has_work:
        engine.step()
    return [(request.text, request.finish_reason) for request in requests]


names = st.text("abcdefg_é", min_size=1, max_size=4)
values = st.recursive(
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "integer", "minimum": -20, "maximum": 1500},
            {"type": "string", "maxLength": 5},
            {"type": "string", "pattern": "^[A-C]{2,4}$"},
            {"enum": ["x", "日本", 7, None]},
            {"const": 'quo"te'},
        ]
    ),
    lambda inner: (
        st.builds(
            lambda fields: {
                "type": "object",
                "properties": fields,
                "required": sorted(fields)[: (len(fields) + 1) // 2],
                "additionalProperties": False,
            },
            st.dictionaries(names, inner, min_size=1, max_size=3),
        )
        | st.builds(lambda item: {"type": "array", "items": item, "maxItems": 3}, inner)
        | st.builds(lambda several: {"anyOf": several}, st.lists(inner, min_size=1, max_size=2))
    ),
    max_leaves=5,
)


@settings(max_examples=15)
@given(values, st.integers(0, 2**32))
def test_answers_parse_and_fit_their_schema(engine, schema, seed):
    for text, reason in answers(engine, {"json": schema}, n=2, seed=seed):
        assert reason == "stop"
        jsonschema.validate(json.loads(text), schema)
        assert json.dumps(json.loads(text)).count(" ") >= text.count(", ")  # spaced as json.dumps does


def test_without_its_mask_the_model_writes_nonsense(engine):
    """The same model and seeds: what the test above sees is the mask's work."""
    params = SamplingParams(temperature=3.0, seed=0, n=8, max_tokens=30)
    requests = engine.add([1, 2, 3], params)
    while engine.has_work:
        engine.step()
    for request in requests:
        with pytest.raises(ValueError):
            json.loads(request.text)


@pytest.mark.parametrize("pattern", [r"[ab]{3}-[0-9]{2,4}", r"(x|yy)+z?", "日本|Ü[0-9]", r"[^a]{1,3}"])
def test_answers_match_their_expression(engine, pattern):
    for text, reason in answers(engine, {"regex": pattern}, n=6):
        assert reason == "stop" and re.fullmatch(pattern, text)


def test_answers_are_one_of_the_choices(engine):
    choices = ["yes", "no", "yes and no", 'a "quote"\n', "日本"]
    got = [text for text, reason in answers(engine, {"choice": choices}, n=30) if reason == "stop"]
    assert len(got) == 30 and set(got) <= set(choices) and len(set(got)) > 2


@pytest.mark.parametrize("grammar", ['root ::= "(" root ")" | "x"', 'start: "(" start ")" | "x"'])
def test_answers_follow_their_grammar(engine, grammar):
    for text, reason in answers(engine, {"grammar": grammar}, n=6):
        depth = text.index("x")
        assert reason == "stop" and text == "(" * depth + "x" + ")" * depth


def test_an_answer_ends_where_it_is_complete(engine):
    """At once where nothing can follow; at an end token where something could; cut off: "length"."""
    (request,) = engine.add([1], SamplingParams(structured_outputs=StructuredOutputsParams(choice=["ab"])))
    while engine.has_work:
        engine.step()
    assert request.text == "ab" and request.finish_reason == "stop"
    assert not engine.stop_ids & set(request.output_ids)
    (request,) = engine.add(
        [1], SamplingParams(structured_outputs=StructuredOutputsParams(regex="a+"), seed=1)
    )
    while engine.has_work:
        engine.step()
    assert re.fullmatch("a+", request.text)
    assert request.finish_reason == "stop" and request.output_ids[-1] in engine.stop_ids
    ((text, reason),) = answers(engine, {"regex": "[a-f]{200}"}, max_tokens=5)
    assert reason == "length" and re.fullmatch("[a-f]*", text) and text


def test_masks_are_exact_after_drafts(engine):
    """`allowed(ahead)` is what a guide that has taken `ahead` allows, and leaves its own place alone."""
    guides = Guides(engine.tokenizer, sorted(engine.stop_ids))
    form = StructuredOutputsParams(regex="[ab]{3}|cd")
    a, c, d = (engine.tokenizer.encode("x" + letter)[-1] for letter in "acd")
    guide, other = guides.guide(form), guides.guide(form)
    before = guide.allowed()
    other.take(a)
    assert (guide.allowed([a]) == other.allowed()).all()
    assert not guide.allowed([a])[c] and guide.allowed([c])[d]
    assert guide.allowed([d, a]).all()  # nobody chooses after a draft that is impossible
    assert (guide.allowed() == before).all()


def test_drafts_change_nothing(engine):
    form, want = {"regex": "([ab]|cc){12}"}, None
    for drafts in (False, True):
        params = SamplingParams(seed=7, structured_outputs=StructuredOutputsParams(**form))
        (request,) = engine.add([4, 5], params)
        while engine.has_work:
            done = len(request.output_ids)
            if drafts and want and done:
                request.draft = [*want[done : done + 2], 1]
            engine.step()
        want = want or request.output_ids
        assert request.output_ids == want and request.finish_reason == "stop"


class Oracle:
    """Drafts what it has been told to."""

    def __init__(self, text: list[int]):
        self.text = text

    def propose(self, wanted):
        return [self.text[len(each.tokens) - 2 :][: each.limit] for each in wanted]


def written(engine: Engine, form: dict, seed: int = 7) -> Request:
    params = SamplingParams(temperature=3.0, seed=seed, structured_outputs=StructuredOutputsParams(**form))
    (request,) = engine.add([4, 5], params)
    while engine.has_work:
        engine.step()
    assert request.finish_reason == "stop"
    return request


def drafting(engine: Engine, draft: list[int]) -> Engine:
    """The same engine, which drafts this text."""
    config = EngineConfig(debug=True, speculative="oracle")
    return Engine(engine.runner, 256, config, engine.tokenizer, engine.stop_ids, 512, Oracle(draft))


PAIRS = {"regex": "(ab|ba|cc){20}"}
ARRAY = {"json": {"type": "array", "minItems": 4, "items": {"enum": ["ab", 7, True]}}}


@pytest.mark.parametrize("form", [PAIRS, ARRAY], ids=["regex", "json"])
def test_every_drafted_position_has_a_mask_of_its_own(engine, form):
    """Under a form, too, drafts change the number of steps and nothing else; right ones are all taken."""
    plain = written(engine, form)
    for seed in (7, 8):  # the text itself, and another one of the same form
        helped = drafting(engine, written(engine, form, seed).output_ids)
        assert written(helped, form).output_ids == plain.output_ids
        drafted, accepted = helped.counters.drafted_tokens, helped.counters.accepted_tokens
        assert drafted > 0 and (accepted == drafted) == (seed == 7)


def test_every_drafted_position_has_a_mask_of_its_own_inverse(engine, monkeypatch):
    """With one mask for all positions, what is written behind a draft does not have the form."""
    plain, allowed = written(engine, PAIRS), Guide.allowed
    monkeypatch.setattr(Guide, "allowed", lambda self, ahead=(): allowed(self))
    with pytest.raises(AssertionError):
        assert written(drafting(engine, plain.output_ids), PAIRS).output_ids == plain.output_ids


def test_drafts_that_the_form_forbids_are_not_verified(engine):
    """A proposer knows of no form and drafts what it likes: only what is possible costs a place in a step."""
    helped = drafting(engine, [1] * 50)
    assert written(helped, {"choice": ["ab"]}).text == "ab"
    assert helped.counters.drafted_tokens == 0


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (
            {"json": {"type": "integer", "minimum": 5, "maximum": 3}},
            "minimum .5. is greater than",
        ),
        ({"json": {"enum": []}}, "Unsatisfiable schema"),
        (
            {"json": {"type": "object", "required": ["a"], "properties": {"a": False}}},
            "required property 'a'",
        ),
        ({"json": {"type": "whole"}}, "Invalid type: whole"),
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json": '{"type": '}, "the schema is not JSON"),
        ({"json": "false"}, "the schema is False; it must be an object"),
        ({"regex": "a("}, "unclosed group"),
        ({"regex": r"[^\s\S]"}, "no answer has this form|empty"),
        ({"grammar": "start: nothing"}, 'unknown name: "nothing"'),
        ({"grammar": "gibberish"}, "Failed to convert the grammar"),
    ],
    ids=str,
)
def test_promise_4_impossible_forms_are_refused_at_once(engine, form, reason):
    with pytest.raises(ValueError, match=reason):
        engine.add([1], SamplingParams(structured_outputs=StructuredOutputsParams(**form)))
    assert not engine.has_work


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({}, "structured_outputs has nothing; give exactly one"),
        ({"json": {}, "regex": "a"}, "structured_outputs has json and regex; give exactly one"),
        ({"choice": "abc"}, "choice is 'abc'; it must be a list of texts"),
        ({"choice": []}, r"choice is \[\]; it must be a list of texts"),
        ({"regex": 3}, "regex is 3; it must be a text"),
        ({"json": [1]}, r"json is \[1\]; it must be a text or a dict"),
    ],
)
def test_promise_7_wrong_forms_are_refused(form, reason):
    with pytest.raises(ValueError, match=reason):
        StructuredOutputsParams(**form)


def test_promise_7_contradictions_are_refused(engine):
    form = StructuredOutputsParams(choice=["a"])
    for options in ({"min_tokens": 1}, {"stop": "x"}, {"bad_token_ids": (1,)}, {"ignore_eos": True}):
        with pytest.raises(ValueError, match=f"does not go together with {next(iter(options))}"):
            SamplingParams(structured_outputs=form, **options)
    plain = Engine(engine.runner, 256)
    with pytest.raises(ValueError, match="structured_outputs needs an engine with a tokenizer"):
        plain.add([1], SamplingParams(structured_outputs=form))
    endless = Engine(engine.runner, 256, None, engine.tokenizer)
    with pytest.raises(ValueError, match="needs a model with an end token"):
        endless.add([1], SamplingParams(structured_outputs=form))


def test_a_form_stays_with_its_own_request(engine):
    """Greedy and drawn, with and without forms, in one batch: each as if it were alone."""
    forms = [None, {"regex": "[ab]+c"}, {"choice": ["yes", "no"]}, None, {"json": {"type": "boolean"}}]
    each = [
        SamplingParams(
            temperature=float(i % 2),
            seed=i,
            max_tokens=9,
            structured_outputs=StructuredOutputsParams(**form) if form else None,
        )
        for i, form in enumerate(forms)
    ]
    alone = []
    for params in each:
        alone += engine.add([3, 1], params)
        while engine.has_work:
            engine.step()
    together = [request for params in each for request in engine.add([3, 1], params)]
    while engine.has_work:
        engine.step()
    assert [r.output_ids for r in together] == [r.output_ids for r in alone]
    assert torch.is_grad_enabled()
