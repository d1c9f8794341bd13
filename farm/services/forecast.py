"""How long a plan would take and what it would meet, before anything is submitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from farm.domain.hardware import GIB, MachineKind
from farm.domain.job import JobSpec
from farm.errors import InfrastructureError
from farm.services.plan import Plan
from farm.services.status import selectors
from farm.store.database import is_there, open_database, reading
from farm.store.migrate import current, head
from farm.store.queries import MachineSummary, decode_speeds, job_keys_present, machine_summaries

# Speculation rarely halves the speed and rarely more than doubles it; taken as no change, the
# estimate stays on the long side.
ARMS = 2
WARM_UP_SHARE = 1.15
PROMPT_SHARE = 1.25


@dataclass(frozen=True)
class Forecast:
    """seconds: measuring time left on one machine, None where a target's speed is unknown.

    basis says what it rests on. obstacles: jobs that no registered machine could run, and why.
    """

    new_jobs: int
    seconds: float | None
    basis: str
    obstacles: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the forecast as sentences."""
        minutes = "unknown" if self.seconds is None else _duration(self.seconds)
        return [
            f"{self.new_jobs} new jobs; estimated time on one machine: {minutes} ({self.basis})",
            *(f"can't run now: {obstacle}" for obstacle in self.obstacles),
        ]


def forecast(plan: Plan, database_url: str, bandwidth_gb_s: Callable[[], float]) -> Forecast:
    """Estimate a plan's time and name what stands in its way.

    Speeds are this farm's own measurements of the same target where it has any; otherwise the
    time to read the target's weights once per token at the bandwidth that the callable measures.
    """
    machines, present, speeds = _known(plan, database_url)
    new = [spec for spec in plan.jobs if spec.key not in present]
    obstacles = tuple(_obstacles(plan, new, machines))
    unmeasured = {spec.target.digest for spec in new} - set(speeds)
    sizes = {digest: plan.models[digest].size_bytes for digest in unmeasured}
    basis = "from speeds measured before" if new else "all are there already"
    if None in sizes.values():
        return Forecast(len(new), None, "a server's speed shows when it is measured", obstacles)
    if sizes:
        bandwidth_bytes_s = bandwidth_gb_s() * 1e9
        speeds |= {digest: bandwidth_bytes_s / size for digest, size in sizes.items() if size}
        basis = f"from model sizes at {bandwidth_bytes_s / 1e9:.0f} GB/s of memory bandwidth here"
    seconds = 0.0
    for spec in new:
        tokens = len(spec.prompts) * spec.repeats * spec.generate_tokens * ARMS
        speed = speeds.get(spec.target.digest, 1.0)
        seconds += tokens / speed * PROMPT_SHARE * WARM_UP_SHARE
    if deepest := max((spec.settings.depth_tokens for spec in new), default=0):
        basis += f"; reading up to {deepest} tokens of depth before each run comes on top"
    return Forecast(len(new), seconds, basis, obstacles)


def _known(
    plan: Plan, database_url: str
) -> tuple[list[MachineSummary], set[str], dict[str, float]]:
    engine = open_database(database_url)
    try:
        if not is_there(database_url) or current(engine) != head():
            return [], set(), {}
        with reading(engine) as session:
            return (
                machine_summaries(session),
                job_keys_present(session, [spec.key for spec in plan.jobs]),
                decode_speeds(session, list(plan.models)),
            )
    except InfrastructureError:
        # A dry run needs no farm; it then knows of no machine and no measurement.
        return [], set(), {}


def _obstacles(plan: Plan, new: list[JobSpec], machines: list[MachineSummary]) -> list[str]:
    found: dict[str, int] = {}
    for spec in new:
        able = [
            machine
            for machine in machines
            if spec.machine in selectors(machine) and spec.build in machine.builds
        ]
        need = plan.need_bytes[spec.pair_key]
        if not able:
            text = f"no registered machine matches '{spec.machine}' with build {spec.build}"
        elif all(need > _memory_bytes(machine, spec) for machine in able):
            text = (
                f"{spec.target.name} at {spec.settings.context_tokens} tokens of context needs "
                f"about {need / GIB:.1f} GiB, more than any matching machine has"
            )
        else:
            continue
        found[text] = found.get(text, 0) + 1
    return [f"{count} jobs: {text}" for text, count in found.items()]


def _memory_bytes(machine: MachineSummary, spec: JobSpec) -> int:
    """Return the memory a pair could fill: the machine's, and its GPUs' own where they are used."""
    memory: int = machine.facts["memory_bytes"]
    if machine.kind == MachineKind.NVIDIA and spec.settings.gpu_layers != 0:
        memory += sum(gpu["memory_bytes"] or 0 for gpu in machine.facts["gpus"])
    return memory


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
