"""What a sweep may ask of each engine, and which build its jobs name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from farm.domain.decoding import AcceptRule, SpeculationKind, WhatIf
from farm.errors import UserError
from farm.services.plan import Plan, plan_sweep

BUILD = "llama-server==0c1e57098-12345678"

SweepFile = Callable[[str], Path]


@pytest.fixture
def planned(
    farm_home: Path, pair: tuple[Path, Path], sweep_file: SweepFile
) -> Callable[[str, str], Plan]:
    """Return a planner of sweeps: lines of the pair, lines of the sweep."""

    def plan(of_pair: str, of_sweep: str) -> Plan:
        target, draft = pair
        lines = [f"  - target: {target}", *(f"    {line}" for line in of_pair.split("; ") if line)]
        text = "\n".join(["name: x", "pairs:", *lines, *of_sweep.split("; ")])
        more = "\nprompts: {per_category: 1, categories: [chat]}\n"
        return plan_sweep(sweep_file(text.replace("DRAFT", str(draft)) + more))

    return plan


Planner = Callable[[str, str], Plan]


def test_each_kind_of_llama_server_can_be_asked_for(planned: Planner) -> None:
    """Those whose draft is trained for its target: `test_plan_heads.py`."""
    for kind in SpeculationKind:
        if not (kind.is_ngram or kind is SpeculationKind.DRAFT_SIMPLE):
            continue
        drafts = "; drafts: [DRAFT]" if kind.needs_draft else ""
        k = 8 if kind is SpeculationKind.NGRAM_CACHE else 16
        plan = planned(f"kind: {kind}{drafts}", f"k: {k}; engine: llama-server; build: {BUILD}")
        (job,) = plan.jobs
        assert (job.speculation.kind, job.build, job.engine) == (kind, BUILD, "llama-server")
        assert (job.draft is not None) == kind.needs_draft


@pytest.mark.parametrize(
    ("of_pair", "of_sweep", "message"),
    [
        (
            "kind: ngram-mod",
            "k: 4",
            r"the engine in-process has no kind ngram-mod.*llama-server has",
        ),
        ("kind: prompt-lookup", f"k: 4; engine: llama-server; build: {BUILD}", "in-process has"),
        ("kind: ngram-simple", f"k: 4; engine: llama-server; build: {BUILD}", "K of 12 or more"),
        ("kind: ngram-cache", f"k: 4; engine: llama-server; build: {BUILD}", "set k: 8"),
        (
            "drafts: [DRAFT]",
            f"k: 4; temperatures: 0.7; accept: exact; engine: llama-server; build: {BUILD}",
            "set accept: match",
        ),
        (
            "drafts: [DRAFT]",
            "k: 4; concurrent_requests: [1, 2]",
            "in-process works on one request at a time.*engine: llama-server",
        ),
        ("drafts: [DRAFT]", "k: 4; what_if: {length: 3}", "in-process has no what_if"),
        (
            "drafts: [DRAFT]",
            f"k: [2, 4]; what_if: {{rates: [0.9, 0.8]}}; engine: llama-server; build: {BUILD}",
            "has 2 rates and K is 4; give one for each position",
        ),
        (
            "drafts: [DRAFT]",
            f"k: [4, 2]; what_if: {{length: 3.2}}; engine: llama-server; build: {BUILD}",
            "3.2 tokens per round, and K = 2 yields 3 at most",
        ),
        ("kind: ngram-mod; drafts: [DRAFT]", "k: 4", "takes no 'drafts'"),
        ("kind: draft-eagle3", "k: 4", "needs 'drafts'"),
    ],
)
def test_what_an_engine_cannot_do_is_said_before_anything_runs(
    planned: Planner, of_pair: str, of_sweep: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        planned(of_pair, of_sweep)


def test_requests_at_once_are_a_dimension_that_takes_memory(planned: Planner) -> None:
    plan = planned(
        "drafts: [DRAFT]",
        f"k: 4; context_tokens: 2048; concurrent_requests: [1, 2, 4]; engine: llama-server; "
        f"build: {BUILD}",
    )
    assert [job.settings.concurrent_requests for job in plan.jobs] == [1, 2, 4]
    one, two, four = (plan.need_bytes[job.pair_key] for job in plan.jobs)
    assert four - two == 2 * (two - one) > 0


def test_what_ifs_are_a_dimension(planned: Planner) -> None:
    plan = planned(
        "drafts: [DRAFT]",
        "k: 2; what_if: [{rates: [0.9, 0.8]}, {length: 2.7}]; engine: llama-server; "
        f"build: {BUILD}",
    )
    assert [job.speculation.what_if for job in plan.jobs] == [
        WhatIf((0.9, 0.8)),
        WhatIf(length=2.7),
    ]


def test_accept_is_what_the_engine_does_unless_it_is_said(planned: Planner) -> None:
    server = planned(
        "drafts: [DRAFT]", f"k: 4; temperatures: 0.7; engine: llama-server; build: {BUILD}"
    )
    here = planned("drafts: [DRAFT]", "k: 4; temperatures: 0.7")
    assert server.jobs[0].speculation.accept is AcceptRule.MATCH
    assert here.jobs[0].speculation.accept is AcceptRule.EXACT


def test_installed_without_any_build_says_what_to_run(planned: Planner) -> None:
    with pytest.raises(UserError, match="farm builds compile"):
        planned("drafts: [DRAFT]", "k: 4; engine: llama-server")


def test_installed_is_the_newest_build(planned: Planner, tmp_path: Path) -> None:
    for number, commit in ((1, "aaaaaaaaa"), (2, "bbbbbbbbb")):
        place = tmp_path / "cache" / "builds" / commit
        place.mkdir(parents=True)
        (place / "llama-server").touch()
        manifest = {
            "folder": None,
            "commit": commit,
            "number": number,
            "digest": f"{number}" * 64,
            "compiler": "",
            "cmake_args": [],
            "origin": "test",
            "made_at": float(number),
            "binaries": ["llama-server"],
        }
        (place / "manifest.json").write_text(json.dumps(manifest))
    (job,) = planned("drafts: [DRAFT]", "k: 4; engine: llama-server").jobs
    assert job.build == "llama-server==bbbbbbbbb-22222222"
