"""Samplers against the distributions that define them, and the two generation loops against each other."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from course_lib.cache import ContiguousCache
from course_lib.decode import Sampler, SamplingParams, generate_cached, generate_uncached
from course_lib.decode.sampler import draw, keep_top_p, uniform
from course_lib.model import Decoder, ModelConfig

LOGITS = torch.tensor([2.0, 1.5, 1.5, 0.7, 0.1, -0.3, -1.0, -2.0, -2.2, -4.0, -9.0, -torch.inf])
DRAWS = 20_000


def expected(params: SamplingParams) -> np.ndarray:
    """The distribution by its definition, one token at a time, in float64."""
    logits = LOGITS.double().numpy() / params.temperature
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    order = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
    if params.top_k:
        border = probs[order[min(params.top_k, len(order)) - 1]]
        probs = np.where(probs >= border, probs, 0)
        probs /= probs.sum()
    kept, mass = set(), 0.0
    for i in order:
        if mass < params.top_p:
            kept.add(i)
        mass += probs[i]
    border = max(min(probs[i] for i in kept), params.min_p * probs.max())
    probs = np.where(probs >= border, probs, 0)
    return probs / probs.sum()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.4),
        SamplingParams(temperature=3.0),
        SamplingParams(top_k=2),  # a tie at the border: three tokens stay
        SamplingParams(top_k=5),
        SamplingParams(top_k=500),
        SamplingParams(top_p=0.5),
        SamplingParams(top_p=0.9, temperature=1.7),
        SamplingParams(top_p=1e-9),
        SamplingParams(min_p=0.1),
        SamplingParams(min_p=1.0),
        SamplingParams(temperature=2.0, top_k=6, top_p=0.8, min_p=0.2),
    ],
    ids=str,
)
def test_sampler_has_the_distribution_it_promises(params):
    """Chi-square over fixed seeds; a right sampler would fail for one in ten thousand choices of them."""
    rows = 500
    counts = np.zeros(len(LOGITS), dtype=int)
    for start in range(0, DRAWS, rows):
        seeds = [SamplingParams(**vars(params) | {"seed": seed}) for seed in range(start, start + rows)]
        tokens = Sampler(seeds)(LOGITS.expand(rows, -1), [7] * rows)
        counts += np.bincount(tokens.numpy(), minlength=len(LOGITS))
    probs = expected(params)
    possible = probs > 0
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible], probs[possible] * DRAWS).pvalue > 1e-4


def test_the_chi_square_would_notice():
    """The same test with a temperature that is 5% off: it must fail."""
    draws = torch.tensor([[uniform(seed, 7)] for seed in range(DRAWS)], dtype=torch.float64)
    tokens = draw(torch.softmax(LOGITS / 1.05, -1).expand(DRAWS, -1), draws)
    probs = expected(SamplingParams())
    counts = np.bincount(tokens.numpy(), minlength=len(LOGITS))
    assert stats.chisquare(counts[:-1], probs[:-1] * DRAWS).pvalue < 1e-4


def test_top_p_beyond_the_first_thousand():
    """A flat distribution over 5,000 tokens: the set is found by sorting them all."""
    torch.manual_seed(3)
    probs = torch.softmax(torch.randn(2, 5000) * 0.1, -1)
    kept = keep_top_p(probs, torch.tensor([[0.3], [0.9]]))
    for row, p in zip(range(2), (0.3, 0.9), strict=True):
        ranked = probs[row].double().sort(descending=True).values
        size = int((ranked.cumsum(0) < p).sum()) + 1
        assert abs(int((kept[row] > 0).sum()) - size) <= 1  # float32 and float64 sums may differ by one token
        assert kept[row][kept[row] > 0].min() >= probs[row][kept[row] == 0].max()


def test_top_p_is_what_sorting_everything_gives():
    """Rows whose sets have 1 to 20,000 tokens, a row without top-p, and one full of ties, all together."""
    torch.manual_seed(5)
    vocab, spread = 20_000, torch.tensor([[0.0], [0.1], [1.0], [2.0], [4.0], [30.0], [1.0], [2.0]])
    logits = torch.randn(len(spread), vocab) * spread
    logits[-1] = logits[-1].round()
    probs = torch.softmax(logits, -1)
    probs[2, 50:] = 0  # what top-k leaves
    for p in (1e-9, 0.3, 0.9, 0.999):
        wanted = torch.full((len(spread), 1), p)
        wanted[6] = 1
        kept = keep_top_p(probs, wanted)
        assert torch.equal(kept[6], probs[6])
        ranked = probs.sort(-1, descending=True).values
        before = (ranked.cumsum(-1) < wanted * probs.sum(-1, keepdim=True)).sum(-1, keepdim=True)
        border = ranked.gather(1, before.clamp(max=vocab - 1))
        border[6] = 0
        assert torch.equal(kept, torch.where(probs >= border, probs, 0.0))


def test_the_best_token_is_the_first_of_equals():
    """In bfloat16 ties are common; the choice must not depend on the batch."""
    torch.manual_seed(6)
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randint(0, 9, (40, 999)).to(dtype)
        chosen = Sampler([SamplingParams(temperature=0)] * 40)(logits, range(40))
        assert chosen.tolist() == [row.index(max(row)) for row in logits.tolist()]


def test_uniform_numbers():
    by_seed = [uniform(seed, 3) for seed in range(4000)]
    by_position = [uniform(11, position) for position in range(4000)]
    for numbers in (by_seed, by_position):
        assert stats.kstest(numbers, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(by_position[:-1], by_position[1:])[0, 1]) < 0.05
    assert uniform(1, 2) == uniform(1, 2)
    assert len({uniform(1, 2), uniform(2, 1), uniform(1, 3), uniform(1, 2, purpose=1)}) == 4
    assert 0 <= uniform(2**64 - 1, 10**6) < 1


def test_a_row_does_not_depend_on_its_neighbors():
    """Same seed, position and logits: the same token in any batch, at any place, beside anything."""
    torch.manual_seed(5)
    logits = torch.randn(40, 300)
    settings = itertools.product((0.0, 0.7, 1.3, 5.0, 1.0), (0, 3), (1.0, 0.6), (0.0, 0.05))
    rows = [SamplingParams(*setting, seed=seed) for seed, setting in enumerate(settings)]
    positions = list(range(40))
    together = Sampler(rows)(logits, positions).tolist()
    alone = [int(Sampler([row])(logits[i : i + 1], [i])) for i, row in enumerate(rows)]
    order = torch.randperm(40).tolist()
    shuffled = Sampler([rows[i] for i in order])(logits[order], order).tolist()
    assert together == alone
    assert shuffled == [together[i] for i in order]
    assert together[:8] == logits[:8].argmax(-1).tolist()


def test_top_k_of_one_is_greedy_and_needs_no_seed():
    logits = torch.randn(3, 50)
    assert torch.equal(Sampler([SamplingParams(top_k=1)] * 3)(logits, [0, 0, 0]), logits.argmax(-1))
    with pytest.raises(ValueError, match="Row 1 samples without a seed"):
        Sampler([SamplingParams(temperature=0), SamplingParams()])


def test_draw_never_takes_an_impossible_token():
    weights = torch.tensor([[0.0, 0.0, 1e-30, 0.0, 3.0, 0.0]])
    for u in (0.0, 1e-300, 0.5, 1 - 2**-52):
        assert int(draw(weights, torch.tensor([[u]], dtype=torch.float64))) in (2, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be a number from 0 up"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0}, "top_p is 0; it must be above 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 2}, "min_p is 2"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
        ({"seed": -5}, "seed is -5"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_parameters_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**wrong)


def test_a_parameter_that_is_not_supported_is_refused():
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=2)


# The loops


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(2)
    model = Decoder(ModelConfig("llama", 101, 32, 48, 3, 4, 2, 12, 700)).eval()
    with torch.no_grad():
        for name, weight in model.named_weights():
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.3)
    return model


SAMPLED = SamplingParams(temperature=1.2, top_p=0.95, seed=4, max_tokens=40)


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0, max_tokens=40), SAMPLED], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("length", [1, 2, 17, 600])  # 600 tokens are read in two chunks
def test_tokens_are_the_same_with_and_without_cache(model, params, length):
    prompt = torch.randint(0, 101, (length,)).tolist()
    reference = list(generate_uncached(model, prompt, params))
    assert len(reference) == 40
    cache = ContiguousCache(model.config, capacity=8)
    assert list(generate_cached(model, prompt, params, cache)) == reference
    assert cache.length == length + 39  # the last token was chosen, never read

    kept = length // 2  # and from a cache that holds the beginning of the prompt already
    cache.truncate(kept)
    assert list(generate_cached(model, prompt, params, cache)) == reference


def test_stop_tokens(model):
    greedy = SamplingParams(temperature=0, max_tokens=30)
    written = list(generate_uncached(model, [3, 4], greedy))
    stop = written[9]
    first = written.index(stop)

    def run(params, stop_ids=()):
        return list(generate_cached(model, [3, 4], params, ContiguousCache(model.config, 64), stop_ids))

    assert run(greedy, [stop]) == written[: first + 1]
    assert run(SamplingParams(temperature=0, max_tokens=30, stop_token_ids=(stop,))) == written[: first + 1]
    assert run(SamplingParams(temperature=0, max_tokens=30, ignore_eos=True), [stop]) == written


def test_generation_refuses_what_it_cannot_run(model):
    cache = ContiguousCache(model.config, 8)
    with pytest.raises(ValueError, match="The prompt is empty"):
        generate_cached(model, [], SAMPLED, cache)
    list(generate_cached(model, [1, 2, 3], SamplingParams(temperature=0, max_tokens=1), cache))
    with pytest.raises(ValueError, match="The cache holds 3 tokens, the prompt only 3"):
        generate_cached(model, [1, 2, 3], SAMPLED, cache)


def test_stopping_early_leaves_the_cache_usable(model):
    cache = ContiguousCache(model.config, 8)
    stream = generate_cached(model, [5, 6, 7], SAMPLED, cache)
    begun = [next(stream) for _ in range(4)]
    stream.close()
    assert cache.length == 6
    rest = generate_cached(model, [5, 6, 7, *begun], SAMPLED, cache)
    assert begun + list(rest)[:36] == list(generate_uncached(model, [5, 6, 7], SAMPLED))
