from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from worker.probe.cgroup import (
    CgroupLimits,
    parse_cgroup_paths,
    parse_cpu_max,
    read_cgroup_limits,
)

Recorded = Callable[[str], str]
GIB = 1024**3


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_v2_container(tmp_path: Path, recorded: Recorded) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
            "sys/fs/cgroup/cpu.max": recorded("cpu.max-docker-6cpus.txt"),
            "sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{6 * GIB}\n",
            "sys/fs/cgroup/memory.stat": f"anon {GIB}\nfile {5 * GIB}\ninactive_file {4 * GIB}\n",
        },
    )

    assert read_cgroup_limits(tmp_path) == CgroupLimits(6.0, 8 * GIB, 6 * GIB)


def test_v2_takes_the_tightest_limit_of_all_levels(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/farm.slice/worker.service\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
            "sys/fs/cgroup/farm.slice/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/farm.slice/memory.max": "max\n",
            "sys/fs/cgroup/farm.slice/worker.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/farm.slice/worker.service/memory.max": f"{GIB}\n",
        },
    )

    assert read_cgroup_limits(tmp_path) == CgroupLimits(2.0, GIB, None)


def test_v1_container_that_sees_its_own_cgroup_at_the_mount(
    tmp_path: Path, recorded: Recorded
) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": recorded("cgroup-v1-kubernetes.txt"),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": (
                f"inactive_file {GIB}\ntotal_inactive_file {2 * GIB}\n"
            ),
        },
    )

    assert read_cgroup_limits(tmp_path) == CgroupLimits(4.0, 4 * GIB, 3 * GIB)


def test_v1_without_limits(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/user\n1:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/user/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )

    assert read_cgroup_limits(tmp_path) == CgroupLimits()


def test_a_path_outside_the_namespace_means_the_mount(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/../../other\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu\n",
            "sys/fs/cgroup/cpu.max": "100000 100000\n",
        },
    )

    assert read_cgroup_limits(tmp_path).quota_cpus == 1.0


def test_no_cgroups_no_limits(tmp_path: Path) -> None:
    assert read_cgroup_limits(tmp_path) == CgroupLimits()


def test_paths_of_joined_controllers() -> None:
    assert parse_cgroup_paths("3:cpu,cpuacct:/a\nnonsense\n0::/b:c\n") == {
        "cpu": "/a",
        "cpuacct": "/a",
        "": "/b:c",
    }


@pytest.mark.parametrize("text", ["", "max 100000", "100000", "-1 100000", "1 0", "a b", "1 2 3"])
def test_cpu_max_without_a_quota(text: str) -> None:
    assert parse_cpu_max(text) is None
