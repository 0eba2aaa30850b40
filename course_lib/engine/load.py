"""From a model's name to all that an engine needs of it: weights, tokenizer, chat template, where texts end.

A name is looked for in this order: `mine` (the learner's latest training run), the models that the course
brings, a path, a model on the Hugging Face Hub (`owner/name`). Only safetensors, GGUF, tokenizers, JSON and
Jinja are read: nothing that could hold a program, but for the template, which runs in a sandbox.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from course_lib import assets
from course_lib.engine.chat_template import ChatTemplate
from course_lib.model.config import ModelConfig
from course_lib.model.decoder import Decoder
from course_lib.model.errors import CheckpointError
from course_lib.model.families import token_ids
from course_lib.model.load import (
    GGUFCheckpoint,
    SafetensorsCheckpoint,
    load_model,
    open_checkpoint,
    read_json,
)
from course_lib.quant.linear import SCHEMES, Scheme, quantize_linears
from course_lib.tokenizer import Tokenizer
from course_lib.tokenizer.files import read_tokenizer, tokenizer_from_gguf, tokens_before_text

MODELS = ("smollm2", "course-10m", "course-1m")
MINE = assets.REPOSITORY / ".course" / "runs" / "mine"
HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer.model", "*.jinja")
# By these an assistant ends its turn, whatever the settings call the end of a text.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")


@dataclass(frozen=True)
class Loaded:
    """A model ready to run. `prefix`: the ids that belong before a plain text; a template writes its own."""

    name: str
    model: Decoder
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    config: ModelConfig
    prefix: tuple[int, ...]


def load(
    model: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    pack: bool = False,
    quantize: Scheme | Literal["off"] = "off",
    group_size: int = 32,
) -> Loaded:
    """Find a model by its name or path and load all of it; arguments as in `load_model`.

    `quantize` gives its matrices 8 or 4 bits a number, in groups of `group_size` for 4: see
    `course_lib.quant`. They have an order of their own and are not packed.

    Raises:
        CheckpointError: there is no such model, or its files cannot be used; the message says why.
        ValueError: the model cannot be quantized like that.
    """
    if quantize not in ("off", *SCHEMES):
        raise ValueError(f"quantize is {quantize!r}; choose {', '.join(SCHEMES)}, or 'off'.")
    path = find(model)
    checkpoint = open_checkpoint(path)
    try:
        if isinstance(checkpoint, GGUFCheckpoint):
            tokenizer = tokenizer_from_gguf(checkpoint.metadata)
        else:
            tokenizer = read_tokenizer(path)
        prefix, template = surroundings(checkpoint, tokenizer)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"The vocabulary of {checkpoint.path.name} is of no use: {error}.") from error
    config = checkpoint.config
    if (biggest := max(tokenizer.vocab)) >= config.vocab_size:
        raise CheckpointError(
            f"The vocabulary of {checkpoint.path.name} has ids up to {biggest}; the model knows "
            f"{config.vocab_size}: they do not belong together."
        )
    tokenizer.cover(config.vocab_size)
    ends = {*ends_of(checkpoint), *(i for t, i in tokenizer.special_tokens.items() if t in END_OF_TURN)}
    config = replace(config, eos_token_ids=tuple(sorted(ends)))
    known = assets.CATALOG.get(str(model)) or assets.SHIPPED.get(str(model))
    name = known.title if known else "your own model" if str(model) == "mine" else checkpoint.path.stem
    decoder = load_model(checkpoint, device, dtype, pack and quantize == "off")
    if quantize != "off":
        quantize_linears(decoder, quantize, group_size)
    return Loaded(name, decoder, tokenizer, template, config, prefix)


def find(model: str | Path) -> Path:
    """The GGUF file or the folder of a model, fetched if need be.

    Raises:
        CheckpointError: there is none of this name.
    """
    name, path = str(model), Path(model)
    if name == "mine":
        if not MINE.exists():
            raise CheckpointError("You have trained no model yet; `make train` does, on Day 9.")
        return MINE
    if name in MODELS:
        try:
            return assets.path(name)
        except assets.AssetError as error:
            raise CheckpointError(str(error)) from error
    if path.exists():
        return path
    if isinstance(model, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return from_hub(name)
    raise CheckpointError(
        f"There is no model {name!r}. Known: {', '.join(MODELS)}, mine; or give the path of a GGUF file or "
        "of a folder with safetensors, or a model's id at the Hugging Face Hub (owner/name)."
    )


def from_hub(repository: str) -> Path:
    """The folder of a model on the Hub; what was fetched before is not fetched again.

    Raises:
        CheckpointError: there is no such model, it is not open, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repository, allow_patterns=list(HUB_FILES), ignore_patterns=["*/*", "consolidated*"]
            )
        )
    except (HFValidationError, ValueError) as error:
        raise CheckpointError(f"{repository!r} is no path here, and no model's id: {error}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repository!r} is no path here, and the Hugging Face Hub cannot be reached. Fetch it once with "
            "a connection; then it lies in your cache."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{repository!r} is no path here, and the Hub does not give it: {str(error).splitlines()[0]}"
        ) from error


def ends_of(checkpoint: GGUFCheckpoint | SafetensorsCheckpoint) -> tuple[int, ...]:
    """The ids at which the model ends a text: its own, and those of `generation_config.json`."""
    ends = checkpoint.config.eos_token_ids
    if isinstance(checkpoint, SafetensorsCheckpoint):
        ends += token_ids(optional_json(checkpoint.path / "generation_config.json").get("eos_token_id"))
    return ends


def surroundings(
    checkpoint: GGUFCheckpoint | SafetensorsCheckpoint, tokenizer: Tokenizer
) -> tuple[tuple[int, ...], ChatTemplate | None]:
    """(the ids that belong before a plain text, the chat template)."""
    config, special = checkpoint.config, tokenizer.special_tokens
    bos: tuple[int, ...] = () if config.bos_token_id is None else (config.bos_token_id,)
    if isinstance(checkpoint, GGUFCheckpoint):
        metadata = checkpoint.metadata
        begins = metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.model") == "llama")
        prefix = bos if begins else ()
        source = metadata.get("tokenizer.chat_template")
        names: Mapping[str, Any] = {}
    else:
        folder = checkpoint.path
        settings = optional_json(folder / "tokenizer_config.json")
        if (folder / "tokenizer.json").is_file():
            prefix = tuple(special[token] for token in tokens_before_text(folder) if token in special)
        else:
            prefix = bos if settings.get("add_bos_token", True) else ()
        source = template_of(folder, settings)
        names = optional_json(folder / "special_tokens_map.json") | settings
    if source is None:
        return prefix, None
    if not isinstance(source, str):
        raise ValueError(f"the chat template is a {type(source).__name__}; expected a text")
    by_id = {i: token for token, i in special.items()}
    defaults = {
        "bos_token": "".join(by_id.get(i, "") for i in bos),
        "eos_token": "".join(by_id.get(i, "") for i in config.eos_token_ids[:1]),
    }
    given = {
        name: value["content"] if isinstance(value, dict) and "content" in value else value
        for name, value in names.items()
        if name.endswith("_token")
    }
    texts = {name: value for name, value in given.items() if isinstance(value, str)}
    return prefix, ChatTemplate(source, defaults | texts)


def template_of(folder: Path, settings: Mapping[str, Any]) -> Any:
    """`chat_template.jinja`, or what `tokenizer_config.json` holds: one template, or several by name."""
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    source = settings.get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        return named.get("default")
    return source


def optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
