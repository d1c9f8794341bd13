"""What a real attempt records of itself, and that only what matters moves its conditions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_farm import MACHINE, SmallFarm

from farm.builds.tools import ToolBuild
from farm.domain.engines import IN_PROCESS, LLAMA_SERVER
from farm.domain.hardware import GIB
from farm.domain.provenance import Provenance, differences, flat
from farm.services.recommend import Recommendation, recommendations
from farm.store.database import reading
from worker import execute
from worker.probe.environment import Environment, read_environment
from worker.register import register


@pytest.fixture(params=[IN_PROCESS, LLAMA_SERVER])
def engine(request: pytest.FixtureRequest, llama_tools: ToolBuild) -> str:
    """Return each engine in turn."""
    return str(request.param)


@pytest.fixture
def machine_state(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return readings for a test to set: the machine may have no governor, driver or battery."""
    state: dict[str, Any] = {}

    def read(**known: bool) -> Environment:
        return replace(read_environment(0.01, **known), **state)

    monkeypatch.setattr(execute, "read_environment", read)
    return state


def submit(farm: SmallFarm, engine: str = IN_PROCESS, label: str = "first", **sweep: Any) -> None:
    """Submit a sweep of one job, or more where told so."""
    more = f'engine: {engine}\nlabel: "{label}"\n'
    farm.submit(**{"k": [2], "categories": ["chat"], **sweep}, more=more)


def measured(farm: SmallFarm) -> list[Provenance]:
    """Work off what is due and return every attempt's provenance."""
    farm.executor().work_off()
    attempts = farm.attempts()
    assert {attempt.outcome for attempt in attempts} == {"done"}
    found = [Provenance.from_payload(attempt.provenance) for attempt in attempts]
    assert [one.conditions.digest for one in found] == [one.conditions for one in attempts]
    return found


def advice(farm: SmallFarm) -> list[Recommendation]:
    with reading(farm.database) as session:
        return recommendations(session)


class TestRecorded:
    def test_speculation_leaves_the_conditions_as_they_are(
        self, small_farm: SmallFarm, engine: str
    ) -> None:
        submit(small_farm, engine, k=[2, 4], categories=["chat", "tool-calls"])

        found = measured(small_farm)

        assert len(found) == 4
        assert len({one.conditions for one in found}) == 1
        assert len({one.prompts for one in found}) == 2
        two, four = found[0].speculative, found[1].speculative
        moved = differences(two, four)
        assert set(moved.values()) in ({(2, 4)}, {("2", "4")})
        assert len(advice(small_farm)) == 2

    def test_equal_runs_of_two_workers_have_equal_conditions(
        self, small_farm: SmallFarm, engine: str, tmp_path: Path
    ) -> None:
        submit(small_farm, engine)
        measured(small_farm)
        moved = tmp_path / "models" / "deep"
        moved.mkdir(parents=True)
        for name in ("target.gguf", "draft.gguf"):
            (small_farm.folder / name).rename(moved / name)
        small_farm.sql("update job set state = 'queued'")

        small_farm.executor(models_folder=tmp_path / "models").work_off()

        first, second = (Provenance.from_payload(one.provenance) for one in small_farm.attempts())
        assert first == second
        for value in flat(json.loads(json.dumps(first.to_payload()))).values():
            assert not any(mark in str(value) for mark in (str(tmp_path), "gguf"))

    def test_temperature_and_length_are_conditions_and_the_seed_is_not(
        self, small_farm: SmallFarm, engine: str
    ) -> None:
        submit(small_farm, engine)
        for change in ("'$.sampling.temperature', 0.5", "'$.sampling.seed', 7"):
            submit(small_farm, engine, label=change)
            small_farm.sql(
                "update job set spec = json_set(spec, '$.speculation.accept', 'match', "
                f"{change}) where id = (select max(id) from job)"
            )

        greedy, warm, seeded = measured(small_farm)

        assert greedy.conditions == seeded.conditions
        assert greedy.speculative != warm.speculative
        moved = differences(greedy.conditions.parameters, warm.conditions.parameters)
        assert {float(value) for pair in moved.values() for value in pair} == {0.0, 0.5}


def test_llama_cpps_parameters_are_the_ones_in_force(small_farm: SmallFarm) -> None:
    numa = "distribute" if sys.platform == "linux" else "off"
    small_farm.submit(k=[2], categories=["chat"], more=f"numa: {numa}\n")

    (found,) = measured(small_farm)

    assert found.conditions.parameters["numa"] == numa
    target = found.conditions.parameters["target"]
    context = target["context"]
    assert (context["n_ctx"], context["n_threads"], context["n_threads_batch"]) == (1024, 1, 1)
    assert (context["type_k"], context["flash_attn_type"]) == ("f16", "auto")
    assert target["model"]["n_gpu_layers"] == 0
    # Never asked for: llama.cpp's own defaults are on record too.
    assert {"offload_kqv", "swa_full", "rope_freq_base"} <= set(context)
    assert found.conditions.build_commit
    assert set(found.conditions.libraries) == {"python", "numpy"}
    assert found.speculative["draft"]["context"]["n_ctx"] == 1024


def test_a_servers_command_line_is_whole_and_has_no_secret(
    small_farm: SmallFarm, llama_tools: ToolBuild
) -> None:
    submit(small_farm, LLAMA_SERVER)

    (found,) = measured(small_farm)

    plain = found.conditions.parameters["command"]
    drafted = found.speculative["command"]
    assert plain[:7] == [
        *("llama-server", "--host", "127.0.0.1", "--port", "PORT", "--api-key", "KEY"),
    ]
    assert plain[plain.index("-m") + 1] == drafted[drafted.index("-m") + 1] == "TARGET"
    assert "DRAFT" in drafted
    assert "DRAFT" not in plain
    assert plain[plain.index("--seed") + 1] == "SEED"
    assert found.conditions.parameters["request"]["top_k"] == 0
    assert found.conditions.build_commit == llama_tools.commit
    assert found.conditions.build_digest == llama_tools.digest


@pytest.mark.parametrize(
    ("reading_name", "fact", "values"),
    [
        ("cpu_governor", "cpu_governor", ("performance", "powersave")),
        ("nvidia_driver_version", "driver_version", ("550.54", "560.1")),
        ("power_source", "power_source", ("mains", "battery")),
        ("kernel", "kernel", ("6.8.0", "6.9.0")),
        ("os_release", "os_release", ("Debian 12", "Debian 13")),
    ],
)
def test_runs_under_other_conditions_are_never_averaged(
    small_farm: SmallFarm,
    machine_state: dict[str, Any],
    reading_name: str,
    fact: str,
    values: tuple[str, str],
) -> None:
    for value in values:
        machine_state[reading_name] = value
        submit(small_farm, label=value)
        small_farm.executor().work_off()

    found = advice(small_farm)

    told = [item.setup.conditions for item in found if item.setup.conditions]
    assert {getattr(conditions, fact) for conditions in told} == set(values)
    assert [item.curve[0].prompts for item in found] == [3, 3]
    assert differences({fact: getattr(told[0], fact)}, {fact: getattr(told[1], fact)})


def test_what_changes_from_run_to_run_on_one_machine_is_no_condition(
    small_farm: SmallFarm, machine_state: dict[str, Any]
) -> None:
    for number in (1, 2):
        machine_state |= {
            "load_1min": 0.5 * number,
            "busy_share_of_others": 0.1 * number,
            "memory_available_bytes": number * GIB,
            "cpu_temperature_c": 40.0 * number,
        }
        submit(small_farm, label=str(number))
        small_farm.executor().work_off()

    (found,) = advice(small_farm)

    assert found.curve[0].jobs == (1, 2)


def test_a_change_in_the_middle_of_a_run_sets_it_apart(
    small_farm: SmallFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady = replace(read_environment(0.01), power_source="mains", cpu_governor=None)
    states: Iterator[Environment] = iter(
        [steady, steady, steady, replace(steady, power_source="battery", cpu_governor="x")]
    )
    monkeypatch.setattr(execute, "read_environment", lambda **_known: next(states))
    for label in ("steady", "unplugged"):
        submit(small_farm, label=label)
        small_farm.executor().work_off()

    found = advice(small_farm)

    told = [item.setup.conditions for item in found if item.setup.conditions]
    assert [one.power_source for one in told] == ["mains", "mains, then battery"]
    assert [one.cpu_governor for one in told] == [None, None]


def test_old_results_keep_the_hardware_they_were_measured_on(small_farm: SmallFarm) -> None:
    submit(small_farm)
    measured(small_farm)
    more = replace(MACHINE.hardware, cpu_model="New CPU")

    small_farm.claimer = register(small_farm.database, replace(MACHINE, hardware=more))
    submit(small_farm, label="again")
    measured(small_farm)

    assert sorted(item.setup.hardware for item in advice(small_farm)) == [
        "New CPU, 2 cores",
        "Test CPU, 2 cores",
    ]


def test_a_variable_that_llama_cpp_reads_is_a_condition(
    small_farm: SmallFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(small_farm)
    measured(small_farm)
    monkeypatch.setenv("GGML_NO_SUCH_SWITCH", "1")
    submit(small_farm, label="again")

    plain, changed = measured(small_farm)

    assert changed.conditions == replace(
        plain.conditions,
        variables=plain.conditions.variables | {"GGML_NO_SUCH_SWITCH": "1"},
    )
