"""Penalties, biases, bans and logprobs: against plain Python, in company, and through the engine."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from checks.tiny import tiny_engine, tiny_llama, tiny_model
from course_lib.cache import ContiguousCache
from course_lib.decode import Sampler, SamplingParams, generate_cached, generate_uncached, sample
from course_lib.decode.adjust import adjust
from course_lib.decode.logprobs import token_logprobs
from course_lib.decode.text import Row, Text
from course_lib.model import Decoder
from course_lib.tokenizer import Tokenizer

VOCAB = 30
token = st.integers(0, VOCAB - 1)
tokens = st.lists(token, max_size=8)


@st.composite
def requests(draw):
    """(parameters, prompt, answer so far, drafts, stop ids): anything that may be asked for together."""
    options = {
        "temperature": draw(st.sampled_from([0.0, 0.7, 1.5])),
        "top_k": draw(st.sampled_from([0, 0, 4])),
        "top_p": draw(st.sampled_from([1.0, 0.8])),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.3, 0.8, 5.0])),
        "frequency_penalty": draw(st.sampled_from([0.0, 0.5, -2.0])),
        "presence_penalty": draw(st.sampled_from([0.0, 1.1, -0.3])),
        "logit_bias": draw(st.dictionaries(token, st.floats(-100, 100), max_size=4)),
        "bad_token_ids": draw(tokens),
        "min_tokens": draw(st.sampled_from([0, 0, 3, 6])),
    }
    allowed = draw(st.none() | st.lists(token, min_size=1, max_size=9))
    if allowed is not None and set(allowed) - set(options["bad_token_ids"]):
        options["allowed_token_ids"] = allowed
    return SamplingParams(**options), draw(tokens), draw(tokens), draw(tokens), draw(tokens)


def slowly(logits: list[float], params, prompt, answer, stop_ids) -> list[float]:
    """What vLLM's and OpenAI's documents say, token by token."""
    adjusted = []
    for token, x in enumerate(logits):
        x += (params.logit_bias or {}).get(token, 0)
        if token in prompt or token in answer:
            x = x / params.repetition_penalty if x > 0 else x * params.repetition_penalty
        x -= params.frequency_penalty * answer.count(token)
        if token in answer:
            x -= params.presence_penalty
        if params.allowed_token_ids is not None and token not in params.allowed_token_ids:
            x = -math.inf
        if token in params.bad_token_ids:
            x = -math.inf
        if token in stop_ids and len(answer) < params.min_tokens:
            x = -math.inf
        adjusted.append(x)
    return adjusted


def written(params, prompt, answer, stop_ids) -> Text:
    """A text whose answer has come since it was begun; counted once on the way, as in an engine."""
    text = Text(params, list(prompt), stop_ids)
    text.tokens += answer[:2]
    text.count()
    text.tokens += answer[2:]
    return text


@settings(max_examples=40)
@given(st.lists(requests(), min_size=1, max_size=4), st.integers(0, 999))
def test_adjusted_logits_equal_a_slow_reference(batch, seed):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (len(batch), VOCAB))).float()
    before = logits.clone()
    rows = [Row(written(p, prompt, answer, stops), ahead) for p, prompt, answer, ahead, stops in batch]
    got = adjust(logits, rows)
    want = [
        slowly(logits[i].tolist(), p, prompt, answer + ahead, stops)
        for i, (p, prompt, answer, ahead, stops) in enumerate(batch)
    ]
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits, before)
    again = adjust(logits, [Row(row.text) for row in rows])  # drafts leave nothing behind
    want = [
        slowly(logits[i].tolist(), p, prompt, answer, stops)
        for i, (p, prompt, answer, _, stops) in enumerate(batch)
    ]
    torch.testing.assert_close(again, torch.tensor(want), rtol=1e-5, atol=1e-5)


@settings(max_examples=40)
@given(st.lists(requests(), min_size=2, max_size=6), st.integers(0, 999))
def test_promise_6_a_row_does_not_depend_on_its_neighbors(batch, seed):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 3, (len(batch), VOCAB))).float()
    rows = [Row(written(p, prompt, answer, ()), ahead) for p, prompt, answer, ahead, _ in batch]
    positions = [len(row.text.tokens) + len(row.ahead) for row in rows]
    params = [p for p, *_ in batch]
    together = Sampler(params)(logits, positions, rows).tolist()
    for i in range(len(batch)):
        assert Sampler([params[i]])(logits[i : i + 1], [positions[i]], [rows[i]]).tolist() == [together[i]]
    order = rng.permutation(len(batch)).tolist()
    shuffled = Sampler([params[i] for i in order])(
        logits[order], [positions[i] for i in order], [rows[i] for i in order]
    )
    assert shuffled.tolist() == [together[i] for i in order]


def test_penalized_draws_have_the_distribution_that_is_promised():
    """Chi-square over 20,000 seeds, against the slow reference and Day 7's filters on it."""
    count, prompt, answer = 20_000, [1, 2, 2], [3, 3, 4]
    params = SamplingParams(
        temperature=1.4,
        top_p=0.9,
        min_p=0.01,
        seed=0,
        repetition_penalty=1.5,
        frequency_penalty=0.3,
        presence_penalty=0.2,
        logit_bias={5: 1.5},
        bad_token_ids=(6,),
    )
    logits = np.random.default_rng(5).normal(0, 1, VOCAB)
    adjusted = np.array(slowly(logits.tolist(), params, prompt, answer, []))
    u = (np.arange(50_000) + 0.5) / 50_000  # the shares of the tokens, to 2e-5
    drawn = sample(np.tile(adjusted, (len(u), 1)), u, 1.4, 0, 0.9, 0.01)
    probs = np.bincount(drawn, minlength=VOCAB) / len(u)
    counts = np.zeros(VOCAB)
    for start in range(0, count, 1000):
        each = [dataclasses.replace(params, seed=seed) for seed in range(start, start + 1000)]
        rows = [Row(written(params, prompt, answer, ()))] * 1000
        batch = torch.from_numpy(logits).float().expand(1000, -1)
        counts += np.bincount(Sampler(each)(batch, [6] * 1000, rows).numpy(), minlength=VOCAB)
    assert counts[probs == 0].sum() == 0 and 6 not in np.flatnonzero(counts)
    possible = probs > 0
    assert stats.chisquare(counts[possible], probs[possible] * count).pvalue > 1e-4
    plain = np.exp(logits / 1.4)[possible]  # without the penalties it fails: the test can
    assert stats.chisquare(counts[possible], plain / plain.sum() * count).pvalue < 1e-4


def test_a_tiny_temperature_is_nearly_greedy():
    logits = torch.randn(4, 50) * 1e4
    params = [SamplingParams(temperature=t, seed=1) for t in (1e-300, 1e-45, 1e-30, 1e-3)]
    assert torch.equal(Sampler(params)(logits, [0] * 4), logits.argmax(-1))


def test_rows_that_need_their_text_must_have_it():
    params = SamplingParams(temperature=0, presence_penalty=1.0)
    with pytest.raises(ValueError, match="Row 1 has penalties, biases or bans: give the text"):
        Sampler([SamplingParams(temperature=0), params])(torch.randn(2, 9), [0, 0])


def test_logprobs_are_those_of_log_softmax():
    logits = torch.randn(5, VOCAB) * 4
    chosen, numbers = [3, 0, 29, 7, 7], [0, None, 4, VOCAB, 2]
    exact = torch.log_softmax(logits.double(), -1)
    for i, told in enumerate(token_logprobs(logits, chosen, numbers)):
        if numbers[i] is None:
            assert told is None
            continue
        assert told is not None and told.token == chosen[i]
        assert told.logprob == pytest.approx(float(exact[i, chosen[i]]), abs=1e-5)
        ranked = exact[i].sort(descending=True)
        assert [token for token, _ in told.top] == ranked.indices[: numbers[i]].tolist()
        assert [logprob for _, logprob in told.top] == pytest.approx(
            ranked.values[: numbers[i]].tolist(), abs=1e-5
        )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be above 0"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5; it must be between -2 and 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        ({"logit_bias": {3: 101}}, "logit_bias is .*; it must be token ids, each with a number between"),
        ({"logit_bias": {-1: 1}}, "logit_bias"),
        ({"allowed_token_ids": ()}, r"allowed_token_ids is \(\); it must be None"),
        ({"bad_token_ids": (1.5,)}, "bad_token_ids is .*; it must be token ids"),
        ({"min_tokens": 300}, "min_tokens is 300; it must be between 0 and max_tokens, which is 256"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"logprobs": True}, "logprobs is True"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"allowed_token_ids": (1, 2), "bad_token_ids": (2, 1)}, "no token is left"),
    ],
)
def test_promise_7_wrong_parameters_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        SamplingParams(**options)


# Through the engine

ALL = SamplingParams(
    temperature=0.9,
    top_p=0.95,
    seed=11,
    max_tokens=16,
    min_tokens=9,
    repetition_penalty=1.3,
    frequency_penalty=0.4,
    presence_penalty=0.3,
    logit_bias={4: 2.0},
    bad_token_ids=(7, 8),
)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return tiny_model(tiny_llama(vocab_size=VOCAB, max_position_embeddings=80), seed=3)


def drained(engine, *requests):
    while engine.has_work:
        engine.step()
    return [request.output_ids for request in requests]


def test_promise_3_and_6_everything_at_once_in_any_company(model):
    """The loop without a cache, the loop with one, the engine alone, crowded, preempted and with drafts."""
    prompt, stop = [1, 2, 3, 2], [0, 5]
    want = list(generate_uncached(model, prompt, ALL, stop))
    assert len(want) >= 9 and not {7, 8} & set(want)
    assert list(generate_cached(model, prompt, ALL, ContiguousCache(model.config, 8), stop)) == want
    engine = tiny_engine(model, stop_ids=stop)
    assert drained(engine, *engine.add(prompt, ALL)) == [want]
    rng = random.Random(1)
    crowded = tiny_engine(model, 14, stop_ids=stop, max_num_batched_tokens=9, max_num_seqs=7)
    mine = crowded.add(prompt, ALL)
    for i in range(9):
        other = dataclasses.replace(ALL, seed=i, temperature=i % 3, n=1 + i % 2, logprobs=i % 3)
        crowded.add([rng.randrange(VOCAB) for _ in range(1 + i)], other)
    guess = list(want)
    while crowded.has_work:
        (request,) = mine
        if request.status.value == "running" and rng.random() < 0.5:
            done = len(request.output_ids)
            request.draft = [g if rng.random() < 0.8 else 1 for g in guess[done : done + 3]]
        crowded.step()
    assert drained(crowded, *mine) == [want]
    assert crowded.counters.preemptions


def test_logprobs_come_with_the_tokens(model):
    """Each with its token, also where drafts were right; and they are the model's own."""
    prompt, params = [1, 2, 3], dataclasses.replace(ALL, logprobs=3)
    engine = tiny_engine(model)
    (request,) = engine.add(prompt, params)
    want = list(generate_uncached(model, prompt, ALL))
    told = []
    while engine.has_work:
        done = len(request.output_ids)
        request.draft = want[done : done + 2] if done else []
        told += [logprobs for output in engine.step() for logprobs in output.logprobs]
    assert told == request.logprobs
    assert [logprobs.token for logprobs in told] == request.output_ids == want
    logits = model(torch.tensor([prompt + want]))[0, len(prompt) - 1 : -1]
    exact = torch.log_softmax(logits.double(), -1)
    for i, logprobs in enumerate(told):
        assert logprobs.logprob == pytest.approx(float(exact[i, want[i]]), abs=1e-4)
        assert [t for t, _ in logprobs.top] == exact[i].topk(3).indices.tolist()


def test_n_texts_have_streams_of_their_own(model):
    """Different from one another, the first as if it were alone; each with its own penalties."""
    params = dataclasses.replace(ALL, n=4)
    engine = tiny_engine(model)
    several = drained(engine, *engine.add([1, 2, 3], params))
    assert len({tuple(ids) for ids in several}) == 4
    assert several[0] == list(generate_uncached(model, [1, 2, 3], ALL))


def test_min_tokens_holds_back_stop_tokens_and_stop_texts(model):
    letters = Tokenizer({bytes([97 + i % 26]) + b"'" * (i // 26): i for i in range(VOCAB)}, {})
    greedy = SamplingParams(temperature=0, max_tokens=20)
    engine = tiny_engine(model)
    (free,) = drained(engine, *engine.add([1, 2], greedy))
    stop = free[3]
    engine = tiny_engine(model, stop_ids=[stop])
    (short,) = drained(engine, *engine.add([1, 2], greedy))
    assert short == free[: free.index(stop) + 1]
    engine = tiny_engine(model, stop_ids=[stop], tokenizer=letters)
    (request,) = engine.add([1, 2], dataclasses.replace(greedy, min_tokens=8))
    (long,) = drained(engine, request)
    assert len(long) > 8 and stop not in long[:8]
    seen = letters.decode(free)
    text = letters.decode(free[2:3])
    engine = tiny_engine(model, tokenizer=letters)
    (request,) = engine.add([1, 2], dataclasses.replace(greedy, min_tokens=6, stop=(text,)))
    drained(engine, request)
    assert request.num_tokens - 2 > 6
    before = letters.decode(free[:6])
    at = seen.find(text, len(before))
    assert request.text == (seen[:at] if at >= 0 else seen)


def test_promise_7_the_engine_refuses_what_it_cannot_do(model):
    letters = Tokenizer({bytes([65 + i]): i for i in range(VOCAB)}, {})
    engine = tiny_engine(model, tokenizer=letters, stop_ids=[0])
    refused: list[tuple[dict, str]] = [
        ({"logit_bias": {30: 1}}, "logit_bias names token 30; this model's are 0 to 29"),
        ({"stop_token_ids": (99,)}, "stop_token_ids names token 99"),
        ({"logprobs": 31}, "logprobs is 31; this model has 30 tokens"),
        ({"allowed_token_ids": (0,), "min_tokens": 2}, "allowed_token_ids are all stop tokens"),
    ]
    for options, reason in refused:
        with pytest.raises(ValueError, match=reason):
            engine.add([1], SamplingParams(**options))
    with pytest.raises(ValueError, match="stop needs an engine with a tokenizer"):
        tiny_engine(model).add([1], SamplingParams(stop="x"))
    assert not engine.has_work
    for options in ({"n": 2}, {"stop": "x"}, {"logprobs": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} needs an engine"):
            generate_uncached(model, [1], SamplingParams(**options))
