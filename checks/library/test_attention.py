"""Attention in NumPy against PyTorch: values, masks, gradients, and the counts of its cost."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from course_lib.model import attention
from course_lib.numerics import numerical_gradient

SIZES = st.integers(1, 7)


def arrays(seed: int, *shapes: tuple[int, ...], dtype: type = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def torch_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None, **options: bool
) -> np.ndarray:
    query, key, value = (torch.from_numpy(np.ascontiguousarray(x)) for x in (q, k, v))
    given_mask = None if mask is None else torch.from_numpy(np.ascontiguousarray(mask))
    result: np.ndarray = scaled_dot_product_attention(query, key, value, given_mask, **options).numpy()
    return result


@given(b=SIZES, h=SIZES, t=SIZES, s=SIZES, d=SIZES, dv=SIZES, seed=st.integers(0, 99))
def test_attention_equals_torch(b: int, h: int, t: int, s: int, d: int, dv: int, seed: int) -> None:
    q, k, v = arrays(seed, (b, h, t, d), (b, h, s, d), (b, h, s, dv))
    np.testing.assert_allclose(
        attention.scaled_dot_product(q, k, v), torch_attention(q, k, v), rtol=1e-9, atol=1e-12
    )


@given(t=SIZES, s=SIZES, seed=st.integers(0, 99))
def test_any_mask_equals_torch_and_a_row_without_keys_is_zero(t: int, s: int, seed: int) -> None:
    q, k, v = arrays(seed, (2, 3, t, 5), (2, 3, s, 5), (2, 3, s, 4))
    mask = np.random.default_rng(seed).random((2, 1, t, s)) < 0.5
    got = attention.scaled_dot_product(q, k, v, mask)
    want = torch_attention(q, k, v, np.broadcast_to(mask, (2, 3, t, s)))
    nothing = ~mask.any(axis=-1, keepdims=True)  # (2, 1, t, 1)
    np.testing.assert_allclose(got, np.where(nothing, 0, want), rtol=1e-9, atol=1e-12)
    assert not got[np.broadcast_to(nothing, got.shape)].any()


def test_causal_mask_is_torchs_where_the_sequence_is_new() -> None:
    q, k, v = arrays(0, (2, 5, 3), (2, 5, 3), (2, 5, 3))
    got = attention.scaled_dot_product(q, k, v, attention.causal_mask(5, 5))
    np.testing.assert_allclose(got, torch_attention(q, k, v, is_causal=True), rtol=1e-9)


def test_a_cache_changes_nothing() -> None:
    q, k, v = arrays(1, (2, 3, 11, 4), (2, 3, 11, 4), (2, 3, 11, 4))
    whole = attention.scaled_dot_product(q, k, v, attention.causal_mask(11, 11))
    for start, end in ((0, 4), (4, 10), (10, 11)):
        mask = attention.causal_mask(end - start, end)
        part = attention.scaled_dot_product(q[:, :, start:end], k[:, :, :end], v[:, :, :end], mask)
        np.testing.assert_allclose(part, whole[:, :, start:end], rtol=1e-9)


def test_causal_mask_refuses_queries_without_a_key() -> None:
    with pytest.raises(ValueError, match="3 queries and 2 keys"):
        attention.causal_mask(3, 2)
    assert attention.causal_mask(0, 4).shape == (0, 4)


def test_masked_scores_do_not_matter_however_large() -> None:
    scores = np.array([[1e300, 0.0, np.inf, np.nan]])
    got = attention.masked_softmax(scores, np.array([[False, True, False, False]]))
    assert got.tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (6, 3), (6, 2), (6, 1)])
def test_heads_that_share_equal_torchs_grouped_attention(heads: int, kv_heads: int) -> None:
    q, k, v = arrays(2, (2, 5, heads * 4), (2, 7, kv_heads * 4), (2, 7, kv_heads * 4), dtype=np.float32)
    mask = attention.causal_mask(5, 7)
    split = [x.reshape(2, x.shape[1], -1, 4).swapaxes(1, 2) for x in (q, k, v)]
    want = (
        torch_attention(split[0], split[1], split[2], mask, enable_gqa=True).swapaxes(1, 2).reshape(q.shape)
    )
    got = attention.multi_head_attention(q, k, v, heads, kv_heads, mask)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_heads_must_divide() -> None:
    x = np.zeros((3, 12))
    with pytest.raises(ValueError, match="4 query heads"):
        attention.multi_head_attention(x, x, x, 4, 3)


@given(t=SIZES, s=SIZES, d=SIZES, seed=st.integers(0, 99), masked=st.booleans())
def test_backward_equals_torchs(t: int, s: int, d: int, seed: int, masked: bool) -> None:
    q, k, v, dy = arrays(seed, (2, t, d), (2, s, d), (2, s, 3), (2, t, 3))
    mask = np.random.default_rng(seed).random((2, t, s)) < 0.6 if masked else np.ones((2, t, s), bool)
    mask[..., 0] = True  # torch's gradient of a row without keys may be NaN
    query, key, value = (torch.tensor(x, requires_grad=True) for x in (q, k, v))
    out = scaled_dot_product_attention(query, key, value, attn_mask=torch.from_numpy(mask))
    want = torch.autograd.grad(out, [query, key, value], torch.from_numpy(dy))
    for mine, theirs in zip(attention.attention_backward(dy, q, k, v, mask), want, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-7, atol=1e-10)


def test_backward_follows_finite_differences_with_a_row_without_keys() -> None:
    q, k, v, dy = arrays(3, (3, 2), (5, 2), (5, 4), (3, 4))
    mask = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=bool)

    def loss(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> float:
        return float((dy * attention.scaled_dot_product(q, k, v, mask)).sum())

    dq, dk, dv = attention.attention_backward(dy, q, k, v, mask)
    np.testing.assert_allclose(dq, numerical_gradient(lambda x: loss(x, k, v), q), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(dk, numerical_gradient(lambda x: loss(q, x, v), k), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(dv, numerical_gradient(lambda x: loss(q, k, x), v), rtol=1e-5, atol=1e-9)


def test_positions_turn_by_the_same_angle_at_every_step() -> None:
    table = attention.sinusoidal_positions(50, 8).astype(np.float64)
    assert table.shape == (50, 8)
    np.testing.assert_allclose(table[7, :2], [np.sin(7), np.cos(7)], rtol=1e-6)
    products = table @ table.T  # depend on the distance alone
    for distance in (1, 5, 20):
        np.testing.assert_allclose(np.diagonal(products, distance), products[0, distance], rtol=1e-5)
    with pytest.raises(ValueError, match="odd"):
        attention.sinusoidal_positions(3, 5)


def test_costs_of_llama_3_8b() -> None:
    cost = attention.attention_cost(8192, 8192, heads=32, kv_heads=8, head_dim=128, layers=32)
    assert cost["kv_bytes"] == 2**30
    assert cost["score_bytes"] == 2**32
    assert cost["flops"] == 4 * 32 * 4096 * 8192**2


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, course_lib.model.attention; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
