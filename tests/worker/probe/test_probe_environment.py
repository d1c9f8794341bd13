from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from worker.probe import environment, load
from worker.probe.environment import Environment, read_environment
from worker.probe.load import busy_share_of_others, others_share
from worker.probe.nvidia_reading import NvidiaGpu, NvidiaReading
from worker.probe.power import parse_pmset, read_cpu_governor, read_power_supplies

Recorded = Callable[[str], str]


def burn(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def write_supply(root: Path, name: str, **files: str) -> None:
    (root / name).mkdir()
    for file, text in files.items():
        (root / name / file).write_text(f"{text}\n")


def test_this_machine() -> None:
    here = read_environment(load_window_s=0.1)

    assert here.kernel
    assert here.python_version.startswith("3.")
    assert here.memory_available_bytes is None or here.memory_available_bytes > 0
    assert here.busy_share_of_others is None or 0 <= here.busy_share_of_others <= 1
    assert here.cpu_temperature_c is None or 0 < here.cpu_temperature_c < 150
    assert here.power_source in (None, "mains", "battery")


def test_the_payload_is_json_that_keeps_every_fact() -> None:
    here = read_environment(load_window_s=0.01)

    payload = here.to_payload()

    assert json.loads(json.dumps(payload)) == payload
    assert set(payload) == set(Environment.__dataclass_fields__)


def test_gpu_readings_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = NvidiaGpu("A", temperature_c=71, throttle_reasons=("sw-power-cap",), busy_share=0.5)
    monkeypatch.setattr(environment, "read_nvidia", lambda: NvidiaReading("580.95.05", (gpu,)))

    payload = read_environment(load_window_s=0.01).to_payload()

    assert payload["nvidia_driver_version"] == "580.95.05"
    assert payload["gpus"] == [
        {
            "name": "A",
            "temperature_c": 71,
            "throttle_reasons": ["sw-power-cap"],
            "busy_share": 0.5,
            "memory_used_bytes": None,
        }
    ]


def test_a_machine_without_such_a_gpu_is_not_searched_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = NvidiaGpu("A", temperature_c=71, throttle_reasons=(), busy_share=0.5)
    monkeypatch.setattr(environment, "read_nvidia", lambda: NvidiaReading("580.95.05", (gpu,)))

    assert read_environment(0.01, has_nvidia=False).gpus == ()
    assert read_environment(0.01, has_nvidia=True).gpus != ()


def test_what_is_not_reported_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(environment, "read_nvidia", lambda: None)
    monkeypatch.setattr(environment, "version", _no_package)
    monkeypatch.setattr("os.getloadavg", refuse)
    monkeypatch.setattr("platform.freedesktop_os_release", refuse)
    monkeypatch.setattr(psutil, "sensors_temperatures", refuse, raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    monkeypatch.setattr(psutil, "cpu_times", refuse)

    here = read_environment(load_window_s=0.01)

    assert here.load_1min is None
    assert here.busy_share_of_others is None
    assert here.memory_available_bytes is None
    assert here.cpu_temperature_c is None
    assert here.nvidia_driver_version is None
    assert here.llama_cpp_python_version is None
    assert here.gpus == ()


def test_the_hottest_processor_sensor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def sensors() -> dict[str, list[SimpleNamespace]]:
        return {
            "nvme": [SimpleNamespace(current=90.0)],
            "coretemp": [SimpleNamespace(current=celsius) for celsius in (0.0, 61.0, 66.5)],
        }

    monkeypatch.setattr(psutil, "sensors_temperatures", sensors, raising=False)

    assert environment._cpu_temperature_c() == 66.5


def test_a_sensor_that_reads_zero_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    sensors = {"k10temp": [SimpleNamespace(current=0.0)]}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)

    assert environment._cpu_temperature_c() is None


def test_own_children_do_not_count_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    child = multiprocessing.get_context("spawn").Process(target=burn, args=(30.0,))
    child.start()
    time.sleep(0.7)
    counted = busy_share_of_others(0.5)
    monkeypatch.setattr(load, "_own_cpu_seconds", lambda: 0.0)
    not_told_apart = busy_share_of_others(0.5)
    child.terminate()
    child.join()

    assert counted is not None
    assert not_told_apart is not None
    one_processor = 1 / (psutil.cpu_count() or 1)
    assert not_told_apart - counted > one_processor / 4


@pytest.mark.parametrize(
    ("total_s", "busy_s", "own_s", "share"),
    [(0.4, 0.3, 0.1, 0.5), (0.4, 0.1, 0.11, 0.0), (0.4, 0.5, 0.0, 1.0), (0.0, 0.0, 0.0, None)],
)
def test_others_share(total_s: float, busy_s: float, own_s: float, share: float | None) -> None:
    assert others_share(total_s, busy_s, own_s) == share


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pmset-macbook-battery.txt", "battery"),
        ("pmset-macbook-charging.txt", "mains"),
        ("pmset-desktop.txt", "mains"),
    ],
)
def test_pmset(recorded: Recorded, name: str, source: str) -> None:
    assert parse_pmset(recorded(name)) == source


def test_pmset_that_says_nothing() -> None:
    assert parse_pmset("") is None
    assert parse_pmset("pmset: error\n") is None


def test_a_plugged_laptop_runs_on_mains(tmp_path: Path) -> None:
    write_supply(tmp_path, "AC", type="Mains", online="1")
    write_supply(tmp_path, "BAT0", type="Battery", status="Not charging")

    assert read_power_supplies(tmp_path) == "mains"


def test_an_unplugged_laptop_runs_on_battery(tmp_path: Path) -> None:
    write_supply(tmp_path, "AC", type="Mains", online="0")
    write_supply(tmp_path, "BAT0", type="Battery", status="Discharging")

    assert read_power_supplies(tmp_path) == "battery"


def test_the_battery_of_a_mouse_says_nothing(tmp_path: Path) -> None:
    write_supply(tmp_path, "hidpp_battery_0", type="Battery", status="Discharging", scope="Device")

    assert read_power_supplies(tmp_path) is None
    assert read_power_supplies(tmp_path / "absent") is None


def test_the_governors_in_use_are_named(tmp_path: Path) -> None:
    for index, governor in enumerate(("powersave", "performance", "powersave")):
        folder = tmp_path / f"cpu{index}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")

    assert read_cpu_governor(tmp_path) == "performance+powersave"
    assert read_cpu_governor(tmp_path / "absent") is None


def _no_package(name: str) -> str:
    raise PackageNotFoundError(name)
