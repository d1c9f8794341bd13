"""The law of a calibration pair is checked on every job above temperature 0, arm by arm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_farm import PROMPTS, SmallFarm

from farm.builds.arguments import arguments
from farm.builds.tools import ToolBuild
from farm.domain.job import Arm, JobState
from farm.errors import BenchmarkError
from farm.gguf.calibration import HOTTEST_EXACT, Law
from farm.science.law import ALARM
from farm.services.plan import plan_sweep
from farm.services.submit import submit
from tests.farm.sample_farm import sample
from worker.child import Child
from worker.engines import in_process, llama_server
from worker.engines.contract import PreparedPrompt
from worker.law_check import LawCheck, require_law

TOKENS = 300
# So many per prompt show a rule that is wrong after rejections alone.
TELLING_TOKENS = 1000
ARMS = {arm.value for arm in Arm}

BROKEN_CHILD = """\
from broken_rules import {rule}
from worker.bench.__main__ import main
from worker.bench.sampling import Exact

Exact.verify = {rule}.verify
main()
"""

SWEEP = """\
name: drawn
engine: {engine}
build: {build}
pairs:
  - target: target.gguf
    drafts: [draft.gguf]
k: 3
temperatures: {temperature}
accept: {accept}
prompts: {{categories: [creative-prose], per_category: 3}}
generate_tokens: {tokens}
threads: 1
gpu_layers: 0
draft_gpu_layers: 0
"""


SERVED = {"engine": "llama-server", "accept": "match"}


def work_off(farm: SmallFarm, temperature: float, **changes: object) -> None:
    """Submit one job and run it."""
    usual = {"engine": "in-process", "build": "installed", "accept": "exact", "tokens": TOKENS}
    more = str(changes.pop("more", ""))
    text = SWEEP.format(temperature=temperature, **usual | changes)
    (farm.folder / "sweep.yaml").write_text(text + more)
    submit(farm.database, plan_sweep(farm.folder / "sweep.yaml"))
    farm.executor().work_off()


def law_checks(farm: SmallFarm) -> dict[str, dict[str, Any]]:
    (attempt,) = farm.attempts()
    found: dict[str, dict[str, Any]] = attempt.checks["law"]
    return found


class TestInProcess:
    @pytest.mark.parametrize("temperature", [0.7, 1.0])
    def test_both_arms_follow_the_law(
        self, small_farm: SmallFarm, quick: None, temperature: float
    ) -> None:
        work_off(small_farm, temperature)

        assert small_farm.states() == [JobState.DONE]
        checks = law_checks(small_farm)
        assert set(checks) == ARMS
        for check in checks.values():
            assert check["tokens"] == PROMPTS * TOKENS
            assert check["p_value"] >= ALARM

    @pytest.mark.parametrize("rule", ["InvertedRatio", "NoResidual", "AcceptAlways"])
    def test_a_broken_rule_fails_the_job_for_good(
        self,
        small_farm: SmallFarm,
        quick: None,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        rule: str,
    ) -> None:
        program = tmp_path / "broken_child.py"
        program.write_text(BROKEN_CHILD.format(rule=rule))
        rules = Path(__file__).parent / "bench"

        def broken(_command: Any, log: Path, environment: dict[str, str]) -> Child:
            folders = f"{environment['PYTHONPATH']}:{rules}"
            return Child([sys.executable, str(program)], log, environment | {"PYTHONPATH": folders})

        monkeypatch.setattr(in_process, "Child", broken)

        work_off(small_farm, 1.0, tokens=TELLING_TOKENS)

        (job,), (attempt,) = small_farm.jobs(), small_farm.attempts()
        assert (job.state, job.error_kind) == (JobState.FAILED, "wrong-law")
        said = f"The speculative arm's {PROMPTS * TELLING_TOKENS} tokens do not follow"
        assert said in job.error_message
        checks = attempt.checks["law"]
        assert checks["speculative"]["p_value"] < ALARM <= checks["baseline"]["p_value"]
        assert len(small_farm.samples()) == PROMPTS * len(Arm)

    def test_at_temperature_0_there_is_nothing_to_check(self, farm: SmallFarm, quick: None) -> None:
        farm.executor().work_off()

        (attempt,) = farm.attempts()
        assert (attempt.outcome, attempt.checks) == ("done", None)

    def test_where_it_is_too_hot_for_the_law_nothing_is_checked(
        self, small_farm: SmallFarm, quick: None
    ) -> None:
        """At 5 a sound job draws tokens that the table has as impossible."""
        work_off(small_farm, 5.0)

        (attempt,) = small_farm.attempts()
        assert (attempt.outcome, attempt.checks) == ("done", None)


class TestLlamaServer:
    def test_both_arms_follow_the_law(
        self, small_farm: SmallFarm, quick: None, llama_tools: ToolBuild
    ) -> None:
        work_off(small_farm, 1.0, **SERVED, build=llama_tools.name)

        assert small_farm.states() == [JobState.DONE]
        checks = law_checks(small_farm)
        assert {check["tokens"] for check in checks.values()} == {PROMPTS * TOKENS}
        # One seed for both arms, so one text.
        assert checks["baseline"] == checks["speculative"]

    def test_a_made_up_acceptance_follows_no_law_and_fails_nothing(
        self, small_farm: SmallFarm, quick: None, llama_tools: ToolBuild
    ) -> None:
        more = "what_if: [{rates: [1, 1, 1]}]\n"
        work_off(small_farm, 1.0, **SERVED, build=llama_tools.name, more=more)

        (attempt,) = small_farm.attempts()
        assert (attempt.outcome, attempt.checks) == ("done", None)

    def test_forced_acceptance_fails_the_job(
        self,
        small_farm: SmallFarm,
        quick: None,
        llama_tools: ToolBuild,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def forced(dialect: Any, speculation: Any, *rest: Any) -> list[str]:
            said = arguments(dialect, speculation, *rest)
            return [*said, "--spec-synth-rates", "1,1,1"] if speculation else said

        monkeypatch.setattr(llama_server, "arguments", forced)

        work_off(small_farm, 1.0, **SERVED, build=llama_tools.name)

        (job,) = small_farm.jobs()
        assert (job.state, job.error_kind) == (JobState.FAILED, "wrong-law")
        assert law_checks(small_farm)["baseline"]["p_value"] >= ALARM


class TestLawCheck:
    @pytest.fixture
    def check(self, law: Law) -> LawCheck:
        prompt = PreparedPrompt("start", f"some text {law.marker(130)}")
        return LawCheck(law, 1.0, [prompt])

    def walk(self, law: Law, temperature: float, tokens: int, seed: int) -> tuple[int, ...]:
        rng, state, ids = np.random.default_rng(seed), 130, []
        for _ in range(tokens):
            token = int(rng.choice(law.vocab_size, p=law.target_probabilities(state, temperature)))
            ids.append(token)
            state = law.state(token)
        return tuple(ids)

    def test_each_arm_is_judged_by_itself_at_the_jobs_temperature(
        self, check: LawCheck, law: Law
    ) -> None:
        check.add(sample("start", Arm.BASELINE, output_ids=self.walk(law, 1.0, 3000, seed=1)))
        check.add(sample("start", Arm.SPECULATIVE, output_ids=self.walk(law, 0.8, 3000, seed=2)))

        found = check.result()

        assert found is not None
        assert {arm: found["law"][arm]["tokens"] for arm in ARMS} == dict.fromkeys(ARMS, 3000)
        assert found["law"]["baseline"]["p_value"] >= ALARM
        with pytest.raises(BenchmarkError, match="The speculative arm's 3000 tokens") as caught:
            require_law(found)
        assert caught.value.kind == "wrong-law"

    @pytest.mark.parametrize("place", [0, 1, -1])
    def test_one_token_that_can_not_follow_is_enough(
        self, check: LawCheck, law: Law, place: int
    ) -> None:
        """The first token is judged by the prompt's last."""
        ids = list(self.walk(law, 1.0, 200, seed=3))
        before = [130, *map(law.state, ids)][:-1]
        possible = law.target_probabilities(before[place], 1.0)
        ids[place] = int(np.flatnonzero(possible == 0)[0])
        for arm in Arm:
            check.add(sample("start", arm, output_ids=tuple(ids)))

        found = check.result()

        assert found is not None
        assert found["law"]["baseline"]["p_value"] == 0.0

    def test_few_tokens_are_no_reason_to_fail(self, check: LawCheck, law: Law) -> None:
        check.add(sample("start", Arm.BASELINE, output_ids=self.walk(law, 1.0, 5, seed=4)))

        found = check.result()

        assert found is not None
        assert found["law"]["baseline"] == {"tokens": 5, "p_value": None}
        assert found["law"]["speculative"] == {"tokens": 0, "p_value": None}
        require_law(found)

    def test_up_to_where_the_law_is_exact_it_is_checked(self, law: Law) -> None:
        prompts = [PreparedPrompt("start", f"some text {law.marker(130)}")]
        assert LawCheck(law, HOTTEST_EXACT, prompts).result() is not None
        assert LawCheck(law, HOTTEST_EXACT + 0.1, prompts).result() is None

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_a_language_model_has_no_law_to_check(self, temperature: float) -> None:
        check = LawCheck(None, temperature, [])

        check.add(sample())

        assert check.result() is None
        require_law(None)
