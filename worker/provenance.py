"""What shaped a running attempt, gathered from the machine, the engine and the job."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from farm import __version__
from farm.domain.hardware import Machine
from farm.domain.job import Arm, JobSpec
from farm.domain.provenance import Conditions, Provenance
from worker.engines.contract import Engine
from worker.engines.registry import ENGINES
from worker.probe.environment import Environment

# What llama.cpp, its OpenMP and its CUDA backend take from the environment beside flags. A server
# that runs already took its own.
VARIABLES = ("GGML_", "OMP_", "GOMP_", "CUDA_VISIBLE_DEVICES")


def gather(spec: JobSpec, machine: Machine, before: Environment, engine: Engine) -> Provenance:
    """Return the provenance of a job that a loaded engine is about to run."""
    parameters = engine.parameters(spec)
    build = engine.build
    conditions = Conditions(
        machine=machine.name,
        hardware=machine.hardware.rounded,
        **_surroundings(before),
        engine=spec.engine,
        build=build.name,
        build_digest=build.digest,
        build_commit=build.commit,
        compiled=build.system_info,
        libraries=build.libraries,
        variables=_variables() if ENGINES[spec.engine].needs_files else {},
        target_digest=spec.target.digest,
        parameters=parameters[Arm.BASELINE],
        isolation=engine.isolation,
    )
    return Provenance(
        conditions=conditions,
        prompts=spec.prompts_digest,
        draft_digest=spec.draft.digest if spec.draft else None,
        speculative=parameters[Arm.SPECULATIVE],
        farm_version=__version__,
    )


def settled(found: Provenance, after: Environment) -> Provenance:
    """Return the provenance of a run that is over: what changed on the machine during it has both
    its states named, and the run conditions of its own."""
    conditions = found.conditions
    changed: dict[str, Any] = {
        name: f"{getattr(conditions, name)}, then {value}"
        for name, value in _surroundings(after).items()
        if None not in (value, was := getattr(conditions, name)) and value != was
    }
    return replace(found, conditions=replace(conditions, **changed)) if changed else found


def recorded(found: Provenance) -> dict[str, Any]:
    """Return the attempt's columns."""
    return {"provenance": found.to_payload(), "conditions": found.conditions.digest}


def _surroundings(reading: Environment) -> dict[str, Any]:
    """Return what of a reading stays the same while nobody changes the machine."""
    return {
        "os_release": reading.os_release,
        "kernel": reading.kernel,
        "driver_version": reading.nvidia_driver_version,
        "cpu_governor": reading.cpu_governor,
        "power_source": reading.power_source,
    }


def _variables() -> dict[str, str]:
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)}
