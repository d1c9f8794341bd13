"""The child as a process: its imports, and its side of the wire."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from farm.domain.decoding import Settings
from farm.gguf.calibration import Law

ROOT = Path(__file__).resolve().parents[3]

ALLOWED_PACKAGES = {"worker", "numpy", "llama_cpp"}
"""Besides the standard library. What these two import themselves does not count."""

LIST_IMPORTS = """
import sys
before = set(sys.modules)
import numpy, llama_cpp
theirs = set(sys.modules)
import worker.bench.__main__
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - theirs}))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_the_child_imports_numpy_llama_cpp_and_the_standard_library_only():
    done = subprocess.run(
        [sys.executable, "-c", LIST_IMPORTS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    own, everything = (set(line.split()) for line in done.stdout.splitlines())

    assert own - sys.stdlib_module_names - ALLOWED_PACKAGES == set()
    assert everything & {"farm", "celery", "sqlalchemy", "pydantic", "gguf", "psutil"} == set()


def serve(requests: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Return the child's messages and its log for some requests."""
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(
        [sys.executable, "-m", "worker.bench"],
        cwd=ROOT,
        input=lines,
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture(scope="module")
def conversation(
    tiny_pair: tuple[Path, Path], law: Law, one_thread: Settings, tmp_path_factory: Any
) -> tuple[list[dict[str, Any]], str]:
    """Return what a child says to two good requests among bad ones."""
    broken = tmp_path_factory.mktemp("broken") / "broken.gguf"
    broken.write_bytes(tiny_pair[0].read_bytes()[:5000])
    settings = asdict(one_thread.spelled_out())
    job = {
        "prompts": [{"digest": "d" * 64, "text": law.marker(5)}],
        "speculation": {
            "kind": "draft-simple", "n_max": 2, "n_min": 0, "p_min": 0.0, "accept": "exact",
        },
        "temperature": 0.0, "seed": 0, "generate_tokens": 6, "repeats": 1,
    }  # fmt: skip
    target, draft = map(str, tiny_pair)
    load = {
        "do": "load",
        "target_path": target,
        "draft_path": draft,
        "settings": settings,
        "overrides": {},
    }
    too_long = job | {"prompts": [{"digest": "e" * 64, "text": "x" * 4000}]}
    return serve(
        [
            {"do": "run", "job": job},
            load | {"target_path": str(broken)},
            load,
            {"do": "run", "job": too_long},
            {"do": "run", "job": job},
        ]
    )


def test_a_failure_is_reported_and_the_child_serves_on(conversation: Any):
    messages, _ = conversation

    events = [message["event"] for message in messages]
    assert events == ["failed", "failed", "loaded", "failed", "sample", "sample", "done"]
    failures = [message["kind"] for message in messages if message["event"] == "failed"]
    assert failures == ["bad-request", "load-failed", "bad-request"]
    assert all(m["message"].endswith(".") for m in messages if m["event"] == "failed")


def test_what_llama_cpp_says_goes_to_the_log_and_never_on_the_wire(conversation: Any):
    messages, log = conversation

    assert len(messages) == 7
    assert "llama_model_load" in log


def test_the_loaded_message_describes_the_build(conversation: Any):
    messages, _ = conversation

    build = messages[2]["build"]
    assert set(build) == {"name", "digest", "system_info", "commit", "libraries"}
    assert set(messages[2]["parameters"]) == {"target", "draft"}


def test_a_sample_on_the_wire_is_plain_json(conversation: Any):
    messages, _ = conversation

    assert messages[4]["sample"]["arm"] == "baseline"
    assert len(messages[4]["sample"]["output_ids"]) == 6
    assert messages[4]["sample"]["output_ids"] == messages[5]["sample"]["output_ids"]
