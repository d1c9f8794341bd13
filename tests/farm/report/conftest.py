from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from farm.domain.decoding import AcceptRule, Settings, Speculation, SpeculationKind
from farm.science.paired import Interval
from farm.science.recommendation import Verdict
from farm.services.recommend import CurvePoint, Recommendation, Setup, recommendations
from farm.store.database import open_database, reading
from farm.store.queries import MachineSummary, machine_summaries
from tests.dashboard.seed import seeded

MADE_SPEEDUP = Interval(2.0, 1.88, 2.12, 24)


@pytest.fixture(scope="session")
def stored(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[Recommendation], list[MachineSummary]]:
    engine = open_database(seeded(tmp_path_factory.mktemp("report") / "farm.db"))
    with reading(engine) as session:
        return recommendations(session), machine_summaries(session)


@pytest.fixture
def make() -> Callable[..., Recommendation]:
    return made


def made(
    *,
    verdict: Verdict = Verdict.ON,
    temperature: float = 0.0,
    kind: SpeculationKind = SpeculationKind.DRAFT_SIMPLE,
    accept: AcceptRule = AcceptRule.EXACT,
    p_min: float = 0.0,
    settings: Settings | None = None,
    parity: dict[str, int] | None = None,
    speedup: Interval | None = MADE_SPEEDUP,
    **setup: Any,
) -> Recommendation:
    """Return a recommendation of one K, 8; setup's fields are replaced by name."""
    point = CurvePoint(
        speculation=Speculation(kind, 8, p_min=p_min, accept=accept),
        prompts=24,
        speedup=speedup,
        baseline_tok_s=40.0,
        speculative_tok_s=80.0,
        acceptance_rate=0.831,
        tokens_per_round=5.25,
        parity={"exact": 24} if parity is None else parity,
    )
    fields: dict[str, Any] = {
        "machine": "box",
        "hardware": "A CPU, 8 cores",
        "target": "target.gguf",
        "draft": "draft.gguf" if kind.needs_draft else None,
        "kind": kind.value,
        "is_calibration": False,
        "category": "chat",
        "temperature": temperature,
        "engine": "in-process",
        "build": "llama-cpp-python==0.3.36",
        "build_digest": "0123456789abcdef" * 4,
        "settings": settings or Settings(),
        "generate_tokens": 128,
    }
    best = point if speedup is not None else None
    return Recommendation(Setup(**fields | setup), verdict, "a reason", best, (), (point,))
