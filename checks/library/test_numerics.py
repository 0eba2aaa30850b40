"""course_lib.numerics against SciPy, PyTorch and the definitions, on inputs chosen to hurt."""

import math
import warnings

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from course_lib import numerics

LOGITS = hnp.arrays(
    st.sampled_from([np.float32, np.float64]),
    hnp.array_shapes(min_dims=1, max_dims=4, max_side=7),
    elements=st.floats(-1e4, 1e4, width=32),
)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def rtol(array: np.ndarray) -> float:
    return 3e-6 if array.dtype == np.float32 else 1e-13


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.data())
def test_probabilities_equal_scipy(x, data):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    p = numerics.softmax(x, axis=axis)
    assert p.dtype == x.dtype and p.shape == x.shape
    np.testing.assert_allclose(p, scipy.special.softmax(x, axis=axis), rtol=rtol(x), atol=1e-30)
    np.testing.assert_allclose(p.sum(axis=axis), 1, rtol=1e-6)
    lse = numerics.logsumexp(x, axis=axis)
    assert lse.dtype == x.dtype
    np.testing.assert_allclose(
        lse, scipy.special.logsumexp(x.astype(np.float64), axis=axis), rtol=rtol(x), atol=1e-6
    )
    np.testing.assert_allclose(
        numerics.log_softmax(x, axis=axis), scipy.special.log_softmax(x, axis=axis), rtol=rtol(x), atol=2e-3
    )


def test_softmax_leaves_its_input_alone_and_widens_half_precision():
    x = np.zeros(70_000, dtype=np.float16)
    p = numerics.softmax(x)
    assert p.dtype == np.float32 and not x.any()
    np.testing.assert_allclose(p, 1 / 70_000, rtol=1e-6)
    assert numerics.softmax(np.array([1, 2, 3])).dtype == np.float64
    assert numerics.softmax(np.zeros((0, 5), np.float32)).shape == (0, 5)


def test_masked_logits():
    x = np.array([[0.0, -np.inf, 0.0], [-np.inf, -np.inf, 7.0]], dtype=np.float32)
    assert numerics.softmax(x).tolist() == [[0.5, 0, 0.5], [0, 0, 1]]
    assert numerics.logsumexp(x).tolist() == pytest.approx([math.log(2), 7.0])
    assert numerics.logsumexp(np.full((2, 3), -np.inf)).tolist() == [-np.inf, -np.inf]
    assert numerics.logsumexp(np.array([1.0, np.inf])) == np.inf
    with np.errstate(invalid="ignore"):
        assert np.isnan(numerics.softmax(np.full(3, -np.inf))).all()


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 11)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_cross_entropy_equals_torch(shape, scale):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=shape) * scale
    targets = rng.integers(0, shape[-1], size=shape[:-1])
    want = torch.nn.functional.cross_entropy(
        torch.tensor(logits).reshape(-1, shape[-1]), torch.tensor(targets).reshape(-1)
    )
    assert numerics.cross_entropy(logits, targets) == pytest.approx(float(want), rel=1e-12)


@pytest.mark.parametrize(
    ("logits", "targets"),
    [((3, 5), [0, 1]), ((2, 5), [0, 5]), ((2, 5), [-1, 0]), ((0, 5), []), ((2, 5), [[0], [1]])],
)
def test_cross_entropy_refuses(logits, targets):
    with pytest.raises(ValueError, match="targets"):
        numerics.cross_entropy(np.zeros(logits), np.array(targets, dtype=int))


def test_perplexity_weighs_tokens_not_documents():
    log2, log8 = -math.log(2), -math.log(8)
    assert numerics.perplexity([np.full(3, log2), np.empty(0), np.full(1, log8)]) == pytest.approx(2**1.5)
    assert numerics.perplexity([np.full(1_000_000, log2, dtype=np.float32)]) == pytest.approx(2, rel=1e-7)
    assert numerics.perplexity([np.array([-np.inf])]) == np.inf
    for nothing in ([], [np.empty(0)]):
        with pytest.raises(ValueError, match="at least one token"):
            numerics.perplexity(nothing)


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    logits, targets = np.zeros((17, 50_257)), np.arange(17)
    logprobs = numerics.log_softmax(logits)[np.arange(17), targets]
    assert numerics.perplexity([logprobs]) == pytest.approx(50_257)
    assert math.exp(numerics.cross_entropy(logits, targets)) == pytest.approx(50_257)


@pytest.mark.parametrize("shape", [(), (4,), (3, 5), (2, 1, 3)])
def test_numerical_gradient_equals_autograd(shape):
    x = np.random.default_rng(1).normal(size=shape)
    y = torch.tensor(x, requires_grad=True)
    (y.sin() * y.exp()).sum().backward()
    got = numerics.numerical_gradient(lambda a: float((np.sin(a) * np.exp(a)).sum()), x)
    assert got.shape == x.shape and got.dtype == np.float64
    assert y.grad is not None
    np.testing.assert_allclose(got, y.grad.numpy(), rtol=1e-8, atol=1e-8)


def test_numerical_gradient_of_cross_entropy_is_p_minus_onehot():
    logits, targets = np.random.default_rng(2).normal(size=(5, 7)), np.array([0, 6, 3, 3, 1])
    want = (numerics.softmax(logits) - np.eye(7)[targets]) / 5
    got = numerics.numerical_gradient(lambda z: numerics.cross_entropy(z, targets), logits)
    np.testing.assert_allclose(got, want, atol=1e-9)


def test_numerical_gradient_takes_integers_and_views():
    assert numerics.numerical_gradient(lambda a: float(a @ a), np.array([1, -2])) == pytest.approx([2, -4])
    x = np.arange(6.0).reshape(2, 3).T
    before = x.copy()
    np.testing.assert_allclose(
        numerics.numerical_gradient(lambda a: float((a**2).sum()), x), 2 * before, rtol=1e-8
    )
    assert (x == before).all()


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 1, width=32)).filter(
        lambda p: p.sum() > 0
    ),
    st.one_of(st.floats(0, 1, exclude_max=True), st.just(0.0), st.just(math.nextafter(1, 0))),
)
def test_a_sample_is_the_bracketing_index(p, u):
    k = int(numerics.sample_categorical(p, np.array(u)))
    cdf = np.cumsum(p, dtype=np.float64)
    assert p[k] > 0
    assert (0 if k == 0 else cdf[k - 1]) <= u * cdf[-1] < cdf[k]


def test_sample_counts_match_probabilities():
    p = np.array([0.5, 0.0, 0.2, 0.3])
    draws = numerics.sample_categorical(
        np.broadcast_to(p, (100, 1000, 4)), np.random.default_rng(3).random((100, 1000))
    )
    assert draws.shape == (100, 1000)
    counts = np.bincount(draws.ravel(), minlength=4)
    assert counts[1] == 0
    assert scipy.stats.chisquare(counts[p > 0], 1e5 * p[p > 0]).pvalue > 1e-3


def test_sample_categorical_refuses():
    for bad in ([0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [-1.0, 0.5]):
        with pytest.raises(ValueError, match="positive, finite sum"):
            numerics.sample_categorical(np.array(bad), np.array(0.5))
    for u in (-0.1, 1.0, np.nan):
        with pytest.raises(ValueError, match="0, 1"):
            numerics.sample_categorical(np.array([0.5, 0.5]), np.array(u))


def as_torch(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).to(torch.bfloat16).to(torch.float32).numpy()


def same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == np.float32
    nan = np.isnan(want)
    assert (np.isnan(got) == nan).all()
    assert (got.view(np.uint32)[~nan] == want.view(np.uint32)[~nan]).all()


def test_bfloat16_of_every_float16():
    with np.errstate(invalid="ignore"):
        x = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    same_bits(numerics.round_to_bfloat16(x), as_torch(x))


def test_bfloat16_of_every_bfloat16_and_its_neighborhood():
    upper = np.arange(2**16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (upper | np.uint32(lower)).view(np.float32)
        same_bits(numerics.round_to_bfloat16(x), as_torch(x))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_bfloat16_of_random_bits(seed):
    x = np.random.default_rng(seed).integers(0, 2**32, size=(31, 17), dtype=np.uint32).view(np.float32)
    same_bits(numerics.round_to_bfloat16(x.T), as_torch(np.ascontiguousarray(x.T)))


def test_bfloat16_corners():
    one = numerics.round_to_bfloat16(np.array(1.00390625))  # half-way between 1 and 1.0078125
    assert one == 1.0 and np.asarray(one).shape == ()
    assert (
        numerics.round_to_bfloat16(np.array([1.01171875]))[0] == 1.015625
    )  # half-way, the neighbor below is odd
    assert numerics.round_to_bfloat16(np.array([np.finfo(np.float32).max]))[0] == np.inf
    assert np.signbit(numerics.round_to_bfloat16(np.array([-0.0]))[0])
    assert np.isnan(
        numerics.round_to_bfloat16(np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32))
    ).all()


def test_contractions_equal_loops():
    b, t, s, h, k, d, v = 2, 3, 5, 7, 4, 11, 13
    rng = np.random.default_rng(4)
    specs = numerics.contractions()
    x, table = rng.normal(size=(b, t, d)), rng.normal(size=(v, d))
    q, keys, vals = (rng.normal(size=(b, n, h, k)) for n in (t, s, s))
    p, w, merge = rng.normal(size=(b, h, t, s)), rng.normal(size=(d, h, k)), rng.normal(size=(h, k, d))
    want = {
        "project": ((x @ w.reshape(d, h * k)).reshape(b, t, h, k), x, w),
        "scores": (q.transpose(0, 2, 1, 3) @ keys.transpose(0, 2, 3, 1), q, keys),
        "mix": ((p @ vals.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3), p, vals),
        "merge": (q.reshape(b, t, h * k) @ merge.reshape(h * k, d), q, merge),
        "unembed": (x @ table.T, x, table),
    }
    assert specs.keys() == want.keys()
    for name, (result, *operands) in want.items():
        np.testing.assert_allclose(np.einsum(specs[name], *operands), result, rtol=1e-10, err_msg=name)
