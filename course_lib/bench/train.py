"""Our training beside nanoGPT's, in one process, in turns.

python -m course_lib.bench.train nanogpt --text tinyshakespeare.txt    its CPU configuration, by character
python -m course_lib.bench.train bytes --megabytes 2                   both 10M recipes on as many bytes
python -m course_lib.bench.train bytes                                 its, on as many as course-10m read
python -m course_lib.bench.train speed                                 tokens a second beside a plain loop
python -m course_lib.bench.train draft                                 what course-10m accepts from course-1m

On a shared machine speeds wander by a factor of two within a minute. So two runs take turns, a few steps of
one and a few of the other, each on its own clock; what counts is the ratio. The numbers of a run of
`nanogpt` are those of its repository (karpathy/nanoGPT: README.md, config/train_shakespeare_char.py), its
loop is written here anew: AdamW, random windows, cosine decay, float32.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64
from rich.console import Console
from rich.table import Table
from torch import Tensor

from course_lib import assets
from course_lib.hardware.detect import detect
from course_lib.model.gpt import GPT, GPTConfig, load_gpt
from course_lib.tokenizer import Tokenizer
from course_lib.train.muon import build_optimizer
from course_lib.train.recipe import Recipe
from course_lib.train.run import USUAL, hold_out, with_steps
from course_lib.train.schedule import cosine_schedule
from course_lib.train.shapes import MODELS
from course_lib.train.step import evaluate, train_step
from course_lib.train.texts import read_text

Tokens = Int64[Tensor, " N"]
CHARACTERS_TRAINED = 0.9  # nanoGPT's split: the last tenth of the text is held out


@dataclass
class Runner:
    """A run that can be asked for one step at a time, and its own clock."""

    name: str
    model: GPT
    step: Callable[[int], None]
    steps: int
    tokens_a_step: int
    seconds: float = 0.0
    done: int = 0
    curve: list[tuple[int, float, float]] = field(default_factory=list)  # steps, seconds, bits or nats

    def advance(self, share: float) -> None:
        """Step until `share` of all steps are done."""
        while self.done < min(self.steps, round(share * self.steps)):
            started = time.perf_counter()
            self.done += 1
            self.step(self.done)
            self.seconds += time.perf_counter() - started


def windows(data: Tokens, batch: int, block: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """nanoGPT's get_batch: windows at random places."""
    starts = torch.randint(len(data) - block, (batch,), generator=generator).tolist()
    rows = torch.stack([data[start : start + block + 1] for start in starts])
    return rows[:, :-1], rows[:, 1:]


def nanogpt(
    config: GPTConfig,
    data: Tokens,
    steps: int,
    batch: int,
    block: int,
    lr: float = 1e-3,
    floor: float = 1e-4,
    warmup: int = 100,
    beta2: float = 0.99,
    dtype: torch.dtype = torch.float32,
) -> Runner:
    """nanoGPT's loop with its settings for Shakespeare by character. On a CPU it computes in float32; its
    settings for a GPU are bfloat16 under autocast.
    """
    torch.manual_seed(1337)
    model = GPT(config)
    groups = [
        {"params": [w for w in model.parameters() if w.dim() >= 2], "weight_decay": 0.1},
        {"params": [w for w in model.parameters() if w.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2))
    generator = torch.Generator().manual_seed(1337)
    warmup = min(warmup, steps // 2)

    def step(number: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = cosine_schedule(number, lr, warmup, steps, floor)
        inputs, targets = windows(data, batch, block, generator)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return Runner("nanoGPT's recipe", model, step, steps, batch * block)


def ours(model: GPT, data: Tokens, recipe: Recipe) -> Runner:
    """Our step and optimizer, windows without replacement."""
    optimizer = build_optimizer(model, recipe.lr, recipe.muon_lr, recipe.weight_decay)
    order = shuffled(len(data), recipe)

    def step(number: int) -> None:
        torch.manual_seed(recipe.seed + number)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * recipe.factor(number)
        batches = []
        for _ in range(recipe.accumulation):
            starts = [next(order) for _ in range(recipe.batch_size)]
            rows = torch.stack([data[start : start + recipe.block_size + 1] for start in starts])
            batches.append((rows[:, :-1], rows[:, 1:]))
        train_step(model, optimizer, batches, recipe.clip, recipe.dtype)

    return Runner("ours", model, step, recipe.steps, recipe.tokens)


def shuffled(tokens: int, recipe: Recipe) -> Iterator[int]:
    """First tokens of windows, as TokenLoader orders them."""
    rng, block = np.random.default_rng(recipe.seed), recipe.block_size
    while True:
        yield from map(int, rng.permutation(np.arange(rng.integers(block), tokens - block, block)))


def in_turns(
    runners: Sequence[Runner], score: Callable[[GPT, str], float], looks: int, turns: int = 20
) -> None:
    """Run them side by side, `turns` turns between two looks."""
    for look in range(1, looks + 1):
        for turn in range(1, turns + 1):
            for runner in runners:
                runner.advance((look - 1 + turn / turns) / looks)
        for runner in runners:
            loss = score(runner.model, runner.name)
            runner.curve.append((runner.done, round(runner.seconds, 2), round(loss, 4)))
            print(
                f"{runner.name:18} step {runner.done:5}  {runner.seconds:7.1f} s  {loss:.4f}", file=sys.stderr
            )


def characters(path: Path) -> tuple[Tokens, Tokens, int]:
    """A text as nanoGPT's prepare.py has it: (train, val, vocabulary size)."""
    text = path.read_text(encoding="utf-8")
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[character] for character in text])
    cut = int(CHARACTERS_TRAINED * len(data))
    return data[:cut], data[cut:], len(ids)


def race_nanogpt(options: argparse.Namespace) -> dict[str, Any]:
    """nanoGPT's CPU configuration against ours: the same model, and at most half of its time."""
    train, valid, vocabulary = characters(options.text)
    config = GPTConfig(vocabulary, n_positions=64, n_embd=128, n_layer=4, n_head=4)
    theirs = nanogpt(config, train, steps=2000, batch=12, block=64)
    torch.manual_seed(0)
    recipe = Recipe(
        steps=options.steps,
        batch_size=options.batch_size,
        block_size=64,
        lr=options.lr,
        muon_lr=options.muon_lr,
        warmup=20,
        cooldown=int(0.4 * options.steps),
        precision=options.precision,
    )
    mine = ours(GPT(config), train, recipe)
    in_turns([theirs, mine], lambda model, name: nats(model, valid, 64), looks=5)
    ratio = theirs.seconds / mine.seconds
    return report(
        "nanogpt",
        [theirs, mine],
        {"text": options.text.name, "recipe": asdict(recipe), "times faster": round(ratio, 2)},
        "nats a character",
        f"Ours ends at {mine.curve[-1][2]:.4f} in {1 / ratio:.0%} of the time that theirs takes to "
        f"{theirs.curve[-1][2]:.4f}.",
    )


def nats(model: GPT, ids: Tokens, block: int) -> float:
    """Mean loss a token over the whole of `ids`, in float32."""
    bits = evaluate(model, ids, len(ids) - 1, block, batch_size=64, dtype=torch.float32)
    return bits * math.log(2)


def race_bytes(options: argparse.Namespace) -> dict[str, Any]:
    """Two recipes for ten million weights on as many bytes: nanoGPT's by character, and course-10m's.

    Both compute in bfloat16. Without a number of megabytes the shipped model is our side, and
    only theirs is trained, on as many bytes as it has read.
    """
    text = read_text("corpus")
    shipped = json.loads((assets.path("course-10m") / "training.json").read_text(encoding="utf-8"))
    size = int(options.megabytes * 1e6) if options.megabytes else shipped["bytes"]
    alphabet = {character: i for i, character in enumerate(sorted(set(text.train[0] + text.held_out)))}
    data, valid = (torch.tensor([alphabet[c] for c in piece]) for piece in (text.train[0], text.held_out))
    config = GPTConfig(len(alphabet), n_positions=256, n_embd=384, n_layer=6, n_head=6, dropout=0.2)
    iterations = max(2, size // (64 * 256))
    runners = [nanogpt(config, data, iterations, batch=64, block=256, dtype=torch.bfloat16)]

    tokenizer = Tokenizer.load(assets.path("course-10m") / "tokenizer.json")
    look = hold_out(text, tokenizer)
    if options.megabytes:
        ids = torch.tensor(tokenizer.encode(text.train[0]))
        steps = int(size / (len(text.train[0]) / len(ids)) / USUAL.tokens)
        model = MODELS["course-10m"](tokenizer.vocab_size, 0.0, USUAL.seed)
        assert isinstance(model, GPT)
        runners.append(ours(model, ids, with_steps(USUAL, steps)))

    def score(model: GPT, name: str) -> float:
        if name == "ours":
            return evaluate(model, look.ids, look.text_bytes, USUAL.block_size)
        return nats(model, valid, 256) / math.log(2)

    in_turns(runners, score, looks=1, turns=10)
    theirs = runners[0].curve[-1][2]
    mine = runners[1].curve[-1][2] if options.megabytes else shipped["bits_per_byte"]
    gain = 1 - mine / theirs
    return report(
        "bytes",
        runners,
        {"bytes": size, "ours": mine, "theirs": theirs, "fewer bits": round(gain, 4)},
        "bits a byte",
        f"On {size / 1e6:.1f} MB each, ours needs {mine:.4f} bits a byte of the held-out plays, theirs "
        f"{theirs:.4f}: {gain:.1%} fewer.",
    )


def race_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Our loop's step beside the plainest one, on course-10m's shape and batch."""
    ids = torch.randint(2048, (200_000,), generator=torch.Generator().manual_seed(0))
    config = GPTConfig(2048, n_positions=512, n_embd=384, n_layer=6, n_head=6)
    plain = nanogpt(config, ids, options.steps, batch=8, block=512)
    plain.name = "plain loop, float32, AdamW"
    runners = [plain]
    for name, muon_lr in (("ours, AdamW", None), ("ours, Muon", 6e-3)):
        torch.manual_seed(0)
        recipe = Recipe(options.steps, batch_size=8, block_size=512, muon_lr=muon_lr, warmup=1)
        runners.append(ours(GPT(config), ids, recipe))
        runners[-1].name = name
    for runner in runners:
        runner.advance(1 / options.steps)  # memory is allocated, kernels are chosen
        runner.seconds, runner.done = 0.0, 0
    for turn in range(1, options.steps + 1):
        for runner in runners:
            runner.advance(turn / options.steps)
    return report("speed", runners, {}, "", "")


def race_draft(options: argparse.Namespace) -> dict[str, Any]:
    """How many greedy guesses of the draft the model accepts, along its own answers to held-out text."""
    target, draft = (load_gpt(assets.path(name)).eval() for name in ("course-10m", "course-1m"))
    tokenizer = Tokenizer.load(assets.path("course-10m") / "tokenizer.json")
    ids = tokenizer.encode(read_text("corpus").held_out)
    starts = range(0, len(ids) - options.prompt, (len(ids) - options.prompt) // options.prompts)
    prompts = torch.tensor([ids[start : start + options.prompt] for start in starts][: options.prompts])
    accepted, rounds = greedy_acceptance(target, draft, prompts, options.new, options.k)
    rate = accepted / (rounds * options.k)
    facts = {
        "prompts": len(prompts),
        "prompt_tokens": options.prompt,
        "new_tokens": options.new,
        "k": options.k,
        "accepted of drafted": round(rate, 4),
        "tokens a pass of the model": round(accepted / rounds + 1, 3),
        "next token agreed": round(agreement(target, draft, prompts, options.new), 4),
    }
    for name, value in facts.items():
        print(f"{name:28} {value}")
    return facts


@torch.no_grad()
def continue_greedily(model: GPT, prompts: Int64[Tensor, "B T"], new: int) -> Int64[Tensor, "B T_new"]:
    for _ in range(new):
        logits = model(prompts[:, -model.config.n_positions :])[:, -1]  # (B, V)
        prompts = torch.cat([prompts, logits.argmax(-1, keepdim=True)], dim=1)
    return prompts


@torch.no_grad()
def agreements(target: GPT, draft: GPT, prompts: Int64[Tensor, "B T"], new: int) -> Tensor:
    """(B, new): whether the draft, given all before, would have said the target's greedy token too."""
    path = continue_greedily(target, prompts, new)
    guesses = draft(path[:, :-1]).argmax(-1)[:, prompts.shape[1] - 1 :]  # (B, new)
    return guesses == path[:, prompts.shape[1] :]


def agreement(target: GPT, draft: GPT, prompts: Int64[Tensor, "B T"], new: int) -> float:
    return agreements(target, draft, prompts, new).float().mean().item()


def greedy_acceptance(
    target: GPT, draft: GPT, prompts: Int64[Tensor, "B T"], new: int, k: int
) -> tuple[int, int]:
    """(accepted guesses, rounds) of greedy speculation: a round is k guesses of the draft, of which those
    before the first wrong one are accepted, and one token of the target.

    Accepted guesses are the target's own tokens, so the draft never sees anything but the target's path:
    one pass of it over that path tells all its guesses. Source: Leviathan et al. (2023), section 2.
    """
    accepted = rounds = 0
    for row in agreements(target, draft, prompts, new).tolist():
        position = 0
        while position + k < new:  # rounds that would be cut off by the end do not count
            run = next((i for i in range(k) if not row[position + i]), k)
            accepted, rounds, position = accepted + run, rounds + 1, position + run + 1
    return accepted, rounds


def report(
    name: str, runners: Sequence[Runner], facts: dict[str, Any], unit: str, sentence: str
) -> dict[str, Any]:
    """Print a table of finished runs, and return it as a dictionary."""
    table = Table(title=name)
    for column in ("run", "weights", "steps", "tokens", "seconds", "tokens/s", unit or "-"):
        table.add_column(column, justify="right")
    rows = []
    for runner in runners:
        tokens = runner.done * runner.tokens_a_step
        rows.append(
            {
                "run": runner.name,
                "weights": sum(weight.numel() for weight in runner.model.parameters()),
                "steps": runner.done,
                "tokens": tokens,
                "seconds": round(runner.seconds, 1),
                "tokens_per_second": round(tokens / runner.seconds),
                "curve": runner.curve,
            }
        )
        row = rows[-1]
        table.add_row(
            runner.name,
            *(f"{row[key]:,}" for key in ("weights", "steps", "tokens", "seconds", "tokens_per_second")),
            f"{runner.curve[-1][2]:.4f}" if unit else "",
        )
    Console().print(table)
    if sentence:
        print(sentence)
    return {**facts, "runs": rows}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m course_lib.bench.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--out", type=Path, default=Path(".course/bench"), help="folder for the JSON file")
    races = parser.add_subparsers(dest="race", required=True)
    small = races.add_parser("nanogpt", help="its CPU configuration, by character")
    small.add_argument("--text", type=Path, required=True, help="tinyshakespeare.txt")
    small.add_argument("--steps", type=int, default=600)
    small.add_argument("--batch-size", type=int, default=12)
    small.add_argument("--lr", type=float, default=1e-2)
    small.add_argument("--muon-lr", type=float, default=1e-2)
    small.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    equal = races.add_parser("bytes", help="two recipes for 10M weights on as many bytes")
    equal.add_argument("--megabytes", type=float, help="default: as many as course-10m has read")
    races.add_parser("speed", help="tokens a second beside a plain loop").add_argument(
        "--steps", type=int, default=8
    )
    draft = races.add_parser("draft", help="greedy acceptance of course-1m by course-10m")
    draft.add_argument("--prompts", type=int, default=32)
    draft.add_argument("--prompt", type=int, default=64, help="tokens of each")
    draft.add_argument("--new", type=int, default=64, help="tokens of each answer")
    draft.add_argument("--k", type=int, default=4, help="guesses a round")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    race = {"nanogpt": race_nanogpt, "bytes": race_bytes, "speed": race_speed, "draft": race_draft}[
        options.race
    ]
    result = race(options)
    result |= {"machine": str(detect()), "threads": torch.get_num_threads()}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"train-{options.race}-{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"every number: {path}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
