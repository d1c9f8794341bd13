"""Finding a job's files on this machine, and refusing what would not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from farm.domain.decoding import Sampling, Settings, Speculation, SpeculationKind
from farm.domain.job import JobSpec, ModelRef
from farm.errors import BenchmarkError
from farm.gguf.identity import digest_of
from farm.store.jobs import FINAL_ERROR_KINDS
from worker import models
from worker.models import locate, require_memory
from worker.probe import memory


@pytest.fixture
def target(tiny_pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """Return a copy of the tiny target where a submitter keeps it."""
    submitted = tmp_path / "submitter" / "model.gguf"
    submitted.parent.mkdir()
    return Path(shutil.copy(tiny_pair[0], submitted))


@pytest.fixture
def models_folder(tmp_path: Path) -> Path:
    """Return this machine's models folder."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def ref(path: Path) -> ModelRef:
    return ModelRef(str(path), digest_of(path), path.stem)


def expect_failure(kind: str, model: ModelRef, folder: Path | None) -> str:
    with pytest.raises(BenchmarkError) as caught:
        locate(model, folder)
    assert caught.value.kind == kind
    assert kind in FINAL_ERROR_KINDS
    return str(caught.value)


def test_a_file_at_its_own_path_is_taken(target: Path):
    assert locate(ref(target), None) == target


@pytest.mark.parametrize("name", ["model.gguf", "q4 [v2] *.gguf"])
def test_a_file_that_lies_elsewhere_here_is_found_by_name(
    target: Path, models_folder: Path, name: str
):
    there = target.rename(target.with_name(name))
    model = ref(there)
    here = models_folder / "some" / "vendor" / name
    here.parent.mkdir(parents=True)
    shutil.move(there, here)

    assert locate(model, models_folder) == here


def test_of_files_with_one_name_the_one_with_the_content_is_taken(
    target: Path, tiny_pair: tuple[Path, Path], models_folder: Path
):
    model = ref(target)
    for folder, source in (("a", tiny_pair[1]), ("b", target)):
        (models_folder / folder).mkdir()
        shutil.copy(source, models_folder / folder / target.name)
    target.write_bytes(b"something else")

    assert locate(model, models_folder) == models_folder / "b" / target.name


def test_a_missing_file_is_named_with_where_it_was_sought(target: Path, models_folder: Path):
    model = ref(target)
    target.unlink()

    assert str(models_folder) in expect_failure("model-missing", model, models_folder)
    assert "FARM_MODELS" in expect_failure("model-missing", model, None)


def test_a_folder_of_that_name_is_no_model(target: Path, models_folder: Path):
    model = ref(target)
    target.unlink()
    target.mkdir()

    expect_failure("model-missing", model, models_folder)


def test_other_content_at_the_same_path_is_changed_and_not_missing(
    target: Path, tiny_pair: tuple[Path, Path], models_folder: Path
):
    model = ref(target)
    shutil.copy(tiny_pair[1], target)

    assert "submit the sweep again" in expect_failure("model-changed", model, models_folder)


@pytest.fixture
def spec(target: Path) -> JobSpec:
    """Return a job without a draft."""
    return JobSpec(
        machine="any",
        engine="in-process",
        build="b",
        target=ref(target),
        draft=None,
        speculation=Speculation(SpeculationKind.PROMPT_LOOKUP, 2),
        sampling=Sampling(0.0, 0),
        settings=Settings(context_tokens=512),
        category="chat",
        prompts=("p",),
        generate_tokens=8,
        repeats=1,
    )


def leave_free(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(available=available, total=2**36)
    )
    limits = SimpleNamespace(memory_available_bytes=None)
    monkeypatch.setattr(memory, "read_cgroup_limits", lambda: limits)


def test_a_pair_that_fits_passes(spec: JobSpec, target: Path, monkeypatch: pytest.MonkeyPatch):
    leave_free(monkeypatch, 2**34)

    require_memory(spec, target, target, has_gpu=False)


def test_a_pair_that_does_not_fit_says_need_and_what_is_free(
    spec: JobSpec, target: Path, monkeypatch: pytest.MonkeyPatch
):
    leave_free(monkeypatch, 2**20)

    with pytest.raises(BenchmarkError, match=r"needs about 0\.1 GiB and 0\.0 GiB") as caught:
        require_memory(spec, target, None, has_gpu=False)

    assert caught.value.kind == "too-little-memory"
    assert caught.value.kind in FINAL_ERROR_KINDS


def test_both_files_of_a_pair_count(spec: JobSpec, target: Path, monkeypatch: pytest.MonkeyPatch):
    leave_free(monkeypatch, 100 * 2**20)
    require_memory(spec, target, None, has_gpu=False)

    with pytest.raises(BenchmarkError):
        require_memory(spec, target, target, has_gpu=False)


def test_every_request_at_once_has_a_cache(
    spec: JobSpec, target: Path, monkeypatch: pytest.MonkeyPatch
):
    leave_free(monkeypatch, 100 * 2**20)
    one = replace(spec, settings=replace(spec.settings, context_tokens=4096))
    require_memory(one, target, None, has_gpu=False)

    many = replace(one, settings=replace(one.settings, concurrent_requests=64))
    with pytest.raises(BenchmarkError):
        require_memory(many, target, None, has_gpu=False)


def test_the_limit_of_a_container_counts(
    spec: JobSpec, target: Path, monkeypatch: pytest.MonkeyPatch
):
    leave_free(monkeypatch, 2**34)
    limits = SimpleNamespace(memory_available_bytes=2**20)
    monkeypatch.setattr(memory, "read_cgroup_limits", lambda: limits)

    with pytest.raises(BenchmarkError) as caught:
        require_memory(spec, target, None, has_gpu=False)

    assert caught.value.kind == "too-little-memory"


def test_memory_that_can_not_be_read_refuses_nothing(
    spec: JobSpec, target: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(models, "available_memory_bytes", lambda: None)

    require_memory(spec, target, target, has_gpu=False)


@pytest.mark.parametrize(
    ("has_gpu", "gpu_layers", "refused"),
    [
        (False, None, True),
        (False, -1, True),
        (True, 0, True),
        (True, None, False),
        (True, -1, False),
    ],
)
def test_layers_on_a_gpu_are_not_counted_against_memory(
    spec: JobSpec,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_gpu: bool,
    gpu_layers: int | None,
    refused: bool,
):
    leave_free(monkeypatch, 2**20)
    offloaded = replace(spec, settings=replace(spec.settings, gpu_layers=gpu_layers))

    if refused:
        with pytest.raises(BenchmarkError):
            require_memory(offloaded, target, None, has_gpu=has_gpu)
    else:
        require_memory(offloaded, target, None, has_gpu=has_gpu)


def test_a_file_without_a_header_is_a_failed_load(spec: JobSpec, target: Path):
    target.write_bytes(b"no model at all")

    with pytest.raises(BenchmarkError) as caught:
        require_memory(spec, target, None, has_gpu=False)

    assert caught.value.kind == "load-failed"
