"""What is said, and done, where a machine can't hold all of the rules."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from farm.domain.decoding import Sampling, Settings, Speculation, SpeculationKind
from farm.domain.job import JobSpec, ModelRef
from farm.gguf.calibration import Law
from worker import isolation
from worker.confine import landlock, program, seccomp
from worker.engines.contract import PreparedPrompt
from worker.engines.in_process import InProcessFactory

ENOSYS = os.strerror(errno.ENOSYS)
EINVAL = os.strerror(errno.EINVAL)
# System calls and options that no kernel has.
NO_LANDLOCK = "from worker.confine import landlock; landlock._CREATE_RULESET = 9999; "
NO_SECCOMP = "from worker.confine import seccomp; seccomp._PR_SET_SECCOMP = 9999; "


@pytest.fixture
def confine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return `confine` with what the kernel says to it: a Landlock ABI, seccomp or its absence."""
    if sys.platform != "linux":
        pytest.skip("its answer elsewhere has a test of its own")

    def answers(abi: int, filtered: bool, cuda: bool, port: int | None) -> str:
        def restrict_files(*_: object) -> int:
            if abi == 0:
                raise OSError(errno.ENOSYS, ENOSYS)
            return abi

        def restrict_calls(**_: object) -> None:
            if not filtered:
                raise OSError(errno.EINVAL, EINVAL)

        monkeypatch.setattr(landlock, "restrict", restrict_files)
        monkeypatch.setattr(seccomp, "restrict", restrict_calls)
        monkeypatch.setattr(program, "has_cuda", lambda: cuda)
        return program.confine(**asdict(isolation.policy([], port=port)))

    return answers


@pytest.mark.parametrize(
    ("abi", "filtered", "cuda", "port", "said"),
    [
        (7, True, True, 1, "landlock 7 + seccomp"),
        (1, True, False, 1, "landlock 1 + seccomp"),
        (1, True, True, None, "landlock 1 + seccomp"),
        (1, True, True, 1, "landlock 1 + seccomp; TCP can connect"),
        (4, False, False, None, f"landlock 4; no seccomp ({EINVAL})"),
        (3, False, False, None, f"landlock 3; no seccomp ({EINVAL}); TCP can connect"),
        (0, True, False, 1, f"seccomp; no landlock ({ENOSYS})"),
        (0, True, True, 1, f"seccomp; no landlock ({ENOSYS}); TCP can connect"),
        (0, False, False, None, f"none: no landlock ({ENOSYS}), no seccomp ({EINVAL})"),
    ],
)
def test_what_is_missing_is_said(
    confine: Any, abi: int, filtered: bool, cuda: bool, port: int | None, said: str
):
    assert confine(abi, filtered, cuda, port) == said


def test_outside_linux_there_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")

    assert program.confine(**asdict(isolation.policy([]))).startswith("none: ")


def test_cuda_may_name_its_threads_and_keep_its_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """On a machine without a GPU the rules are looked at, not tried."""
    asked: list[list[str]] = []
    given: dict[str, int] = {}

    def restrict(files: Iterable[tuple[str, int]], _port: int | None) -> int:
        given.update(files)
        return 7

    monkeypatch.setenv("FARM_CACHE", str(tmp_path))
    monkeypatch.setattr(landlock, "restrict", restrict)
    monkeypatch.setattr(seccomp, "restrict", lambda **_: None)
    monkeypatch.setattr(program, "has_cuda", lambda: True)
    monkeypatch.setattr(isolation, "has_cuda", lambda: True)
    monkeypatch.setattr(isolation, "run_tool", lambda command, _: asked.append(command))
    kernels = isolation.environment()["CUDA_CACHE_PATH"]
    monkeypatch.setattr(sys, "platform", "linux")

    program.confine(**asdict(isolation.policy([])))

    assert given["/proc"] & landlock.WRITE_FILE
    assert given[kernels] == landlock.ALL
    assert Path(kernels).is_dir()
    assert asked == [] if Path("/dev/nvidia-uvm").exists() else [["nvidia-modprobe", "-u", "-c=0"]]


def test_a_cache_that_can_not_be_written_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FARM_CACHE", str(tmp_path / "file"))
    monkeypatch.delenv("CUDA_CACHE_PATH", raising=False)
    monkeypatch.setattr(isolation, "has_cuda", lambda: True)
    monkeypatch.setattr(isolation, "run_tool", lambda *_: None)

    assert "CUDA_CACHE_PATH" not in isolation.environment()


@pytest.mark.skipif(sys.platform != "linux", reason="there is nothing to take away")
@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (NO_LANDLOCK, f"seccomp; no landlock ({ENOSYS})"),
        (NO_LANDLOCK + NO_SECCOMP, f"none: no landlock ({ENOSYS}), no seccomp ({EINVAL})"),
    ],
)
def test_a_job_runs_where_the_kernel_can_not_confine_it(
    monkeypatch: pytest.MonkeyPatch,
    tiny_pair: tuple[Path, Path],
    one_thread: Settings,
    law: Law,
    tmp_path: Path,
    missing: str,
    said: str,
):
    first, rest = isolation._START.split("; ", 1)
    second, run = rest.split("; ", 1)
    monkeypatch.setattr(isolation, "_START", f"{first}; {second}; {missing}{run}")
    target, draft = (ModelRef(str(path), path.name, path.stem) for path in tiny_pair)
    spec = JobSpec(
        machine="any",
        engine="in-process",
        build="any",
        target=target,
        draft=draft,
        speculation=Speculation(SpeculationKind.DRAFT_SIMPLE, 2),
        sampling=Sampling(0.0, 0),
        settings=one_thread,
        category="chat",
        prompts=("a",),
        generate_tokens=8,
        repeats=1,
    )
    engine = InProcessFactory().load(spec, *tiny_pair, tmp_path / "child.log", float("inf"))
    try:
        samples = list(filter(None, engine.run(spec, [PreparedPrompt("a", law.marker(130))], 1e9)))
    finally:
        engine.end()

    assert engine.isolation == said
    assert [sample.output_ids for sample in samples] == [law.greedy_walk(130, 8)] * 2
