"""course_lib.tensors against NumPy's own rules, PyTorch's strides and, for heads, three array libraries."""

import numpy as np
import pytest
import torch
from einops import EinopsError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from course_lib import tensors

LENGTHS = st.sampled_from([0, 1, 1, 2, 3, 5])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(LENGTHS, max_size=4).map(tuple), max_size=4))
def test_broadcast_shapes_equal_numpys(shapes):
    try:
        want = np.broadcast_shapes(*shapes)
    except ValueError:
        with pytest.raises(ValueError, match="broadcast"):
            tensors.broadcast_shapes(*shapes)
    else:
        assert tensors.broadcast_shapes(*shapes) == want


@settings(max_examples=200, deadline=None)
@given(st.lists(LENGTHS, max_size=5).map(tuple), st.sampled_from([np.int8, np.float16, np.float64]))
def test_contiguous_strides_equal_torchs_and_numpys(shape, dtype):
    assert tensors.contiguous_strides(shape) == torch.empty(shape).stride()
    if 0 not in shape:  # an array without entries has no strides to speak of: NumPy says 0, PyTorch this
        array = np.empty(shape, dtype)
        assert tensors.contiguous_strides(shape, array.itemsize) == array.strides


@pytest.mark.parametrize("leading", [(), (2,), (2, 1, 3), (0,)])
@pytest.mark.parametrize("heads", [1, 3, 7])
def test_heads_split_and_merge(leading, heads):
    x = np.random.default_rng(0).normal(size=(*leading, 5, heads * 2)).astype(np.float32)
    split = tensors.split_heads(x, heads)
    assert split.shape == (*leading, heads, 5, 2)
    for h in range(heads):
        np.testing.assert_array_equal(split[..., h, :, :], x[..., 2 * h : 2 * h + 2])
    merged = tensors.merge_heads(split)
    np.testing.assert_array_equal(merged, x)
    if x.size:
        assert np.shares_memory(split, x)
        assert np.shares_memory(merged, x)  # the strides of a split array still know the way back
        fresh = np.ascontiguousarray(split)  # as attention's output comes: no strides lead from here
        assert np.shares_memory(tensors.merge_heads(fresh), fresh) == (heads == 1)


def test_heads_of_torch_and_mlx_arrays():
    x = np.arange(60).reshape(2, 5, 6)
    want = tensors.split_heads(x, 3)
    from_torch = tensors.split_heads(torch.tensor(x), 3)
    assert isinstance(from_torch, torch.Tensor)
    np.testing.assert_array_equal(from_torch, want)
    np.testing.assert_array_equal(tensors.merge_heads(from_torch), x)
    mx = pytest.importorskip("mlx.core", exc_type=ImportError)
    from_mlx = tensors.split_heads(mx.array(x), 3)
    assert isinstance(from_mlx, mx.array)
    np.testing.assert_array_equal(np.array(from_mlx), want)
    np.testing.assert_array_equal(np.array(tensors.merge_heads(from_mlx)), x)


def test_heads_must_divide_the_width():
    with pytest.raises(EinopsError):
        tensors.split_heads(np.zeros((2, 5, 7)), 3)


@settings(max_examples=200, deadline=None)
@given(hnp.array_shapes(min_dims=1, max_dims=3, max_side=9), st.data())
def test_sliding_windows_equal_numpys_on_any_strides(shape, data):
    base = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    x = data.draw(st.sampled_from([base, base[..., ::-1], base.T, base[::2]]))
    size = data.draw(st.integers(1, x.shape[-1]))
    step = data.draw(st.integers(1, 4))
    got = tensors.sliding_windows(x, size, step)
    want = np.lib.stride_tricks.sliding_window_view(x, size, axis=-1)[..., ::step, :]
    np.testing.assert_array_equal(got, want)
    assert np.shares_memory(got, x) and not got.flags.writeable


def test_sliding_windows_refuse_what_would_read_beyond_the_array():
    x = np.arange(5)
    for size, step in ((0, 1), (6, 1), (-1, 1), (2, 0), (2, -1)):
        with pytest.raises(ValueError, match="expected"):
            tensors.sliding_windows(x, size, step)
    with pytest.raises(ValueError, match="expected"):
        tensors.sliding_windows(np.empty((3, 0)), 1)
    assert tensors.sliding_windows(np.empty((0, 4)), 3).shape == (0, 2, 3)


def test_windows_of_a_file_that_does_not_fit_in_memory_cost_nothing():
    tokens = np.broadcast_to(np.uint16(7), 10**9)  # 2 GB if it were real: one entry with stride 0
    windows = tensors.sliding_windows(tokens, 1025, 1024)
    assert windows.shape == (976_562, 1025)
    assert windows[-1, -1] == 7
