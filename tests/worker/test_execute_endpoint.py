"""A sweep over two servers that run already: planned, claimed, measured, reported."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from endpoint_servers import Endpoints
from sqlalchemy import Engine, select

from farm.domain.hardware import GIB, Hardware, Machine, MachineKind
from farm.domain.measurement import Parity
from farm.endpoints import register as endpoint_register
from farm.errors import InfrastructureError, UserError
from farm.report.bundle import write_report
from farm.report.wording import configuration
from farm.services.forecast import forecast
from farm.services.plan import Plan, plan_sweep
from farm.services.recommend import recommendations
from farm.services.submit import submit
from farm.store.database import open_database, reading
from farm.store.migrate import upgrade
from farm.store.schema import AttemptRow, BuildRow, JobRow, ModelFileRow, SampleRow
from worker.execute import Executor
from worker.register import register

LIMIT_S = 120.0
HARDWARE = Hardware(MachineKind.CPU, "a CPU", 2, 2, 8 * GIB, "x86_64", "linux")

SWEEP = """\
name: two-servers
engine: endpoint
pairs:
  - baseline: {baseline}
    speculative: {speculative}
prompts: {{categories: [chat, math-reasoning], per_category: 3}}
generate_tokens: 24
"""

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path / 'farm.db'}")
    upgrade(engine)
    yield engine
    engine.dispose()


def planned(folder: Path, baseline: str = "plain", speculative: str = "fast") -> Plan:
    file = folder / "sweep.yaml"
    file.write_text(SWEEP.format(baseline=baseline, speculative=speculative))
    return plan_sweep(file)


def executor(database: Engine, folder: Path) -> Executor:
    claimer = register(database, Machine("bench", HARDWARE))
    return Executor(database, claimer, folder / "home", None, LIMIT_S)


@pytest.fixture
def registered(endpoints: Endpoints) -> Endpoints:
    endpoints.register("plain", endpoints.plain)
    endpoints.register("fast", endpoints.fast)
    return endpoints


def test_a_sweep_compares_two_servers(
    database: Engine,
    tmp_path: Path,
    registered: Endpoints,
    tiny_pair: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GGML_NO_SUCH_SWITCH", "1")
    submit(database, planned(tmp_path))
    assert executor(database, tmp_path).work_off() == 2
    with reading(database) as session:
        assert set(session.scalars(select(JobRow.state))) == {"done"}
        (build,) = session.scalars(select(BuildRow)).all()
        (model,) = session.scalars(select(ModelFileRow)).all()
        rows = session.scalars(select(SampleRow).where(SampleRow.arm == "speculative")).all()
        found = recommendations(session)
        attempts = session.scalars(select(AttemptRow)).all()
    assert len({attempt.conditions for attempt in attempts}) == 1
    kept, before = str(attempts[0].provenance), attempts[0].environment_before
    assert before is not None
    assert before["decode_threads"] is None
    for fact in ("'server': 'llama-server", "'n_params'", "'temperature': 0.0", "'path'"):
        assert fact in kept
    assert registered.plain not in kept
    # The worker's environment, not that of servers which ran before.
    assert "GGML_NO_SUCH_SWITCH" not in kept
    assert build.name == "endpoint==plain+fast"
    assert build.system_info.count("llama-server") == 2
    assert (model.name, model.architecture) == (tiny_pair[0].stem, "served")
    assert (model.size_bytes, model.parameter_count) == (None, None)
    # The server has a calibration pair, and what shows it must say so.
    assert model.is_calibration
    assert {row.parity for row in rows} == {Parity.EXACT}
    assert {item.setup.kind for item in found} == {"as-served"}
    for item in found:
        (point,) = item.curve
        assert configuration(point.speculation, 0.0) == "as served"
        assert point.speedup is not None
        assert 0 < (point.acceptance_rate or 0) <= 1
        assert 1 < (point.tokens_per_round or 0) <= 5


def test_the_report_shows_it_without_a_k(
    database: Engine, tmp_path: Path, registered: Endpoints
) -> None:
    submit(database, planned(tmp_path))
    executor(database, tmp_path).work_off()
    with reading(database) as session:
        found = recommendations(session)
    markdown, html = write_report(
        tmp_path / "out", found, title="t", generated_at=datetime.now(UTC)
    )
    for text in (markdown.read_text(), html.read_text()):
        assert "as served" in text
        assert "the servers' own settings, 24 tokens generated" in text.replace("&#x27;", "'")
        assert "K = 0" not in text
        assert "llama-server -m" not in text
        assert "<svg" not in text


def test_a_worker_without_both_endpoints_leaves_the_job(
    database: Engine, tmp_path: Path, registered: Endpoints
) -> None:
    submit(database, planned(tmp_path))
    endpoint_register.remove("fast")
    assert executor(database, tmp_path).work_off() == 0
    with reading(database) as session:
        assert set(session.scalars(select(JobRow.state))) == {"queued"}


def test_a_server_that_refuses_is_on_record(
    database: Engine, tmp_path: Path, registered: Endpoints
) -> None:
    """The same server on both sides, under two names: nothing speculates."""
    registered.register("twin", registered.plain)
    submit(database, planned(tmp_path, "plain", "twin"))
    executor(database, tmp_path).work_off()
    with reading(database) as session:
        attempts = session.scalars(select(AttemptRow)).all()
    assert {(one.outcome, one.error_kind) for one in attempts} == {("failed", "not-speculating")}
    assert all("twin drafted not one token" in (one.error_message or "") for one in attempts)


def test_arms_the_wrong_way_round_are_on_record(
    database: Engine, tmp_path: Path, registered: Endpoints
) -> None:
    submit(database, planned(tmp_path, "fast", "plain"))
    executor(database, tmp_path).work_off()
    with reading(database) as session:
        messages = session.scalars(select(AttemptRow.error_message)).all()
    assert all("fast speculates itself" in (message or "") for message in messages)


def test_a_forecast_knows_no_time_before_a_measurement(
    database: Engine, tmp_path: Path, registered: Endpoints
) -> None:
    register(database, Machine("bench", HARDWARE))
    url = database.url.render_as_string(hide_password=False)
    before = forecast(planned(tmp_path), url, lambda: pytest.fail("no weights to read here"))
    assert (before.new_jobs, before.seconds, before.obstacles) == (2, None, ())
    submit(database, planned(tmp_path))
    executor(database, tmp_path).work_off()
    file = tmp_path / "sweep.yaml"
    file.write_text(file.read_text() + "label: again\n")
    after = forecast(plan_sweep(file), url, lambda: pytest.fail("no weights to read here"))
    assert after.seconds is not None


def test_planning_names_what_is_missing(tmp_path: Path, endpoints: Endpoints) -> None:
    with pytest.raises(UserError, match="No endpoint 'plain' is registered on this machine"):
        planned(tmp_path)
    endpoints.register("plain", endpoints.plain)
    endpoints.register("fast", "http://127.0.0.1:9")
    with pytest.raises(InfrastructureError, match=r"fast at \S+:9 does not answer"):
        planned(tmp_path)
