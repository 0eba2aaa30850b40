"""`python -m course_lib.bench`: how fast this engine decodes here, beside Transformers."""

import course_lib.engine.startup  # noqa: F401  # before torch: how its threads wait is read when it loads

# isort: split
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def main(
    model: Annotated[str, typer.Option(help="smollm2, or the path of a GGUF file.")] = "smollm2",
    dtypes: Annotated[str, typer.Option(help="Number formats, separated by commas.")] = "fp32,bf16",
    tokens: Annotated[int, typer.Option(min=2, help="New tokens a run.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = Path(".course/bench"),
) -> None:
    """Decode with our engine and with Transformers' generate, in turns, and print both speeds."""
    from course_lib.bench import decode

    console = Console()
    races = []
    for dtype in dtypes.split(","):
        with console.status(f"{dtype}: {rounds} rounds of {tokens} tokens each"):
            races.append(decode.race(model, dtype.strip(), tokens, rounds, threads))
    console.print(decode.table(races))
    for note in decode.notes(races):
        console.print(note, style="dim", highlight=False)
    console.print(f"every round: {decode.save(races, out)}", style="dim", highlight=False)


if __name__ == "__main__":
    typer.run(main)
