"""A prompt as a chat model is asked it: its own template, as llama.cpp fills it in.

The template is Jinja in the file's `tokenizer.chat_template`. The dialect and what it may call are
those of common/chat.cpp and of the Python library that templates are written for.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from farm.errors import UserError
from farm.gguf.header import Header
from farm.gguf.vocabulary import vocabulary_of

METADATA_TEMPLATE = "tokenizer.chat_template"
# Templates may ask for today's date; a prompt that changes overnight could not be compared.
TODAY = datetime.date(2025, 1, 1)

# Of the template itself, of wrong operands in it, and of the sandbox's limits.
FAILURES = (
    TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError,
)  # fmt: skip


class _Generation(Extension):
    """Marks what a trainer counts as the model's own; here it is just text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def has_chat_template(header: Header) -> bool:
    """Say whether the model's file brings a chat template."""
    return bool(header.text(METADATA_TEMPLATE))


class ChatTemplate:
    """A model's own template. Raises UserError where the file has none."""

    def __init__(self, header: Header) -> None:
        template = header.text(METADATA_TEMPLATE)
        if not template:
            raise UserError(f"{header.path.name} has no chat template; set chat_template: off.")
        self._template = template
        self._file = header.path.name
        self._bos = self._eos = ""
        self._adds_bos = False
        vocabulary = vocabulary_of(header)
        if not isinstance(vocabulary, str):
            words = vocabulary.tokens.values()
            self._bos = "" if vocabulary.bos is None else str(words[vocabulary.bos])
            self._eos = "" if vocabulary.eos is None else str(words[vocabulary.eos])
            self._adds_bos = vocabulary.add_bos

    def prompt(self, text: str) -> str:
        """Return `text` as a user's only message, up to where the model's answer begins.

        Without the token that the tokenizer itself puts first. Raises UserError where the template
        fails.
        """
        try:
            prompt = render(self._template, text, self._bos, self._eos)
        except FAILURES as error:
            raise UserError(
                f"The chat template of {self._file} fails ({error}); set chat_template: off."
            ) from None
        return prompt.removeprefix(self._bos) if self._adds_bos else prompt


def render(template: str, text: str, bos: str, eos: str) -> str:
    """Fill in a template. Raises one of FAILURES where it fails."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": TODAY.strftime}
    return environment.from_string(template).render(
        messages=[{"role": "user", "content": text}],
        add_generation_prompt=True,
        bos_token=bos,
        eos_token=eos,
        enable_thinking=True,
        date_string=TODAY.strftime("%d %b %Y"),
    )


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise(message: str) -> None:
    raise TemplateError(message)
