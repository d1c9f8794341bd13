"""Recommendations by subject: what shares a machine, a pair, a temperature, a build and its
conditions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from farm.report.provenance import told_apart
from farm.report.wording import LOSSY, measured_with, pair_label, plain, temperature_label
from farm.services.recommend import Recommendation, Setup


@dataclass(frozen=True)
class Subject:
    """One setup over all its categories. label is unique among the subjects of one grouping; apart
    is the end of it that tells subjects of one machine, pair and temperature from each other."""

    label: str
    apart: str
    setup: Setup
    recommendations: tuple[Recommendation, ...]


# Subjects whose labels are equal so far -> a text for each.
Detail = Callable[[Sequence[Subject]], list[str]]


def by_subject(recommendations: Sequence[Recommendation]) -> list[Subject]:
    """Group recommendations that differ by category alone, in their first order.

    Several selections of one category's prompts are in as many subjects.
    """
    groups: dict[tuple[Setup, int], list[Recommendation]] = {}
    seen: Counter[tuple[Setup, str]] = Counter()
    for recommendation in recommendations:
        category = recommendation.setup.category
        shared = replace(recommendation.setup, category="", prompts="", prompt_count=0)
        groups.setdefault((shared, seen[shared, category]), []).append(recommendation)
        seen[shared, category] += 1
    subjects = [
        Subject(_shortly(setup), "", setup, tuple(members))
        for (setup, _), members in groups.items()
    ]
    return [
        replace(subject, label=label, apart=label.removeprefix(subject.label).removeprefix(" · "))
        for subject, label in zip(subjects, _labels(subjects), strict=True)
    ]


def _labels(subjects: Sequence[Subject]) -> list[str]:
    """Label subjects; what tells some of them apart joins only the labels that need it."""
    details: list[Detail] = [
        _each(lambda subject: subject.setup.build),
        _each(lambda subject: (subject.setup.build_digest or "digest unknown")[:8]),
        _each(lambda subject: subject.setup.engine),
        _each(lambda subject: measured_with(subject.setup)),
        lambda alike: told_apart([subject.setup.conditions for subject in alike]),
        _each(_prompts_text),
        lambda alike: [f"no. {number}" for number in range(1, len(alike) + 1)],
    ]
    labels = [subject.label for subject in subjects]
    for detail in details:
        for label in [label for label, count in Counter(labels).items() if count > 1]:
            alike = [index for index, other in enumerate(labels) if other == label]
            texts = detail([subjects[index] for index in alike])
            if len(set(texts)) > 1:
                for index, text in zip(alike, texts, strict=True):
                    labels[index] = f"{label} · {text}"
    return labels


def _shortly(setup: Setup) -> str:
    return (
        f"{plain(setup.machine)} · {pair_label(setup)} · "
        f"temperature {temperature_label(setup.temperature)}"
        f"{f' · {LOSSY}' * bool(setup.settings.lossy)}"
    )


def _each(text_of: Callable[[Subject], str]) -> Detail:
    return lambda alike: [text_of(subject) for subject in alike]


def _prompts_text(subject: Subject) -> str:
    counts = sorted({item.setup.prompt_count for item in subject.recommendations})
    return f"{' or '.join(map(str, counts))} prompts each"
