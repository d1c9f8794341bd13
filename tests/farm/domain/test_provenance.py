from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from sample_farm import conditions

from farm.domain.hardware import GIB, Gpu, Hardware, Machine, MachineKind
from farm.domain.provenance import Conditions, Provenance, by_flag, differences, flat

HARDWARE = Hardware(
    MachineKind.NVIDIA, "CPU", 8, 16, 64 * GIB, "x86_64", "linux", (Gpu("RTX", 24 * GIB, "8.9"),)
)
USUAL = conditions(Machine("bench", HARDWARE))


def stored(value: Any) -> Any:
    """Return a value as a database gives it back."""
    return json.loads(json.dumps(value))


def test_what_comes_back_from_the_database_is_what_went_in() -> None:
    found = Provenance(USUAL, "p" * 64, None, {"command": ["a", "-b"]}, "0.1.0")

    back = Provenance.from_payload(stored(found.to_payload()))

    assert back == found
    assert back.conditions.digest == USUAL.digest
    assert hash(back.conditions) == hash(USUAL)
    assert back.conditions.hardware.label == "RTX"


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "other"},
        {"hardware": replace(HARDWARE, memory_bytes=32 * GIB)},
        {"os_release": None},
        {"kernel": "6.9.0"},
        {"driver_version": "550.54"},
        {"cpu_governor": "powersave"},
        {"power_source": "battery"},
        {"build_digest": "0" * 64},
        {"build_commit": "1234567"},
        {"compiled": "AVX2 = 0"},
        {"libraries": {"numpy": "2.4.7"}},
        {"variables": {"GGML_X": "1"}},
        {"target_digest": "1" * 64},
        {"parameters": {"command": ["llama-server", "-c", "2048", "-t", "-1"]}},
        {"isolation": "landlock 7 + seccomp"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_condition_counts(change: dict[str, Any]) -> None:
    other = replace(USUAL, **change)

    assert other != USUAL
    assert other.digest != USUAL.digest
    moved = differences(asdict(USUAL), asdict(other))
    assert {name.split(".")[0] for name in moved} == set(change)


def test_a_fact_that_is_not_known_yet_leaves_old_digests_as_they_are() -> None:
    payload = stored(asdict(USUAL))
    del payload["isolation"]

    assert Conditions.from_payload(payload).digest == USUAL.digest


def test_a_few_megabytes_less_after_a_boot_are_the_same_hardware() -> None:
    booted = replace(HARDWARE, memory_bytes=64 * GIB - 3_000_000)

    assert booted.rounded == HARDWARE.rounded
    assert booted.key == HARDWARE.key


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (["llama-server", "-c", "2048", "--metrics"], {"-c": "2048", "--metrics": "set"}),
        (["x", "-t", "-1", "--temp", "-0.5"], {"-t": "-1", "--temp": "-0.5"}),
        (["x", "--lora", "a", "b", "--lora", "c"], {"--lora": "a b c"}),
        ([], {}),
    ],
)
def test_a_command_line_is_read_by_its_flags(command: list[str], flags: dict[str, str]) -> None:
    assert by_flag(command) == flags


def test_nested_facts_have_dotted_names() -> None:
    facts = {"a": {"b": 1, "c": [1, 2]}, "gpus": [{"name": "x"}], "command": ["p", "-n", "3"]}

    assert flat(facts) == {"a.b": 1, "a.c": "1, 2", "gpus.0.name": "x", "command.-n": "3"}


def test_only_what_differs_is_a_difference() -> None:
    a = {"same": 1, "moved": {"x": 1}, "command": ["p", "-n", "3", "--on"]}
    b = {"same": 1, "moved": {"x": 2}, "command": ["p", "-n", "3"], "new": True}

    assert differences(a, b) == {
        "moved.x": (1, 2),
        "command.--on": ("set", None),
        "new": (None, True),
    }
