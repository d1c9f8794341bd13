from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from farm.domain.decoding import AcceptRule, SpeculationKind
from farm.domain.job import JobSpec
from farm.domain.prompt import Category
from farm.errors import UserError
from farm.gguf.calibration import Shape, make_pair
from farm.gguf.calibration_shapes import SHAPES, ModelShape
from farm.gguf.chat_template import METADATA_TEMPLATE
from farm.gguf.header import Header, read_header
from farm.gguf.memory import memory_need_bytes
from farm.services import plan as planning
from farm.services.plan import Plan, plan_sweep

Make = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("farm_home")

BUILD = "llama-cpp-python==0.3.36"


@pytest.fixture
def make_sweep(sweep_file: Callable[[str], Path], pair: tuple[Path, Path]) -> Make:
    """Return a writer of sweeps over the pair; keys given replace the usual ones."""

    def make(target: Path | str = pair[0], draft: Path | str = pair[1], **keys: str) -> Path:
        usual = {
            "name": "test",
            "k": "[2, 4]",
            "pairs": f"[{{target: '{target}', drafts: '{draft}'}}]",
            "prompts": "{categories: [chat], per_category: 3}",
            "build": BUILD,
        }
        return sweep_file("".join(f"{key}: {text}\n" for key, text in (usual | keys).items()))

    return make


def keys(plan: Plan) -> list[str]:
    return [job.key for job in plan.jobs]


def described(job: JobSpec) -> tuple[float, str, int]:
    return job.sampling.temperature, job.category, job.speculation.n_max


class TestExpansion:
    def test_is_the_same_at_every_reading(self, make_sweep: Make) -> None:
        path = make_sweep(temperatures="[0, 0.7]", seeds="[1, 2]", prompts="{per_category: 2}")

        assert plan_sweep(path) == plan_sweep(path)

    def test_runs_through_k_fastest(self, make_sweep: Make) -> None:
        path = make_sweep(
            temperatures="[0, 0.7]", k="[8, 2]", prompts="{categories: [math-reasoning, chat]}"
        )

        assert [described(job) for job in plan_sweep(path).jobs] == [
            (0.0, "math-reasoning", 8),
            (0.0, "math-reasoning", 2),
            (0.0, "chat", 8),
            (0.0, "chat", 2),
            (0.7, "math-reasoning", 8),
            (0.7, "math-reasoning", 2),
            (0.7, "chat", 8),
            (0.7, "chat", 2),
        ]

    def test_crosses_every_dimension(self, make_sweep: Make) -> None:
        path = make_sweep(
            machines="[any, 'kind:cpu']",
            p_min="[0, 0.5]",
            temperatures="[0.5, 1]",
            seeds="[1, 2]",
            accept="[exact, match]",
            context_tokens="[512, 1024]",
            threads="[1, 2]",
            cache_type_k="[f16, q8_0]",
            flash_attention="[on, off]",
        )

        plan = plan_sweep(path)

        assert len(plan.jobs) == 2**10
        assert len(set(keys(plan))) == 2**10

    def test_a_seed_makes_no_difference_at_temperature_0(self, make_sweep: Make) -> None:
        path = make_sweep(k="4", temperatures="[0, 0.8]", seeds="[1, 2, 3]")

        jobs = plan_sweep(path).jobs

        assert [(job.sampling.temperature, job.sampling.seed) for job in jobs] == [
            (0.0, 0),
            (0.8, 1),
            (0.8, 2),
            (0.8, 3),
        ]

    def test_the_accept_rule_makes_no_difference_at_temperature_0(self, make_sweep: Make) -> None:
        path = make_sweep(k="4", temperatures="[0, 0.8]", accept="[match, exact]")

        jobs = plan_sweep(path).jobs

        assert [(job.sampling.temperature, job.speculation.accept) for job in jobs] == [
            (0.0, AcceptRule.EXACT),
            (0.8, AcceptRule.MATCH),
            (0.8, AcceptRule.EXACT),
        ]

    def test_p_min_makes_no_difference_without_a_draft(
        self, make_sweep: Make, pair: tuple[Path, Path]
    ) -> None:
        path = make_sweep(
            pairs=f"[{{target: '{pair[0]}', kind: prompt-lookup}}]", k="4", p_min="[0, 0.5]"
        )

        (job,) = plan_sweep(path).jobs

        assert job.draft is None
        assert job.speculation.kind is SpeculationKind.PROMPT_LOOKUP
        assert job.speculation.p_min == 0.0

    def test_takes_the_first_prompts_of_each_category(self, make_sweep: Make) -> None:
        plan = plan_sweep(make_sweep(k="4", prompts="{per_category: 3}"))

        assert [job.category for job in plan.jobs] == list(Category)
        by_digest = {prompt.digest: prompt for prompt in plan.prompts}
        for job in plan.jobs:
            first = [p.digest for p in plan.prompt_set.prompts if p.category == job.category][:3]
            assert list(job.prompts) == first
            assert {by_digest[digest].category for digest in job.prompts} == {job.category}

    def test_takes_the_build_that_is_installed(
        self, make_sweep: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(metadata, "version", {"llama-cpp-python": "9.9.9"}.__getitem__)

        jobs = plan_sweep(make_sweep(build="installed")).jobs

        assert {job.build for job in jobs} == {"llama-cpp-python==9.9.9"}

    def test_says_what_to_name_when_no_build_is_installed(
        self, make_sweep: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(name: str) -> str:
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "version", missing)

        with pytest.raises(UserError, match="build: llama-cpp-python=="):
            plan_sweep(make_sweep(build="installed"))

    def test_refuses_more_jobs_than_one_sweep_may_have(
        self, make_sweep: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(planning, "MAX_JOBS", 4)
        assert len(plan_sweep(make_sweep(k="[1, 2, 3, 4]")).jobs) == 4

        with pytest.raises(UserError, match=r"more than 4 jobs.*split it"):
            plan_sweep(make_sweep(k="[1, 2, 3, 4, 5]"))

    def test_refuses_a_grid_that_would_fill_the_memory(
        self, make_sweep: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tenths = ", ".join(f"{n / 1000}" for n in range(1, 1000))
        path = make_sweep(k="{from: 1, to: 128}", p_min=f"[{tenths}]", temperatures=f"[{tenths}]")

        monkeypatch.setattr(planning, "MAX_JOBS", 500)

        with pytest.raises(UserError, match="more than 500 jobs"):
            plan_sweep(path)


class TestNMin:
    def test_cells_above_their_k_are_left_out_and_counted(self, make_sweep: Make) -> None:
        plan = plan_sweep(make_sweep(k="{from: 2, to: 16, step: 2}", n_min="[0, 4]"))

        cells = [(job.speculation.n_min, job.speculation.n_max) for job in plan.jobs]
        assert cells == [(0, k) for k in range(2, 17, 2)] + [(4, k) for k in range(4, 17, 2)]
        assert plan.left_out == 1

    def test_a_kind_without_it_is_measured_once(
        self, make_sweep: Make, pair: tuple[Path, Path]
    ) -> None:
        entry = f"[{{target: '{pair[0]}', kind: ngram-map-k}}]"
        server = {"engine": "llama-server", "build": "llama-server==x-1"}

        plan = plan_sweep(make_sweep(pairs=entry, n_min="[0, 4]", **server))

        assert [(j.speculation.n_min, j.speculation.n_max) for j in plan.jobs] == [(0, 2), (0, 4)]
        assert plan.left_out == 0


class TestChatTemplate:
    @pytest.mark.parametrize(
        ("asked", "cells"),
        [
            (
                "[on, off]",
                [("on", "chat"), ("off", "code-completion"), ("off", "chat")],
            ),
            ("auto", [("on", "code-completion"), ("on", "chat")]),
            ("off", [("off", "code-completion"), ("off", "chat")]),
        ],
    )
    def test_plain_text_is_measured_once(
        self,
        make_sweep: Make,
        monkeypatch: pytest.MonkeyPatch,
        asked: str,
        cells: list[tuple[str, str]],
    ) -> None:
        """With a template alone it stays with the other categories, in their table."""
        template = {METADATA_TEMPLATE: "{{ messages[0].content }}"}

        def with_template(path: Path) -> Header:
            header = read_header(path)
            return replace(header, metadata={**header.metadata, **template})

        monkeypatch.setattr(planning, "read_header", with_template)
        prompts = "{categories: [code-completion, chat], per_category: 3}"

        jobs = plan_sweep(make_sweep(k="4", prompts=prompts, chat_template=asked)).jobs

        found = [(job.settings.chat_template, job.category) for job in jobs]
        assert sorted(found) == sorted(cells)


class TestDepth:
    def test_jobs_name_the_text_that_fills_their_context(self, make_sweep: Make) -> None:
        depths = {"depth_tokens": "[0, 1024, 16384]", "context_tokens": "20480", "k": "4"}
        plan = plan_sweep(make_sweep(**depths))

        flat, *deep = plan.jobs
        assert (flat.settings.depth_tokens, flat.depth_text) == (0, None)
        assert [job.settings.depth_tokens for job in deep] == [1024, 16384]
        (digest,) = {job.depth_text for job in deep}
        (filler,) = (prompt for prompt in plan.prompts if prompt.digest == digest)
        texts = {prompt.digest: prompt.text for prompt in plan.prompts}
        assert not [digest for digest in flat.prompts if texts[digest] in filler.text]
        assert len(filler.text) > 16384

    def test_no_depth_needs_no_text(self, make_sweep: Make) -> None:
        plan = plan_sweep(make_sweep())
        assert {job.depth_text for job in plan.jobs} == {None}
        assert {prompt.category for prompt in plan.prompts} == {"chat"}

    def test_what_does_not_fit_is_said_with_the_context_that_would(self, make_sweep: Make) -> None:
        with pytest.raises(UserError, match=r"K = 16.*set context_tokens: 4608"):
            plan_sweep(make_sweep(k="[2, 16]", depth_tokens="[0, 1024, 2048, 4096]"))


class TestKeys:
    def test_a_label_makes_every_key_new(self, make_sweep: Make) -> None:
        plain, labelled = plan_sweep(make_sweep()), plan_sweep(make_sweep(label="again"))

        assert len(plain.jobs) == len(labelled.jobs)
        assert not set(keys(plain)) & set(keys(labelled))

    def test_the_sweeps_name_makes_none_new(self, make_sweep: Make) -> None:
        assert keys(plan_sweep(make_sweep())) == keys(plan_sweep(make_sweep(name="other")))

    def test_moved_model_files_keep_them(
        self, make_sweep: Make, pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        before = plan_sweep(make_sweep())
        target = shutil.copy(pair[0], tmp_path / "renamed.gguf")
        draft = shutil.copy(pair[1], tmp_path / "renamed-too.gguf")

        after = plan_sweep(make_sweep(target=target, draft=draft))

        assert keys(after) == keys(before)
        assert [job.pair_key for job in after.jobs] == [job.pair_key for job in before.jobs]
        assert after.jobs[0].target.path == str(target)
        assert after.jobs[0].target.name == "renamed"

    def test_other_content_under_the_same_name_changes_them(
        self, make_sweep: Make, tmp_path: Path
    ) -> None:
        folder = tmp_path / "models"
        folder.mkdir()

        def plan_with(seed: int) -> Plan:
            made = make_pair("tiny", "f16", tmp_path / f"made-{seed}", seed=seed)
            target, draft = (
                shutil.copy(file, folder / f"{role}.gguf")
                for file, role in zip(made, ("target", "draft"), strict=True)
            )
            return plan_sweep(make_sweep(target=target, draft=draft))

        assert not set(keys(plan_with(1))) & set(keys(plan_with(2)))

    def test_another_prompt_text_changes_those_of_its_category_alone(
        self, make_sweep: Make, tmp_path: Path
    ) -> None:
        def plan_with(chat: str) -> Plan:
            (tmp_path / "mine.jsonl").write_text(
                f'{{"category": "chat", "text": "{chat}"}}\n'
                '{"category": "haiku", "text": "Write a haiku."}\n'
            )
            return plan_sweep(make_sweep(prompts="{set: mine.jsonl}"))

        before, after = plan_with("Hello"), plan_with("Hello!")

        for old, new in zip(before.jobs, after.jobs, strict=True):
            assert old.category == new.category
            assert (old.key == new.key) == (old.category == "haiku")


class TestModels:
    def test_paths_count_from_the_sweeps_own_folder(
        self, make_sweep: Make, pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        (tmp_path / "models").mkdir()
        for file, role in zip(pair, ("target", "draft"), strict=True):
            shutil.copy(file, tmp_path / "models" / f"{role}.gguf")

        plan = plan_sweep(make_sweep(target="models/target.gguf", draft="models/draft.gguf"))

        assert plan.jobs[0].target.path == str(tmp_path / "models" / "target.gguf")

    def test_a_file_that_is_not_there_is_named(self, make_sweep: Make, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"models/target\.gguf"):
            plan_sweep(make_sweep(target="models/target.gguf"))

    def test_a_file_that_is_no_model_is_named(self, make_sweep: Make, tmp_path: Path) -> None:
        (tmp_path / "letter.gguf").write_text("Dear friend")

        with pytest.raises(UserError, match=r"letter\.gguf"):
            plan_sweep(make_sweep(draft="letter.gguf"))

    def test_the_memory_need_of_a_pair_counts_both_at_their_context(
        self, make_sweep: Make, pair: tuple[Path, Path]
    ) -> None:
        plan = plan_sweep(make_sweep(k="4", context_tokens="[512, 4096]"))

        assert [plan.need_bytes[job.pair_key] for job in plan.jobs] == [
            sum(memory_need_bytes(read_header(file), tokens) for file in pair)
            for tokens in (512, 4096)
        ]

    def test_progress_names_each_file_while_it_is_read(
        self, make_sweep: Make, pair: tuple[Path, Path]
    ) -> None:
        seen: list[tuple[Path, int, int]] = []

        plan_sweep(make_sweep(), lambda *at: seen.append(at))

        sizes = {file: file.stat().st_size for file in pair}
        assert {path: (done, total) for path, done, total in seen} == {
            file: (size, size) for file, size in sizes.items()
        }

    def test_a_pair_that_can_not_speculate_is_a_refusal(
        self, make_sweep: Make, pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        tiny = SHAPES["tiny"].draft
        wide = ModelShape(
            tiny.n_layer, tiny.n_embd, tiny.n_ff, tiny.n_head, tiny.n_head_kv, tiny.head_dim, 1024
        )
        _, stranger = make_pair(Shape("wide", "another vocabulary", wide, wide), "f16", tmp_path)

        plan = plan_sweep(
            make_sweep(pairs=f"[{{target: '{pair[0]}', drafts: ['{stranger}', '{pair[1]}']}}]")
        )

        (refusal,) = plan.refusals
        assert (refusal.target, refusal.draft) == (pair[0].stem, stranger.stem)
        assert any("vocabulary sizes differ by 512" in reason for reason in refusal.reasons)
        assert {job.draft.name for job in plan.jobs if job.draft} == {pair[1].stem}
        assert len(plan.models) == 2


class TestPrompts:
    def test_a_category_that_the_set_has_not_is_named_with_those_it_has(
        self, make_sweep: Make
    ) -> None:
        with pytest.raises(UserError) as caught:
            plan_sweep(make_sweep(prompts="{categories: [chat, poetry]}"))

        message = str(caught.value)
        assert "'standard' has no category 'poetry'" in message
        assert ", ".join(Category) in message

    def test_a_set_that_is_not_there_is_named(self, make_sweep: Make, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"mine\.jsonl"):
            plan_sweep(make_sweep(prompts="{set: mine.jsonl}"))
