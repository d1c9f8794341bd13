from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from farm.domain.hardware import Gpu
from worker.probe import nvidia, nvidia_smi
from worker.probe.nvidia_reading import NvidiaGpu, NvidiaReading, throttle_reasons
from worker.probe.nvidia_smi import (
    parse_list,
    parse_query,
    read_nvidia_smi,
    refused_field,
    with_mig_devices,
)

Recorded = Callable[[str], str]
FakeTool = Callable[[str, str], str]
MIB = 1024**2
H100 = "NVIDIA H100 80GB HBM3"

# A stand-in for nvidia-ml-py: one GPU cut into two MIG devices, one whole GPU that shares memory.
FAKE_PYNVML = """
class NVMLError(Exception): pass
class Memory:
    total, used = 10 * 2**30, 2**20
NVML_DEVICE_MIG_ENABLE = 1
NVML_TEMPERATURE_GPU = 0
def nvmlInit(): pass
def nvmlSystemGetDriverVersion(): return "580.95.05"
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return f"gpu{index}"
def nvmlDeviceGetMigMode(gpu):
    if gpu == "gpu1": raise NVMLError("Not Supported")
    return [1, 1]
def nvmlDeviceGetMaxMigDeviceCount(gpu): return 7
def nvmlDeviceGetMigDeviceHandleByIndex(gpu, slot):
    if slot > 1: raise NVMLError("Not Found")
    return f"{gpu}mig{slot}"
def nvmlDeviceGetName(device):
    return b"NVIDIA GB10" if device == "gpu1" else "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
def nvmlDeviceGetUUID(device): return "MIG-" + device
def nvmlDeviceGetMemoryInfo(device):
    if device == "gpu1": raise NVMLError("Not Supported")
    return Memory
def nvmlDeviceGetCudaComputeCapability(gpu): return (12, 1) if gpu == "gpu1" else (9, 0)
def nvmlDeviceGetCurrentClocksThrottleReasons(gpu): return 0x44
def nvmlDeviceGetTemperature(gpu, sensor): return 35
"""


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a stand-in for nvidia-ml-py in the child's path, and take nvidia-smi out of it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(nvidia, "read_nvidia_smi", lambda: None)

    def install(source: str) -> None:
        (tmp_path / "pynvml.py").write_text(source)

    return install


def test_query_of_one_gpu(recorded: Recorded) -> None:
    reading = parse_query(recorded("nvidia-smi-query-h100.csv"))

    assert reading is not None
    assert [gpu.stable for gpu in reading.gpus] == [Gpu(H100, 81559 * MIB, "9.0")]
    assert reading.driver_version is None


def test_query_of_eight_gpus(recorded: Recorded) -> None:
    reading = parse_query(recorded("nvidia-smi-query-8x-h100.csv"))

    assert reading is not None
    assert [gpu.stable for gpu in reading.gpus] == [Gpu(H100, 81559 * MIB)] * 8


def test_memory_that_is_not_reported_is_none(recorded: Recorded) -> None:
    reading = parse_query(recorded("nvidia-smi-query-gb10.csv"))

    assert reading is not None
    assert [gpu.stable for gpu in reading.gpus] == [Gpu("NVIDIA GB10", None)]


def test_query_of_every_field(recorded: Recorded) -> None:
    reading = parse_query(recorded("nvidia-smi-query-all-fields-constructed.csv"))

    assert reading is not None
    assert reading.driver_version == "570.133.07"
    hot, idle = reading.gpus
    assert hot == NvidiaGpu(
        name="NVIDIA GeForce RTX 3090",
        uuid="GPU-00000000-0000-0000-0000-000000000001",
        memory_bytes=24576 * MIB,
        compute_capability="8.6",
        temperature_c=74,
        throttle_reasons=("sw-power-cap", "sw-thermal-slowdown"),
        memory_used_bytes=458 * MIB,
        busy_share=0.97,
    )
    assert (idle.throttle_reasons, idle.busy_share) == ((), 0.0)
    assert hot.stable == idle.stable


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "No devices were found\n",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
        "name, memory.total [MiB]\n",
        "name, memory.total [MiB]\n[Unknown Error], 5 MiB\n",
        "memory.total [MiB]\n81559 MiB\n",
        '\0,"\n',
    ],
)
def test_a_query_without_gpus(text: str) -> None:
    assert parse_query(text) is None


def test_cells_that_make_no_sense_are_not_reported() -> None:
    reading = parse_query("name, memory.total [MiB], temperature.gpu\nA, much, N/A\nB\n")

    assert reading is not None
    assert reading.gpus == (NvidiaGpu("A"), NvidiaGpu("B"))


def test_mig_devices_are_named_and_replace_their_gpu(recorded: Recorded) -> None:
    listing = parse_list(recorded("nvidia-smi-list-a100-mig.txt"))
    whole = NvidiaGpu("NVIDIA A100-SXM4-80GB", "GPU-7f", 81920 * MIB, "8.0", 40)

    gpus = with_mig_devices(NvidiaReading("535.216.01", (whole,)), listing).gpus

    assert len(gpus) == 7
    assert {gpu.stable for gpu in gpus} == {Gpu("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None, "8.0")}
    assert gpus[0].uuid == "MIG-feb88891-0321-5fef-9c87-d4af3b54259e"
    assert gpus[0].temperature_c == 40


@pytest.mark.parametrize(
    "text", ["", "No devices were found\n", "  MIG 1g.10gb Device 0: (UUID: x)"]
)
def test_a_listing_of_nothing_changes_nothing(text: str) -> None:
    reading = NvidiaReading(None, (NvidiaGpu("A"),))

    assert with_mig_devices(reading, parse_list(text)) == reading


def test_the_refused_field_is_found(recorded: Recorded) -> None:
    assert refused_field(recorded("nvidia-smi-query-refused-driver-470.txt")) == "compute_cap"
    assert refused_field(recorded("nvidia-smi-query-h100.csv")) is None


def test_an_older_nvidia_smi_is_asked_again_without_what_it_refuses(fake_tool: FakeTool) -> None:
    script = """
case "$1" in
  *compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; exit 2;;
  -L) echo 'GPU 0: Tesla T4 (UUID: GPU-1)';;
  *) echo 'name, memory.total [MiB]'; echo 'Tesla T4, 15360 MiB';;
esac"""

    reading = read_nvidia_smi(fake_tool("nvidia-smi", script))

    assert reading == NvidiaReading(None, (NvidiaGpu("Tesla T4", memory_bytes=15360 * MIB),))


def test_a_missing_nvidia_smi_is_no_reading(tmp_path: Path) -> None:
    assert read_nvidia_smi(str(tmp_path / "nvidia-smi")) is None


def test_a_hanging_nvidia_smi_is_given_up(
    fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia_smi, "NVIDIA_SMI_LIMIT_S", 0.2)
    start = time.monotonic()

    assert read_nvidia_smi(fake_tool("nvidia-smi", "sleep 60")) is None
    assert time.monotonic() - start < 2


def test_nvml_with_mig_and_shared_memory(nvml: Callable[[str], None]) -> None:
    nvml(FAKE_PYNVML)

    reading = nvidia.read_nvidia()

    assert reading is not None
    assert reading.driver_version == "580.95.05"
    mig = Gpu(f"{H100} MIG 1g.10gb", 10 * 1024**3, "9.0")
    assert [gpu.stable for gpu in reading.gpus] == [mig, mig, Gpu("NVIDIA GB10", None, "12.1")]
    first = reading.gpus[0]
    assert first.uuid == "MIG-gpu0mig0"
    assert first.throttle_reasons == ("sw-power-cap", "hw-thermal-slowdown")
    assert (first.temperature_c, first.busy_share) == (35, None)


def test_no_driver_is_no_reading(nvml: Callable[[str], None]) -> None:
    nvml(FAKE_PYNVML + "def nvmlInit(): raise NVMLError('Library Not Found')\n")

    assert nvidia.read_nvidia() is None


def test_without_the_binding_nvidia_smi_is_asked(
    nvml: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml("raise ImportError('no binding')\n")
    reading = NvidiaReading("1", (NvidiaGpu("A"),))
    monkeypatch.setattr(nvidia, "read_nvidia_smi", lambda: reading)

    assert nvidia.read_nvidia() == reading


def test_a_hanging_driver_is_given_up_and_not_asked_again(
    nvml: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked_again() -> None:
        raise AssertionError("nvidia-smi was asked after a hang")

    nvml(FAKE_PYNVML + "import time\ndef nvmlDeviceGetCount(): time.sleep(60)\n")
    monkeypatch.setattr(nvidia, "read_nvidia_smi", asked_again)
    monkeypatch.setattr(nvidia, "NVML_LIMIT_S", 0.5)
    start = time.monotonic()

    assert nvidia.read_nvidia() is None
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"gpus": [1], "driver_version": ""}', '{"gpus": null}']
)
def test_a_broken_nvml_report_is_no_reading(text: str) -> None:
    assert nvidia.parse_nvml(text) is None


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        (None, "abc"),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("0", "a"),
        ("2,0", "ca"),
        ("1, 2", "bc"),
        ("0,7,1", "a"),
        ("GPU-2", "b"),
        ("GPU-", ""),
        ("MIG-3", "c"),
    ],
)
def test_cuda_visible_devices_chooses_as_cuda_does(setting: str | None, names: str) -> None:
    gpus = [NvidiaGpu("a", "GPU-1"), NvidiaGpu("b", "GPU-2"), NvidiaGpu("c", "MIG-3")]

    chosen = nvidia.visible_gpus(gpus, setting)

    assert "".join(gpu.name for gpu in chosen) == names


def test_throttle_reasons() -> None:
    assert throttle_reasons(None) is None
    assert throttle_reasons(0) == ()
    assert throttle_reasons(0x1) == ()
    assert throttle_reasons(0x208) == ("hw-slowdown", "bit-0x200")
