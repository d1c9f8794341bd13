"""What shaped a result: the conditions it was measured under, and what it tried there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from farm.domain.hardware import Gpu, Hardware, MachineKind

# A value may be negative; a flag never starts with a digit.
_FLAG = re.compile(r"-+[^\d-]")


@dataclass(frozen=True)
class Conditions:
    """Everything that decides how the baseline decodes, except the prompts.

    Results under equal conditions on equal prompts may be compared, whatever speculation they
    tried; under others they are never averaged. None is what the machine does not report. What
    moves from run to run (load, temperature, free memory, ports, paths, seeds) is not here.

    driver_version: the GPU's. compiled: what the build says of itself. libraries: versions of what
    decodes beside the build. variables: the environment's that llama.cpp reads. parameters: the
    baseline's, as its engine tells them. isolation: what kept the models from the rest of the
    machine.
    """

    machine: str
    hardware: Hardware
    os_release: str | None
    kernel: str | None
    driver_version: str | None
    cpu_governor: str | None
    power_source: str | None
    engine: str
    build: str
    build_digest: str
    build_commit: str | None
    compiled: str
    libraries: dict[str, str]
    variables: dict[str, str]
    target_digest: str
    parameters: dict[str, Any]
    isolation: str | None = None

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """Return the sha256 over what is known; a fact that is added later leaves old ones as they
        were."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        canonical = json.dumps(known, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Conditions:
        """Rebuild conditions from JSON types."""
        hardware = dict(payload["hardware"])
        kind = MachineKind(hardware["kind"])
        gpus = tuple(Gpu(**gpu) for gpu in hardware["gpus"])
        return cls(**{**payload, "hardware": Hardware(**hardware | {"kind": kind, "gpus": gpus})})


@dataclass(frozen=True)
class Provenance:
    """Everything that shaped one attempt's result but the readings before and after it.

    prompts: digest of which prompts. speculative: parameters of the speculative arm.
    """

    conditions: Conditions
    prompts: str
    draft_digest: str | None
    speculative: dict[str, Any]
    farm_version: str

    def to_payload(self) -> dict[str, Any]:
        """Return it as JSON types, as `from_payload` reads it."""
        payload: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return payload

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Provenance:
        """Rebuild it from `to_payload`'s result."""
        return cls(**{**payload, "conditions": Conditions.from_payload(payload["conditions"])})


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested facts as dotted name -> scalar; a command's arguments go by their flags."""
    found: dict[str, Any] = {}
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif key == "command" and isinstance(value, list):
            found |= {f"{name}.{flag}": said for flag, said in by_flag(value).items()}
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            found |= flat({str(index): item for index, item in enumerate(value)}, f"{name}.")
        elif isinstance(value, list | tuple):
            found[name] = ", ".join(map(str, value))
        else:
            found[name] = value
    return found


def by_flag(command: list[str]) -> dict[str, str]:
    """Return what a command line says by flag, "set" for a switch, without the program's name."""
    said: dict[str, list[str]] = {}
    values: list[str] = []
    for word in command:
        if _FLAG.match(word):
            values = said.setdefault(word, [])
        else:
            values.append(word)
    return {flag: " ".join(words) or "set" for flag, words in said.items()}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between nested facts, by dotted name; None is what one doesn't have."""
    flat_a, flat_b = flat(a), flat(b)
    return {
        name: (flat_a.get(name), flat_b.get(name))
        for name in dict.fromkeys((*flat_a, *flat_b))
        if flat_a.get(name) != flat_b.get(name)
    }
