"""What llama.cpp is told before and while it loads, read back from llama.cpp itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_cpp import llama_cpp as lib
from loaded_pair import LoadedPair
from tiny_mixture import EXPERTS, USED, write_mixture

from farm.gguf.calibration import Law
from worker.bench import load
from worker.bench.failure import Failure
from worker.bench.job import Pair
from worker.bench.llama import Model
from worker.bench.load import choose_numa, devices

# llama.cpp refuses a second policy in one process, so that a second try tells of the first.
CHOOSE_TWICE = (
    "import sys; from worker.bench.llama import start_backend; "
    "from worker.bench.load import choose_numa, lib; "
    "start_backend(); choose_numa(sys.argv[1]); lib.llama_numa_init(1)"
)


@pytest.mark.skipif(sys.platform != "linux", reason="llama.cpp has NUMA policies on Linux only")
@pytest.mark.parametrize("policy", ["off", "distribute", "isolate", "numactl"])
def test_a_numa_policy_is_set_once_for_the_process(policy: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHOOSE_TWICE, policy], capture_output=True, text=True, check=True
    )
    assert ("NUMA already initialized" in done.stderr) == (policy != "off")


def test_a_numa_policy_that_would_do_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.sys, "platform", "darwin")
    choose_numa("off")
    with pytest.raises(Failure, match="Linux only") as caught:
        choose_numa("distribute")
    assert caught.value.kind == "unsupported"


def test_no_device_is_a_list_of_none(backend: None) -> None:
    assert list(devices("none")) == [None]


def test_a_device_that_is_not_here_is_named(backend: None) -> None:
    with pytest.raises(Failure, match=r"no device CUDA7 .*there is .*none") as caught:
        devices("CUDA7")
    assert caught.value.kind == "unsupported"


def test_the_processor_is_no_device_to_offload_to(backend: None) -> None:
    with pytest.raises(Failure, match="no device CPU"):
        devices("CPU")


def test_threads_of_both_kinds_reach_the_context(
    loaded: LoadedPair, one_thread_payload: dict[str, Any]
) -> None:
    context = loaded.target_model.context(one_thread_payload | {"threads": 1, "batch_threads": 3})

    assert lib.llama_n_threads(context._context) == 1
    assert lib.llama_n_threads_batch(context._context) == 3


def test_target_and_draft_have_caches_of_their_own_types(
    backend: None,
    tiny_pair: tuple[Path, Path],
    law: Law,
    one_thread_payload: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    types = {"cache_type_k": "q8_0", "draft_cache_type_k": "f16", "draft_cache_type_v": "q4_0"}
    pair = Pair(str(tiny_pair[0]), str(tiny_pair[1]), one_thread_payload | types)
    speculation = {"kind": "draft-simple", "n_max": 2, "n_min": 0, "p_min": 0.0, "accept": "exact"}
    prompts = [{"digest": "d", "text": law.marker(5), "depth_text": ""}]
    job = {"prompts": prompts, "temperature": 0.0, "seed": 0, "generate_tokens": 4, "repeats": 1}

    list(pair.run(job | {"speculation": speculation}))

    said = re.findall(r"K \((\w+)\).*V \((\w+)\)", capfd.readouterr().err)
    assert said == [("q8_0", "f16"), ("f16", "q4_0")]


def test_the_number_of_experts_is_the_one_asked_for(
    backend: None, law: Law, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(write_mixture(tmp_path / "mixture.gguf", law))
    for numbers, used in (({}, USED), ({"llama.expert_used_count": EXPERTS}, EXPERTS)):
        Model(path, 0, numbers=numbers)
        assert re.findall(r"n_expert_used += (\d+)", capfd.readouterr().err) == [str(used)]
