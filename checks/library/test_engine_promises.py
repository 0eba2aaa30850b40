"""The engine's promises, each a test named for it, on small random models in float32."""

import ast
import dataclasses
import itertools
import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.outcomes import Failed

from checks.tiny import at_rest, drain, same_or_tied, tiny_engine, tiny_llama, tiny_model
from course_lib.cache import BlockAllocator
from course_lib.cache.paged import PagedCache, Step
from course_lib.decode import SamplingParams, generate_uncached
from course_lib.engine import ImpossibleRequest
from course_lib.engine.engine import Engine, EngineConfig
from course_lib.engine.load import load
from course_lib.engine.model_runner import ModelRunner
from course_lib.engine.request import Request, Status
from course_lib.engine.scheduler import Scheduler
from course_lib.kernels import paged_attention
from course_lib.model import CheckpointError, Decoder

ROOT = Path(__file__).parents[2]
GPT2_SIZES = {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
VOCAB = 53

LLAMA = tiny_llama(
    vocab_size=VOCAB, hidden_size=40, intermediate_size=72, num_hidden_layers=3, num_attention_heads=6
)
MODELS = {
    "llama": LLAMA,
    "mistral": dataclasses.replace(LLAMA, sliding_window=7, layer_types=("sliding_attention",)),
    "gpt2": dataclasses.replace(
        LLAMA,
        model_type="gpt2",
        rope=None,
        num_key_value_heads=6,
        norm="layer",
        gated_mlp=False,
        activation="gelu_pytorch_tanh",
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
}


def model_of(family: str) -> Decoder:
    return tiny_model(MODELS[family])


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return model_of(request.param)


@pytest.fixture(scope="module")
def llama():
    return model_of("llama")


def prompts_of(count: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 1 to 40 tokens, some of which begin alike."""
    rng = random.Random(seed)
    beginnings = [[rng.randrange(VOCAB) for _ in range(length)] for length in (0, 9, 16)]
    return [
        rng.choice(beginnings) + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 24))]
        for _ in range(count)
    ]


def run(
    engine: Engine, prompts: list[list[int]], params: list[SamplingParams] | SamplingParams
) -> list[list[int]]:
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    requests = [r for prompt, p in zip(prompts, each, strict=True) for r in engine.add(prompt, p)]
    drain(engine)
    return [request.output_ids for request in requests]


GREEDY = SamplingParams(temperature=0, max_tokens=12)


def reference(model: Decoder, prompt: list[int], params: SamplingParams = GREEDY) -> list[int]:
    """By the definition: the whole text through the model for every token."""
    return list(generate_uncached(model, prompt, params))


# Attention


@pytest.mark.parametrize("heads", [(6, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize("window", [None, 5])
def test_paged_attention_is_attention(heads, window):
    """The torch path, the NumPy definition and plain attention, over texts of all lengths in one step."""
    (query_heads, kv_heads), width, size = heads, 8, 4
    config = dataclasses.replace(
        LLAMA, num_attention_heads=query_heads, num_key_value_heads=kv_heads, num_hidden_layers=1
    )
    rng = torch.Generator().manual_seed(3)
    allocator = list(range(60))
    random.Random(4).shuffle(allocator)
    chunks, texts, slots = [], [], []
    for new, length in [(1, 1), (1, 4), (1, 5), (1, 23), (1, 31), (7, 7), (4, 9), (1, 8), (13, 30)]:
        blocks = [allocator.pop() for _ in range(-(-length // size))]
        chunks.append((new, blocks, length))
        texts.append(torch.randn(3, length, query_heads, width, generator=rng))
        slots += [blocks[i // size] * size + i % size for i in range(length - new, length)]
    cache = PagedCache(config, 60, size)
    for (new, blocks, length), text in zip(chunks, texts, strict=True):
        before = torch.tensor([blocks[i // size] * size + i % size for i in range(length - new)])
        if len(before):
            cache.store(0, before, text[1, : length - new, :kv_heads], text[2, : length - new, :kv_heads])
    query = torch.cat([text[0, -new:] for (new, _, _), text in zip(chunks, texts, strict=True)])
    key = torch.cat([text[1, -new:, :kv_heads] for (new, _, _), text in zip(chunks, texts, strict=True)])
    value = torch.cat([text[2, -new:, :kv_heads] for (new, _, _), text in zip(chunks, texts, strict=True)])
    cache.begin(Step.build(slots, chunks, "cpu"))
    got = cache.attend(0, query[None], key[None], value[None], scale=0.3, window=window)[0]
    want = []
    for (new, _, length), text in zip(chunks, texts, strict=True):
        q, k, v = text[0], *(x[:, :kv_heads].repeat_interleave(query_heads // kv_heads, 1) for x in text[1:])
        mask = torch.ones(length, length).tril()
        mask = mask if window is None else mask.triu(1 - window)
        scores = torch.einsum("thd,shd->hts", q, k) * 0.3 + mask.log()
        want.append(torch.einsum("hts,shd->thd", scores.softmax(-1), v)[-new:])
    torch.testing.assert_close(got, torch.cat(want), rtol=1e-5, atol=1e-6)
    if window is None:
        tables = np.zeros((len(query), 8), int)
        lengths: list[int] = []
        row = 0
        for new, blocks, length in chunks:
            tables[row : row + new, : len(blocks)] = blocks
            lengths += range(length - new + 1, length + 1)
            row += new
        defined = paged_attention(
            query.numpy(), cache.keys[0].numpy(), cache.values[0].numpy(), tables, np.array(lengths), 0.3
        )
        np.testing.assert_allclose(defined, torch.cat(want).numpy(), rtol=1e-5, atol=1e-6)


# Promise 3: identical tokens


@pytest.mark.parametrize("cache", ["hash", "radix", "off"])
def test_promise_3_tokens_do_not_depend_on_the_cache(model, cache, record_property):
    engine = tiny_engine(model, prefix_cache=cache)
    prompts = prompts_of(8)
    for _ in range(2):  # the second time most of it is known
        requests = [engine.add(prompt, GREEDY)[0] for prompt in prompts]
        while engine.has_work:
            engine.step()
        for prompt, request in zip(prompts, requests, strict=True):
            same_or_tied(model, prompt, request.output_ids, reference(model, prompt), record_property)
    assert (sum(request.num_cached_tokens for request in requests) > 50) == (cache != "off")
    at_rest(engine)


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 16, 17, 512])
def test_promise_3_tokens_do_not_depend_on_the_chunk_size(model, budget, record_property):
    prompts = prompts_of(6, seed=1)
    engine = tiny_engine(model, max_num_batched_tokens=budget, max_num_seqs=min(budget, 4))
    for prompt, got in zip(prompts, run(engine, prompts, GREEDY), strict=True):
        same_or_tied(model, prompt, got, reference(model, prompt), record_property)


@pytest.mark.parametrize("together", [1, 2, 7, 32])
def test_promise_3_tokens_do_not_depend_on_the_batch(model, together, record_property):
    prompts = prompts_of(32, seed=2)
    engine = tiny_engine(model, num_blocks=512, max_num_seqs=together)
    params = [dataclasses.replace(GREEDY, max_tokens=1 + i % 12) for i in range(32)]
    for prompt, p, got in zip(prompts, params, run(engine, prompts, params), strict=True):
        same_or_tied(model, prompt, got, reference(model, prompt, p), record_property)


@pytest.mark.parametrize("cache", ["hash", "radix", "off"])
def test_promise_3_tokens_do_not_depend_on_preemption(model, cache, record_property):
    """Preempted after every step that produced a token."""
    engine = tiny_engine(model, prefix_cache=cache, max_num_batched_tokens=9, max_num_seqs=4)
    prompts = prompts_of(6, seed=3)
    requests = [engine.add(prompt, GREEDY)[0] for prompt in prompts]
    while engine.has_work:
        for output in engine.step():
            if output.request.status is Status.RUNNING:
                engine.scheduler.preempt(output.request)
    assert all(request.num_preemptions == GREEDY.max_tokens - 1 for request in requests)
    for prompt, request in zip(prompts, requests, strict=True):
        same_or_tied(model, prompt, request.output_ids, reference(model, prompt), record_property)
    at_rest(engine)


@pytest.mark.parametrize("cache", ["hash", "radix", "off"])
def test_promise_3_tokens_do_not_depend_on_a_tight_pool(model, cache, record_property):
    """Preempted by itself, for want of blocks, again and again."""
    engine = tiny_engine(model, num_blocks=14, prefix_cache=cache)
    prompts = prompts_of(10, seed=4)
    got = run(engine, prompts, GREEDY)
    assert engine.counters.preemptions > 3
    for prompt, tokens in zip(prompts, got, strict=True):
        same_or_tied(model, prompt, tokens, reference(model, prompt), record_property)


def test_promise_3_tokens_do_not_depend_on_drafts(model, record_property):
    """Right drafts, wrong drafts and none in one batch; greedy and drawn."""
    prompts = prompts_of(6, seed=5)
    params = [GREEDY if i % 2 else SamplingParams(temperature=0.8, seed=i, max_tokens=12) for i in range(6)]
    want = [reference(model, prompt, p) for prompt, p in zip(prompts, params, strict=True)]
    engine, rng = tiny_engine(model, num_blocks=128), random.Random(6)
    requests = [engine.add(prompt, p)[0] for prompt, p in zip(prompts, params, strict=True)]
    steps = 0
    while engine.has_work:
        for request, known in zip(requests, want, strict=True):
            done = len(request.output_ids)
            if request.status is Status.RUNNING and done:
                guess = [t if rng.random() < 0.7 else 0 for t in known[done : done + rng.randrange(4)]]
                request.draft = guess
        engine.step()
        steps += 1
    for prompt, request, known in zip(prompts, requests, want, strict=True):
        same_or_tied(model, prompt, request.output_ids, known, record_property)
    assert steps < 12
    at_rest(engine)


# Promise 6: same seed, same text


def test_promise_6_same_seed_same_text_whoever_else_is_there(llama):
    drawn = [SamplingParams(temperature=1.0, top_p=0.9, seed=seed, max_tokens=10) for seed in (5, 6, 7)]
    prompt = prompts_of(1, seed=6)[0]
    alone = [run(tiny_engine(llama), [prompt], params)[0] for params in drawn]
    assert len(set(map(tuple, alone))) == 3
    others = prompts_of(20, seed=7)
    company = [SamplingParams(temperature=1.3, seed=i, max_tokens=3 + i % 9) for i in range(20)]
    for budget, blocks in ((512, 512), (11, 40)):
        engine = tiny_engine(llama, num_blocks=blocks, max_num_batched_tokens=budget, max_num_seqs=8)
        got = run(engine, [*others[:10], *[prompt] * 3, *others[10:]], [*company[:10], *drawn, *company[10:]])
        assert got[10:13] == alone


def test_n_texts_of_one_prompt(llama):
    """The first is what n = 1 writes; the others have seeds of their own; the prompt is computed once."""
    prompt = prompts_of(1, seed=8)[0]
    params = SamplingParams(temperature=1.0, seed=9, max_tokens=10)
    (single,) = run(tiny_engine(llama), [prompt], params)
    engine = tiny_engine(llama)
    several = run(engine, [prompt], dataclasses.replace(params, n=4))
    assert several[0] == single and len(set(map(tuple, several))) == 4
    assert engine.counters.computed_tokens == len(prompt) + 4 * 9
    tight = tiny_engine(llama, num_blocks=-(-len(prompt) // 4) + 3)  # they must take turns
    assert run(tight, [prompt], dataclasses.replace(params, n=4)) == several


# Promises 1 and 5: nothing is lost


@pytest.mark.parametrize("cache", ["hash", "radix", "off"])
def test_promise_1_blocks_are_accounted_for_through_failures(llama, cache):
    """The runner fails at random: while computing, or while choosing. Texts are those without failures."""
    engine = tiny_engine(llama, num_blocks=40, prefix_cache=cache, max_num_seqs=4)
    prompts, rng = prompts_of(8, seed=10), random.Random(11)
    want = [reference(llama, prompt) for prompt in prompts]
    execute, sample = engine.runner.execute, engine.runner.sample

    def unreliable(function):
        def call(*args):
            result = function(*args)
            if rng.random() < 0.15:
                raise MemoryError("no room for the logits")
            return result

        return call

    engine.runner.execute, engine.runner.sample = unreliable(execute), unreliable(sample)
    requests = [engine.add(prompt, GREEDY)[0] for prompt in prompts]
    failures = 0
    while engine.has_work:
        try:
            engine.step()
        except MemoryError:
            failures += 1
            engine.scheduler.check()
            assert not engine.scheduler.running
    assert failures == engine.counters.failed_steps > 2
    assert [request.output_ids for request in requests] == want
    at_rest(engine)


@pytest.mark.parametrize("cache", ["hash", "radix"])
def test_promise_5_cancel_in_any_state(llama, cache):
    """At every step of a run one request is cancelled, twice; the others do not notice."""
    prompts = prompts_of(5, seed=12)
    want = [reference(llama, prompt) for prompt in prompts]
    for victim, moment in itertools.product(range(5), range(0, 18, 3)):
        engine = tiny_engine(
            llama, num_blocks=24, prefix_cache=cache, max_num_batched_tokens=16, max_num_seqs=4
        )
        requests = [engine.add(prompt, GREEDY)[0] for prompt in prompts]
        for _ in range(moment):
            engine.step()
        finished = requests[victim].finish_reason
        for _ in range(2):
            engine.cancel(requests[victim])
            engine.scheduler.check()
        assert requests[victim].table is None and requests[victim].finish_reason == (finished or "cancelled")
        drain(engine)
        for index, request in enumerate(requests):
            text = request.output_ids
            assert text == want[index] or (index == victim and text == want[index][: len(text)])
    assert engine.counters.finished["cancelled"] == 1


def test_drain_of_256_requests_at_once(llama):
    engine = tiny_engine(llama, num_blocks=300, max_num_seqs=256, debug=False)
    prompts = [[i % VOCAB, i // VOCAB, 3] for i in range(256)]
    got = run(engine, prompts, dataclasses.replace(GREEDY, max_tokens=5))
    assert all(len(tokens) == 5 for tokens in got)
    few = [0, 100, 255]
    assert [got[i] for i in few] == [reference(llama, prompts[i])[:5] for i in few]


class Delicate:
    """A tokenizer whose detokenizers fail over one token."""

    def __init__(self, token: int):
        self.token = token

    def detokenizer(self):
        return self

    def push(self, token: int) -> str:
        if token == self.token:
            raise UnicodeError("what is this?")
        return chr(65 + token)

    def flush(self) -> str:
        return ""


def test_a_text_that_cannot_be_written_ends_alone(llama):
    """The token that its detokenizer cannot read ends its text, with the reason; the others go on."""
    prompts = prompts_of(4, seed=14)
    want = [reference(llama, prompt) for prompt in prompts]
    bad = next(token for token in want[0] if token not in want[1] + want[2] + want[3])
    engine = tiny_engine(llama, tokenizer=Delicate(bad))
    requests = [engine.add(prompt, GREEDY)[0] for prompt in prompts]
    drain(engine)
    assert requests[0].finish_reason == "error" and requests[0].error == "UnicodeError: what is this?"
    assert requests[0].output_ids == want[0][: want[0].index(bad) + 1]
    assert [request.output_ids for request in requests[1:]] == want[1:]


# Promise 4: impossible requests


def test_promise_4_impossible_requests_fail_at_once(llama):
    engine = tiny_engine(llama, num_blocks=2)
    for prompt, options, reason in [
        ([], {}, "The prompt is empty"),
        (list(range(9)), {}, "The prompt has 9 tokens; there is room for 9"),
        ([1] * 200, {}, "The prompt has 200 tokens"),
        ([1], {"n": 300}, "n is 300; this engine runs 256 requests at once"),
    ]:
        with pytest.raises(ImpossibleRequest, match=reason):
            engine.add(prompt, dataclasses.replace(GREEDY, **options))
    at_rest(engine)
    with pytest.raises(ImpossibleRequest, match="room for 96 in all"):
        tiny_engine(llama, num_blocks=1000).add([1] * 96)


@pytest.mark.parametrize("token", [VOCAB, -1, 10**12])
def test_promise_4_a_prompt_of_other_tokens_harms_nobody(llama, token):
    """The model has no such token: refused at once, and who is running goes on."""
    engine = tiny_engine(llama)
    (request,) = engine.add([1, 2, 3], GREEDY)
    engine.step()
    with pytest.raises(
        ImpossibleRequest, match=f"Token 1 of the prompt is {token}; this model's are 0 to 52"
    ):
        engine.add([5, token, 6], GREEDY)
    drain(engine)
    assert request.output_ids == reference(llama, [1, 2, 3])


def test_promise_4_a_full_pool_never_raises(llama):
    engine = tiny_engine(llama, num_blocks=2)
    prompts = [[i, 1, 2, 3, 4, 5, 6, 7][: 1 + i % 8] for i in range(20)]
    for prompt, got in zip(prompts, run(engine, prompts, GREEDY), strict=True):
        assert got == reference(llama, prompt)[: 9 - len(prompt)]


def test_a_text_ends_at_the_last_position_of_the_model(llama):
    engine = tiny_engine(llama)
    (got,) = run(engine, [[1] * 90], SamplingParams(temperature=0, max_tokens=99))
    assert len(got) == 6
    short = tiny_engine(llama, max_model_len=10)
    (got,) = run(short, [[1] * 8], SamplingParams(temperature=0, max_tokens=99))
    assert len(got) == 2


# Promise 7: nothing is ignored


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"n": 0}, "n is 0; it must be at least 1"),
        ({"stop": ["a", ""]}, "stop is .*; it must be texts, none of them empty"),
        ({"stop": [3]}, "stop is .*; it must be texts"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_promise_7_wrong_parameters_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        SamplingParams(**options)


def test_promise_7_unknown_parameters_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'best_of_all'"):
        SamplingParams(best_of_all=2)
    with pytest.raises(ValueError, match="block_size is 0; it must be at least 1"):
        EngineConfig(block_size=0)
    with pytest.raises(ValueError, match="prefix_cache is 'trie'; choose hash, radix, off"):
        EngineConfig(prefix_cache="trie")  # type: ignore[arg-type]


def test_promise_7_what_the_engine_cannot_do_is_refused(llama):
    engine = tiny_engine(llama)
    refused: list[tuple[dict, str]] = [
        ({"stop": "x"}, "stop needs an engine with a tokenizer"),
        ({"logit_bias": {VOCAB: 1}}, f"logit_bias names token {VOCAB}; this model's are 0 to {VOCAB - 1}"),
        ({"logprobs": VOCAB + 1}, f"logprobs is {VOCAB + 1}; this model has {VOCAB} tokens"),
    ]
    for options, reason in refused:
        with pytest.raises(ValueError, match=reason):
            engine.add([1], SamplingParams(**options))
    at_rest(engine)


# Promise 2: shared blocks are never written


class Watched(ModelRunner):
    """A runner that compares, around every step, all blocks that are shared or full."""

    allocator: BlockAllocator
    seen = 0

    def execute(self, schedule):
        fixed = [
            block
            for block in range(self.allocator.total)
            if self.allocator.references[block] > 1 or self.allocator.keys[block] is not None
        ]
        before = self.cache.keys[:, fixed].clone(), self.cache.values[:, fixed].clone()
        logits = super().execute(schedule)
        assert torch.equal(self.cache.keys[:, fixed], before[0]), "a shared or full block has changed"
        assert torch.equal(self.cache.values[:, fixed], before[1]), "a shared or full block has changed"
        self.seen += len(fixed)
        return logits


def watched(model: Decoder) -> tuple[Engine, Watched]:
    engine = tiny_engine(model, num_blocks=48, max_num_batched_tokens=24, max_num_seqs=6)
    engine.runner = runner = Watched(model, 48, 4)
    runner.allocator = engine.allocator
    return engine, runner


def test_promise_2_a_shared_block_is_never_written(model):
    engine, runner = watched(model)
    params = [SamplingParams(temperature=1.0, seed=i, max_tokens=9, n=1 + i % 4) for i in range(12)]
    run(engine, prompts_of(4, seed=13) * 3, params)
    assert runner.seen > 100


def test_promise_2_inverse(llama, monkeypatch):
    """Without copying on write the same test fails."""
    monkeypatch.setattr("course_lib.cache.blocks.BlockTable.make_private", lambda self, position: None)
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=9, n=4)
    with pytest.raises(AssertionError, match="a shared or full block has changed"):
        run(watched(llama)[0], prompts_of(4, seed=13), params)


def test_promise_3_inverse(llama, monkeypatch):
    """Names of blocks that forget what came before: other texts come out, and it is noticed."""
    from course_lib.cache import prefix

    prompts = [[first] * 4 + [second] * 4 + [7] for first in range(4) for second in range(4)]
    want = [reference(llama, prompt) for prompt in prompts]
    assert run(tiny_engine(llama, num_blocks=256), prompts, GREEDY) == want
    names = prefix.block_key
    monkeypatch.setattr(prefix, "block_key", lambda parent, tokens: names(b"", tokens))
    engine = tiny_engine(llama, num_blocks=256, max_num_seqs=1)
    assert run(engine, prompts, GREEDY) != want


def test_promise_6_inverse(llama, monkeypatch):
    """With one stream of random numbers for the whole batch, a text does depend on its company."""
    stream = random.Random(0)
    monkeypatch.setattr(
        "course_lib.decode.sampler.uniform", lambda seed, position, purpose=0: stream.random()
    )
    prompt, params = prompts_of(1)[0], SamplingParams(seed=1, max_tokens=8)
    alone = run(tiny_engine(llama), [prompt], params)[0]
    stream.seed(0)
    assert run(tiny_engine(llama), [prompt, *prompts_of(3)], params)[0] != alone


def test_promise_1_inverse(llama, monkeypatch):
    """A block that gets lost is noticed in the same step."""
    take = Scheduler.reserve

    def leaky(self, request: Request, count: int, copies):
        if self.allocator.available > 1:
            self.allocator.allocate()
        return take(self, request, count, copies)

    monkeypatch.setattr(Scheduler, "reserve", leaky)
    with pytest.raises(AssertionError):
        run(tiny_engine(llama), prompts_of(2), GREEDY)


def test_promise_4_inverse(llama, monkeypatch):
    """Without the check nothing says what is impossible; and books that promise blocks too many fail."""
    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "refuse_impossible", lambda self, request: None)
        with pytest.raises(Failed, match="DID NOT RAISE"):
            test_promise_4_impossible_requests_fail_at_once(llama)
    monkeypatch.setattr("course_lib.cache.prefix.HashPrefixCache.make_available", lambda self, blocks: True)
    with pytest.raises((RuntimeError, AssertionError, IndexError)):
        test_promise_4_a_full_pool_never_raises(llama)


@pytest.mark.parametrize("cache", ["hash", "radix"])
def test_promise_5_inverse(llama, monkeypatch, cache):
    """A cancelled request that keeps its blocks is noticed; so is one that is ended twice."""
    finish = Scheduler.finish

    def keeps(self, request: Request, reason):
        if reason == "cancelled":
            request.table = None
        finish(self, request, reason)

    def again(self, request: Request, reason):
        if request.status is Status.FINISHED and reason == "cancelled":
            request.status = Status.WAITING
        finish(self, request, reason)

    for broken in (keeps, again):
        monkeypatch.setattr(Scheduler, "finish", broken)
        monkeypatch.setattr(
            Engine, "cancel", lambda self, request: self.scheduler.finish(request, "cancelled")
        )
        with pytest.raises(AssertionError):
            test_promise_5_cancel_in_any_state(llama, cache)


def test_promise_7_inverse(llama, monkeypatch):
    """Parameters that nobody looks at: the tests above notice."""
    monkeypatch.setattr(SamplingParams, "__post_init__", lambda self: None)
    with pytest.raises(Failed, match="DID NOT RAISE"):
        test_promise_7_wrong_parameters_are_refused({"n": 0}, "n is 0")
    monkeypatch.setattr(ModelRunner, "refuse", lambda self, params: None)
    monkeypatch.setattr(Engine, "refuse_unsupported", lambda self, params, stops: None)
    with pytest.raises(Failed, match="DID NOT RAISE"):
        test_promise_7_what_the_engine_cannot_do_is_refused(llama)


# Promise 9: nothing of a checkpoint is executed


class Explosive:
    """Unpickling this makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.gguf"])
def test_promise_9_pickles_are_not_loaded(tmp_path, name):
    """A pickle under any name: a clear error, and its program has not run."""
    mark = tmp_path / "it ran"
    (tmp_path / name).write_bytes(pickle.dumps(Explosive(mark)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **GPT2_SIZES}))
    with pytest.raises(CheckpointError):
        load(tmp_path / name if name.endswith("gguf") else tmp_path)
    assert not mark.exists()


def test_promise_9_inverse(tmp_path, monkeypatch):
    """A loader that unpickles does run the program, and is noticed; so is source that would."""
    monkeypatch.setattr(
        "course_lib.model.load.safe_open", lambda path, framework: pickle.loads(Path(path).read_bytes())
    )
    with pytest.raises((AssertionError, AttributeError)):
        test_promise_9_pickles_are_not_loaded(tmp_path, "model.safetensors")
    assert (tmp_path / "it ran").exists()
    room = tmp_path / "course_lib" / "model"
    room.mkdir(parents=True)
    (room / "load.py").write_text("import torch\nweights = torch.load('x')\n")
    assert unpickling(tmp_path) == [("model", "torch.load", False)]


def test_promise_9_the_library_unpickles_weights_only():
    """The classroom's own processes talk to each other in pickles that nobody else can write."""
    assert all(safe for room, _, safe in unpickling(ROOT) if room != "classroom")


def unpickling(root: Path) -> list[tuple[str, str, bool]]:
    """`torch.load` and `pickle.load` run whatever a file holds; the first need not. Where, which, and whether
    it may."""
    calls = []
    for path in (root / "course_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "torch.load",
                "pickle.load",
                "pickle.loads",
            ):
                safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                calls.append((path.relative_to(root / "course_lib").parts[0], ast.unparse(node.func), safe))
    return calls
