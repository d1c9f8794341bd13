"""A worker's own path with llama-server: claim, run, store, and a crash that is on record."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from sqlalchemy import Engine, select
from trained_heads import TrainedHeads

from farm.builds.tools import ToolBuild
from farm.domain.decoding import WhatIf
from farm.domain.hardware import GIB, Hardware, Machine, MachineKind
from farm.domain.measurement import Parity
from farm.services.plan import plan_sweep
from farm.services.recommend import findings, recommendations
from farm.services.submit import submit
from farm.store.database import open_database, reading
from farm.store.migrate import upgrade
from farm.store.schema import AttemptRow, BuildRow, JobRow, SampleRow
from worker.execute import Executor
from worker.register import register

LIMIT_S = 120.0
HARDWARE = Hardware(MachineKind.CPU, "a CPU", 2, 2, 8 * GIB, "x86_64", "linux")

SWEEP = """\
name: served
engine: llama-server
build: {build}
pairs:
  - target: {target}
    drafts: [{draft}]
k: {k}
prompts: {{categories: [chat, code-completion], per_category: 3}}
generate_tokens: {tokens}
repeats: {repeats}
threads: 1
gpu_layers: 0
draft_gpu_layers: 0
"""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path / 'farm.db'}")
    upgrade(engine)
    yield engine
    engine.dispose()


def submitted(
    database: Engine,
    folder: Path,
    pair: tuple[Path, Path],
    build: str,
    k: str = "[2, 4]",
    tokens: int = 24,
    repeats: int = 1,
    more: str = "",
) -> None:
    file = folder / "sweep.yaml"
    target, draft = pair
    file.write_text(
        SWEEP.format(build=build, target=target, draft=draft, k=k, tokens=tokens, repeats=repeats)
        + more
    )
    submit(database, plan_sweep(file))


def executor(database: Engine, folder: Path) -> Executor:
    claimer = register(database, Machine("bench", HARDWARE))
    return Executor(database, claimer, folder / "home", None, LIMIT_S)


def test_a_sweep_is_measured_with_the_build_it_names(
    database: Engine, tmp_path: Path, tiny_pair: tuple[Path, Path], llama_tools: ToolBuild
) -> None:
    submitted(database, tmp_path, tiny_pair, llama_tools.name)
    assert executor(database, tmp_path).work_off() == 4
    with reading(database) as session:
        assert set(session.scalars(select(JobRow.state))) == {"done"}
        assert session.scalars(select(BuildRow.digest)).all() == [llama_tools.digest]
        rows = session.scalars(select(SampleRow).where(SampleRow.arm == "speculative")).all()
        found = recommendations(session)
    assert {row.parity for row in rows} == {Parity.EXACT}
    assert {row.draft_ms for row in rows} == {None}
    assert {item.setup.engine for item in found} == {"llama-server"}
    for item in found:
        for point in item.curve:
            assert point.speedup is not None
            assert 0 < (point.acceptance_rate or 0) <= 1
            assert 1 < (point.tokens_per_round or 0) <= point.speculation.n_max + 1


def test_kinds_with_trained_heads_are_measured(
    database: Engine, tmp_path: Path, heads: dict[str, TrainedHeads], llama_tools: ToolBuild
) -> None:
    """One sweep of all of them, and each has its own recommendation."""
    pairs = [
        {"target": str(own.target), "kind": own.kind.value}
        | ({"drafts": [str(own.draft)]} if own.draft else {})
        for own in heads.values()
    ]
    sweep = yaml.safe_load(
        SWEEP.format(build=llama_tools.name, target="", draft="", k=[3], tokens=24, repeats=1)
    )
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({**sweep, "pairs": pairs}))
    submit(database, plan_sweep(file))
    assert executor(database, tmp_path).work_off() == 2 * len(heads)
    with reading(database) as session:
        assert set(session.scalars(select(JobRow.state))) == {"done"}
        rows = session.scalars(select(SampleRow).where(SampleRow.arm == "speculative")).all()
        found = recommendations(session)
    assert {row.parity for row in rows} == {Parity.EXACT}
    assert all(row.drafted > 0 for row in rows)
    points = [point for item in found for point in item.curve]
    assert {point.speculation.kind for point in points} == {own.kind for own in heads.values()}
    assert all(0 < (point.acceptance_rate or 0) < 1 for point in points)


def test_users_at_once_and_what_ifs_are_told_apart_from_what_one_user_gets(
    database: Engine, tmp_path: Path, tiny_pair: tuple[Path, Path], llama_tools: ToolBuild
) -> None:
    """One worker measures all of it; what was made up is in no advice."""
    loads = "concurrent_requests: [1, 2]\n"
    submitted(database, tmp_path, tiny_pair, llama_tools.name, "4", more=loads)
    made_up = "what_if: [{rates: [1, 1, 1, 1]}, {length: 2.5}]\n"
    submitted(database, tmp_path, tiny_pair, llama_tools.name, "4", more=loads + made_up)
    assert executor(database, tmp_path).work_off() == 12
    with reading(database) as session:
        assert set(session.scalars(select(JobRow.state))) == {"done"}
        parities = session.scalars(select(SampleRow.parity)).all()
        judged = findings(session)
    found, apart = judged.recommendations, judged.what_ifs
    assert parities.count(Parity.NOT_VALID) == 2 * 2 * 2 * 3
    assert len(found) == len(apart) == 4
    for item in found:
        (point,) = item.curve
        assert point.speculation.what_if is None
        assert point.parity == {Parity.EXACT: 3}
        at_once = item.setup.settings.concurrent_requests
        assert (point.tokens_per_round is None) == (at_once > 1)
        assert (point.server_speculative_tok_s is not None) == (at_once > 1)
    for curve in apart:
        assert {point.speculation.what_if for point in curve.curve} == {
            WhatIf((1.0,) * 4),
            WhatIf(length=2.5),
        }
        assert {name for point in curve.curve for name in point.parity} == {Parity.NOT_VALID}
        everything = next(p for p in curve.curve if p.speculation.what_if == WhatIf((1.0,) * 4))
        assert everything.acceptance_rate == 1


def test_no_worker_takes_a_job_of_a_build_it_does_not_have(
    database: Engine, tmp_path: Path, tiny_pair: tuple[Path, Path], llama_tools: ToolBuild
) -> None:
    submitted(database, tmp_path, tiny_pair, "llama-server==000000000-00000000")
    assert executor(database, tmp_path).work_off() == 0
    with reading(database) as session:
        assert set(session.scalars(select(JobRow.state))) == {"queued"}


def test_a_server_that_dies_in_the_middle_is_on_record_with_its_log(
    database: Engine, tmp_path: Path, tiny_pair: tuple[Path, Path], llama_tools: ToolBuild
) -> None:
    submitted(database, tmp_path, tiny_pair, llama_tools.name, k="4", tokens=500, repeats=100)
    worker = executor(database, tmp_path)
    thread = threading.Thread(target=worker.work_off)
    thread.start()
    give_up = time.monotonic() + LIMIT_S
    while True:
        with reading(database) as session:
            if session.scalars(select(SampleRow.id).limit(1)).first() is not None:
                break
        assert time.monotonic() < give_up
        time.sleep(0.05)
    (server,) = (process for process in servers() if "draft-simple" in process.cmdline())
    os.kill(server.pid, signal.SIGSEGV)
    while True:
        with reading(database) as session:
            attempt = session.scalars(select(AttemptRow)).first()
        if attempt is not None and attempt.ended_at is not None:
            break
        assert time.monotonic() < give_up
        time.sleep(0.05)
    worker.stop()
    thread.join(LIMIT_S)
    assert (attempt.outcome, attempt.error_kind) == ("failed", "crashed")
    assert "SIGSEGV" in (attempt.error_message or "")
    assert "llama_server" in (attempt.log_tail or "")
    assert servers() == []


def servers() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.name() == "llama-server" and process.status() != psutil.STATUS_ZOMBIE
    ]
