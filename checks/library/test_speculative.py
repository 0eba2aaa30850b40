"""Speculation: what is drafted, and that it changes no text."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from checks.tiny import at_rest, drain, same_or_tied, tiny_engine, tiny_llama, tiny_model
from course_lib.decode import DraftModel, SamplingParams, generate_uncached, ngram_draft
from course_lib.decode.beam import beam_search
from course_lib.decode.draft_model import check_same_vocabulary
from course_lib.decode.speculative import Wanted
from course_lib.engine import EngineConfig
from course_lib.engine.beam import PagedBeams

VOCAB = 31
GREEDY = SamplingParams(temperature=0, max_tokens=40)
DRAWN = SamplingParams(temperature=0.7, top_p=0.9, seed=3, max_tokens=40, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def other():
    """Another model, which seldom agrees."""
    return tiny_model(seed=2)


def run(engine, prompts, params, preempt=False):
    each = params if isinstance(params, list) else [params] * len(prompts)
    requests = [r for prompt, p in zip(prompts, each, strict=True) for r in engine.add(prompt, p)]
    for _ in range(20_000):
        if not engine.has_work:
            break
        told = [output.request for output in engine.step()]
        if preempt and any(request in engine.scheduler.running for request in told):
            engine.scheduler.preempt()
    at_rest(engine)
    return [request.output_ids for request in requests]


def prompts_of(count, seed=0):
    """Random ones, and some that repeat themselves, so that prompt lookup finds something."""
    rng = random.Random(seed)
    return [
        [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 9))] * rng.randrange(1, 5) for _ in range(count)
    ]


def proposer_of(kind, model, other):
    return {"ngram": None, "itself": DraftModel(model), "other": DraftModel(other)}[kind]


# What is drafted


@pytest.mark.parametrize(
    ("tokens", "k", "n", "draft"),
    [
        ([1, 2, 3, 9, 1, 2, 3], 2, 3, [9, 1]),
        ([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 1, 3, [9]),  # the longest, and not the latest
        ([5, 3, 7, 3, 8, 3], 1, 3, [8]),  # of equally long ones the latest
        ([1, 2, 3, 4], 4, 3, []),
        ([1, 2, 3, 1, 2], 7, 3, [3, 1, 2, 3, 1, 2, 3]),  # beyond its end it repeats itself
        ([4, 4], 3, 3, [4, 4, 4]),
        ([4], 3, 3, []),
        ([], 3, 3, []),
        ([1, 2, 8, 7, 2, 9, 1, 2], 1, 1, [9]),
    ],
)
def test_ngram_draft(tokens, k, n, draft):
    assert ngram_draft(tokens, k, n) == draft


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 6), st.integers(1, 4))
def test_ngram_draft_by_its_definition(tokens, k, n):
    expected = []
    for length in range(min(n, len(tokens) - 1), 0, -1):
        suffix = tokens[-length:]
        starts = [s for s in range(len(tokens) - length) if tokens[s : s + length] == suffix]
        if starts:
            follow = starts[-1] + length
            text = list(tokens)
            for i in range(k):
                text.append(text[follow + i])
            expected = text[len(tokens) :]
            break
    assert ngram_draft(tokens, k, n) == expected


def test_ngram_draft_wants_a_number():
    with pytest.raises(ValueError, match="at least 1"):
        ngram_draft([1, 1], 0)


def test_draft_model_drafts_what_it_would_write(other):
    """Also after drafts of which some were wrong, beside another text, and after it was forgotten."""
    drafter, rng = DraftModel(other), random.Random(1)
    text = [3, 1, 4]
    for turn in range(12):
        wanted = [Wanted("a", text, 4), Wanted("b", [7, *text], 2)]
        drafts = drafter.propose(wanted if turn % 3 else wanted[:1])
        params = SamplingParams(temperature=0, max_tokens=4)
        assert drafts[0] == list(generate_uncached(other, text, params))
        text = text + drafts[0][: rng.randrange(5)] + [rng.randrange(VOCAB)]
    assert drafter.propose([]) == []
    assert not drafter.followers


def test_draft_model_stays_within_its_positions(other):
    drafter = DraftModel(other)
    for length, count in [(94, 3), (95, 2), (96, 1), (97, 0), (120, 0)]:
        assert len(drafter.propose([Wanted("a", [1] * length, 5)])[0]) == count


# What becomes of the texts


@pytest.mark.parametrize("kind", ["ngram", "itself", "other"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 9, "max_num_seqs": 5},
        {"prefix_cache": "radix", "draft_tokens": 9, "num_blocks": 30},
        {"prefix_cache": "off", "num_blocks": 26},
        {"preempt": True, "max_num_seqs": 3},
    ],
)
def test_promise_3_greedy_tokens_with_and_without_drafts(model, other, kind, options, record_property):
    options = dict(options)
    preempt = options.pop("preempt", False)
    prompts = prompts_of(8, seed=len(options))
    engine = tiny_engine(model, speculative=kind, proposer=proposer_of(kind, model, other), **options)
    for prompt, got in zip(prompts, run(engine, prompts, GREEDY, preempt), strict=True):
        same_or_tied(model, prompt, got, list(generate_uncached(model, prompt, GREEDY)), record_property)
    assert engine.counters.drafted_tokens > 0


@pytest.mark.parametrize("kind", ["ngram", "itself", "other"])
def test_sampled_texts_with_and_without_drafts(model, other, kind):
    """Not the same distribution only: the same text for a seed."""
    prompts = prompts_of(6, seed=5)
    plain = run(tiny_engine(model), prompts, DRAWN)
    engine = tiny_engine(model, speculative=kind, proposer=proposer_of(kind, model, other))
    assert run(engine, prompts, DRAWN) == plain
    assert engine.counters.drafted_tokens > 0


def test_promise_6_drafts_come_from_the_text_alone(model, other):
    """Alone or among others: the same seed, the same text, the same drafts for the same beginnings."""
    prompt = [2, 9, 4]

    class Noting(DraftModel):
        def propose(self, wanted):
            drafts = super().propose(wanted)
            for each, draft in zip(wanted, drafts, strict=True):
                if list(each.tokens[: len(prompt)]) == prompt:
                    noted.setdefault(tuple(each.tokens), []).append(draft)
            return drafts

    noted: dict[tuple[int, ...], list[list[int]]] = {}
    alone = run(tiny_engine(model, speculative="other", proposer=Noting(other)), [prompt], DRAWN)[0]
    crowd = [*prompts_of(9, seed=8), prompt]
    among = run(
        tiny_engine(model, speculative="other", proposer=Noting(other), max_num_batched_tokens=24),
        crowd,
        DRAWN,
    )[-1]
    assert among == alone
    twice = [drafts for drafts in noted.values() if len(drafts) > 1]
    assert twice
    for drafts in twice:
        shortest = min(map(len, drafts))
        assert len({tuple(draft[:shortest]) for draft in drafts}) == 1


def test_a_model_agrees_with_itself(model):
    """Its own drafts are all right, so 40 tokens take a step for the prompt and 8 of 5 tokens."""
    engine = tiny_engine(model, speculative="itself", proposer=DraftModel(model))
    run(engine, [[1, 2, 3]], GREEDY)
    counters = engine.counters
    assert counters.steps == 1 + 8
    assert counters.accepted_tokens == counters.drafted_tokens == 39 - 8


def test_wrong_drafts_are_counted_as_such(model):
    class Wrong:
        def propose(self, wanted):
            """Never what the model is about to write."""
            params = SamplingParams(temperature=0, max_tokens=1)
            right = [next(iter(generate_uncached(model, list(each.tokens), params))) for each in wanted]
            return [[(token + 1) % VOCAB] * each.limit for token, each in zip(right, wanted, strict=True)]

    engine = tiny_engine(model, speculative="wrong", proposer=Wrong())
    assert run(engine, [[1, 2, 3]], GREEDY)[0] == list(generate_uncached(model, [1, 2, 3], GREEDY))
    assert engine.counters.accepted_tokens == 0
    assert engine.counters.drafted_tokens == 35 * 4 + 3 + 2 + 1


def test_n_texts_stops_and_logprobs(model, other):
    params = SamplingParams(temperature=0.9, seed=4, n=3, logprobs=2, max_tokens=25, stop_token_ids=(5, 6))

    def answers(engine):
        requests = engine.add([8, 8, 1, 8, 8], params)
        while engine.has_work:
            engine.step()
        return [(r.output_ids, r.finish_reason, len(r.logprobs)) for r in requests]

    plain = answers(tiny_engine(model))
    assert answers(tiny_engine(model, speculative="other", proposer=DraftModel(other))) == plain
    assert answers(tiny_engine(model, speculative="itself", proposer=DraftModel(model))) == plain


def test_beams_are_not_drafted_for(model):
    def beams(engine):
        with PagedBeams(engine, [1, 2, 1, 2], 3) as started:
            return [beam.token_ids for beam in beam_search(started, 3, 12, ())]

    assert beams(tiny_engine(model, speculative="itself", proposer=DraftModel(model))) == beams(
        tiny_engine(model)
    )


def test_drafts_preempt_nobody(model):
    """Two texts that just fit into the pool: drafts give way."""
    engine = tiny_engine(
        model, speculative="itself", proposer=DraftModel(model), num_blocks=22, prefix_cache="off"
    )
    run(engine, [[1, 2, 3], [4, 5, 6]], GREEDY)
    assert engine.counters.preemptions == 0
    assert engine.counters.accepted_tokens > 0


# Sampled texts keep their distribution


class Guessing:
    """Drafts the same tokens for every text: some of them happen to be right."""

    def propose(self, wanted):
        return [[0, 1, 2][: each.limit] for each in wanted]


def chi_square(model) -> float:
    """Texts of four tokens, drawn with drafts: how probable it is that the model spreads them like that."""
    count, prompt = 1500, [0, 2, 1]
    engine = tiny_engine(
        model, 2048, speculative="guessing", proposer=Guessing(), debug=False, max_num_batched_tokens=1024
    )
    requests = [engine.add(prompt, SamplingParams(3.0, seed=seed, max_tokens=4))[0] for seed in range(count)]
    drain(engine)
    assert engine.counters.drafted_tokens > count
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)  # (81, 4)
    texts = torch.cat((torch.tensor(prompt).expand(81, -1), every), 1)
    logprobs = (model(texts)[:, 2:-1].double() / 3).log_softmax(-1).gather(2, every[..., None])
    expected = count * logprobs.sum((1, 2)).exp()
    place = {tuple(text): i for i, text in enumerate(every.tolist())}
    observed = torch.zeros(81, dtype=torch.double)
    for request in requests:
        observed[place[tuple(request.output_ids)]] += 1
    assert expected.min() >= 5  # else the test would not hold
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.fixture(scope="module")
def three_tokens():
    return tiny_model(tiny_llama(vocab_size=3), std=0.1)


def test_promise_3_speculation_keeps_the_distribution(three_tokens):
    assert chi_square(three_tokens) > 0.01


def test_promise_3_speculation_keeps_the_distribution_inverse(three_tokens, monkeypatch):
    """If every draft were taken, texts would be those of the proposer."""
    monkeypatch.setattr(
        "course_lib.engine.model_runner.verified",
        lambda chunk, chosen: [*chunk.request.draft[: len(chosen) - 1], chosen[-1]],
    )
    assert chi_square(three_tokens) < 1e-9


# A proposer that fails


class Failing:
    """Drafts like its model, until the text has a token 7; then it raises, or gives what is no draft."""

    def __init__(self, model, how):
        self.drafts, self.how = DraftModel(model), how

    def propose(self, wanted):
        drafts = self.drafts.propose(wanted)
        if any(7 in each.tokens for each in wanted):
            if self.how == "raises":
                raise RuntimeError("no room for the draft")
            return drafts[1:] if self.how == "too few" else [[VOCAB, -1, 10**9] for _ in drafts]
        return drafts


@pytest.mark.parametrize("how", ["raises", "too few", "other tokens"])
def test_a_failing_proposer_costs_speed_only(model, how, caplog):
    """Those that it was asked about go on without drafts, each failure is told, and others have drafts."""
    prompts = [[1, 2, 3], [4, 7], [5, 6], [7]]
    engine = tiny_engine(model, speculative="itself", proposer=Failing(model, how), max_num_seqs=2)
    want = [list(generate_uncached(model, prompt, GREEDY)) for prompt in prompts]
    assert run(engine, prompts, GREEDY) == want
    assert (engine.counters.failed_drafts > 0) == (how != "other tokens")
    assert len(caplog.messages) == engine.counters.failed_drafts <= len(prompts)
    if how == "raises":
        assert "go on without drafts: RuntimeError('no room for the draft')" in caplog.text
    before = engine.counters.accepted_tokens
    if 7 not in want[0]:
        run(engine, [[1, 2, 3]], GREEDY)
        assert engine.counters.accepted_tokens > before


# What cannot be


def test_a_model_needs_a_proposer(model):
    with pytest.raises(ValueError, match="proposer"):
        tiny_engine(model, speculative="course-1m")


def test_vocabularies_must_be_the_same():
    check_same_vocabulary({0: b"a", 1: b"b"}, {1: b"b", 0: b"a"})
    with pytest.raises(ValueError, match="3 tokens and the model's 2, and 3 entries"):
        check_same_vocabulary({0: b"a", 1: b"c", 2: b"d"}, {0: b"a", 1: b"b"})


def test_draft_tokens_must_be_a_number():
    with pytest.raises(ValueError, match="draft_tokens is 0"):
        EngineConfig(draft_tokens=0)
