"""A whole run: a text, a model, the loop, and a folder that the engine loads.

Everything a run was told stands in its folder, so that the same command, given again after a kill, goes on
where it was. Under `torchrun` the same code runs on every rank, and rank 0 does the writing.
"""

import copy
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from course_lib import assets
from course_lib.hardware.detect import detect
from course_lib.model.gpt import GPT, load_gpt, save_gpt
from course_lib.tokenizer import Tokenizer
from course_lib.train.card import card
from course_lib.train.checkpoint import checkpoints
from course_lib.train.data import END_OF_TEXT, Corpus, load, prepare, whole_file
from course_lib.train.distill import TeachingLoader
from course_lib.train.loader import TokenLoader
from course_lib.train.loop import HeldOut, TrainingStopped, fit
from course_lib.train.muon import build_optimizer
from course_lib.train.recipe import Recipe
from course_lib.train.report import ProgressLine, Record, Report, TensorBoard, several
from course_lib.train.sample import sample
from course_lib.train.scaling import training_flops
from course_lib.train.shapes import MODELS, attention_shape, multiplying_weights
from course_lib.train.step import evaluate, train_step
from course_lib.train.texts import Text

VOCAB_SIZE = 2048
LOOK_TOKENS = 20_000  # of the held-out text, for a look during the run; the end measures all of it
MINUTES = {"2min": 2.0, "15min": 15.0}


@dataclass(frozen=True)
class Plan:
    """What a run was told: `teacher` is a model whose opinions are the targets, or empty; `budget` is what a
    person asked for, and what came of it is in `recipe`."""

    model: str
    data: str
    budget: str
    dropout: float
    teacher: str
    recipe: Recipe

    def write(self, folder: Path) -> None:
        with whole_file(folder / "run.json") as file:
            file.write((json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        try:
            content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            return cls(**{**content, "recipe": Recipe(**content["recipe"])})
        except (ValueError, TypeError, KeyError) as problem:
            raise TrainingStopped(
                f"{folder}/run.json cannot be read: {problem}. NEW=1 begins anew."
            ) from problem


def pick_device(name: str = "auto") -> torch.device:
    """The GPU if there is one, of NVIDIA or Apple; "cpu", "cuda" or "mps" by name."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name)


def speed_of(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """FLOPs a second of one large matrix product on this machine: what MFU is a share of."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        (a @ b).sum().item()  # .item() waits for a GPU
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def tokenizer_for(text: Text, path: Path) -> Tokenizer:
    """The tokenizer at `path`, or, the first time, the one to put there.

    The plays have that of the shipped models, so that losses and drafts can be compared. Any other text gets
    one of its own, trained on the training split alone; a small text a small one.
    """
    if path.is_file():
        return Tokenizer.load(path)
    shipped = assets.REPOSITORY / "data" / assets.SHIPPED["course-10m"].location / "tokenizer.json"
    if text.name == "corpus" and shipped.is_file():
        tokenizer = Tokenizer.load(shipped)
    else:
        size = min(VOCAB_SIZE, 257 + sum(map(len, text.train)) // 200)
        tokenizer = Tokenizer.train(text.train, size, special=[END_OF_TEXT])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path)
    return tokenizer


def hold_out(text: Text, tokenizer: Tokenizer, limit: int | None = None) -> HeldOut:
    """The held-out text, or its first `limit` tokens, behind one token that ends the text before it: so every
    byte of it is predicted."""
    ids = tokenizer.encode(text.held_out)[:limit]
    start = tokenizer.special_tokens[END_OF_TEXT]
    return HeldOut(torch.tensor([start, *ids]), len(tokenizer.decode_bytes(ids)))


def seconds_a_step(model: nn.Module, recipe: Recipe, corpus: Corpus) -> float:
    """How long a step takes here, measured on copies, so that the run itself begins untouched."""
    model = copy.deepcopy(model)
    optimizer = build_optimizer(model, recipe.lr, recipe.muon_lr, recipe.weight_decay)
    loader = TokenLoader(corpus.paths, recipe.batch_size, recipe.block_size, recipe.seed)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        arrays = [loader.next_batch() for _ in range(recipe.accumulation)]
        batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in arrays]
        train_step(model, optimizer, batches, recipe.clip, recipe.dtype)
        seconds.append(time.perf_counter() - started)
    return sum(seconds[1:]) / (len(seconds) - 1)  # the first allocates memory


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe for another number of steps: warm-up and looks in proportion, cooldown of three tenths."""
    return replace(
        recipe,
        steps=steps,
        warmup=max(1, min(30, steps // 10)),
        cooldown=int(0.3 * steps),
        evaluate_every=-(-steps // 8),  # rounded up: eight looks, the last one after the last step
        save_every=min(100, -(-steps // 8)),
    )


def export(model: nn.Module, tokenizer: Tokenizer, folder: Path, facts: dict[str, Any]) -> None:
    """Write what the engine, Transformers and llama.cpp load, and `training.json`: how it came about."""
    folder.mkdir(parents=True, exist_ok=True)
    end = tokenizer.special_tokens[END_OF_TEXT]
    if isinstance(model, GPT):
        save_gpt(model, folder, extra={"bos_token_id": end, "eos_token_id": end})
    else:
        save_decoder(model, folder, end)
    tokenizer.save(folder / "tokenizer.json")
    write_facts(model, tokenizer, folder, facts)


def write_facts(model: nn.Module, tokenizer: Tokenizer, folder: Path, facts: dict[str, Any]) -> None:
    """Write `training.json`, and the model card that says the same in prose."""
    prompts = ("ROMEO:\n", "MACBETH:\n") if facts["data"] == "corpus" else ("\n",)
    size = facts["recipe"]["block_size"]
    spoken = {prompt: sample(model, tokenizer, prompt, tokens=100, context=size) for prompt in prompts}
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(facts, spoken, USUAL), encoding="utf-8")


def save_decoder(model: nn.Module, folder: Path, end: int) -> None:
    """A trained modern design, as Transformers saves a Qwen 3."""
    c: Any = model.config
    weights = {name: w.to("cpu", torch.bfloat16).contiguous() for name, w in model.named_weights()}  # type: ignore[operator]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_position_embeddings,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the run's lock: two processes in one folder would overwrite each other's checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingStopped(
                f"Another process is training in {folder}; wait for it, or stop it."
            ) from None
        yield


# Tokens of the full budget. The plays have 1.7 million, so these are several epochs.
FULL_TOKENS = {
    "course-1m": 2000 * 4096,
    "course-4m": 10_000_000,
    "course-10m": 1075 * 4096,
    "modern-1m": 12_000_000,
    "modern-10m": 5_000_000,
}
USUAL = Recipe(steps=1, batch_size=8, block_size=512, lr=6e-3, muon_lr=6e-3, warmup=0)


@dataclass(frozen=True)
class Request:
    """What a person asks for: `teacher` names a shipped model or a folder; `changes` are the recipe's entries
    that are not to be the usual."""

    model: str
    budget: str
    dropout: float
    changes: dict[str, Any]
    teacher: str = ""


def new_plan(
    request: Request, text: Text, tokenizer: Tokenizer, corpus: Corpus, device: torch.device
) -> Plan:
    """A plan with the steps asked for, or as many as the budget has time for on this machine; for the full
    budget, as many as take the model's usual tokens."""
    recipe = replace(USUAL, precision=faster_precision(device), **request.changes)
    steps = request.changes.get("steps")
    if steps is None and request.budget in MINUTES:
        model = MODELS[request.model](tokenizer.vocab_size, request.dropout, recipe.seed).to(device)
        seconds = seconds_a_step(model, recipe, corpus)
        steps = max(20, int(0.85 * 60 * MINUTES[request.budget] / seconds))  # the rest: looks, checkpoints
    elif steps is None:
        ranks = int(os.environ.get("WORLD_SIZE", 1))
        tokens = ranks * recipe.batch_size * recipe.accumulation * recipe.block_size
        steps = max(20, FULL_TOKENS[request.model] // tokens)
    return Plan(
        request.model, text.name, request.budget, request.dropout, request.teacher, with_steps(recipe, steps)
    )


def old_plan(request: Request, folder: Path) -> Plan:
    """The plan of the run in `folder`, which may be lengthened or shortened by other `steps` as long as its
    rate has not begun to fall.

    Raises:
        TrainingStopped: something else was asked for than the run was begun with.
    """
    plan = Plan.read(folder)
    asked = {"dropout": request.dropout, "teacher": request.teacher, **request.changes}
    begun = {"dropout": plan.dropout, "teacher": plan.teacher, **asdict(plan.recipe)}
    other = [name for name in asked if asked[name] != begun[name] and name != "steps"]
    if other:
        said = ", ".join(f"{name} {begun[name]}, not {asked[name]}" for name in other)
        raise TrainingStopped(
            f"The run in {folder} was begun with {said}: leave that out, or begin anew (NEW=1)."
        )
    steps = request.changes.get("steps", plan.recipe.steps)
    if steps == plan.recipe.steps:
        return plan
    recipe = replace(with_steps(plan.recipe, steps), warmup=plan.recipe.warmup)
    made = int(saved[-1].stem.removeprefix("step_")) if (saved := checkpoints(folder / "checkpoints")) else 0
    if made > min(plan.recipe.steps - plan.recipe.cooldown, steps - recipe.cooldown):
        raise TrainingStopped(
            f"The run has made {made} of {plan.recipe.steps} steps; with {steps} its rate would begin to "
            "fall at another step. Begin anew (NEW=1)."
        )
    return replace(plan, recipe=recipe)


def prepare_run(
    request: Request, text: Text, folder: Path, device: torch.device
) -> tuple[Plan, Tokenizer, Corpus]:
    """The plan, tokenizer and shards of a run: rank 0 makes what is not there yet, the others wait for it."""
    if int(os.environ.get("RANK", 0)) == 0:
        tokenizer = tokenizer_for(text, folder / "tokenizer.json")
        corpus = prepare(text.train, tokenizer, folder / "tokens")
        begun = (folder / "run.json").is_file()
        plan = old_plan(request, folder) if begun else new_plan(request, text, tokenizer, corpus, device)
        plan.write(folder)
    if dist.is_initialized():
        dist.barrier()
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    return Plan.read(folder), tokenizer, load(folder / "tokens", verify=False)


def train(
    request: Request,
    text: Text,
    folder: Path,
    device: torch.device,
    *,
    compile: bool = False,
    tensorboard: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Train what is asked for on a text, or go on with the run in `folder`, and export it to `folder/model`.

    Under torchrun all ranks call this. `report` is called after each step, besides the progress line.
    Returns the facts that training.json holds (on ranks above 0: nothing).

    Raises:
        TrainingStopped: the run cannot go on; and what `fit` raises.
    """
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    with ExitStack() as stack:
        if rank == 0:
            stack.enter_context(alone(folder))
        if ranks > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            stack.callback(dist.destroy_process_group)
        plan, tokenizer, corpus = prepare_run(request, text, folder, device)
        recipe = plan.recipe
        model = MODELS[plan.model](tokenizer.vocab_size, plan.dropout, recipe.seed).to(device)
        optimizer = build_optimizer(model, recipe.lr, recipe.muon_lr, recipe.weight_decay)
        loader: Any = TokenLoader(
            corpus.paths, recipe.batch_size, recipe.block_size, recipe.seed, rank, ranks
        )
        if plan.teacher:
            loader = TeachingLoader(loader, teacher_of(plan, tokenizer).to(device))
        if compile:
            model.compile()
        trained = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
        reports = [report] if report else []
        if rank == 0:
            line = stack.enter_context(progress_line(model, recipe, device, ranks))
            line.say(
                f"{plan.model}, {parameters(model):,} weights, on {device}: {recipe.steps:,} steps of "
                f"{ranks * recipe.tokens:,} tokens, from {plan.data} ({corpus.tokens:,} tokens)"
            )
            if saved := checkpoints(folder / "checkpoints"):
                line.say(f"going on from {saved[-1].name}")
            reports += [line, Sampler(model, tokenizer, line.say, recipe)]
            if tensorboard:
                reports.append(TensorBoard(folder / "tensorboard"))
        look = hold_out(text, tokenizer, LOOK_TOKENS)
        history = fit(trained, optimizer, loader, recipe, look, folder / "checkpoints", several(*reports))
        if rank:
            return {}
        result = facts(plan, corpus, model, history, hold_out(text, tokenizer), ranks)
        export(model, tokenizer, folder / "model", result)
        return result


def teacher_of(plan: Plan, tokenizer: Tokenizer) -> GPT:
    """The model that teaches, which must speak the same tokens and see as far."""
    folder = assets.path(plan.teacher) if plan.teacher in assets.SHIPPED else Path(plan.teacher)
    teacher = load_gpt(folder)
    theirs = Tokenizer.load(folder / "tokenizer.json")
    if (theirs.tokens, theirs.ranks) != (tokenizer.tokens, tokenizer.ranks):
        raise TrainingStopped(f"{folder} has another vocabulary than this run: it cannot teach it.")
    if teacher.config.n_positions < plan.recipe.block_size:
        raise TrainingStopped(
            f"{folder} sees {teacher.config.n_positions} tokens, and a window has {plan.recipe.block_size}."
        )
    return teacher


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def progress_line(model: nn.Module, recipe: Recipe, device: torch.device, ranks: int) -> ProgressLine:
    flops = training_flops(
        multiplying_weights(model), 1, *attention_shape(model), recipe.block_size, causal=True
    )
    return ProgressLine(recipe.steps, ranks * recipe.tokens, flops, ranks * speed_of(device, recipe.dtype))


def facts(
    plan: Plan, corpus: Corpus, model: nn.Module, history: list[Record], whole: HeldOut, ranks: int
) -> dict[str, Any]:
    """What there is to know about a finished run; bits per byte are of the whole held-out text."""
    recipe = plan.recipe
    tokens = recipe.steps * ranks * recipe.tokens
    shown = max(1, recipe.steps // 200)
    return {
        **asdict(plan),
        "machine": str(detect()),
        "weights": parameters(model),
        "tokens": tokens,
        "epochs": round(tokens / corpus.tokens, 2),
        "bytes": int(tokens * corpus.bytes_per_token),
        "seconds": round(sum(record["seconds"] for record in history)),
        "bits_per_byte": evaluate(model, whole.ids, whole.text_bytes, recipe.block_size, dtype=recipe.dtype),
        "curve": [
            {key: round(value, 4) for key, value in record.items() if key != "seconds"}
            for record in history
            if record["step"] % shown == 0 or "bits_per_byte" in record
        ],
    }


def faster_precision(device: torch.device) -> Literal["bfloat16", "float32"]:
    """bfloat16, unless this is a processor without instructions for it."""
    if device.type != "cpu":
        return "bfloat16"
    faster = speed_of(device, torch.bfloat16, 1024) > speed_of(device, torch.float32, 1024)
    return "bfloat16" if faster else "float32"


class Sampler:
    """Shows what the model says each time that it was evaluated."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, say: Any, recipe: Recipe) -> None:
        self.model, self.tokenizer, self.say, self.recipe = model, tokenizer, say, recipe

    def __call__(self, record: Record) -> None:
        if "bits_per_byte" in record:
            text = sample(self.model, self.tokenizer, tokens=50, context=self.recipe.block_size)
            self.say("    " + " / ".join(text.split("\n")).strip(" /")[:100])
