from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from farm.domain.hardware import GIB, Hardware, MachineKind
from farm.domain.provenance import Conditions
from farm.report.grouping import by_subject
from farm.report.markdown import render
from farm.report.provenance import (
    comparison_sentence,
    fact_name,
    fact_text,
    system_text,
    told_apart,
)
from farm.report.tables import subject_facts
from farm.services.job_results import Comparison
from farm.services.recommend import Recommendation

Make = Callable[..., Recommendation]

USUAL = Conditions(
    machine="box",
    hardware=Hardware(MachineKind.CPU, "A CPU", 8, 16, 8 * GIB, "x86_64", "linux"),
    os_release="Debian GNU/Linux 12",
    kernel="6.8.0",
    driver_version=None,
    cpu_governor="performance",
    power_source=None,
    engine="llama-server",
    build="llama-server==0c1e57098-e5820e30",
    build_digest="e" * 64,
    build_commit="0c1e57098",
    compiled="GNU 12",
    libraries={},
    variables={},
    target_digest="a" * 64,
    parameters={"command": ["llama-server", "-ub", "512"]},
)
POWERSAVE = replace(USUAL, cpu_governor="powersave")
DRIVER = replace(USUAL, driver_version="550.54")


@pytest.mark.parametrize(
    ("several", "texts"),
    [
        ([USUAL, POWERSAVE], ["governor performance", "governor powersave"]),
        (
            [USUAL, replace(USUAL, parameters={"command": ["llama-server", "-ub", "64"]})],
            ["-ub 512", "-ub 64"],
        ),
        ([USUAL, DRIVER], ["driver –", "driver 550.54"]),
        ([None, USUAL], ["conditions not recorded", ""]),
        (
            [None, USUAL, POWERSAVE],
            ["conditions not recorded", "governor performance", "governor powersave"],
        ),
    ],
)
def test_what_tells_conditions_apart_is_said_in_words(
    several: list[Conditions | None], texts: list[str]
) -> None:
    assert told_apart(several) == texts


def test_what_words_do_not_tell_apart_the_digest_does() -> None:
    facts = [{"a": "1", "b": "1", "c": "1", "d": last} for last in ("1", "2")]
    several = [USUAL, *(replace(USUAL, variables=one) for one in facts)]

    texts = told_apart(several)

    assert len(set(texts)) == 3
    assert all(one.digest[:8] in text for one, text in zip(several, texts, strict=True))


def test_two_tables_say_why_there_are_two(make: Make) -> None:
    subjects = by_subject(
        [
            make(conditions=USUAL, category="chat"),
            make(conditions=USUAL, category="tool-calls"),
            make(conditions=POWERSAVE, category="chat"),
        ]
    )

    assert [subject.apart for subject in subjects] == ["governor performance", "governor powersave"]
    assert [len(subject.recommendations) for subject in subjects] == [2, 1]
    assert subjects[0].label.endswith("temperature 0 · governor performance")


def test_details_that_all_share_are_no_part_of_a_label(make: Make) -> None:
    subjects = by_subject([make(generate_tokens=64), make(generate_tokens=128)])

    assert [subject.apart for subject in subjects] == [
        f"context 2048 tokens, {tokens} tokens generated" for tokens in (64, 128)
    ]


def test_two_selections_of_prompts_are_two_tables(make: Make) -> None:
    few = {"prompts": "few", "prompt_count": 3}
    many = {"prompts": "many", "prompt_count": 6}
    subjects = by_subject(
        [
            make(category="chat", **few),
            make(category="chat", **many),
            make(category="tool-calls", **(few | {"prompts": "others"})),
        ]
    )

    assert [subject.apart for subject in subjects] == ["3 prompts each", "6 prompts each"]
    categories = [[item.setup.category for item in one.recommendations] for one in subjects]
    assert categories == [["chat", "tool-calls"], ["chat"]]


def test_a_report_says_what_it_was_measured_under(make: Make) -> None:
    (subject,) = by_subject([make(conditions=DRIVER)])

    facts = dict(subject_facts(subject))

    assert facts["System"] == (
        "Debian GNU/Linux 12, kernel 6.8.0, driver 550.54, governor performance"
    )
    assert facts["Engine and build"].endswith("commit 0c1e57098")
    assert system_text(None) == "conditions not recorded"


def test_names_from_anywhere_do_not_break_a_page(make: Make) -> None:
    hostile = replace(USUAL, os_release="a|b\n# <script>", cpu_governor="x")
    page = render(
        [make(conditions=hostile), make(conditions=POWERSAVE)],
        title="t",
        generated_at=datetime.now(UTC),
    )

    assert "<script>" not in page
    assert "\n# \\<" not in page


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cpu_governor", "governor"),
        ("before.cpu_governor", "before governor"),
        ("parameters.command.-ub", "-ub"),
        ("parameters.request.top_k", "request top_k"),
        ("parameters.target.context.n_ctx", "context n_ctx"),
        ("draft.context.n_ctx", "draft context n_ctx"),
        ("variables.GGML_X", "GGML_X"),
        ("speculation.n_max", "speculation n max"),
        ("hardware.cpu_model", "hardware cpu model"),
    ],
)
def test_facts_have_a_readers_names(name: str, words: str) -> None:
    assert fact_name(name) == words


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("power_source", None, "–"),
        ("hardware.memory_bytes", 8 * GIB, "8.0 GiB"),
        ("build_digest", "e" * 64, "e" * 12),
        ("prompts", "f" * 64, "f" * 12),
        ("before.load_1min", 0.123456789, "0.123457"),
        ("label", "", "none"),
        ("n", 0, "0"),
    ],
)
def test_facts_read_in_their_units(name: str, value: Any, text: str) -> None:
    assert fact_text(name, value) == text


@pytest.mark.parametrize(
    ("comparable", "conditions", "said"),
    [
        (True, {}, "Comparable: the same conditions and the same prompts."),
        (
            False,
            {"cpu_governor": ("performance", "powersave")},
            "Not comparable, for these differ: governor (performance, powersave).",
        ),
        (
            False,
            dict.fromkeys("abcde", (1, 2)),
            "Not comparable, for these differ: a (1, 2), b (1, 2), c (1, 2), 2 more.",
        ),
        (
            None,
            {},
            "Not known to be comparable: job 1 or job 2 was measured before conditions were "
            "recorded; measure it again under another label.",
        ),
    ],
)
def test_one_sentence_says_whether_two_results_compare(
    comparable: bool | None, conditions: dict[str, Any], said: str
) -> None:
    found = Comparison(comparable, {}, conditions, {}, {})

    assert comparison_sentence(found, 1, 2) == said
