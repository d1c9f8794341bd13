from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sample_farm import spec

from farm.domain.decoding import Settings, Speculation, SpeculationKind, WhatIf
from farm.domain.job import JobSpec


class TestKey:
    @pytest.mark.parametrize(
        "changes",
        [
            {"settings": Settings(depth_tokens=4096)},
            {"settings": Settings(threads=2)},
            {"speculation": Speculation(SpeculationKind.DRAFT_SIMPLE, 4, n_min=1)},
            {"speculation": Speculation(SpeculationKind.DRAFT_SIMPLE, 4, what_if=WhatIf((), 3.2))},
            {"settings": Settings(concurrent_requests=4)},
            {"label": "again"},
            {"draft": None},
        ],
    )
    def test_every_choice_makes_another_job(self, changes: dict[str, object]) -> None:
        assert replace(spec(), **changes).key != spec().key

    def test_a_dimension_that_was_not_there_then_leaves_the_key_as_it_was(self) -> None:
        """A stored spec lacks what was added since; it is still the job that is asked for."""
        old = spec().to_payload()
        del old["settings"]["depth_tokens"]
        del old["settings"]["concurrent_requests"]
        del old["speculation"]["what_if"]
        assert JobSpec.from_payload(old).key == spec().key

    @pytest.mark.parametrize("what_if", [None, WhatIf((0.9, 0.5)), WhatIf(length=2.5)])
    def test_comes_back_from_its_payload(self, what_if: WhatIf | None) -> None:
        """As JSON, which knows no tuples."""
        job = spec()
        job = replace(job, speculation=replace(job.speculation, what_if=what_if))
        back = JobSpec.from_payload(json.loads(json.dumps(job.to_payload())))
        assert back == job
        assert back.key == job.key


class TestPromptsDigest:
    @pytest.mark.parametrize(
        "settings",
        [Settings(depth_tokens=512), Settings(chat_template="on")],
        ids=["depth", "chat template"],
    )
    def test_what_stands_around_the_prompts_is_part_of_them(self, settings: Settings) -> None:
        assert replace(spec(), settings=settings).prompts_digest != spec().prompts_digest

    def test_a_template_that_is_not_applied_is_not(self) -> None:
        code = replace(spec(), category="code-completion")
        asked = replace(code, settings=Settings(chat_template="on"))
        assert asked.prompts_digest == code.prompts_digest


class TestSpelledOut:
    def test_what_follows_another_setting_is_filled_in_from_it(self) -> None:
        settings = Settings(threads=3, cache_type_k="q8_0", draft_cache_type_v="q4_0")
        assert settings.spelled_out() == replace(
            settings, batch_threads=3, draft_cache_type_k="q8_0"
        )

    def test_what_was_said_stands(self) -> None:
        said = Settings(
            threads=3, batch_threads=8, draft_cache_type_k="f32", draft_cache_type_v="f16"
        )
        assert said.spelled_out() == said


@pytest.mark.parametrize(
    ("chat_template", "category", "is_chat"),
    [
        ("on", "chat", True),
        ("on", "my own", True),
        ("on", "code-completion", False),
        ("off", "chat", False),
    ],
)
def test_code_to_complete_is_no_message(chat_template: str, category: str, is_chat: bool) -> None:
    settings = Settings(chat_template=chat_template)
    assert replace(spec(), settings=settings, category=category).is_chat is is_chat


class TestLossy:
    @pytest.mark.parametrize(
        ("settings", "lossy"),
        [
            (Settings(), ()),
            (Settings(cache_type_k="bf16", draft_cache_type_k="q4_0"), ()),
            (Settings(cache_type_k="q8_0"), ("cache_type_k",)),
            (Settings(cache_type_v="q4_0", experts_used=2), ("cache_type_v", "experts_used")),
        ],
    )
    def test_names_what_changes_the_targets_law(
        self, settings: Settings, lossy: tuple[str, ...]
    ) -> None:
        assert settings.lossy == lossy

    @pytest.mark.parametrize(
        ("settings", "unmodified"),
        [
            (Settings(threads=2), Settings(threads=2)),
            (Settings(cache_type_k="bf16"), Settings(cache_type_k="bf16")),
            (Settings(cache_type_k="bf16", cache_type_v="q8_0"), Settings()),
            (
                Settings(cache_type_k="f32", experts_used=2, gpu_layers=7),
                Settings(cache_type_k="f32", gpu_layers=7),
            ),
        ],
    )
    def test_takes_back_what_is_lossy_and_nothing_else(
        self, settings: Settings, unmodified: Settings
    ) -> None:
        assert settings.unmodified == unmodified
        assert settings.unmodified.lossy == ()
