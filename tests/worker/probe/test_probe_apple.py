from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from farm.domain.hardware import Gpu
from worker.probe import apple
from worker.probe.apple import AppleChip, parse_system_profiler
from worker.probe.tool import ToolRun, ToolStatus

Recorded = Callable[[str], str]
GIB = 1024**3


def joined(*texts: str) -> str:
    """Join sections as one call of the tool does."""
    return json.dumps({key: value for text in texts for key, value in json.loads(text).items()})


def test_a_whole_report(recorded: Recorded) -> None:
    report = joined(
        recorded("system_profiler-hardware-m1.json"),
        recorded("system_profiler-displays-m1-7core.json"),
    )

    chip = parse_system_profiler(report)

    assert chip == AppleChip("Apple M1", 7, 16 * GIB)
    assert chip.gpu == Gpu("Apple M1 (7-core GPU)", 16 * GIB)


def test_a_report_without_its_gpu(recorded: Recorded) -> None:
    chip = parse_system_profiler(recorded("system_profiler-hardware-m2-ultra.json"))

    assert chip == AppleChip("Apple M2 Ultra", None, 64 * GIB)
    assert chip.gpu == Gpu("Apple M2 Ultra", 64 * GIB)


def test_gpu_cores_are_read_from_the_built_in_gpu(recorded: Recorded) -> None:
    report = joined(
        recorded("system_profiler-hardware-m2-ultra.json"),
        recorded("system_profiler-displays-m2-max.json"),
    )

    chip = parse_system_profiler(report)

    assert chip is not None
    assert chip.gpu_cores == 30


def test_memory_of_a_terabyte(recorded: Recorded) -> None:
    report = recorded("system_profiler-hardware-m2-ultra.json").replace("64 GB", "1 TB")

    chip = parse_system_profiler(report)

    assert chip is not None
    assert chip.memory_bytes == 1024 * GIB


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "{}",
        '{"SPHardwareDataType": []}',
        '{"SPHardwareDataType": [3]}',
        '{"SPHardwareDataType": {"chip_type": "Apple M1"}}',
        '{"SPHardwareDataType": [{"cpu_type": "Dual-Core Intel Core i7"}]}',
        '{"SPHardwareDataType": [{"chip_type": 1}]}',
    ],
)
def test_a_report_of_no_apple_chip(text: str) -> None:
    assert parse_system_profiler(text) is None


def test_fields_that_make_no_sense_are_not_reported() -> None:
    report = {
        "SPHardwareDataType": [{"chip_type": "Apple M1", "physical_memory": "plenty"}],
        "SPDisplaysDataType": [{"sppci_cores": "several"}],
    }

    assert parse_system_profiler(json.dumps(report)) == AppleChip("Apple M1", None, None)


@pytest.mark.parametrize("status", [ToolStatus.MISSING, ToolStatus.TIMED_OUT])
def test_a_report_that_does_not_come_is_no_chip(
    monkeypatch: pytest.MonkeyPatch, status: ToolStatus
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(apple, "run_tool", lambda *_: ToolRun(status))

    assert apple.read_apple_chip() is None
