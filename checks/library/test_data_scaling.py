"""course_lib.train's arithmetic: FLOPs and their use, scaling laws, loss scaling, checkpoint intervals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_lib.train.faults import checkpoint_interval, lost_share
from course_lib.train.precision import LossScaler
from course_lib.train.scaling import (
    BESIROGLU,
    HOFFMANN,
    ScalingLaw,
    fit_scaling_law,
    mfu,
    training_flops,
)

# FLOPs


@pytest.mark.parametrize("recompute", [False, True])
def test_the_count_is_what_torchs_own_counter_finds(recompute):
    """A GPT block and a head, attention written out: every product is counted by PyTorch as it runs."""
    from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
    from torch.utils.flop_counter import FlopCounterMode

    batch, context, width, vocab, layers = 2, 12, 24, 40, 3
    torch.manual_seed(0)
    matrices = [
        [torch.randn(width, n * width, requires_grad=True) for n in (3, 1, 4)]
        + [torch.randn(4 * width, width, requires_grad=True)]
        for _ in range(layers)
    ]
    head = torch.randn(width, vocab, requires_grad=True)

    def block(x, qkv, out, up, down):
        q, k, v = (x @ qkv).chunk(3, dim=-1)
        x = x + (q @ k.transpose(-1, -2)).softmax(-1) @ v @ out
        return x + (x @ up).relu() @ down

    x = torch.randn(batch, context, width, requires_grad=True)  # with a gradient, as after an embedding
    # By default PyTorch stops recomputing at the last number that is needed: one product less a block.
    with set_checkpoint_early_stop(False), FlopCounterMode(display=False) as counter:
        h = x
        for layer in matrices:
            h = checkpoint(block, h, *layer, use_reentrant=False) if recompute else block(h, *layer)
        (h @ head).sum().backward()
    body = sum(matrix.numel() for layer in matrices for matrix in layer)
    tokens = batch * context
    blocks = training_flops(body, tokens, layers, width, context, recompute=recompute)
    assert counter.get_total_flops() == blocks + training_flops(head.numel(), tokens)


def test_palms_formula_and_the_causal_half():
    n, d, layers, width, context = 7, 11, 2, 4, 6
    assert training_flops(n, d) == 6 * n * d
    assert training_flops(n, d, layers, width, context) == (6 * n + 12 * layers * width * context) * d
    seen = sum(i + 1 for i in range(context)) / context
    assert (
        training_flops(n, d, layers, width, context, causal=True) == (6 * n + 12 * layers * width * seen) * d
    )
    assert isinstance(training_flops(n, d, layers, width, context, causal=True), int)


def test_mfu_of_published_runs():
    # Llama 3 405B on H100 (989 TFLOP/s in bf16): 430 to 380 TFLOP/s, 43 to 38% (Llama 3 paper, table 4).
    assert mfu(400e12, 1, 989.4e12) == pytest.approx(0.404, abs=0.001)
    assert mfu(1e15, 10, 1e14, devices=4) == 0.25
    for bad in ((1, 0, 1), (1, 1, -1), (1, 1, 1, 0)):
        with pytest.raises(ValueError, match="expected positive"):
            mfu(*bad)


# scaling laws


def runs(
    law: ScalingLaw, noise: float, seed: int, count: int = 120
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs as in the Chinchilla paper: 44M to 16B weights, budgets of 10^18 to 10^22 FLOPs."""
    rng = np.random.default_rng(seed)
    n = 10 ** rng.uniform(7.6, 10.2, count)
    d = 10 ** rng.uniform(18, 22, count) / 6 / n
    usual = (d > 3e8) & (d < 1e12)
    n, d = n[usual], d[usual]
    return n, d, law.loss(n, d) * np.exp(noise * rng.normal(size=len(n)))


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU, ScalingLaw(2.5, 60, 0.25, 900, 0.45)])
def test_the_fit_recovers_known_coefficients(law):
    assert fit_scaling_law(*runs(law, 0, 0)) == pytest.approx(law, rel=2e-3)
    noisy = fit_scaling_law(*runs(law, 0.002, 1))
    assert (noisy.E, noisy.alpha, noisy.beta) == pytest.approx((law.E, law.alpha, law.beta), rel=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_recovers_any_coefficients_from_clean_points(seed):
    rng = np.random.default_rng(seed)
    law = ScalingLaw(rng.uniform(0.5, 3), 400, rng.uniform(0.25, 0.4), 1000, rng.uniform(0.25, 0.4))
    n, d, losses = runs(law, 0, 2, 60)
    fitted = fit_scaling_law(n, d, losses)
    np.testing.assert_allclose(fitted.loss(n, d), losses, rtol=1e-4)
    assert fitted == pytest.approx(law, rel=0.05)


def test_failed_runs_do_not_bend_the_fit():
    n, d, losses = runs(BESIROGLU, 0.001, 3)
    losses[::20] *= 1.3
    error = {delta: abs(fit_scaling_law(n, d, losses, delta).E / BESIROGLU.E - 1) for delta in (1e-3, 10.0)}
    assert error[1e-3] < 0.01
    assert error[10.0] > 5 * error[1e-3]  # 10 is above every residual: plain squares
    with pytest.raises(ValueError, match="five unknowns"):
        fit_scaling_law(n[:4], d[:4], losses[:4])


@given(st.floats(1e18, 1e26))
def test_the_optimum_is_the_best_on_its_isoflop_curve(flops):
    for law in (HOFFMANN, BESIROGLU):
        n, d = law.optimum(flops)
        assert 6 * n * d == pytest.approx(flops)
        for other in n * np.array([0.5, 0.9, 1.1, 2]):
            assert law.loss(other, flops / 6 / other) > law.loss(n, d)


# loss scaling


def test_the_scaler_doubles_halves_and_skips_like_torchs():
    ours = LossScaler(scale=1024.0, growth_interval=3)
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    rng = np.random.default_rng(0)
    for bad in rng.random(60) < 0.25:
        assert ours.scale == theirs.get_scale()
        grad = rng.normal(size=2).astype(np.float32) * (np.inf if bad else 1)
        scaled = (grad * np.float32(ours.scale)).astype(np.float32)
        theirs.scale(torch.zeros(()))  # torch makes its state at the first use
        weight.grad = torch.from_numpy(scaled.copy())
        theirs.unscale_(optimizer)
        got = ours.unscale([scaled])
        if bad:
            assert got is None
        else:
            assert got is not None
            np.testing.assert_array_equal(got[0], weight.grad.numpy())
        theirs.step(optimizer)
        theirs.update()


def test_unscaling_keeps_gradients_that_float16_cannot_hold():
    scaler = LossScaler()
    got = scaler.unscale([np.array([2.0**-10], dtype=np.float16)])
    assert got is not None
    assert (got[0].dtype, got[0][0]) == (np.float32, 2.0**-26)  # float16's smallest number is 2^-24


# faults


@given(st.floats(1, 100), st.floats(3_000, 1e6))
def test_the_interval_loses_least(save, mtbf):
    best = checkpoint_interval(save, mtbf)
    assert lost_share(best, save, mtbf) == pytest.approx(math.sqrt(2 * save / mtbf))
    for factor in (0.5, 0.9, 1.1, 2):
        assert lost_share(best * factor, save, mtbf) > lost_share(best, save, mtbf)


def test_the_interval_agrees_with_a_simulated_run():
    """Exponential failures: the share of time that is progress, counted second by second of the model."""
    rng = np.random.default_rng(0)
    save, mtbf = 30.0, 10_000.0
    interval = checkpoint_interval(save, mtbf)
    clock = done = 0.0
    failure = rng.exponential(mtbf)
    for _ in range(20_000):
        clock += interval + save
        if clock > failure:  # the interval, and whatever of it was done, is lost
            clock = failure
            failure += rng.exponential(mtbf)
        else:
            done += interval
    assert 1 - done / clock == pytest.approx(lost_share(interval, save, mtbf), rel=0.1)


def test_an_interval_needs_failures_that_are_rare():
    with pytest.raises(ValueError, match="expected 0 < save < mtbf"):
        checkpoint_interval(60, 30)
