"""From an endpoint sweep to its jobs: what the servers say they serve stands for the files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from farm.domain.decoding import AcceptRule, Sampling, Settings, Speculation, SpeculationKind
from farm.domain.engines import ENDPOINT
from farm.domain.job import JobSpec, ModelRef
from farm.domain.prompt import Prompt
from farm.endpoints.register import find, pair_build
from farm.endpoints.served import Served, ask, target_digest
from farm.errors import BenchmarkError, InfrastructureError, UserError
from farm.services.sweepfile import EndpointPair, EndpointSweep

# What `farm calibrate` calls its files: a server tells the name of the one it has, not its nature.
_CALIBRATION = "calibration-"


@dataclass(frozen=True)
class ServedModel:
    """A model that a server has. Of its file nothing is known."""

    ref: ModelRef
    architecture: str = "served"
    size_bytes: int | None = None
    parameter_count: int | None = None

    @property
    def is_calibration(self) -> bool:
        """Say whether it is named as a calibration pair's file."""
        return self.ref.name.startswith(_CALIBRATION)


def endpoint_jobs(sweep: EndpointSweep, prompts: dict[str, list[Prompt]]) -> Iterator[JobSpec]:
    """Yield the jobs of a sweep; the servers are asked which model they have.

    Raises UserError where an endpoint is not registered here or two serve different models,
    InfrastructureError where a server does not answer.
    """
    for pair in sweep.pairs:
        target = _target(pair)
        for temperature, seed, (category, members), machine in itertools.product(
            sweep.temperatures, sweep.seeds, prompts.items(), sweep.machines
        ):
            yield JobSpec(
                machine=machine,
                engine=ENDPOINT,
                build=pair_build(pair.baseline, pair.speculative),
                target=target,
                draft=None,
                speculation=Speculation(
                    SpeculationKind.AS_SERVED, n_max=0, accept=AcceptRule.EXACT
                ),
                sampling=Sampling(float(temperature), seed if temperature > 0 else 0),
                settings=Settings(),
                category=category,
                prompts=tuple(prompt.digest for prompt in members),
                generate_tokens=sweep.generate_tokens,
                repeats=sweep.repeats,
                label=sweep.label,
            )


def _target(pair: EndpointPair) -> ModelRef:
    baseline, speculative = _ask(pair.baseline), _ask(pair.speculative)
    if not pair.same_model and not baseline.same_model(speculative):
        raise UserError(
            f"{pair.baseline} serves {_model(baseline)} and {pair.speculative} "
            f"{_model(speculative)}: a speedup compares a model with itself. Add 'same_model: "
            "true' to the pair if these are two names of the same weights. Nothing was submitted."
        )
    digest = target_digest(baseline, speculative)
    return ModelRef(pair.baseline, digest, baseline.model_name)


def _ask(name: str) -> Served:
    try:
        return ask(find(name))
    except BenchmarkError as error:
        raise InfrastructureError(f"{error} Nothing was submitted.") from None


def _model(served: Served) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in served.facts)
    return f"{served.model} ({facts})" if facts else served.model
