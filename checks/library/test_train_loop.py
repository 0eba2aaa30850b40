"""The loop: killed at any moment it ends with the same weights; what breaks leaves the last good state."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from course_lib.model.errors import CheckpointError
from course_lib.model.gpt import GPT, GPTConfig
from course_lib.tokenizer import Tokenizer
from course_lib.train.checkpoint import checkpoint_path, checkpoints, load_checkpoint, save_checkpoint
from course_lib.train.data import ShardError, prepare
from course_lib.train.loader import TokenLoader
from course_lib.train.loop import HeldOut, TrainingStopped, fit
from course_lib.train.muon import Together, build_optimizer
from course_lib.train.recipe import Recipe

LETTERS = Tokenizer({bytes([byte]): i for i, byte in enumerate(b"abcdefghijklmnopqrstuvwxyz .\n")}, {})
RECIPE = Recipe(
    steps=24,
    batch_size=3,
    accumulation=2,
    block_size=16,
    warmup=3,
    cooldown=6,
    evaluate_every=7,
    save_every=5,
)


def text(size: int, seed: int = 0) -> str:
    words = ["the", "king", "is", "dead", "long", "live", "queen", "and", "her", "crown.\n"]
    rng = random.Random(seed)
    return " ".join(rng.choice(words) for _ in range(size // 5))


@pytest.fixture
def shards(tmp_path):
    return prepare([text(4000)], LETTERS, tmp_path / "tokens").paths


def parts(shards: list[Path], recipe: Recipe = RECIPE) -> tuple[GPT, Together, TokenLoader, HeldOut]:
    """A small model with dropout, so that a step depends on random numbers, too."""
    torch.manual_seed(recipe.seed)
    model = GPT(GPTConfig(LETTERS.vocab_size, n_positions=16, n_embd=16, n_layer=2, n_head=2, dropout=0.2))
    optimizer = build_optimizer(model, recipe.lr, recipe.muon_lr, recipe.weight_decay)
    loader = TokenLoader(shards, recipe.batch_size, recipe.block_size, recipe.seed)
    held_out = text(600, seed=1)
    return model, optimizer, loader, HeldOut(torch.tensor(LETTERS.encode(held_out)), len(held_out) - 1)


def weights(model: GPT) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_times(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def test_the_loss_falls_and_each_step_is_reported(shards, tmp_path):
    model, optimizer, loader, held_out = parts(shards)
    seen: list[dict] = []
    history = fit(model, optimizer, loader, RECIPE, held_out, tmp_path / "run", seen.append)
    assert history == seen
    assert [record["step"] for record in history] == list(range(1, 25))
    assert [record["rate"] for record in history] == [RECIPE.factor(step) for step in range(1, 25)]
    assert [r["step"] for r in history if "bits_per_byte" in r] == [7, 14, 21, 24]
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert history[-1]["bits_per_byte"] < history[6]["bits_per_byte"]
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step_00000020.pt", "step_00000024.pt"]
    rates = {round(group["lr"] / group["peak"], 9) for group in optimizer.param_groups}
    assert rates == {round(RECIPE.factor(24), 9)}


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 5, 6, 19, 23])
def test_stopped_after_any_step_and_resumed_ends_bit_for_bit_the_same(shards, tmp_path, after):
    model, optimizer, loader, held_out = parts(shards)
    whole = fit(model, optimizer, loader, RECIPE, held_out, tmp_path / "whole")

    def stop(record):
        if record["step"] == after:
            raise Killed

    other, optimizer, loader, _ = parts(shards)
    with pytest.raises(Killed):
        fit(other, optimizer, loader, RECIPE, held_out, tmp_path / "cut", stop)
    other, optimizer, loader, _ = parts(shards)
    torch.manual_seed(999)  # whatever the second process did before
    resumed = fit(other, optimizer, loader, RECIPE, held_out, tmp_path / "cut")
    assert same(weights(model), weights(other))
    assert without_times(resumed) == without_times(whole)


def test_a_finished_run_is_not_trained_again(shards, tmp_path):
    first = parts(shards)
    history = fit(*first[:3], RECIPE, first[3], tmp_path)
    again = parts(shards)
    assert fit(*again[:3], RECIPE, again[3], tmp_path) == history
    assert same(weights(first[0]), weights(again[0]))


PROGRAM = textwrap.dedent("""
    import sys
    from pathlib import Path
    sys.path.insert(0, {here!r})
    from test_train_loop import RECIPE, parts, weights
    from dataclasses import replace
    import torch
    from course_lib.train.loop import fit

    torch.set_num_threads(1)
    recipe = replace(RECIPE, steps=40, save_every=1)
    model, optimizer, loader, held_out = parts([Path(path) for path in {shards!r}], recipe)
    fit(model, optimizer, loader, recipe, held_out, Path({run!r}), lambda r: print(r["step"], flush=True))
    torch.save(weights(model), Path({run!r}) / "weights.pt")
""")


def start(shards: list[Path], run: Path) -> subprocess.Popen:
    source = PROGRAM.format(
        here=str(Path(__file__).parent), shards=[str(path) for path in shards], run=str(run)
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_killed_by_the_system_again_and_again_it_ends_bit_for_bit_the_same(shards, tmp_path):
    """SIGKILL at random moments, often while a checkpoint is being written: there is one after each step."""
    whole = start(shards, tmp_path / "whole")
    assert whole.wait(timeout=300) == 0
    rng = random.Random(0)
    kills = 0
    for _ in range(40):
        process = start(shards, tmp_path / "cut")
        assert process.stdout is not None
        for _ in range(rng.randint(3, 14)):
            process.stdout.readline()
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        process.stdout.close()
        kills += process.returncode == -signal.SIGKILL
        if (tmp_path / "cut" / "weights.pt").is_file():
            break
    else:
        pytest.fail("forty lives were not enough")
    assert kills >= 3
    ends = [torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("whole", "cut")]
    assert same(*ends)


def test_a_run_lengthened_before_its_cooldown_is_the_longer_run(shards, tmp_path):
    longer = replace(RECIPE, steps=34)
    whole = parts(shards)
    fit(*whole[:3], longer, whole[3], tmp_path / "whole")

    def stop(record):
        if record["step"] == 17:  # of 24 with a cooldown of 6: the rate has not begun to fall
            raise Killed

    cut = parts(shards)
    with pytest.raises(Killed):
        fit(*cut[:3], RECIPE, cut[3], tmp_path / "cut", stop)
    cut = parts(shards)
    fit(*cut[:3], longer, cut[3], tmp_path / "cut")
    assert same(weights(whole[0]), weights(cut[0]))


def test_a_loss_that_diverges_stops_the_run_and_keeps_what_was_good(shards, tmp_path):
    model, optimizer, loader, held_out = parts(shards)

    def spoil(record):
        if record["step"] == 12:
            with torch.no_grad():
                model.wte.weight[0, 0] = torch.nan

    with pytest.raises(TrainingStopped, match=r"Step 13 was not made: .*nan"):
        fit(model, optimizer, loader, RECIPE, held_out, tmp_path, spoil)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000005.pt", "step_00000010.pt"]
    again = parts(shards)
    history = fit(*again[:3], RECIPE, again[3], tmp_path)
    assert len(history) == 24
    assert all(torch.isfinite(weight).all() for weight in weights(again[0]).values())


def test_a_disk_that_takes_no_more_stops_the_run_and_keeps_the_checkpoint_before(shards, tmp_path):
    """The system itself refuses to write: files may have no more than a thousand bytes from step 7 on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(record):
        if record["step"] == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    model, optimizer, loader, held_out = parts(shards)
    try:
        with pytest.raises(OSError):
            fit(model, optimizer, loader, RECIPE, held_out, tmp_path, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.glob("step*")) == ["step_00000005.pt"], "and no half file"
    again = parts(shards)
    assert len(fit(*again[:3], RECIPE, again[3], tmp_path)) == 24


@pytest.mark.parametrize("where", ["head", "middle", "end", "truncated", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_works(shards, tmp_path, where):
    first = parts(shards)
    fit(*first[:3], RECIPE, first[3], tmp_path)
    _, last = checkpoints(tmp_path)
    content = bytearray(last.read_bytes())
    if where in ("truncated", "empty"):
        content = content[: len(content) // 2 if where == "truncated" else 0]
    else:
        at = {"head": 80, "middle": len(content) // 2, "end": len(content) - 30}[where]
        content[at : at + 16] = bytes(byte ^ 0xFF for byte in content[at : at + 16])
    last.write_bytes(content)
    again = parts(shards)
    with pytest.raises(
        CheckpointError, match=rf"{last.name} is damaged.*Delete it to go on from the one before"
    ):
        fit(*again[:3], RECIPE, again[3], tmp_path)
    last.unlink()
    again = parts(shards)
    fit(*again[:3], RECIPE, again[3], tmp_path)
    assert same(weights(first[0]), weights(again[0]))


def test_a_checkpoint_of_another_model_is_refused(shards, tmp_path):
    model, optimizer, loader, _ = parts(shards)
    save_checkpoint(checkpoint_path(tmp_path, 1), model, optimizer, loader, 1, [])
    larger = GPT(GPTConfig(LETTERS.vocab_size, n_positions=16, n_embd=32, n_layer=2, n_head=2))
    other = build_optimizer(larger, 1e-3, 1e-3, 0.1)
    with pytest.raises(CheckpointError, match="of another run"):
        load_checkpoint(checkpoint_path(tmp_path, 1), larger, other, loader)


def test_a_checkpoint_of_other_data_is_refused(shards, tmp_path):
    model, optimizer, loader, _ = parts(shards)
    save_checkpoint(checkpoint_path(tmp_path, 1), model, optimizer, loader, 1, [])
    others = prepare([text(3000)], LETTERS, tmp_path / "others").paths
    loader = TokenLoader(others, RECIPE.batch_size, RECIPE.block_size, RECIPE.seed)
    with pytest.raises(CheckpointError, match="of another run"):
        load_checkpoint(checkpoint_path(tmp_path, 1), model, optimizer, loader)


def test_a_truncated_shard_stops_before_the_first_step(shards):
    content = shards[0].read_bytes()
    shards[0].write_bytes(content[: len(content) // 2])
    with pytest.raises(ShardError, match="cannot be read"):
        parts(shards)


def test_a_checkpoint_runs_no_code_when_it_is_read(shards, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/owned",))

    model, optimizer, loader, _ = parts(shards)
    torch.save({"model": Evil()}, tmp_path / "step_00000001.pt")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(tmp_path / "step_00000001.pt", model, optimizer, loader)
    assert not (tmp_path / "owned").exists()


def test_looks_do_not_change_what_is_learned(shards, tmp_path):
    often = parts(shards)
    fit(*often[:3], replace(RECIPE, evaluate_every=1), often[3], tmp_path / "often")
    never = parts(shards)
    fit(*never[:3], replace(RECIPE, evaluate_every=0), never[3], tmp_path / "never")
    assert same(weights(often[0]), weights(never[0]))


RANKS = textwrap.dedent("""
    import os, sys
    from dataclasses import replace
    from pathlib import Path
    import torch, torch.distributed as dist
    sys.path.insert(0, sys.argv[1])
    from test_train_loop import RECIPE, LETTERS, parts, weights
    from course_lib.model.gpt import GPT, GPTConfig
    from course_lib.train.loader import TokenLoader
    from course_lib.train.loop import fit
    from course_lib.train.muon import build_optimizer

    torch.set_num_threads(1)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        dist.init_process_group("gloo")
    recipe = replace(RECIPE, steps=9, batch_size=8 // ranks, precision="float32", save_every=4)
    shards = [Path(path) for path in sys.argv[3:]]
    held_out = parts(shards, recipe)[3]
    for kind, muon_lr in (("adamw", None), ("muon", 1e-3)):
        run = Path(sys.argv[2]) / kind
        torch.manual_seed(0)
        model = GPT(GPTConfig(LETTERS.vocab_size, n_positions=16, n_embd=16, n_layer=2, n_head=2))
        loader = TokenLoader(shards, recipe.batch_size, recipe.block_size, 0, rank, ranks)
        optimizer = build_optimizer(model, 1e-3, muon_lr, 0.1)
        trained = torch.nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
        fit(trained, optimizer, loader, recipe, held_out, run)
        if rank == 0:
            torch.save(weights(model), run / "weights.pt")
    if ranks > 1:
        dist.destroy_process_group()
""")


def test_two_ranks_train_as_one_with_twice_the_batch(tmp_path, shards):
    """Under torchrun with gloo: the same tokens a step, so the same weights but for the order of sums."""
    program = tmp_path / "program.py"
    program.write_text(RANKS)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        here = str(Path(__file__).parent)
        command = [sys.executable, *launcher, str(program), here, str(tmp_path / name), *map(str, shards)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    # Muon's Newton-Schulz steps are in bfloat16: a sum's last bit may become one of its steps.
    for kind, tolerance in (("adamw", 1e-5), ("muon", 1e-3)):
        assert [p.name for p in checkpoints(tmp_path / "two" / kind)] == [
            "step_00000008.pt",
            "step_00000009.pt",
        ]
        a, b = (
            torch.load(tmp_path / name / kind / "weights.pt", weights_only=True) for name in ("one", "two")
        )
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


def test_history_is_plain_numbers(shards, tmp_path):
    """So that training.json can hold it."""
    model, optimizer, loader, held_out = parts(shards)
    history = fit(model, optimizer, loader, replace(RECIPE, steps=9), held_out, tmp_path)
    assert json.loads(json.dumps(history)) == history
    assert np.isfinite([record["norm"] for record in history]).all()
