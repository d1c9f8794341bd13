"""Recommendations by subject: what shares a machine, a pair, a temperature and a build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from farm.domain.decoding import Settings
from farm.report.wording import pair_label, plain, temperature_label
from farm.services.recommend import Recommendation, Setup


@dataclass(frozen=True)
class Subject:
    """One setup over all its categories. label is unique among the subjects of one grouping."""

    label: str
    setup: Setup
    recommendations: tuple[Recommendation, ...]


def by_subject(recommendations: Sequence[Recommendation]) -> list[Subject]:
    """Group recommendations that differ by category alone, in their first order."""
    groups: dict[Setup, list[Recommendation]] = {}
    for recommendation in recommendations:
        groups.setdefault(replace(recommendation.setup, category=""), []).append(recommendation)
    labels = _labels(list(groups))
    return [
        Subject(label, setup, tuple(members))
        for label, (setup, members) in zip(labels, groups.items(), strict=True)
    ]


def settings_text(settings: Settings, generate_tokens: int) -> str:
    """Return the settings that shaped the measurement; those left to the machine are not named."""
    defaults = asdict(Settings())
    changed = {
        name: value
        for name, value in asdict(settings).items()
        if name != "context_tokens" and value is not None and value != defaults[name]
    }
    parts = [f"context {settings.context_tokens} tokens", f"{generate_tokens} tokens generated"]
    parts += [f"{name.replace('_', ' ')} {value}" for name, value in changed.items()]
    return ", ".join(parts)


def _labels(setups: Sequence[Setup]) -> list[str]:
    """Label setups; the build, its digest and a number join only where the label needs them."""
    details: list[Callable[[Setup], str]] = [
        lambda setup: setup.build,
        lambda setup: (setup.build_digest or "digest unknown")[:8],
        lambda setup: setup.engine,
        lambda setup: settings_text(setup.settings, setup.generate_tokens),
    ]
    labels = [
        f"{plain(setup.machine)} · {pair_label(setup)} · "
        f"temperature {temperature_label(setup.temperature)}"
        for setup in setups
    ]
    for detail in details:
        ambiguous = {label for label in labels if labels.count(label) > 1}
        labels = [
            f"{label} · {detail(setup)}" if label in ambiguous else label
            for label, setup in zip(labels, setups, strict=True)
        ]
    return labels
