from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from farm.domain.decoding import Settings
from farm.report.grouping import by_subject
from farm.report.tables import subject_facts
from farm.report.wording import LOSSY_NOTE, SETTINGS, advice_sentence, settings_text
from farm.services.recommend import Recommendation

Make = Callable[..., Recommendation]


def test_every_setting_has_words() -> None:
    assert list(SETTINGS) == [field.name for field in fields(Settings)]


def test_only_what_differs_is_named_and_the_lossy_so() -> None:
    assert settings_text(Settings(), 128) == "context 2048 tokens, 128 tokens generated"
    settings = Settings(
        context_tokens=20480,
        gpu_layers=-1,
        cache_type_v="q8_0",
        numa="isolate",
        draft_cache_type_k="q8_0",
        depth_tokens=16384,
    )
    assert settings_text(settings, 64) == (
        "context 20480 tokens, 64 tokens generated, all GPU layers, V cache q8_0 (lossy), "
        "NUMA isolate, K cache of the draft q8_0, depth 16384 tokens"
    )


def test_a_chat_template_is_not_claimed_for_code_completion() -> None:
    said = settings_text(Settings(chat_template="on"), 128)
    assert said.endswith("chat template on (code completion plain)")


def test_lossy_and_lossless_are_two_subjects_and_only_one_is_marked(make: Make) -> None:
    both = [make(), make(settings=Settings(experts_used=4))]
    plain, lossy = by_subject(both)
    assert (plain.label.count("lossy"), lossy.label.count("lossy")) == (0, 1)
    assert "4 experts used (lossy)" in dict(subject_facts(lossy))["Settings"]
    assert LOSSY_NOTE in advice_sentence(lossy.recommendations)
    assert LOSSY_NOTE not in advice_sentence(plain.recommendations)
    assert [item.to_payload()["lossy"] for item in both] == [[], ["experts_used"]]
