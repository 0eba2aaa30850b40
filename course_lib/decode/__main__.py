"""`python -m course_lib.decode`: text from a GPT-2 checkpoint by the NumPy parts of Days 1 to 7 alone.

With PARTS=mine the parts that you have passed are yours. No torch, no cache: each new token costs a whole
forward pass. Only the text goes to stdout.
"""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from course_lib import assets, parts
from course_lib.decode.numpy_generate import generate
from course_lib.model.errors import CheckpointError
from course_lib.model.numpy_gpt import count_parameters, gpt_forward, load_gpt2
from course_lib.tokenizer import Tokenizer

console = Console(stderr=True, highlight=False)


def owners() -> str:
    """Whose parts this run has loaded, the learner's by name."""
    if parts.parts_mode() != "mine":
        return f"{len(parts.REGISTRY)}, all of them the library's; PARTS=mine takes yours where they passed"
    names: dict[str, list[str]] = {"yours": [], "reference": []}
    for key, part in sorted(parts.REGISTRY.items()):
        names[parts.owner(key)].append(part.qualname)
    yours, others = names["yours"], names["reference"]
    if len(yours) <= len(others):
        return f"{len(yours)} of {len(parts.REGISTRY)} yours" + (f": {', '.join(yours)}" if yours else "")
    return f"{len(yours)} of {len(parts.REGISTRY)} yours" + (
        f"; the library's: {', '.join(others)}" if others else ""
    )


def main(
    prompt: Annotated[str, typer.Option(help="The text to continue; \\n starts a new line.")] = "MACBETH:\\n",
    model: Annotated[
        str, typer.Option(help="course-10m, or a folder with a GPT-2 checkpoint.")
    ] = "course-10m",
    max_tokens: Annotated[int, typer.Option(min=1, help="So many new tokens.")] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most probable token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k most probable tokens (0: all).")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the fewest tokens that hold this share.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Draw from tokens this probable, relative to the best.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
) -> None:
    """Continue a text with a GPT-2 in NumPy."""
    try:
        folder = Path(model) if Path(model).is_dir() else assets.path(model)
        gpt = load_gpt2(folder)
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        text = prompt.replace("\\n", "\n")
        ids = tokenizer.encode(text)
        console.print(
            f"model   {folder.name}, {count_parameters(gpt.config)['total'] / 1e6:.1f}M parameters",
            style="dim",
        )
        console.print(f"parts   {escape(owners())}\n", style="dim", soft_wrap=True)
        sys.stdout.write(text)
        stream, started, count = tokenizer.detokenizer(), time.perf_counter(), 0
        for token in generate(
            lambda shown: gpt_forward(gpt, shown),
            ids,
            max_tokens,
            gpt.config.n_positions,
            stop_ids=tokenizer.special_tokens.values(),
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
        ):
            sys.stdout.write(stream.push(token))
            sys.stdout.flush()
            count += 1
        sys.stdout.write(stream.flush() + "\n")
        seconds = time.perf_counter() - started
        console.print(
            f"\n{count} tokens, {count / seconds:.1f} tokens/s, every one from the beginning", style="dim"
        )
    except KeyError as error:
        console.print(f"[red]{escape(str(error.args[0]))}; or give the folder of a checkpoint[/]")
        raise typer.Exit(1) from None
    except (CheckpointError, ValueError, OSError, assets.AssetError) as error:
        console.print(f"[red]{escape(str(error))}[/]")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        sys.stdout.write("\n")


if __name__ == "__main__":
    typer.run(main)
