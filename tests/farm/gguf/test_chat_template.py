"""Templates of real vocabularies, filled in here and by a real llama-server."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from farm.builds import tools
from farm.builds.artefact import SERVER
from farm.errors import UserError
from farm.gguf.chat_template import (
    METADATA_TEMPLATE,
    ChatTemplate,
    has_chat_template,
    render,
)
from farm.gguf.header import Header, read_header
from farm.gguf.vocabulary import vocabulary_of

TEXT = 'Say "{x}" <now>,\nplease.'
FAMILIES = ("command-r", "gemma-4", "phi-3", "qwen2", "qwen35")
LIMIT_S = 60.0


@pytest.fixture
def served(template: str, pair: tuple[Path, Path], tmp_path: Path) -> str:
    """Return what llama-server makes of TEXT with a template."""
    file, log = tmp_path / "template.jinja", tmp_path / "log"
    file.write_text(template)
    command = [str(tools.newest().path(SERVER)), "-m", str(pair[0]), "-t", "1", "-c", "256"]
    command += ["--port", "0", "--jinja", "--chat-template-file", str(file)]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        return _applied(server, log)
    finally:
        server.kill()
        server.wait()


def _applied(server: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + LIMIT_S
    while not (address := re.search(r"listening on (http://\S+)", log.read_text())):
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    body = json.dumps({"messages": [{"role": "user", "content": TEXT}]}).encode()
    asked = urllib.request.Request(
        f"{address[1]}/apply-template", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=LIMIT_S) as answer:
        prompt: str = json.load(answer)["prompt"]
        return prompt


@pytest.fixture
def header(real_vocabularies: Path, family: str) -> Header:
    return read_header(real_vocabularies / f"ggml-vocab-{family}.gguf")


@pytest.fixture
def template(header: Header) -> str:
    return header.text(METADATA_TEMPLATE) or ""


@pytest.mark.parametrize("family", FAMILIES)
def test_is_filled_in_as_llama_server_does(
    template: str, served: str, pair: tuple[Path, Path]
) -> None:
    words = vocabulary_of(read_header(pair[0]))
    assert not isinstance(words, str)
    tokens = list(words.tokens.values())
    bos, eos = (str(tokens[token or 0]) for token in (words.bos, words.eos))
    assert TEXT in served
    assert render(template, TEXT, bos, eos) == served


@pytest.mark.parametrize("family", FAMILIES)
def test_ends_where_the_answer_begins_and_has_no_token_twice(header: Header) -> None:
    prompt = ChatTemplate(header).prompt(TEXT)
    words = vocabulary_of(header)
    assert has_chat_template(header)
    assert TEXT in prompt
    assert not prompt.endswith(TEXT)
    assert not isinstance(words, str)
    if words.add_bos and words.bos is not None:
        assert not prompt.startswith(str(list(words.tokens.values())[words.bos]))


@pytest.mark.parametrize("family", ["qwen2"])
class TestRefusals:
    def test_a_model_without_a_template_is_named(self, header: Header) -> None:
        metadata = {k: v for k, v in header.metadata.items() if k != METADATA_TEMPLATE}
        plain = replace(header, metadata=metadata)
        assert not has_chat_template(plain)
        with pytest.raises(UserError, match=r"qwen2\.gguf has no chat template; set"):
            ChatTemplate(plain)

    @pytest.mark.parametrize(
        ("template", "reason"),
        [
            ("{% if %}", "Expected an expression"),
            ("{{ raise_exception('tools only') }}", "tools only"),
            ("{{ ''.__class__.__mro__ }}", "unsafe"),
            ("{% for n in range(1000000) %}{% endfor %}", "too big"),
            ("{{ 1 + messages }}", "unsupported operand"),
            ("{{ 'a'.index('b') }}", "not found"),
            ("{{ 1 // 0 }}", "zero"),
            ("{{ '{role}'.format() }}", "role"),
            ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "recursion"),
        ],
    )
    def test_a_template_that_fails_is_named(
        self, header: Header, template: str, reason: str
    ) -> None:
        broken = replace(header, metadata={**header.metadata, METADATA_TEMPLATE: template})
        with pytest.raises(UserError, match=rf"qwen2\.gguf fails \(.*{reason}"):
            ChatTemplate(broken).prompt(TEXT)


def test_a_template_that_asks_for_the_date_gets_the_same_every_day() -> None:
    asked = "{{ strftime_now('%Y-%m-%d') }} {{ date_string }}"
    assert render(asked, TEXT, "", "") == "2025-01-01 01 Jan 2025"
