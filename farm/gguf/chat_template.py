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


def chat_prompt(header: Header, text: str) -> str:
    """Return `text` as a user's only message, up to where the model's answer begins.

    Without the token that the tokenizer itself puts first. Raises UserError where the model has no
    template or its template fails.
    """
    template = header.text(METADATA_TEMPLATE)
    if not template:
        raise UserError(
            f"{header.path.name} has no chat template; leave 'chat_template' out of the sweep."
        )
    vocabulary = vocabulary_of(header)
    bos, eos, adds_bos = "", "", False
    if not isinstance(vocabulary, str):
        words = list(vocabulary.tokens.values())
        bos, eos = (
            "" if token is None else str(words[token]) for token in (vocabulary.bos, vocabulary.eos)
        )
        adds_bos = vocabulary.add_bos
    try:
        prompt = render(template, text, bos, eos)
    except TemplateError as error:
        raise UserError(
            f"The chat template of {header.path.name} fails ({error}); leave 'chat_template' out "
            "of the sweep."
        ) from None
    return prompt.removeprefix(bos) if adds_bos else prompt


def render(template: str, text: str, bos: str, eos: str) -> str:
    """Fill in a template. Raises jinja2.TemplateError."""
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
