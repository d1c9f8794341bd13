"""What only llama-server can do wrong: fall back in silence, remember prompts, outlive us."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from engine_contract import CATEGORY, LIMIT_S, TEXTS, Load, measured, of_arm, servers, soon
from gguf import GGUFReader
from tiny_mixture import EXPERTS, write_mixture

from farm.builds import tools
from farm.builds.arguments import arguments
from farm.builds.tools import ToolBuild
from farm.domain.decoding import AcceptRule, Sampling, Speculation, SpeculationKind
from farm.domain.job import Arm, JobSpec, ModelRef
from farm.domain.measurement import Parity
from farm.errors import BenchmarkError
from farm.gguf.calibration import Law, start_state
from worker import isolation, leash
from worker.engines import llama_server
from worker.engines.contract import PreparedPrompt
from worker.engines.llama_server import LlamaServerFactory
from worker.engines.server import Server

# Long enough for a calibration pair's cycle of 31 states to come round several times.
CYCLES_TOKENS = 160


def ngram(spec: JobSpec, kind: SpeculationKind, n_max: int) -> JobSpec:
    return replace(
        spec, draft=None, speculation=Speculation(kind, n_max), generate_tokens=CYCLES_TOKENS
    )


def changed_arguments(monkeypatch: pytest.MonkeyPatch, change: Callable[..., list[str]]) -> None:
    """Have the speculative server told something else than the job says."""

    def wrong(dialect: Any, speculation: Any, *rest: Any) -> list[str]:
        said = arguments(dialect, speculation, *rest)
        return said if speculation is None else change(said)

    monkeypatch.setattr(llama_server, "arguments", wrong)


class TestNgramKinds:
    @pytest.mark.parametrize(
        ("kind", "n_max"),
        [
            (SpeculationKind.NGRAM_SIMPLE, 12),
            (SpeculationKind.NGRAM_MAP_K, 4),
            (SpeculationKind.NGRAM_MAP_K4V, 4),
            (SpeculationKind.NGRAM_MOD, 4),
        ],
    )
    def test_a_repeat_starts_from_an_empty_memory(
        self,
        load: Load,
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        law: Law,
        kind: SpeculationKind,
        n_max: int,
    ) -> None:
        """A server that has seen the prompt would draft more: the second time counts as the first.

        Within a life ngram-mod learns from earlier prompts too, so the first prompt is compared.
        """
        job = replace(ngram(spec, kind, n_max), repeats=2)
        samples = measured(load(job), job, prompts)
        speculative = of_arm(samples, Arm.SPECULATIVE)
        first, again = (s for s in speculative if s.prompt_digest == TEXTS[0])
        assert (first.repeat, again.repeat) == (0, 1)
        assert first.drafted > 0
        assert (again.drafted, again.accepted) == (first.drafted, first.accepted)
        for sample in samples:
            index = TEXTS.index(sample.prompt_digest)
            start = start_state(law, CATEGORY, sample.prompt_digest, index)
            assert sample.output_ids == law.greedy_walk(start, CYCLES_TOKENS)
        assert {sample.parity for sample in speculative} == {Parity.EXACT}

    def test_a_kind_that_finds_nothing_to_repeat_is_no_failure(
        self, load: Load, spec: JobSpec, prompts: list[PreparedPrompt]
    ) -> None:
        job = replace(ngram(spec, SpeculationKind.NGRAM_CACHE, 8), generate_tokens=16)
        samples = measured(load(job), job, prompts)
        assert [sample.drafted for sample in samples] == [0] * 6
        assert {sample.rounds for sample in of_arm(samples, Arm.SPECULATIVE)} == {15}

    def test_a_k_that_never_drafts_is_refused(self, load: Load, spec: JobSpec) -> None:
        with pytest.raises(BenchmarkError, match="never drafts with K below") as caught:
            load(ngram(spec, SpeculationKind.NGRAM_SIMPLE, 4))
        assert caught.value.kind == "unsupported"


class TestProof:
    def test_an_incompatible_draft_is_no_speculation(
        self, load: Load, spec: JobSpec, tmp_path: Path
    ) -> None:
        """llama-server logs it, serves on without drafting, and a client sees nothing amiss."""
        assert spec.draft is not None
        other = Path(shutil.copy(spec.draft.path, tmp_path / "other.gguf"))
        tokens = GGUFReader(other, "r+").fields["tokenizer.ggml.tokens"]
        tokens.parts[tokens.data[300]][:] = ord("z")
        with pytest.raises(BenchmarkError, match="failed to initialize speculative") as caught:
            load(replace(spec, draft=ModelRef(str(other), "other", "other")))
        assert caught.value.kind == "not-speculating"
        assert "failed to initialize" in (caught.value.log_tail or "")

    @pytest.mark.parametrize(
        "kind",
        [
            SpeculationKind.DRAFT_EAGLE3,
            SpeculationKind.DRAFT_DFLASH,
            SpeculationKind.DRAFT_DSPARK,
            SpeculationKind.DRAFT_MTP,
        ],
    )
    def test_a_draft_of_another_kind_is_named(
        self, load: Load, spec: JobSpec, kind: SpeculationKind
    ) -> None:
        """Some make the server fall back, some make it crash; neither is a measurement."""
        with pytest.raises(BenchmarkError) as caught:
            load(replace(spec, speculation=Speculation(kind, 3)))
        assert caught.value.kind in ("not-speculating", "load-failed")
        assert caught.value.log_tail

    def test_a_draft_without_its_kind_does_not_pass_for_speculation(
        self,
        load: Load,
        spec: JobSpec,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def without_kind(said: list[str]) -> list[str]:
            at = said.index("--spec-type")
            return [*said[:at], *said[at + 2 :]]

        changed_arguments(monkeypatch, without_kind)
        with pytest.raises(BenchmarkError, match="/slots") as caught:
            load(spec)
        assert caught.value.kind == "not-speculating"

    @pytest.mark.parametrize("side_by_side", [True, False])
    def test_a_job_without_one_drafted_token_fails(
        self,
        load: Load,
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        monkeypatch: pytest.MonkeyPatch,
        side_by_side: bool,
    ) -> None:
        """The server says that it speculates, and never does."""
        monkeypatch.setattr(llama_server, "fits_twice", lambda *_: side_by_side)
        changed_arguments(monkeypatch, lambda said: [*said, "--spec-draft-p-min", "1.1"])
        with pytest.raises(BenchmarkError, match="not one token was drafted") as caught:
            measured(load(spec), spec, prompts)
        assert caught.value.kind == "not-speculating"
        assert caught.value.log_tail

    def test_a_draft_that_is_never_sure_enough_is_a_finding(
        self, load: Load, spec: JobSpec, prompts: list[PreparedPrompt]
    ) -> None:
        unsure = replace(spec, speculation=replace(spec.speculation, p_min=1.0))
        samples = measured(load(unsure), unsure, prompts)
        assert [sample.drafted for sample in samples] == [0] * 6

    def test_binaries_that_changed_are_not_measured(
        self,
        load: Load,
        spec: JobSpec,
        llama_tools: ToolBuild,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv(tools.FOLDER_VARIABLE, raising=False)
        monkeypatch.setenv("FARM_CACHE", str(tmp_path / "cache"))
        copy = Path(shutil.copytree(llama_tools.folder, tmp_path / "bin", symlinks=True))
        build = tools.add(copy)
        assert build.name == spec.build
        (copy / "libextra.so").write_bytes(b"slipped in")
        with pytest.raises(BenchmarkError, match="farm builds add") as caught:
            load(spec)
        assert caught.value.kind == "build-changed"


class TestSettings:
    def test_the_server_says_what_it_was_told(
        self,
        load: Load,
        spec: JobSpec,
        law: Law,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """Read back from its log, which tells of these only when it is asked for more."""
        changed_arguments(monkeypatch, lambda said: [*said, "-lv", "4"])
        mixture = write_mixture(tmp_path / "mixture.gguf", law)
        settings = replace(
            spec.settings,
            batch_threads=2,
            cache_type_k="q8_0",
            draft_cache_type_k="f16",
            draft_cache_type_v="q4_0",
            draft_device="none",
            experts_used=EXPERTS,
        )
        target = ModelRef(str(mixture), "mixture", "mixture")
        load(replace(spec, target=target, settings=settings))
        log = (tmp_path / "job-1-1.speculative.log").read_text()
        assert "n_threads = 1 (n_threads_batch = 2)" in log
        caches = re.findall(r"K \((\w+)\).*V \((\w+)\)", log)
        assert caches == [("q8_0", "f16"), ("f16", "q4_0")]
        # The draft is no mixture, so that the override does not reach it.
        assert re.findall(r"n_expert_used += (\d+)", log) == [str(EXPERTS), "0"]


class TestParity:
    @pytest.mark.parametrize("side_by_side", [True, False])
    def test_a_divergence_has_the_baselines_margin(
        self,
        load: Load,
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        law: Law,
        monkeypatch: pytest.MonkeyPatch,
        side_by_side: bool,
    ) -> None:
        """Forced acceptance gives text that is not the target's: wide margins, hard mismatches."""
        monkeypatch.setattr(llama_server, "fits_twice", lambda *_: side_by_side)
        forced = ["--spec-synth-rates", "1,1,1,1"]
        changed_arguments(monkeypatch, lambda said: [*said, *forced])
        samples = measured(load(spec), spec, prompts)
        parted = [s for s in of_arm(samples, Arm.SPECULATIVE) if s.parity is not Parity.EXACT]
        assert parted
        for sample in parted:
            assert sample.parity is Parity.MISMATCH
            assert sample.first_divergence is not None
            index = TEXTS.index(sample.prompt_digest)
            start = start_state(law, CATEGORY, sample.prompt_digest, index)
            walk = law.greedy_walk(start, spec.generate_tokens)
            before = walk[sample.first_divergence - 1]
            logits = sorted(law.target_logits[law.state(before)])
            assert sample.margin_logits == pytest.approx(logits[-1] - logits[-2], abs=0.01)

    def test_both_arms_draw_the_same_text_above_temperature_0(
        self, load: Load, spec: JobSpec, prompts: list[PreparedPrompt]
    ) -> None:
        rule = replace(spec.speculation, accept=AcceptRule.MATCH)
        warm = replace(spec, speculation=rule, sampling=Sampling(0.8, 5), repeats=2)
        samples = measured(load(warm), warm, prompts)
        plain, drafted = (of_arm(samples, arm) for arm in Arm)
        assert [s.output_ids for s in plain] == [s.output_ids for s in drafted]
        assert len({sample.output_ids for sample in plain}) == len(plain)


class TestProcesses:
    def test_one_server_at_a_time_where_two_do_not_fit(
        self,
        load: Load,
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(llama_server, "fits_twice", lambda *_: False)
        most = 0
        samples = []
        for sample in load(spec).run(spec, prompts, soon()):
            most = max(most, len(servers()))
            samples += [sample] if sample else []
        assert most == 1
        assert len(samples) == 2 * len(prompts)
        assert {s.parity for s in of_arm(samples, Arm.SPECULATIVE)} == {Parity.EXACT}

    def test_a_load_that_fails_in_the_farm_itself_leaves_no_server(
        self, spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> Any:
            assert servers()
            raise OSError("no space left on device")

        monkeypatch.setattr(Server, "_prove", full)
        assert spec.draft is not None
        target, draft = Path(spec.target.path), Path(spec.draft.path)
        with pytest.raises(OSError, match="no space left"):
            LlamaServerFactory().load(spec, target, draft, tmp_path / "job.log", soon())
        assert servers() == []

    def test_another_k_restarts_the_speculative_server_alone(
        self, load: Load, spec: JobSpec, prompts: list[PreparedPrompt]
    ) -> None:
        engine = load(spec)
        before = {process.pid for process in servers()}
        wider = replace(spec, speculation=replace(spec.speculation, n_max=8))
        measured(engine, wider, prompts)
        assert len(before & {process.pid for process in servers()}) == 1

    def test_a_server_dies_with_a_killed_worker(
        self, spec: JobSpec, llama_tools: ToolBuild, tmp_path: Path
    ) -> None:
        """A worker that is killed can't tidy up; its leash does."""
        program = tmp_path / "worker.py"
        server = [str(llama_tools.path("llama-server")), "-m", spec.target.path, "-t", "1"]
        leashed = [sys.executable, "-I", leash.__file__, *server, "-ngl", "0", "--port", "0"]
        rules = isolation.policy([Path(spec.target.path)], [Path(server[0])], port=0)
        command = isolation.confined(leashed, rules)
        program.write_text(
            "import json, subprocess, sys, time\n"
            "started = subprocess.Popen(json.loads(sys.argv[1]), stdin=subprocess.PIPE,\n"
            "    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)\n"
            "time.sleep(600)\n"
        )
        worker = subprocess.Popen([sys.executable, str(program), json.dumps(command)])
        give_up = time.monotonic() + LIMIT_S
        while not (found := servers()):
            assert time.monotonic() < give_up
            time.sleep(0.02)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        psutil.wait_procs(found, timeout=30)
        assert not any(process.is_running() for process in found)

    def test_no_two_servers_answer_to_one_key(self, load: Load, spec: JobSpec) -> None:
        """Whoever else has a port can't be taken for the server that should have it."""
        load(spec)
        commands = [process.cmdline() for process in servers()]
        assert len({command[command.index("--api-key") + 1] for command in commands}) == 2
