"""Beam search against every continuation there is, in one cache and over the engine's shared blocks."""

import itertools
import random

import pytest
import torch

from checks.tiny import at_rest, tiny_engine, tiny_llama, tiny_model
from course_lib.decode import Beam, CachedBeams, SamplingParams, beam_search
from course_lib.engine import Engine, ImpossibleRequest
from course_lib.engine.beam import PagedBeams
from course_lib.model import Decoder

VOCAB = 5


@pytest.fixture(scope="module", params=range(3), ids="seed {}".format)
def model(request) -> Decoder:
    config = tiny_llama(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1
    )
    return tiny_model(config, request.param, std=0.5)


def engine_of(model: Decoder, num_blocks: int = 64, **options) -> Engine:
    return tiny_engine(model, num_blocks, **{"block_size": 2, **options})


def paged(engine: Engine, prompt: list[int], width: int, *args, **options) -> list[Beam]:
    with PagedBeams(engine, prompt, width) as beams:
        return beam_search(beams, width, *args, **options)


def exhaustive(model: Decoder, prompt: list[int], length: int, stop: set[int]) -> list[Beam]:
    """Every continuation that ends in a stop token, or at `length` without one."""
    every = []
    for size in range(1, length + 1):
        for ids in itertools.product(range(VOCAB), repeat=size):
            if stop & set(ids[:-1]) or (size < length and ids[-1] not in stop):
                continue
            logprobs = torch.log_softmax(model(torch.tensor([prompt + list(ids)]))[0].double(), -1)
            total = sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(ids))
            every.append(Beam(ids, total, "stop" if ids[-1] in stop else "length"))
    return every


def same(got: list[Beam], want: list[Beam]) -> None:
    assert [(beam.token_ids, beam.finish_reason) for beam in got] == [
        (beam.token_ids, beam.finish_reason) for beam in want
    ]
    assert [beam.logprob for beam in got] == pytest.approx([beam.logprob for beam in want], abs=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
def test_a_wide_beam_finds_what_an_exhaustive_search_finds(model, penalty):
    """As wide as there are kept texts of the last length but one: nothing is ever dropped."""
    prompt, length, stop, width = [1, 2, 3], 3, {0}, (VOCAB - 1) ** 2
    every = exhaustive(model, prompt, length, stop)
    assert len(every) == 1 + 4 + 16 * 5
    want = sorted(every, key=lambda beam: -beam.score(penalty))[:width]
    same(beam_search(CachedBeams(model, prompt), width, length, stop, penalty), want)
    engine = engine_of(model)
    same(paged(engine, prompt, width, length, stop, penalty), want)
    at_rest(engine)


@pytest.mark.parametrize("stop", [set(), {0}, {0, 3}], ids=len)
@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_both_ways_of_running_beams_agree(model, width, stop):
    prompt = [2, 4, 1, 1, 3]
    want = beam_search(CachedBeams(model, prompt), width, 12, stop)
    engine = engine_of(model)
    same(paged(engine, prompt, width, 12, stop), want)
    at_rest(engine)
    if width == 1 and not stop:
        with torch.inference_mode():
            ids = list(prompt)
            for _ in range(12):
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert want[0].token_ids == tuple(ids[5:])


def test_promise_2_beams_share_their_full_blocks(model):
    """Copied are unfinished blocks only; and the prompt's blocks exist once, whatever the width."""
    engine, prompt, width = engine_of(model, block_size=4), [1, 2, 3, 4, 0, 1, 2, 3, 4, 4], 4
    copied, most = [], 0
    schedule = engine.scheduler.schedule

    def watched():
        nonlocal most
        done = schedule()
        for _, target in done.copies:
            (writer,) = [r for r in engine.scheduler.running if r.table and target in r.table.blocks]
            copied.append((writer.table.blocks.index(target), writer.num_computed_tokens))
        most = max(most, engine.allocator.total - engine.allocator.available)
        return done

    engine.scheduler.schedule = watched
    paged(engine, prompt, width, 12)
    assert copied
    assert all(index == computed // 4 and computed % 4 for index, computed in copied)
    assert most <= len(prompt) // 4 + width * (12 // 4 + 1)
    at_rest(engine)


@pytest.mark.parametrize("num_blocks", [9, 12, 20])
def test_beams_survive_preemption_and_company(model, num_blocks):
    """A pool that is too small for all, and others who want it too: everybody's tokens stay the same."""
    rng, prompt = random.Random(num_blocks), [2, 4, 1]
    want = beam_search(CachedBeams(model, prompt), 3, 9, {0})
    alone = engine_of(model)
    others = [[rng.randrange(VOCAB) for _ in range(rng.randrange(1, 6))] for _ in range(5)]
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=8)
    expected = []
    for other in others:
        (request,) = alone.add(other, params)
        while alone.has_work:
            alone.step()
        expected.append(request.output_ids)
    engine = engine_of(model, num_blocks, max_num_seqs=5)
    requests = [engine.add(other, params)[0] for other in others]
    same(paged(engine, prompt, 3, 9, {0}), want)
    while engine.has_work:
        engine.step()
    assert [request.output_ids for request in requests] == expected
    if num_blocks == 9:
        assert engine.counters.preemptions
    at_rest(engine)


def test_what_cannot_be_searched_is_refused(model):
    engine = engine_of(model, max_num_seqs=3)
    with pytest.raises(ImpossibleRequest, match="n is 4; this engine runs 3"):
        paged(engine, [1], 4, 5)
    with pytest.raises(ImpossibleRequest, match="The prompt is empty"):
        paged(engine, [], 2, 5)
    with pytest.raises(ValueError, match="The prompt is empty"):
        CachedBeams(model, [])
    for wrong in ((0, 5, (), 1.0), (2, 0, (), 1.0), (2, 5, (), float("nan"))):
        with pytest.raises(ValueError, match="must be at least 1, the last a finite number"):
            beam_search(CachedBeams(model, [1]), *wrong)
    at_rest(engine)
