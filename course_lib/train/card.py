"""A model card: what somebody who finds a model's folder should know, from its `training.json`."""

from typing import Any

from course_lib.train.recipe import Recipe

ABOUT = {
    "course-10m": "The model that Day 9 trains and that the later days quantize, compress and serve.",
    "course-1m": "The draft of course-10m for speculative decoding: it has the same vocabulary.",
}
CORPUS = (
    "36 plays of Shakespeare as dialogue (4.6 MB, public domain; `corpus` in data/README.md). "
    "Held out: Macbeth and Twelfth Night."
)


def card(facts: dict[str, Any], samples: dict[str, str], usual: Recipe) -> str:
    """The text of README.md. `samples` maps prompts to what the model made of them; `usual` is the recipe
    that the command takes by itself."""
    recipe, name = facts["recipe"], facts["model"]
    tokens_a_step = facts["tokens"] // recipe["steps"]
    optimizer = "AdamW" if recipe["muon_lr"] is None else "Muon for the blocks' matrices, AdamW for the rest"
    plays = facts["data"] == "corpus"
    shipped = plays and name in ABOUT and facts["budget"] == "full"
    about = ABOUT[name] if shipped else "Trained by this course's loop."
    design = "A Qwen 3" if name.startswith("modern") else "A GPT-2"
    looks = [point for point in facts["curve"] if "bits_per_byte" in point]
    command = f"python -m course_lib.train --model {name} --budget {facts['budget']}" + (
        f" --teacher {facts['teacher']}" if facts["teacher"] else ""
    )
    for option, entry in (("--lr", "lr"), ("--muon-lr", "muon_lr")):
        if recipe[entry] != getattr(usual, entry):
            command += f" {option} {recipe[entry]}"
    rows = {
        "weights": f"{facts['weights']:,}, in bfloat16",
        "text": CORPUS if plays else f"{facts['data']}; its last twentieth was held out.",
        "trained on": f"{facts['tokens']:,} tokens ({facts['bytes'] / 1e6:.1f} MB, {facts['epochs']} epochs)",
        "steps": f"{recipe['steps']:,} of {tokens_a_step:,} tokens, windows of {recipe['block_size']}",
        "optimizer": f"{optimizer}; peak rates {recipe['muon_lr'] or recipe['lr']} and {recipe['lr']}, "
        f"{recipe['warmup']} steps up, {recipe['cooldown']} down to 0; weight decay {recipe['weight_decay']}",
        "targets": f"the probabilities of {facts['teacher']}" if facts["teacher"] else "the next token",
        "time": f"{facts['seconds'] / 60:.0f} minutes on {facts['machine']}",
        "held-out text": f"**{facts['bits_per_byte']:.3f} bits a byte**, over all of it",
    }
    if "acceptance" in facts:
        found = facts["acceptance"]
        rows["accepted by course-10m"] = (
            f"{found['accepted of drafted']:.0%} of the tokens drafted four at a time, greedily; "
            f"{found['tokens a pass of the model']:.2f} tokens a pass"
        )
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    curve = "\n".join(
        f"| {point['step']:,} | {point['loss']:.3f} | {point['bits_per_byte']:.3f} |" for point in looks
    )
    spoken = "\n\n".join(f"```text\n{text.strip()}\n```" for text in samples.values())
    return f"""# {name}

{about} {design}, as Hugging Face's Transformers
saves it. The tokenizer is byte-level BPE, trained on the training split alone.

| | |
|---|---|
{table}

Made by `{command}`; the rest is in `training.json`.{" License of the weights: MIT." if shipped else ""}

## The curve

The loss is that of one step, in nats a token; bits a byte are of the first 20,000 held-out tokens.

| step | loss | bits a byte |
|---|---|---|
{curve}

## How it speaks

At temperature 0.8:

{spoken}

It has the manner of its text and no sense: nothing in it is meant or known. It has read nothing but what is
named above and has never answered a question; it is of use for learning and for tests.

## Loading

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{"data/models/" + name if shipped else ".course/runs/mine"}")
```

`make engine MODEL={name if shipped else "mine"}` lets it talk.
"""
