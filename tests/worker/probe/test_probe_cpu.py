from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from worker.probe import cpu
from worker.probe.cpuinfo import UsableCpu, parse_cpuinfo, usable_cpu
from worker.probe.memory import available_memory_bytes, installed_memory_bytes

Recorded = Callable[[str], str]


def smt_machine(block: str, sockets: int, cores: int) -> str:
    """Repeat one recorded processor over sockets x cores x two threads, numbered as Linux does."""
    blocks = []
    for thread in range(2):
        for socket in range(sockets):
            for core in range(cores):
                index = (thread * sockets + socket) * cores + core
                blocks.append(
                    block.replace("processor       : 4", f"processor       : {index}")
                    .replace("physical id     : 0", f"physical id     : {socket}")
                    .replace("core id         : 4", f"core id         : {core}")
                )
    return "\n".join(blocks)


def test_an_x86_virtual_machine(recorded: Recorded) -> None:
    info = parse_cpuinfo(recorded("cpuinfo-xeon-kvm-2cpu.txt"))

    assert usable_cpu(info) == UsableCpu("Intel(R) Xeon(R) Processor", 2, 2)


def test_two_sockets_with_smt(recorded: Recorded) -> None:
    info = parse_cpuinfo(smt_machine(recorded("cpuinfo-epyc-9654p.txt"), sockets=2, cores=96))

    assert usable_cpu(info) == UsableCpu("AMD EPYC 9654P 96-Core Processor", 192, 384)


def test_arm_without_a_model_name(recorded: Recorded) -> None:
    info = parse_cpuinfo(recorded("cpuinfo-raspberry-pi-5.txt"))

    assert usable_cpu(info) == UsableCpu("Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)", 4, 4)


def test_arm_whose_model_name_is_only_the_architecture(recorded: Recorded) -> None:
    info = parse_cpuinfo(recorded("cpuinfo-raspberry-pi-3-32bit.txt"))

    assert usable_cpu(info) == UsableCpu("Cortex-A53", 4, 4)


def test_unlike_arm_cores_are_all_named(recorded: Recorded) -> None:
    text = recorded("cpuinfo-raspberry-pi-5.txt").replace("0xd0b", "0xd05", 1)

    usable = usable_cpu(parse_cpuinfo(text))

    assert usable is not None
    assert usable.model == "Raspberry Pi 5 Model B Rev 1.0 (Cortex-A55 + Cortex-A76)"


def test_an_unlisted_arm_core_keeps_its_ids(recorded: Recorded) -> None:
    text = recorded("cpuinfo-raspberry-pi-3-32bit.txt").replace("0xd03", "0xfff")

    usable = usable_cpu(parse_cpuinfo(text))

    assert usable is not None
    assert usable.model == "ARM implementer 0x41 part 0xfff"


def test_affinity_makes_a_smaller_machine(recorded: Recorded) -> None:
    info = parse_cpuinfo(smt_machine(recorded("cpuinfo-epyc-9654p.txt"), sockets=1, cores=64))

    both_threads_of_two_cores = {0, 1, 64, 65}
    usable = usable_cpu(info, allowed=both_threads_of_two_cores)

    assert usable is not None
    assert (usable.physical_cores, usable.logical_cores) == (2, 4)


@pytest.mark.parametrize(("quota", "cores"), [(4.0, 4), (1.5, 2), (0.1, 1), (1000.0, 64)])
def test_a_cpu_quota_makes_a_smaller_machine(recorded: Recorded, quota: float, cores: int) -> None:
    info = parse_cpuinfo(smt_machine(recorded("cpuinfo-epyc-9654p.txt"), sockets=1, cores=64))

    usable = usable_cpu(info, quota_cpus=quota)

    assert usable is not None
    assert usable.physical_cores == cores


@pytest.mark.parametrize("text", ["", "no colon\n", "processor\t: many\n\n", "\0\0: \n: :\n"])
def test_text_that_is_no_cpuinfo_has_no_processors(text: str) -> None:
    assert usable_cpu(parse_cpuinfo(text)) is None


def test_a_name_with_no_ids_at_all_is_none() -> None:
    assert usable_cpu(parse_cpuinfo("processor : 0\n\nprocessor : 1\n")) == UsableCpu(None, 2, 2)


def test_sysctl(recorded: Recorded) -> None:
    facts = cpu.parse_sysctl(recorded("sysctl-m4.txt"))

    assert cpu._mac_cpu(facts) == cpu.Cpu("Apple M4", 10, 10, 24 * 1024**3)


def test_sysctl_that_says_nothing_leaves_a_guess() -> None:
    guess = cpu._mac_cpu(cpu.parse_sysctl("sysctl: unknown oid 'hw.memsize'\n"))

    assert guess.model
    assert guess.memory_bytes > 0
    assert guess.logical_cores >= guess.physical_cores >= 1


def test_installed_memory_counts_blocks_that_are_online(tmp_path: Path) -> None:
    (tmp_path / "block_size_bytes").write_text("8000000\n")
    for index, online in enumerate("1110"):
        (tmp_path / f"memory{index}").mkdir()
        (tmp_path / f"memory{index}" / "online").write_text(f"{online}\n")

    assert installed_memory_bytes(tmp_path) == 3 * 128 * 1024**2


def test_installed_memory_is_none_without_blocks(tmp_path: Path) -> None:
    assert installed_memory_bytes(tmp_path) is None


def test_this_machine() -> None:
    here = cpu.read_cpu()

    assert here.model
    assert 1 <= here.physical_cores <= here.logical_cores <= 4096
    assert 2**27 < here.memory_bytes < 2**46
    available = available_memory_bytes()
    assert available is not None
    assert 0 < available < here.memory_bytes
