from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from farm.domain.hardware import Hardware, MachineKind
from worker.probe.apple import parse_system_profiler
from worker.probe.cpu import Cpu
from worker.probe.cpuinfo import parse_cpuinfo, usable_cpu
from worker.probe.hardware import assemble, probe_hardware
from worker.probe.nvidia_smi import parse_query

Recorded = Callable[[str], str]
GIB = 1024**3
HOST = Cpu("AMD EPYC 9654P 96-Core Processor", 96, 192, 755 * GIB)


def linux_box(cpuinfo: str, gpus: str | None = None, memory_bytes: int = 64 * GIB) -> Hardware:
    usable = usable_cpu(parse_cpuinfo(cpuinfo))
    assert usable is not None
    cpu = Cpu(usable.model or "", usable.physical_cores, usable.logical_cores, memory_bytes)
    return assemble(cpu, parse_query(gpus) if gpus else None, None, "x86_64", "Linux")


def test_an_nvidia_gpu_makes_an_nvidia_machine(recorded: Recorded) -> None:
    machine = assemble(
        HOST, parse_query(recorded("nvidia-smi-query-8x-h100.csv")), None, "x86_64", "Linux"
    )

    assert machine.kind is MachineKind.NVIDIA
    assert machine.label == "8x NVIDIA H100 80GB HBM3"


def test_a_driver_without_gpus_leaves_a_cpu_machine(recorded: Recorded) -> None:
    reading = parse_query(recorded("nvidia-smi-query-h100.csv"))
    assert reading is not None

    machine = assemble(HOST, replace(reading, gpus=()), None, "x86_64", "Linux")

    assert (machine.kind, machine.gpus) == (MachineKind.CPU, ())


def test_apple_silicon_makes_an_apple_machine(recorded: Recorded) -> None:
    chip = parse_system_profiler(recorded("system_profiler-hardware-m2-ultra.json"))
    cpu = Cpu("Apple M2 Ultra", 24, 24, 64 * GIB)

    machine = assemble(cpu, None, chip, "arm64", "Darwin")

    assert (machine.kind, machine.os) == (MachineKind.APPLE, "macos")
    assert machine.gpus[0].name == "Apple M2 Ultra"


def test_apple_silicon_without_its_report_is_still_apple() -> None:
    machine = assemble(Cpu("Apple M4", 10, 10, 24 * GIB), None, None, "arm64", "Darwin")

    assert machine.kind is MachineKind.APPLE


def test_an_intel_mac_is_a_cpu_machine() -> None:
    cpu = Cpu("Intel(R) Core(TM) i7-8750H CPU @ 2.20GHz", 6, 12, 16 * GIB)

    assert assemble(cpu, None, None, "x86_64", "Darwin").kind is MachineKind.CPU


def test_linux_on_apple_silicon_is_a_cpu_machine() -> None:
    cpu = Cpu("Icestorm-M1 + Firestorm-M1", 8, 8, 16 * GIB)

    assert assemble(cpu, None, None, "aarch64", "Linux").kind is MachineKind.CPU


def test_the_key_does_not_move_with_the_clock(recorded: Recorded) -> None:
    cpuinfo = recorded("cpuinfo-epyc-9654p.txt")
    later = re.sub(r"cpu MHz( *): [\d.]+", r"cpu MHz\1: 3707.812", cpuinfo)
    later = later.replace("0xa10113e", "0xa10114c")

    assert later != cpuinfo
    assert linux_box(later).key == linux_box(cpuinfo).key


def test_the_key_does_not_move_with_gpu_readings(recorded: Recorded) -> None:
    cpuinfo = recorded("cpuinfo-epyc-9654p.txt")
    before = recorded("nvidia-smi-query-all-fields-constructed.csv")
    after = (
        before.replace(" 74,", " 41,")
        .replace("0x0000000000000024", "0x0000000000000000")
        .replace("458 MiB", "23001 MiB")
        .replace("97 %", "3 %")
        .replace("570.133.07", "580.95.05")
    )

    assert after != before
    assert linux_box(cpuinfo, after).key == linux_box(cpuinfo, before).key


def test_the_key_does_not_move_with_a_few_megabytes(recorded: Recorded) -> None:
    cpuinfo = recorded("cpuinfo-xeon-kvm-2cpu.txt")

    slightly_less = linux_box(cpuinfo, memory_bytes=64 * GIB - 30 * 1024**2)

    assert slightly_less.key == linux_box(cpuinfo).key


def test_different_hardware_has_different_keys(recorded: Recorded) -> None:
    epyc = recorded("cpuinfo-epyc-9654p.txt")
    machines = [
        linux_box(epyc),
        linux_box(epyc, memory_bytes=32 * GIB),
        linux_box(recorded("cpuinfo-raspberry-pi-5.txt")),
        linux_box(recorded("cpuinfo-raspberry-pi-3-32bit.txt")),
        linux_box(recorded("cpuinfo-xeon-kvm-2cpu.txt")),
        linux_box(epyc, recorded("nvidia-smi-query-h100.csv")),
        linux_box(epyc, recorded("nvidia-smi-query-8x-h100.csv")),
        linux_box(epyc, recorded("nvidia-smi-query-gb10.csv")),
    ]

    assert len({machine.key for machine in machines}) == len(machines)


def test_apple_chips_that_differ_in_gpu_cores_only_have_different_keys(recorded: Recorded) -> None:
    def machine(cores: int) -> Hardware:
        report = json.loads(recorded("system_profiler-hardware-m2-ultra.json"))
        report["SPDisplaysDataType"] = [{"sppci_cores": str(cores)}]
        chip = parse_system_profiler(json.dumps(report))
        return assemble(Cpu("Apple M2 Ultra", 24, 24, 64 * GIB), None, chip, "arm64", "Darwin")

    assert machine(60).key != machine(76).key


def test_this_machine() -> None:
    first, second = probe_hardware(), probe_hardware()

    assert first == second
    assert first.key == second.key
    assert first.kind in MachineKind
    assert first.cpu_model
    assert first.arch
    assert first.os in ("linux", "macos")


def test_a_machine_without_any_tool_is_still_a_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.executable", "")

    machine = probe_hardware()

    assert machine.physical_cores >= 1
    assert machine.memory_bytes > 0
