"""Choosing tokens in NumPy: filters against plain loops and the torch sampler, and the loop that writes."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_lib.decode import Sampler, SamplingParams, generate, keep_top_p, sample
from course_lib.decode.sampler import uniform as torch_uniform

ROWS = st.lists(st.integers(-30, 30), min_size=1, max_size=9).map(lambda x: np.array(x) / 4)
TEMPERATURES = st.sampled_from([0.25, 0.7, 1.0, 2.0])
TOP_K = st.integers(0, 12)
TOP_P = st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.999, 1.0])
MIN_P = st.sampled_from([0.0, 0.01, 0.2, 0.5, 1.0])
GRID = (np.arange(4000) + 0.5) / 4000


def drawn(logits: np.ndarray, **options: Any) -> np.ndarray:
    """The distribution that `sample` draws from: a grid of uniforms falls on tokens as the CDF cuts it."""
    rows = np.broadcast_to(logits, (len(GRID), len(logits)))
    return np.bincount(sample(rows, GRID, **options), minlength=len(logits)) / len(GRID)


def by_loops(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """The same distribution, token by token as the definitions read."""
    weights = [float(np.exp((x - max(logits)) / temperature)) for x in logits]
    if top_k:
        border = sorted(weights, reverse=True)[:top_k][-1]
        weights = [w if w >= border else 0.0 for w in weights]
    held, border = 0.0, 0.0
    for w in sorted(weights, reverse=True):
        if held >= top_p * sum(weights):
            break
        held, border = held + w, w
    if top_p < 1:
        weights = [w if w >= border else 0.0 for w in weights]
    weights = [w if w >= min_p * max(weights) else 0.0 for w in weights]
    return np.array(weights) / sum(weights)


@given(logits=ROWS, temperature=TEMPERATURES, top_k=TOP_K, top_p=TOP_P, min_p=MIN_P)
def test_the_distribution_is_the_definitions(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    want = by_loops(logits, temperature, top_k, top_p, min_p)
    got = drawn(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    np.testing.assert_allclose(got, want, atol=1.01 / len(GRID))


@given(
    rows=st.lists(st.lists(st.floats(-9, 9, width=32), min_size=7, max_size=7), min_size=1, max_size=4),
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    top_k=TOP_K,
    top_p=st.sampled_from([0.2, 0.5, 0.9, 1.0]),
    min_p=MIN_P,
    seed=st.integers(0, 1000),
)
def test_the_torch_sampler_chooses_the_same(
    rows: list[list[float]], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    logits = np.array(rows, dtype=np.float32)
    logits += (
        np.arange(7, dtype=np.float32) / 64
    )  # no two equally probable: a border is not a matter of rounding
    params = SamplingParams(temperature, top_k, top_p, min_p, seed)
    positions = list(range(len(rows)))
    theirs = Sampler([params] * len(rows))(torch.from_numpy(logits), positions).numpy()
    draws = np.array([torch_uniform(seed, position) for position in positions])
    ours = sample(logits, draws, temperature, top_k, top_p, min_p)
    np.testing.assert_array_equal(ours, theirs)


@given(logits=ROWS, p=st.floats(0.001, 1))
def test_top_p_keeps_enough_and_no_more(logits: np.ndarray, p: float) -> None:
    probs = np.exp(logits - logits.max())
    kept = keep_top_p(probs, p)
    assert ((kept == probs) | (kept == 0)).all()
    assert kept.sum() >= p * probs.sum() * (1 - 1e-12)
    border = kept[kept > 0].min()
    assert probs[(probs > border)].sum() < p * probs.sum() * (1 + 1e-12)
    assert (kept[probs >= border] > 0).all()


@given(logits=ROWS, u=st.floats(0, 1, exclude_max=True))
def test_temperature_0_is_the_best_whatever_else_is_asked(logits: np.ndarray, u: float) -> None:
    assert sample(logits, u, 0, 3, 0.5, 0.1) == logits.argmax()


@pytest.mark.parametrize("temperature", [1e-3, 1e-30])
def test_a_tiny_temperature_is_greedy_and_warns_of_nothing(temperature: float) -> None:
    with np.errstate(invalid="raise", divide="raise"):
        for dtype in (np.float32, np.float64):
            logits = np.array([1.0, 3.0, 2.0, -np.inf], dtype=dtype)
            assert sample(logits, 0.999, temperature) == 1


def test_large_logits_and_ruled_out_tokens() -> None:
    assert drawn(np.array([1e4, 1e4, -1e4])).round(2).tolist() == [0.5, 0.5, 0]
    assert drawn(np.array([0.0, -np.inf, 0.0]), top_k=3, top_p=0.999).round(2).tolist() == [0.5, 0, 0.5]


def test_leading_axes_and_a_plain_number() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 3, 11)).astype(np.float32)
    draws = np.random.default_rng(1).random((2, 3))
    together = sample(logits, draws, 0.8, 5, 0.9, 0.05)
    alone = [
        [sample(logits[i, j], float(draws[i, j]), 0.8, 5, 0.9, 0.05) for j in range(3)] for i in range(2)
    ]
    assert together.tolist() == np.array(alone).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.1},
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="range"):
        sample(np.zeros(3), 0.5, **options)


@pytest.mark.parametrize("logits", [[np.nan, 1.0], [-np.inf, -np.inf], [np.inf, 0.0]])
def test_logits_without_a_choice_are_refused(logits: list[float]) -> None:
    for temperature in (0, 1):
        with pytest.raises(ValueError, match="nothing to choose"):
            sample(np.array(logits), 0.5, temperature)


@pytest.mark.parametrize("p", [0.0, -0.5, 1.01, float("nan")])
def test_top_p_out_of_range_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="top-p"):
        keep_top_p(np.ones(3), p)


def test_top_p_keeps_its_digits_over_a_large_vocabulary() -> None:
    """A float32 running sum over 200,000 equal tokens would be off by far more than one of them."""
    kept = keep_top_p(np.full(200_000, 1 / 200_000, dtype=np.float32), 0.5)
    assert kept.dtype == np.float32
    assert (kept > 0).all()  # ties stay
    ramp = np.linspace(1, 2, 200_000, dtype=np.float32)
    exact = np.cumsum(ramp[::-1].astype(np.float64))
    assert (keep_top_p(ramp, 0.5) > 0).sum() == np.searchsorted(exact, 0.5 * exact[-1]) + 1


def counting(ids: np.ndarray) -> np.ndarray:
    """A model of 10 tokens that counts on, and is sure of it."""
    return 50.0 * (np.arange(10) == (ids[:, None] + 1) % 10)


def test_generate_counts_on() -> None:
    prompt = [3, 4]
    assert list(generate(counting, prompt, 4, window=8, temperature=0)) == [5, 6, 7, 8]
    assert prompt == [3, 4]
    assert list(generate(counting, prompt, 0, window=8)) == []


def test_generate_ends_after_a_stop_token() -> None:
    assert list(generate(counting, [1], 99, window=8, stop_ids={4, 7}, temperature=0)) == [2, 3, 4]
    assert list(generate(counting, [4], 3, window=8, stop_ids=[4], temperature=0)) == [5, 6, 7]


def test_generate_shows_the_model_the_last_window() -> None:
    seen = []

    def forward(ids: np.ndarray) -> np.ndarray:
        seen.append(ids.tolist())
        return counting(ids)

    list(generate(forward, [1, 2, 3, 4], 3, window=3, temperature=0))
    assert seen == [[2, 3, 4], [3, 4, 5], [4, 5, 6]]
    seen.clear()
    list(generate(forward, [1], 3, window=3, temperature=0))
    assert seen == [[1], [1, 2], [1, 2, 3]]


def test_generate_streams() -> None:
    calls = itertools.count()

    def forward(ids: np.ndarray) -> np.ndarray:
        next(calls)
        return counting(ids)

    stream = generate(forward, [1], 100, window=8, temperature=0)
    assert isinstance(stream, Iterator)
    assert [next(stream), next(stream)] == [2, 3]
    assert next(calls) == 2


def test_the_seed_decides() -> None:
    def flat(ids: np.ndarray) -> np.ndarray:
        return np.zeros((len(ids), 50))

    def text(seed: int, tokens: int = 20) -> list[int]:
        return list(generate(flat, [0], tokens, window=4, seed=seed))

    assert text(1) == text(1)
    assert text(1) != text(2)
    assert text(1, tokens=7) == text(1)[:7]
    rng = np.random.default_rng(1)
    assert text(1) == [int(50 * rng.random()) for _ in range(20)]


def test_generate_refuses_an_empty_prompt_and_unknown_options() -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        next(generate(counting, [], 3, window=4))
    with pytest.raises(TypeError, match="top_q"):
        next(generate(counting, [1], 3, window=4, top_q=0.5))
