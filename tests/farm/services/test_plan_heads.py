"""Sweeps of kinds whose draft is trained for its target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from trained_heads import BLOCK_TOKENS, TrainedHeads

from farm.domain.decoding import SpeculationKind
from farm.errors import UserError
from farm.services.plan import Plan, plan_sweep

Heads = dict[str, TrainedHeads]
Planner = Callable[..., Plan]


@pytest.fixture
def planned(farm_home: Path, sweep_file: Callable[[str], Path]) -> Planner:
    """Return a planner of one pair's sweep."""

    def plan(kind: SpeculationKind, target: Path, draft: Path | None, k: int = 4) -> Plan:
        drafts = f"drafts: [{draft}]" if draft else ""
        return plan_sweep(
            sweep_file(
                f"name: x\npairs:\n  - target: {target}\n    kind: {kind}\n    {drafts}\n"
                f"k: {k}\nengine: llama-server\nbuild: llama-server==0c1e57098-12345678\n"
                "prompts: {per_category: 1, categories: [chat]}\n"
            )
        )

    return plan


def test_a_draft_that_is_made_for_the_kind_is_a_job(planned: Planner, heads: Heads) -> None:
    for own in heads.values():
        plan = planned(own.kind, own.target, own.draft)
        (job,) = plan.jobs
        assert plan.refusals == ()
        assert job.speculation.kind is own.kind
        assert (job.draft.path if job.draft else None) == (str(own.draft) if own.draft else None)


@pytest.mark.parametrize("kind", [SpeculationKind.DRAFT_SIMPLE, SpeculationKind.DRAFT_DSPARK])
def test_a_draft_of_another_kind_is_a_refusal(
    planned: Planner, heads: Heads, kind: SpeculationKind
) -> None:
    """llama-server would draft with it for a whole job and accept nothing."""
    own = heads["draft-eagle3"]
    plan = planned(kind, own.target, own.draft)
    assert plan.jobs == ()
    assert plan.refusals[0].reasons == (f"the draft is made for draft-eagle3, not for {kind}",)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (SpeculationKind.DRAFT_MTP, r"nextn_predict_layers.*name a file that has them"),
        (SpeculationKind.NGRAM_MOD, r"holds heads for draft-eagle3.*take another target\."),
    ],
)
def test_a_target_that_can_not_do_the_kind_alone_is_named(
    planned: Planner, heads: Heads, kind: SpeculationKind, why: str
) -> None:
    own = heads["draft-eagle3"]
    target = own.target if kind is SpeculationKind.DRAFT_MTP else own.draft
    with pytest.raises(UserError, match=why):
        planned(kind, target, None)


@pytest.mark.parametrize(
    ("name", "most"), [("draft-dflash", BLOCK_TOKENS - 1), ("draft-dspark", BLOCK_TOKENS)]
)
def test_a_k_beyond_a_drafts_block_is_refused(
    planned: Planner, heads: Heads, name: str, most: int
) -> None:
    own = heads[name]
    assert planned(own.kind, own.target, own.draft, most).jobs
    with pytest.raises(UserError, match=f"can draft {most} tokens.*leave K above {most} out"):
        planned(own.kind, own.target, own.draft, most + 1)
