"""The whole path in real processes: broker, worker, llama.cpp, SQLite, through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from farm.domain.prompt import Category
from farm.gguf.calibration import law_of, make_pair, start_state
from farm.gguf.header import read_header
from farm.services.prompts import standard

LIMIT_S = 240.0

Farm = Callable[..., subprocess.CompletedProcess[str]]

SWEEP = """\
name: e2e
pairs:
  - target: {target}
    drafts: [{draft}]
k: [2, 4]
prompts:
  categories: [code-generation, creative-prose]
  per_category: 3
generate_tokens: 12
context_tokens: 1024
threads: 1
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FARM_")}
    return kept | {
        "FARM_HOME": str(tmp_path / "home"),
        "FARM_CACHE": str(tmp_path / "cache"),
        "FARM_MACHINE_NAME": "bench-box",
        "NO_COLOR": "1",
    }


@pytest.fixture
def farm(environment: dict[str, str], tmp_path: Path) -> Iterator[Farm]:
    """Run `farm ARGUMENTS` to its end; whatever is left of the farm is stopped afterwards."""

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "farm.cli.app", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    yield run
    run("down")
    assert farm_processes(tmp_path) == []


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    target, draft = make_pair("tiny", "f16", tmp_path / "models")
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP.format(target=target, draft=draft))
    return file


def farm_processes(home: Path) -> list[str]:
    """Return the command lines of living processes that belong to a farm under `home`."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "environ"]):
        environ, command = process.info["environ"] or {}, process.info["cmdline"] or []
        belongs = str(home) in environ.get("FARM_HOME", "") or any(str(home) in c for c in command)
        if belongs and process.pid != os.getpid():
            found.append(" ".join(command))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.1)


def test_demo_goes_from_nothing_to_a_recommendation_and_stops_what_it_started(
    farm: Farm, tmp_path: Path
) -> None:
    done = farm("demo", "--shape", "tiny", "--threads", "1", "--report", str(tmp_path / "report"))
    for category in Category:
        assert category.value in done.stdout
    assert "exact 5/5" in done.stdout
    assert "calibration" in done.stdout
    assert "mismatch" not in done.stdout
    assert farm_processes(tmp_path) == []
    for file in ("report.md", "report.html"):
        assert "calibration" in (tmp_path / "report" / file).read_text()
    found = json.loads(farm("recommend", "--json").stdout)
    assert len(found) == len(Category)
    assert all(len(item["curve"]) == 3 for item in found)


def test_measured_acceptance_is_what_the_pairs_law_says(farm: Farm, sweep: Path) -> None:
    """At temperature 0 the law fixes every round, so the counts are equal, not just close."""
    farm("up")
    farm("submit", str(sweep), "--watch")
    target = next((sweep.parent / "models").glob("*-target.gguf"))
    law = law_of(read_header(target))
    for item in json.loads(farm("recommend", "--json").stdout):
        category = item["setup"]["category"]
        prompts = [prompt for prompt in standard().prompts if prompt.category == category][:3]
        for point in item["curve"]:
            rounds = [
                law.greedy_rounds(
                    start_state(law, category, prompt.text, index),
                    12,
                    point["speculation"]["n_max"],
                )
                for index, prompt in enumerate(prompts)
            ]
            drafted = sum(count.drafted for count in rounds)
            accepted = sum(count.accepted for count in rounds)
            assert point["acceptance_rate"] == pytest.approx(accepted / drafted)
            assert point["parity"] == {"exact": 3}


def test_submitting_again_adds_nothing_and_a_grown_sweep_only_what_is_new(
    farm: Farm, sweep: Path
) -> None:
    farm("up", "--no-worker")
    first = json.loads(farm("submit", str(sweep), "--json").stdout)
    again = json.loads(farm("submit", str(sweep), "--json").stdout)
    sweep.write_text(sweep.read_text().replace("k: [2, 4]", "k: [2, 4, 8]"))
    grown = json.loads(farm("submit", str(sweep), "--json").stdout)
    assert (first["new"], first["existing"]) == (4, 0)
    assert (again["new"], again["existing"], again["sweep_id"]) == (0, 4, first["sweep_id"])
    assert (grown["new"], grown["existing"]) == (2, 4)


def test_a_broker_killed_in_the_middle_loses_no_job(
    farm: Farm, sweep: Path, tmp_path: Path
) -> None:
    farm("up")
    farm("submit", str(sweep))

    def finished() -> int:
        return json.loads(farm("status", "--json").stdout)[0]["finished"]

    for process in psutil.process_iter(["cmdline"]):
        if str(tmp_path / "home" / "broker") in (process.info["cmdline"] or []):
            process.send_signal(signal.SIGKILL)
    wait_for(lambda: finished() == 4)
    assert json.loads(farm("status", "--json").stdout)[0]["states"] == {"done": 4}


def test_a_worker_killed_in_the_middle_leaves_its_job_for_the_next(
    farm: Farm, sweep: Path, tmp_path: Path
) -> None:
    farm("up")
    farm("submit", str(sweep))
    noted = json.loads((tmp_path / "home" / "worker.pid").read_text())
    wait_for(
        lambda: (
            "leased" in json.loads(farm("status", "--json").stdout)[0]["states"]
            or json.loads(farm("status", "--json").stdout)[0]["finished"] > 0
        )
    )
    os.kill(noted["pid"], signal.SIGKILL)
    farm("down")
    # The dead worker's lease would run out by itself after a minute and a half.
    expire_leases(tmp_path / "home" / "farm.db")
    farm("up")
    farm("status", "--watch")
    assert json.loads(farm("status", "--json").stdout)[0]["states"] == {"done": 4}


def expire_leases(database: Path) -> None:
    from farm.store.database import open_database, writing
    from farm.store.schema import JobRow

    with writing(open_database(f"sqlite:///{database}")) as session:
        session.query(JobRow).filter(JobRow.state == "leased").update({"lease_expires_at": 0.0})


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("submit", "missing.yaml"), 2, "There is no sweep file missing.yaml"),
        (("status",), 3, "farm db upgrade"),
        (("recommend",), 3, "farm db upgrade"),
        (("compat", "no.gguf", "none.gguf"), 2, "no.gguf"),
        (("db", "check"), 3, "farm db upgrade"),
        (("worker",), 3, "farm db upgrade"),
    ],
)
def test_bad_input_is_one_sentence_and_a_documented_exit_code(
    farm: Farm, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = farm(*arguments, code=code)
    assert words in done.stderr + done.stdout
    assert done.stderr.count("\n") <= 1


def test_submitting_without_a_broker_says_so_and_keeps_the_jobs(farm: Farm, sweep: Path) -> None:
    farm("db", "upgrade")
    done = farm("submit", str(sweep), code=3)
    assert "The broker can't be reached" in done.stderr
    assert json.loads(farm("status", "--json").stdout)[0]["states"] == {"queued": 4}


def test_doctor_names_what_is_amiss_and_then_finds_nothing(farm: Farm) -> None:
    before = {
        row["check"]: row["ok"] for row in json.loads(farm("doctor", "--json", code=3).stdout)
    }
    assert not before["broker"]
    assert not before["database"]
    farm("up", "--no-worker")
    assert all(row["ok"] for row in json.loads(farm("doctor", "--json").stdout))


def test_a_demo_interrupted_by_ctrl_c_leaves_no_process(
    farm: Farm, environment: dict[str, str], tmp_path: Path
) -> None:
    demo = subprocess.Popen(
        [
            *(sys.executable, "-m", "farm.cli.app", "demo", "--shape", "tiny", "--threads", "1"),
            *("--report", str(tmp_path / "report")),
        ],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert demo.stderr is not None
    for line in demo.stderr:
        if "measuring" in line:
            break
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=LIMIT_S)
    assert demo.returncode == 130
    assert farm_processes(tmp_path) == []
