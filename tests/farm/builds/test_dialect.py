from __future__ import annotations

from pathlib import Path

import pytest

from farm.builds import arguments as arguments_module
from farm.builds.arguments import arguments
from farm.builds.dialect import Dialect, ask, parse, require_devices
from farm.domain.decoding import (
    AcceptRule,
    Sampling,
    Settings,
    Speculation,
    SpeculationKind,
    WhatIf,
)
from farm.errors import BenchmarkError

RECORDED = Path(__file__).with_name("recorded")
KINDS = SpeculationKind
GREEDY = Sampling(0.0, 0)

# Constructed from single lines of real help texts: up to 2025-08 -fa was a switch, and in early
# 2026 --spec-type chose among the kinds without a model while -md alone still meant draft-simple.
SWITCH_FA = "-fa,   --flash-attn                     enable Flash Attention (default: disabled)"
SPEC_TYPE_OF_EARLY_2026 = """\
--spec-type [none|ngram-cache|ngram-simple|ngram-map-k|ngram-map-k4v|ngram-mod]
                                        type of speculative decoding to use when no draft model is provided
                                        (default: none)
--spec-ngram-size-n N                   ngram size N for ngram-simple/ngram-map speculative decoding
--spec-ngram-size-m N                   ngram size M for ngram-simple/ngram-map speculative decoding
--spec-ngram-min-hits N                 minimum hits for ngram-map speculative decoding
"""  # noqa: E501


def recorded(name: str) -> str:
    return (RECORDED / f"llama-server-{name}.txt").read_text()


@pytest.fixture
def new() -> Dialect:
    return parse("llama-server==0c1e570-x", recorded("0c1e570"))


@pytest.fixture
def old() -> Dialect:
    return parse("llama-server==old-x", recorded("2025-10"))


def told(
    dialect: Dialect,
    kind: SpeculationKind | None,
    n_max: int = 4,
    settings: Settings | None = None,
    **speculation: object,
) -> list[str]:
    chosen = None if kind is None else Speculation(kind, n_max, **speculation)  # type: ignore[arg-type]
    draft = Path("draft.gguf") if kind and kind.needs_draft else None
    return arguments(
        dialect, chosen, settings or Settings(), GREEDY, Path("t.gguf"), draft, 4000, "key"
    )


def value(said: list[str], flag: str) -> str:
    assert said.count(flag) == 1, f"{flag} in {said}"
    return said[said.index(flag) + 1]


class TestParse:
    def test_reads_every_kind_of_today(self, new: Dialect) -> None:
        assert new.kinds == frozenset(SpeculationKind) - {KINDS.PROMPT_LOOKUP, KINDS.AS_SERVED}
        assert not new.drafts_unasked
        assert new.flash_attention_takes_value
        assert new.layers_have_names

    def test_removed_options_are_not_offered(self, new: Dialect) -> None:
        assert new.spelling("--draft-max", "--draft", "--draft-min", "--spec-ngram-size-n") is None
        assert new.spelling("--spec-draft-p-min") == new.spelling("--spec-draft-p-min", "-x")
        assert new.options["--draft-p-min"] is new.options["--spec-draft-p-min"]

    def test_reads_switches_values_and_aliases(self, new: Dialect) -> None:
        assert new.options["--metrics"].takes is None
        assert new.options["-ngld"].takes == "N"
        assert "--n-gpu-layers-draft" in new.options["-ngld"].names
        assert new.options["--kv-unified"].names[-1] == "--no-kv-unified"

    def test_reads_the_old_spelling(self, old: Dialect) -> None:
        assert old.kinds == {KINDS.DRAFT_SIMPLE}
        assert old.drafts_unasked
        assert not old.has_spec_type
        assert not old.layers_have_names

    def test_reads_the_years_between(self) -> None:
        text = recorded("2025-10") + SPEC_TYPE_OF_EARLY_2026
        between = parse("llama-server==between-x", text)
        assert between.kinds == {
            KINDS.DRAFT_SIMPLE,
            KINDS.NGRAM_CACHE,
            KINDS.NGRAM_SIMPLE,
            KINDS.NGRAM_MAP_K,
            KINDS.NGRAM_MAP_K4V,
            KINDS.NGRAM_MOD,
        }
        said = told(between, KINDS.NGRAM_MAP_K)
        assert value(said, "--spec-type") == "ngram-map-k"
        assert value(said, "--spec-ngram-size-m") == "4"
        assert "--spec-type" not in told(between, KINDS.DRAFT_SIMPLE)

    def test_a_binary_that_is_none_says_so(self, tmp_path: Path) -> None:
        script = tmp_path / "llama-server"
        script.write_text("#!/bin/sh\necho hello\n")
        script.chmod(0o755)
        with pytest.raises(BenchmarkError, match="not that of a llama-server"):
            ask("llama-server==x", script)


class TestDevices:
    # Constructed after common_print_available_devices (llama.cpp, common/arg.cpp).
    LISTED = "Available devices:\\n  CUDA0: NVIDIA H200 (143771 MiB, 143190 MiB free)\\n"

    @pytest.fixture
    def binary(self, tmp_path: Path) -> Path:
        script = tmp_path / "llama-server"
        script.write_text(f"#!/bin/sh\nprintf '{self.LISTED}'\n")
        script.chmod(0o755)
        return script

    @pytest.mark.parametrize("names", ["none", "CUDA0"])
    def test_what_is_listed_is_there(self, binary: Path, names: str) -> None:
        require_devices(binary, names)

    @pytest.mark.parametrize("names", ["CUDA1", "CUDA0,CUDA1", "CUDA"])
    def test_what_is_not_is_named_with_what_is(self, binary: Path, names: str) -> None:
        with pytest.raises(BenchmarkError, match="there is CUDA0, none") as caught:
            require_devices(binary, names)
        assert caught.value.kind == "unsupported"


class TestArguments:
    def test_today_everything_about_drafting_is_said(self, new: Dialect) -> None:
        settings = Settings(threads=3, gpu_layers=-1, draft_gpu_layers=7, cache_type_k="q8_0")
        said = told(new, KINDS.DRAFT_SIMPLE, 8, settings, n_min=2, p_min=0.5)
        assert value(said, "--spec-type") == "draft-simple"
        assert value(said, "--spec-draft-model") == "draft.gguf"
        assert value(said, "--spec-draft-n-max") == "8"
        assert value(said, "--spec-draft-n-min") == "2"
        assert value(said, "--spec-draft-p-min") == "0.5"
        assert (value(said, "-ngl"), value(said, "-ngld")) == ("all", "7")
        assert (value(said, "-ctk"), value(said, "-ctkd"), value(said, "-ctvd")) == (
            "q8_0",
            "q8_0",
            "f16",
        )
        assert {value(said, flag) for flag in ("-t", "-tb", "--spec-draft-threads")} == {"3"}
        assert value(said, "-np") == "1"

    def test_what_the_draft_has_of_its_own_is_said(self, new: Dialect, old: Dialect) -> None:
        settings = Settings(
            threads=3,
            batch_threads=6,
            cache_type_k="q8_0",
            draft_cache_type_k="f16",
            draft_cache_type_v="q4_0",
            draft_device="CUDA1",
        )
        said = told(new, KINDS.DRAFT_SIMPLE, settings=settings)
        assert (value(said, "-t"), value(said, "-tb")) == ("3", "6")
        assert value(said, "--spec-draft-threads") == "3"
        assert value(said, "--spec-draft-threads-batch") == "6"
        assert (value(said, "-ctk"), value(said, "-ctv")) == ("q8_0", "f16")
        assert (value(said, "-ctkd"), value(said, "-ctvd")) == ("f16", "q4_0")
        assert value(said, "--spec-draft-device") == "CUDA1"
        before = told(old, KINDS.DRAFT_SIMPLE, settings=settings)
        assert (value(before, "-tbd"), value(before, "-devd")) == ("6", "CUDA1")
        assert "--spec-draft-device" not in told(new, None, settings=settings)

    def test_batch_threads_are_said_without_threads(self, new: Dialect) -> None:
        said = told(new, KINDS.DRAFT_SIMPLE, settings=Settings(batch_threads=6))
        assert (value(said, "-t"), value(said, "-tb")) == ("-1", "6")
        assert value(said, "--spec-draft-threads-batch") == "6"
        assert "--spec-draft-threads" not in said

    def test_numa_is_said_where_it_is_asked_for(
        self, new: Dialect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(arguments_module.sys, "platform", "linux")
        settings = Settings(numa="isolate")
        assert value(told(new, None, settings=settings), "--numa") == "isolate"
        assert "--numa" not in told(new, None)
        monkeypatch.setattr(arguments_module.sys, "platform", "darwin")
        with pytest.raises(BenchmarkError, match="on Linux only") as caught:
            told(new, None, settings=settings)
        assert caught.value.kind == "unsupported"

    @pytest.mark.parametrize("kind", [None, KINDS.DRAFT_SIMPLE])
    def test_both_arms_have_the_targets_overrides(
        self, new: Dialect, kind: SpeculationKind | None
    ) -> None:
        speculation = Speculation(kind, 4) if kind else None
        numbers = {"llama.expert_used_count": 3}
        paths = Path("t.gguf"), Path("draft.gguf")
        said = arguments(new, speculation, Settings(), GREEDY, *paths, 1, "k", numbers)
        assert value(said, "--override-kv") == "llama.expert_used_count=int:3"

    @pytest.mark.parametrize(
        ("flag", "settings"),
        [
            ("--numa", Settings(numa="distribute")),
            ("-devd", Settings(draft_device="CUDA1")),
            ("-ctvd", Settings(draft_cache_type_v="q8_0")),
        ],
    )
    def test_what_a_binary_has_no_flag_for_is_refused(
        self, new: Dialect, flag: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(arguments_module.sys, "platform", "linux")
        names = new.options[flag].names
        lacking = Dialect("poor", {k: v for k, v in new.options.items() if k not in names})
        with pytest.raises(BenchmarkError, match=r"^poor has no -") as caught:
            told(lacking, KINDS.DRAFT_SIMPLE, settings=settings)
        assert caught.value.kind == "unsupported"

    def test_the_baseline_is_told_not_to_speculate(self, new: Dialect, old: Dialect) -> None:
        assert value(told(new, None), "--spec-type") == "none"
        assert not {"-md", "--spec-draft-model"} & {*told(new, None), *told(old, None)}

    def test_nothing_is_kept_from_one_request_to_the_next(self, new: Dialect) -> None:
        said = told(new, KINDS.DRAFT_SIMPLE)
        assert {"--no-cache-prompt", "--metrics", "--slots", "--no-webui"} <= set(said)
        assert value(said, "--cache-ram") == value(said, "--ctx-checkpoints") == "0"
        assert value(said, "--fit") == "off"

    def test_the_law_is_the_plain_softmax(self, new: Dialect) -> None:
        said = told(new, None)
        assert value(said, "--samplers") == "temperature"
        neutral = {"--temp": "0", "--top-k": "0", "--top-p": "1.0", "--min-p": "0.0"}
        assert {flag: value(said, flag) for flag in neutral} == neutral

    def test_the_old_spelling_is_spoken(self, old: Dialect) -> None:
        said = told(old, KINDS.DRAFT_SIMPLE, 8, Settings(gpu_layers=-1))
        assert value(said, "--draft-max") == "8"
        assert value(said, "--draft-min") == "0"
        assert value(said, "--draft-p-min") == "0"
        assert value(said, "-md") == "draft.gguf"
        assert value(said, "-ngl") == "999"
        assert value(said, "--ctx-size-draft") == "2048"
        assert all(flag in old.options for flag in said if flag.startswith("--"))

    @pytest.mark.parametrize("choice", ["on", "off", "auto"])
    def test_flash_attention_as_value_and_as_switch(self, new: Dialect, choice: str) -> None:
        settings = Settings(flash_attention=choice)
        assert value(told(new, None, settings=settings), "-fa") == choice
        lines = [line for line in recorded("2025-10").splitlines() if not line.startswith("-fa")]
        switch = parse("llama-server==switch-x", "\n".join([SWITCH_FA, *lines]))
        assert ("-fa" in told(switch, None, settings=settings)) == (choice == "on")

    @pytest.mark.parametrize(
        ("kind", "n_max", "flag"),
        [
            (KINDS.NGRAM_SIMPLE, 16, "--spec-ngram-simple-size-m"),
            (KINDS.NGRAM_MAP_K, 4, "--spec-ngram-map-k-size-m"),
            (KINDS.NGRAM_MAP_K4V, 4, "--spec-ngram-map-k4v-size-m"),
            (KINDS.NGRAM_MOD, 4, "--spec-ngram-mod-n-max"),
        ],
    )
    def test_k_reaches_the_flag_of_its_kind(
        self, new: Dialect, kind: SpeculationKind, n_max: int, flag: str
    ) -> None:
        said = told(new, kind, n_max)
        assert value(said, "--spec-type") == kind
        assert value(said, flag) == str(n_max)

    def test_each_of_several_requests_has_the_whole_context(
        self, new: Dialect, old: Dialect
    ) -> None:
        settings = Settings(context_tokens=1024, concurrent_requests=4)
        for dialect in (new, old):
            said = told(dialect, KINDS.DRAFT_SIMPLE, settings=settings)
            assert (value(said, "-np"), value(said, "-c")) == ("4", "4096")
        assert "--no-kv-unified" in told(new, None, settings=settings)
        assert value(told(old, KINDS.DRAFT_SIMPLE, settings=settings), "--ctx-size-draft") == "1024"

    @pytest.mark.parametrize(
        ("what_if", "flag", "said"),
        [
            (WhatIf((1.0, 0.25)), "--spec-synth-rates", "1.0,0.25"),
            (WhatIf(length=2.5), "--spec-synth-len", "2.5"),
        ],
    )
    def test_a_what_if_is_told_where_the_binary_knows_it(
        self, new: Dialect, old: Dialect, what_if: WhatIf, flag: str, said: str
    ) -> None:
        for kind in (KINDS.DRAFT_SIMPLE, KINDS.NGRAM_MOD):
            assert value(told(new, kind, 2, what_if=what_if), flag) == said
        assert flag not in told(new, None)
        with pytest.raises(BenchmarkError, match=f"old-x has no {flag}") as caught:
            told(old, KINDS.DRAFT_SIMPLE, 2, what_if=what_if)
        assert caught.value.kind == "unsupported"

    def test_mtp_needs_no_file_and_takes_one(self, new: Dialect) -> None:
        assert "--spec-draft-model" not in told(new, KINDS.DRAFT_MTP)
        speculation = Speculation(KINDS.DRAFT_MTP, 3)
        heads = Path("heads.gguf")
        said = arguments(new, speculation, Settings(), GREEDY, Path("t"), heads, 1, "k")
        assert value(said, "--spec-draft-model") == "heads.gguf"

    def test_every_flag_is_one_the_binary_knows(self, new: Dialect) -> None:
        for kind in new.kinds:
            said = told(new, kind, 8 if kind is KINDS.NGRAM_CACHE else 16)
            assert [flag for flag in said if flag.startswith("-") and flag[1:2].isalpha()]
            unknown = [f for f in said if f.startswith("--") and f not in new.options]
            assert unknown == []

    @pytest.mark.parametrize(
        ("kind", "speculation", "message"),
        [
            (KINDS.PROMPT_LOOKUP, {}, "no kind prompt-lookup"),
            (KINDS.NGRAM_CACHE, {"n_max": 4}, "drafts 8 tokens and no other K"),
            (KINDS.NGRAM_SIMPLE, {"n_max": 11}, "never drafts with K below"),
        ],
    )
    def test_what_llama_server_never_has(
        self,
        new: Dialect,
        kind: SpeculationKind,
        speculation: dict[str, int],
        message: str,
    ) -> None:
        with pytest.raises(BenchmarkError, match=message) as caught:
            told(new, kind, **speculation)
        assert caught.value.kind == "unsupported"
        assert "llama-server==0c1e570-x" in str(caught.value)

    def test_what_this_binary_does_not_have(self, old: Dialect) -> None:
        with pytest.raises(BenchmarkError, match=r"old-x does not offer ngram-mod") as caught:
            told(old, KINDS.NGRAM_MOD)
        assert caught.value.kind == "unsupported"
        lacking = Dialect(old.build, {k: v for k, v in old.options.items() if k != "-ctkd"})
        with pytest.raises(BenchmarkError, match=r"old-x has no -ctkd"):
            told(lacking, KINDS.DRAFT_SIMPLE, settings=Settings(cache_type_k="q8_0"))

    def test_exact_rejection_sampling_is_not_llama_servers(self, new: Dialect) -> None:
        speculation = Speculation(KINDS.DRAFT_SIMPLE, 4, accept=AcceptRule.EXACT)
        warm = Sampling(0.8, 1)
        with pytest.raises(BenchmarkError, match="accept: match"):
            arguments(new, speculation, Settings(), warm, Path("t"), Path("d"), 1, "k")
