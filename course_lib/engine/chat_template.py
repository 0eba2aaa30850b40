"""From a conversation to token ids: the checkpoint's own Jinja template, rendered in a sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from course_lib.model.errors import CheckpointError
from course_lib.tokenizer import Tokenizer, split_special_tokens

Message = Mapping[str, Any]  # {"role": "system" | "user" | "assistant" | ..., "content": "..."}


class Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace`, without the underscored attributes through which a template could climb out."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self = args[0]
        values = dict(*args[1:], **kwargs)
        for name in values:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        Namespace.check(name)
        super().__setitem__(name, value)

    @staticmethod
    def check(name: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a template may not store the attribute {name!r}")


class ChatTemplate:
    """Renders conversations as the model was trained to read them.

    A template comes with the weights from wherever those come from: it is somebody else's program. The
    sandbox lets it loop and compare, and refuses attributes that lead to Python's internals. Same
    settings as in Hugging Face's Transformers.
    """

    def __init__(self, source: str, special: Mapping[str, str] | None = None):
        """`special` gives the template's names of special tokens, such as bos_token and eos_token.

        Raises:
            CheckpointError: the template is no valid Jinja.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = to_json
        environment.globals.update(
            raise_exception=refuse,
            strftime_now=lambda format: datetime.now().strftime(format),
            namespace=Namespace,
        )
        self.special = dict(special or {})
        try:
            self.template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(
                f"The chat template is no valid Jinja: line {error.lineno}: {error.message}."
            ) from error
        except (RecursionError, MemoryError, OverflowError, ValueError) as error:
            raise CheckpointError(f"The chat template cannot be compiled: {error}.") from error

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as one text, ending where the assistant is to speak.

        Raises:
            CheckpointError: the template tried something that the sandbox refuses.
            ValueError: the template does not accept these messages; its own reason follows.
        """
        try:
            return self.template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **self.special
            )
        except jinja2.exceptions.SecurityError as error:
            raise CheckpointError(f"The chat template was stopped by its sandbox: {error}.") from error
        except Exception as error:  # somebody else's program: it may fail in any way
            raise ValueError(f"The chat template does not accept these messages: {error}") from error

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Token ids of the conversation, in which only the template itself can write special tokens.

        Somebody may type `<|im_end|>` into a message. Encoded as the special token it would end their
        turn and let them speak as the system. So each special token inside a message is split by a
        character that occurs nowhere else, which comes out again once the rendered text has been cut at
        the special tokens that are left: the template's own.
        """
        texts = [str(value) for message in messages for value in message.values()]
        wedge = next(
            mark for mark in map(chr, range(0xE000, 0xF900)) if not any(mark in text for text in texts)
        )
        guarded = [
            {
                key: guard(value, tokenizer, wedge) if isinstance(value, str) else value
                for key, value in message.items()
            }
            for message in messages
        ]
        ids: list[int] = []
        for piece, is_special in split_special_tokens(self.render(guarded), tokenizer.special_tokens):
            ids += (
                [tokenizer.special_tokens[piece]]
                if is_special
                else tokenizer.encode(piece.replace(wedge, ""))
            )
        return ids


def guard(text: str, tokenizer: Tokenizer, wedge: str) -> str:
    pieces = split_special_tokens(text, tokenizer.special_tokens)
    return "".join(piece[0] + wedge + piece[1:] if is_special else piece for piece, is_special in pieces)


def refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter escapes for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
