"""Settings of a sweep's cells: what is crossed, what makes no difference, what can't be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType

from farm.domain.decoding import Settings, SpeculationKind
from farm.domain.prompt import Prompt, PromptSet
from farm.errors import UserError
from farm.gguf.chat_template import METADATA_TEMPLATE
from farm.gguf.header import Header, read_header
from farm.gguf.header_parse import Array
from farm.services.cells import (
    DEPTH_CATEGORY,
    depth_prompt,
    require_room,
    require_template,
    settings_of,
)
from farm.services.sweepfile import SweepFile

DRAFT = SpeculationKind.DRAFT_SIMPLE


@pytest.fixture
def headers(pair: tuple[Path, Path]) -> tuple[Header, Header]:
    target, draft = (read_header(path) for path in pair)
    return target, draft


def sweep(**keys: Any) -> SweepFile:
    pairs = [{"target": "t.gguf", "drafts": ["d.gguf"]}]
    return SweepFile.model_validate({"name": "x", "pairs": pairs, "k": 4} | keys)


def mixture(header: Header, **numbers: Any) -> Header:
    """Return the header with experts: four of them, two in use, or as said."""
    values = {"expert_count": 4, "expert_used_count": 2} | numbers
    added = {f"llama.{name}": value for name, value in values.items()}
    return replace(header, metadata={**header.metadata, **added})


class TestProduct:
    def test_crosses_every_key_of_the_settings(self, headers: tuple[Header, Header]) -> None:
        keys: dict[str, Any] = {
            "context_tokens": [512, 1024],
            "threads": [2, 3],
            "batch_threads": [4, 8],
            "numa": ["off", "isolate"],
            "draft_cache_type_k": ["f16", "q8_0"],
            "draft_cache_type_v": ["f16", "q8_0"],
            "draft_device": ["none", "CUDA1"],
            "depth_tokens": [0, 128],
        }
        found = settings_of(sweep(**keys), DRAFT, *headers)
        assert len(found) == len(set(found)) == 2 ** len(keys)
        assert {(s.threads, s.batch_threads) for s in found} == {(2, 4), (2, 8), (3, 4), (3, 8)}
        assert found == settings_of(sweep(**keys), DRAFT, *headers)

    def test_what_is_the_default_anyway_is_one_cell(self, headers: tuple[Header, Header]) -> None:
        target, draft = mixture(headers[0]), headers[1]
        keys: dict[str, Any] = {
            "threads": 4,
            "batch_threads": 4,
            "draft_cache_type_k": "f16",
            "experts_used": 2,
        }
        assert settings_of(sweep(**keys), DRAFT, target, draft) == [Settings(threads=4)]

    def test_a_drafts_settings_are_one_cell_without_a_draft(
        self, headers: tuple[Header, Header]
    ) -> None:
        keys: dict[str, Any] = {
            "draft_cache_type_k": ["f16", "q8_0"],
            "draft_device": ["none", "CUDA1"],
            "draft_gpu_layers": [0, 99],
        }
        target = headers[0]
        lookup = settings_of(sweep(**keys), SpeculationKind.PROMPT_LOOKUP, target, None)
        assert lookup == [Settings()]
        own_heads = settings_of(sweep(**keys), SpeculationKind.DRAFT_MTP, target, None)
        assert own_heads == [Settings(), Settings(draft_cache_type_k="q8_0")]


class TestRefusals:
    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (
                {"flash_attention": "off", "cache_type_v": "q8_0"},
                "^cache_type_v q8_0 needs flash attention",
            ),
            (
                {"flash_attention": "off", "draft_cache_type_v": "q4_0"},
                "^draft_cache_type_v q4_0 needs flash attention",
            ),
            ({"numa": "distribute", "machines": "kind:apple"}, "Linux only"),
            ({"experts_used": 2}, "no mixture of experts"),
        ],
    )
    def test_what_llama_cpp_would_refuse_or_not_heed(
        self, headers: tuple[Header, Header], keys: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UserError, match=message) as caught:
            settings_of(sweep(**keys), DRAFT, *headers)
        assert str(caught.value).endswith("Nothing was submitted.")

    def test_a_quantised_k_cache_needs_no_flash_attention(
        self, headers: tuple[Header, Header]
    ) -> None:
        assert settings_of(sweep(flash_attention="off", cache_type_k="q8_0"), DRAFT, *headers)

    def test_heads_that_are_no_whole_blocks(self, headers: tuple[Header, Header]) -> None:
        odd = {"llama.attention.key_length": 80}
        target = replace(headers[0], metadata={**headers[0].metadata, **odd})
        with pytest.raises(UserError, match=r"blocks of 32 values .* heads of 80"):
            settings_of(sweep(cache_type_k="q8_0"), DRAFT, target, headers[1])

    def test_more_experts_than_there_are(self, headers: tuple[Header, Header]) -> None:
        with pytest.raises(UserError, match="has 4 experts"):
            settings_of(sweep(experts_used=5), DRAFT, mixture(headers[0]), headers[1])

    def test_experts_that_are_stated_for_each_layer(self, headers: tuple[Header, Header]) -> None:
        per_layer = Array(GGUFValueType.UINT8, 1, b"\x02")
        target = mixture(headers[0], expert_used_count=per_layer)
        with pytest.raises(UserError, match="for each layer"):
            settings_of(sweep(experts_used=3), DRAFT, target, headers[1])

    def test_llama_server_would_change_a_mixture_of_a_draft_too(
        self, headers: tuple[Header, Header]
    ) -> None:
        both = tuple(mixture(header) for header in headers)
        with pytest.raises(UserError, match="as well; measure it with engine: in-process"):
            settings_of(sweep(experts_used=3, engine="llama-server"), DRAFT, *both)
        assert settings_of(sweep(experts_used=3), DRAFT, *both)


class TestRoom:
    def test_the_context_that_is_needed_is_named(self, headers: tuple[Header, Header]) -> None:
        settings = Settings(context_tokens=2048, depth_tokens=4096)
        prompts = [Prompt("p", "chat", "x" * 400)]
        with pytest.raises(UserError, match="set context_tokens: 4352") as caught:
            require_room(settings, sweep(), prompts, headers[0])
        assert "depth_tokens 4096, a prompt of about 101 tokens" in str(caught.value)
        enough = replace(settings, context_tokens=4352)
        require_room(enough, sweep(), prompts, headers[0])

    def test_llama_server_gives_no_more_than_a_model_was_trained_for(
        self, headers: tuple[Header, Header]
    ) -> None:
        trained = headers[0].context_length
        assert trained is not None
        settings = Settings(context_tokens=2 * trained, depth_tokens=trained)
        prompts = [Prompt("p", "chat", "hello")]
        require_room(settings, sweep(), prompts, headers[0])
        with pytest.raises(UserError, match=f"no more than the {trained}"):
            require_room(settings, sweep(engine="llama-server"), prompts, headers[0])


class TestDepthText:
    def test_is_the_rest_of_the_set(self) -> None:
        prompts = [Prompt(str(n), "chat" if n < 2 else "code", f"text {n}") for n in range(4)]
        whole = PromptSet("mine", tuple(prompts))
        found = depth_prompt(whole, prompts[:2])
        assert found.category == DEPTH_CATEGORY
        assert found.text.split() == ["text", "2", "text", "3"]
        everything = depth_prompt(whole, prompts).text
        assert [everything.count(prompt.text) for prompt in prompts] == [1, 1, 1, 1]


class TestChatTemplate:
    def with_template(self, header: Header, template: str) -> Header:
        return replace(header, metadata={**header.metadata, METADATA_TEMPLATE: template})

    @pytest.mark.parametrize(
        ("brings_one", "asked", "found"),
        [
            (True, "auto", ["on"]),
            (False, "auto", ["off"]),
            (True, ["off", "on"], ["off", "on"]),
            (True, ["auto", "on"], ["on"]),
            (False, "off", ["off"]),
        ],
    )
    def test_auto_is_what_the_target_brings(
        self, headers: tuple[Header, Header], brings_one: bool, asked: Any, found: list[str]
    ) -> None:
        target, draft = headers
        if brings_one:
            target = self.with_template(target, "x")
        cells = settings_of(sweep(chat_template=asked), DRAFT, target, draft)
        assert [cell.chat_template for cell in cells] == found

    def test_one_that_is_not_there_is_refused(self, headers: tuple[Header, Header]) -> None:
        with pytest.raises(UserError, match=r"chat_template: .* brings none; leave"):
            settings_of(sweep(chat_template="on"), DRAFT, *headers)

    def test_one_that_fails_is_refused_before_anything_runs(
        self, headers: tuple[Header, Header]
    ) -> None:
        broken = self.with_template(headers[0], "{{ raise_exception('tools only') }}")
        code = Prompt("1", "code-completion", "def f(")
        require_template(broken, [code])
        with pytest.raises(UserError, match=r"tools only.*set chat_template: off"):
            require_template(broken, [code, Prompt("2", "chat", "Hello")])
