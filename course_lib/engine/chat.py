"""The terminal: one answer with --prompt, otherwise a conversation.

Only the answer goes to stdout; what the engine has to say about itself goes to stderr, so that
`python -m course_lib.engine --prompt ... > answer.txt` writes the answer and nothing else.
"""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from course_lib import parts
from course_lib.engine.startup import STARTED

if TYPE_CHECKING:
    from course_lib.decode.sampler import SamplingParams
    from course_lib.engine.llm import LLM, Completion, Prompt, Stream

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
console = Console(stderr=True, highlight=False)

# Greedy answers of a small model run into loops: of 12 ordinary prompts SmolLM2-135M ended 7 in one without a
# penalty, 2 with this one.
REPETITION_PENALTY = 1.1
HELP = "/reset forgets the conversation, /exit leaves, Ctrl-C stops an answer."


@app.command()
def main(
    prompt: Annotated[str | None, typer.Option(help="Answer this and end. Without it: a chat.")] = None,
    model: Annotated[
        str, typer.Option(help="smollm2, course-10m, mine, a path, or owner/name at the Hub.")
    ] = "smollm2",
    max_tokens: Annotated[int, typer.Option(min=1, help="End an answer after so many tokens.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most probable token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k most probable tokens (0: all).")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the most probable tokens that hold this share.")
    ] = 1.0,
    min_p: Annotated[float, typer.Option(help="Draw from tokens this probable, relative to the best.")] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 tokens that were there before become less probable; 1: off.")
    ] = REPETITION_PENALTY,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same text.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    speculate: Annotated[
        str, typer.Option(help="Draft tokens: off, ngram, or a small model's name. The text stays the same.")
    ] = "off",
    quantize: Annotated[str, typer.Option(help="Bits of the weights: off, int8 or int4.")] = "off",
    kv_cache_dtype: Annotated[str, typer.Option(help="Keys and values: auto (as --dtype) or int8.")] = "auto",
    costs: Annotated[
        bool,
        typer.Option(help="With PARTS=mine and --prompt: what your parts cost; it runs everything twice."),
    ] = False,
    costs_to: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run a language model on this machine: one answer with --prompt, otherwise a conversation."""
    from course_lib import assets
    from course_lib.decode.sampler import SamplingParams
    from course_lib.engine.engine import EngineConfig
    from course_lib.engine.llm import LLM
    from course_lib.model.errors import CheckpointError

    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
    try:
        if prompt is not None and not prompt.strip():
            raise ValueError("The prompt is empty: there is nothing to answer.")
        params = SamplingParams(
            temperature, top_k, top_p, min_p, seed, max_tokens, repetition_penalty=repetition_penalty
        )
        config = EngineConfig(speculative=speculate, kv_cache_dtype=kv_cache_dtype)  # type: ignore[arg-type]
        llm = LLM(model, device, dtype, threads, config, quantize)  # type: ignore[arg-type]
        introduce(llm)
        opening = [{"role": "system", "content": system}] if system else []
        if prompt is not None and (costs or costs_to):
            weigh(lambda: answer(llm, asked(llm, opening, prompt), params), costs_to)
        elif prompt is not None:
            answer(llm, asked(llm, opening, prompt), params)
        else:
            converse(llm, opening, params)
    except (CheckpointError, ValueError, assets.AssetError) as error:
        console.print(f"[red]{escape(str(error))}[/]")
        raise typer.Exit(1) from None


def introduce(llm: "LLM") -> None:
    """Say what was chosen and why."""
    config = llm.config
    facts = {
        "model": f"{llm.name}: {config.parameters / 1e6:.0f}M parameters, {config.num_hidden_layers} layers",
        **llm.choice.reasons(),
        "attends": llm.runner.attention,
        "cache": room(llm),
        "parts": owners(),
        "ready": f"after {time.perf_counter() - STARTED:.1f} s",
    }
    for name, fact in facts.items():
        if fact:
            console.print(f"{name:8}{escape(fact)}", style="dim", soft_wrap=True)
    console.print()


def room(llm: "LLM") -> str:
    """How many tokens the cache holds, and what one of them takes."""
    cache, engine = llm.runner.cache, llm.engine
    one = cache.bytes_per_token(llm.config, llm.choice.dtype)
    kept = "" if engine.config.kv_cache_dtype == "auto" else f", kept as {engine.config.kv_cache_dtype}"
    return (
        f"room for {engine.allocator.total * engine.config.block_size:,} tokens of {one / 1000:.1f} kB{kept}"
    )


def owners() -> str:
    """With PARTS=mine: which of the parts that this run has loaded are the learner's."""
    if parts.parts_mode() != "mine":
        return ""
    yours = sorted(
        part.name or part.qualname for key, part in parts.REGISTRY.items() if parts.owner(key) == "yours"
    )
    names = f": {', '.join(yours)} (--costs says what they cost)" if yours else ""
    return f"{len(yours)} of {len(parts.REGISTRY)} yours{names}"


def weigh(run: Callable[[], object], out: Path | None) -> None:
    """Run an answer and say what the learner's parts cost in it; or write all parts' costs to a file."""
    from course_lib.engine import costs

    mine = costs.measure(run)
    if out is not None:
        out.write_text(json.dumps(mine), encoding="utf-8")
    elif any(parts.owner(key) == "yours" for key in mine):
        reference = costs.of_reference([argument for argument in sys.argv[1:] if argument != "--costs"])
        console.print(costs.table(mine, reference))
    else:
        console.print("None of your parts ran in this answer, so they cost nothing.")


def asked(llm: "LLM", conversation: list[dict[str, str]], line: str) -> "Prompt":
    """The conversation and one line more; without a chat template the line alone, to be continued."""
    return [*conversation, {"role": "user", "content": line}] if llm.chat_template else line


def answer(llm: "LLM", prompt: "Prompt", params: "SamplingParams") -> "Completion":
    """Stream one answer to stdout; Ctrl-C ends the answer. Returns what came."""
    stream = llm.stream(prompt, params)
    # Not KeyboardInterrupt: that could hit the engine in the middle of its books.
    before = signal.signal(signal.SIGINT, lambda *_: stream.stop())
    try:
        show(stream)
    finally:
        signal.signal(signal.SIGINT, before)
    sys.stdout.write("\n")
    sys.stdout.flush()
    console.print(statistics(stream.completion), style="dim", soft_wrap=True)
    return stream.completion


def show(stream: "Stream") -> None:
    for piece in stream:
        sys.stdout.write(piece)
        sys.stdout.flush()


def statistics(completion: "Completion") -> str:
    read = f"{completion.prompt_tokens - completion.reused} tokens"
    kept = f" ({completion.reused} kept from before)" if completion.reused else ""
    ending = {"stop": "", "length": "; token limit reached", "cancelled": "; stopped", "error": "; failed"}
    return (
        f"read {read}{kept}, first token after {completion.time_to_first_token:.2f} s; "
        f"wrote {len(completion.token_ids)} at {completion.tokens_per_second:.1f} tokens/s"
        f"{ending[completion.finish_reason]}"
    )


def converse(llm: "LLM", opening: list[dict[str, str]], params: "SamplingParams") -> None:
    """Read a line, answer it, remember both; until /exit or Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() its arrow keys and history
    console.print(HELP, style="dim")
    messages = list(opening)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            console.print("\n/exit or Ctrl-D leaves.", style="dim")
            continue
        if line == "/exit":
            return
        if line == "/reset":
            messages = list(opening)
            console.print("Forgotten.", style="dim")
        elif line.startswith("/"):
            console.print(f"There is no command {escape(line)}. {HELP}", style="dim")
        elif line:
            try:
                completion = answer(llm, asked(llm, messages, line), params)
            except ValueError as error:  # the conversation no longer fits
                console.print(f"[red]{escape(str(error))}[/] /reset starts afresh.")
            else:
                messages.append({"role": "user", "content": line})
                messages.append({"role": "assistant", "content": completion.text})
