from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from farm.errors import UserError
from farm.services.sweepfile import INSTALLED, SweepFile, load_sweep

Write = Callable[[str], Path]

GOOD = """\
name: first
k: [2, 4]
pairs:
  - target: target.gguf
    drafts: [draft.gguf]
"""

NO_DRAFT = """\
name: first
k: [2, 4]
pairs:
  - target: target.gguf
    kind: prompt-lookup
"""


def with_k(text: str) -> str:
    return GOOD.replace("[2, 4]", text)


def read(write: Write, text: str) -> SweepFile:
    return load_sweep(write(text))[0]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_sweep(path)
    return str(caught.value)


class TestGood:
    def test_what_is_left_out_has_the_documented_values(self, sweep_file: Write) -> None:
        sweep = read(sweep_file, GOOD)

        assert (sweep.machines, sweep.p_min, sweep.n_min, sweep.accept_rules) == (
            ["any"],
            [0.0],
            [0],
            ["exact"],
        )
        assert (sweep.temperatures, sweep.seeds, sweep.context_tokens) == ([0.0], [0], [2048])
        assert (sweep.threads, sweep.gpu_layers, sweep.draft_gpu_layers) == (None, None, None)
        assert (sweep.cache_type_k, sweep.cache_type_v) == (["f16"], ["f16"])
        assert (sweep.flash_attention, sweep.engine, sweep.build) == (
            ["auto"],
            "in-process",
            INSTALLED,
        )
        assert (sweep.generate_tokens, sweep.repeats, sweep.label) == (128, 1, "")
        assert sweep.prompts.set == "standard"

    def test_every_setting_may_be_a_list_or_one_value(self, sweep_file: Write) -> None:
        listed = (
            "n_min: [0, 2]\nbatch_threads: [2, 4]\nnuma: [off, distribute]\n"
            "draft_cache_type_k: [f16, q8_0]\ndraft_cache_type_v: [f16, q4_0]\n"
            "draft_device: [none, CUDA1]\nexperts_used: [2, 4]\ndepth_tokens: [0, 16384]\n"
        )
        many, one = (
            read(sweep_file, GOOD + text)
            for text in (listed, listed.replace("[", "").replace(",", " #"))
        )
        for key in (line.split(":")[0] for line in listed.splitlines()):
            assert len(getattr(many, key)) == 2
            assert getattr(one, key) == getattr(many, key)[:1]
        assert many.numa == ["off", "distribute"]

    def test_n_min_may_be_above_some_k(self, sweep_file: Write) -> None:
        assert read(sweep_file, f"{GOOD}n_min: [0, 4]\n").n_min == [0, 4]

    def test_the_text_is_kept_as_it_was_written(self, sweep_file: Write) -> None:
        text = f"# mine\n{GOOD}"

        assert load_sweep(sweep_file(text))[1] == text

    def test_a_single_value_is_a_list_of_one(self, sweep_file: Write) -> None:
        sweep = read(sweep_file, with_k("4") + "temperatures: 0.7\nmachines: kind:cpu\nseeds: 3\n")

        assert (sweep.k, sweep.temperatures, sweep.machines, sweep.seeds) == (
            [4],
            [0.7],
            ["kind:cpu"],
            [3],
        )

    @pytest.mark.parametrize(
        ("text", "values"),
        [
            ("{from: 2, to: 8, step: 2}", [2, 4, 6, 8]),
            ("{from: 2, to: 9, step: 3}", [2, 5, 8]),
            ("{from: 1, to: 3}", [1, 2, 3]),
            ("{from: 128, to: 128}", [128]),
        ],
    )
    def test_a_range_is_spelled_out(self, sweep_file: Write, text: str, values: list[int]) -> None:
        assert read(sweep_file, with_k(text)).k == values

    @pytest.mark.parametrize(
        ("text", "values"), [("off", ["off"]), ("[on, off, auto]", ["on", "off", "auto"])]
    )
    def test_yamls_truth_values_are_words_of_flash_attention(
        self, sweep_file: Write, text: str, values: list[str]
    ) -> None:
        assert read(sweep_file, f"{GOOD}flash_attention: {text}\n").flash_attention == values

    def test_a_kind_without_drafts(self, sweep_file: Write) -> None:
        text = "name: a\nk: 4\npairs:\n  - {target: t.gguf, kind: prompt-lookup}\n"

        assert read(sweep_file, text).pairs[0].drafts is None

    @pytest.mark.parametrize("selector", ["any", "kind:nvidia", "name:bench-1.lan"])
    def test_a_machine_selector(self, sweep_file: Write, selector: str) -> None:
        assert read(sweep_file, f"{GOOD}machines: {selector}\n").machines == [selector]

    def test_a_list_may_be_used_twice_by_its_anchor(self, sweep_file: Write) -> None:
        sweep = read(sweep_file, with_k("&few [2, 4]") + "seeds: *few\n")

        assert sweep.seeds == [2, 4]


BAD = {
    "unknown key": (f"{GOOD}draft: x\n", "6:1", ["unknown key 'draft'", "allowed are", "pairs"]),
    "unknown key of a pair": (
        f"{GOOD}    k: 2\n",
        "6:5",
        ["unknown key 'k'", "allowed are drafts, kind, target"],
    ),
    "unknown key of prompts": (
        f"{GOOD}prompts:\n  per_categories: 2\n",
        "7:3",
        ["unknown key 'per_categories'", "allowed are categories, per_category, set"],
    ),
    "key that looks like pydantic's": (f"{GOOD}function-x: 1\n", "6:1", ["'function-x'"]),
    "key that is no word": (f"{GOOD}1: x\n", "6:1", ["keys should be strings"]),
    "number for a name": (GOOD.replace("first", "12"), "1:7", ["name: ", "valid string", "12"]),
    "word for a K": (with_k("[2, four]"), "2:8", ["k.1: ", "valid integer", "'four'"]),
    "truth value for a K": (with_k("true"), "2:4", ["k.0: ", "valid integer"]),
    "fraction for a seed": (f"{GOOD}seeds: [1, 1.5]\n", "6:12", ["seeds.1: ", "valid integer"]),
    "text for pairs": ("name: a\nk: 4\npairs: x\n", "3:8", ["pairs: ", "valid list"]),
    "text for prompts": (f"{GOOD}prompts: standard\n", "6:10", ["prompts: ", "dictionary"]),
    "number for a draft": (GOOD.replace("[draft.gguf]", "[a, 3]"), "5:17", ["pairs.0.drafts.1"]),
    "missing k": (GOOD.replace("k: [2, 4]\n", ""), "1:1", ["'k' is missing"]),
    "missing name": (GOOD.replace("name: first\n", ""), "1:1", ["'name' is missing"]),
    "missing target": ("name: a\nk: 4\npairs:\n  - drafts: x\n", "4:5", ["'target' is missing"]),
    "missing drafts": (
        "name: a\nk: 4\npairs:\n  - target: x\n",
        "4:5",
        ["draft-simple needs 'drafts'", "prompt-lookup"],
    ),
    "drafts where none is read": (
        f"{GOOD}    kind: prompt-lookup\n",
        "4:5",
        ["prompt-lookup takes no 'drafts'"],
    ),
    "unknown kind": (f"{GOOD}    kind: eagle\n", "6:11", ["'draft-simple'", "'prompt-lookup'"]),
    "no K": (with_k("[]"), "2:4", ["k: the list is empty"]),
    "no pair": ("name: a\nk: 4\npairs: []\n", "3:8", ["pairs: ", "at least 1"]),
    "no draft": (GOOD.replace("[draft.gguf]", "[]"), "5:13", ["the list is empty"]),
    "no threads": (f"{GOOD}threads: []\n", "6:10", ["threads: the list is empty"]),
    "K twice": (with_k("[4, 8, 4]"), "2:4", ["k: 4 is there twice"]),
    "temperature twice": (f"{GOOD}temperatures: [0, 0.0]\n", "6:15", ["is there twice"]),
    "key twice": (f"{GOOD}k: 8\n", "6:1", ["the key 'k' is there twice", "keep one"]),
    "nested key twice": (
        f"{GOOD}    target: other.gguf\n",
        "6:5",
        ["the key 'target' is there twice"],
    ),
    "no request at once": (
        f"{GOOD}concurrent_requests: [1, 0]\n",
        "6:26",
        ["concurrent_requests.1: ", "greater than or equal to 1", "(it is 0)"],
    ),
    "too many at once": (
        f"{GOOD}concurrent_requests: 65\n",
        "6:22",
        ["less than or equal to 64"],
    ),
    "rates that rise": (
        f"{GOOD}what_if: [{{rates: [0.5, 0.6]}}]\n",
        "6:11",
        ["never rise", "[0.5, 0.6] does"],
    ),
    "rate above 1": (
        f"{GOOD}what_if: {{rates: [1.5]}}\n",
        "6:10",
        ["rates.0: ", "less than or equal to 1"],
    ),
    "what-if of both": (
        f"{GOOD}what_if: {{rates: [0.5], length: 2}}\n",
        "6:10",
        ["either rates or a length"],
    ),
    "length under 1": (
        f"{GOOD}what_if: {{length: 0.5}}\n",
        "6:10",
        ["greater than or equal to 1"],
    ),
    "K of 0": (with_k("[0, 2]"), "2:5", ["k.0: ", "greater than or equal to 1", "(it is 0)"]),
    "K too large": (with_k("129"), "2:4", ["less than or equal to 128", "(it is 129)"]),
    "range downwards": (with_k("{from: 8, to: 2}"), "2:4", ["k: a range goes up"]),
    "range from below": (with_k(f"{{from: {-(10**12)}, to: 2}}"), "2:4", ["from 1 or more"]),
    "range too far": (with_k(f"{{from: 1, to: {10**12}}}"), "2:4", ["to 128 or less"]),
    "range without end": (with_k("{from: 1}"), "2:4", ["the keys from, to and"]),
    "range with another key": (with_k("{from: 1, to: 4, by: 2}"), "2:4", ["the keys from, to"]),
    "range with no step": (with_k("{from: 1, to: 4, step: 0}"), "2:4", ["step is at least 1"]),
    "range of fractions": (with_k("{from: 1, to: 4.5}"), "2:4", ["whole numbers"]),
    "range of seeds": (f"{GOOD}seeds: {{from: 1, to: 3}}\n", "6:8", ["seeds.0: "]),
    "machine of no kind": (f"{GOOD}machines: [any, kind:tpu]\n", "6:17", ["'kind:tpu'"]),
    "machine without prefix": (f"{GOOD}machines: bench-1\n", "6:11", ["'bench-1'"]),
    "n_min above k": (f"{GOOD}n_min: 3\n", "1:1", ["n_min 3 is above k 2"]),
    "no k for an n_min": (f"{GOOD}n_min: [0, 5]\n", "1:1", ["n_min 5 is above k 4"]),
    "no n_min for a k": (f"{GOOD}n_min: [3, 4]\n", "1:1", ["n_min 3 is above k 2"]),
    "unknown policy": (f"{GOOD}numa: mirror\n", "6:7", ["'distribute'", "'mirror'"]),
    "negative depth": (f"{GOOD}depth_tokens: -1\n", "6:15", ["depth_tokens.0", "(it is -1)"]),
    "no experts": (f"{GOOD}experts_used: 0\n", "6:15", ["experts_used.0", "(it is 0)"]),
    "device with a gap": (f"{GOOD}draft_device: 'a b'\n", "6:15", ["draft_device.0"]),
    "draft's cache without a draft": (
        f"{NO_DRAFT}draft_cache_type_k: q8_0\n",
        "1:1",
        ["draft_cache_type_k is for a draft", "leave it out"],
    ),
    "draft's device without a draft": (
        f"{NO_DRAFT}draft_device: none\n",
        "1:1",
        ["draft_device is for a draft", "leave it out"],
    ),
    "p_min above 1": (f"{GOOD}p_min: [0.5, 1.5]\n", "6:14", ["p_min.1: ", "(it is 1.5)"]),
    "temperature that is no number": (f"{GOOD}temperatures: .nan\n", "6:15", ["temperatures.0"]),
    "negative temperature": (f"{GOOD}temperatures: -0.5\n", "6:15", ["(it is -0.5)"]),
    "no repeats": (f"{GOOD}repeats: 0\n", "6:10", ["repeats: ", "(it is 0)"]),
    "unknown cache type": (f"{GOOD}cache_type_k: [f16, q9]\n", "6:21", ["'q9'", "'q8_0'"]),
    "unknown engine": (f"{GOOD}engine: vllm\n", "6:9", ["'in-process'", "'vllm'"]),
    "tab": ("name: a\n\tk: 4\n", "2:1", ["not valid YAML", "cannot start any token"]),
    "unclosed list": (with_k("[2, 4"), "3:6", ["not valid YAML"]),
    "unknown tag": (f"{GOOD}label: !x y\n", "6:8", ["not valid YAML", "'!x'"]),
    "unknown alias": (f"{GOOD}label: *x\n", "6:8", ["not valid YAML", "undefined alias 'x'"]),
    "alias inside its anchor": (f"{GOOD}seeds: &a [1, *a]\n", "6:8", ["inside its own anchor"]),
    "second document": (f"{GOOD}---\n{GOOD}", "6:1", ["another document"]),
    "list for a key": (f"{GOOD}? [a]\n: b\n", "6:3", ["unhashable key"]),
    "date that does not exist": (f"{GOOD}label: 2024-13-45\n", "6:8", ["month must be in 1..12"]),
    "number too long": (f"{GOOD}seeds: [1, {'9' * 5000}]\n", "6:12", ["4300 digits"]),
    "list at the top": ("- name: a\n", "1:1", ["a mapping of keys", "farm submit --example"]),
    "word at the top": ("hello\n", "1:1", ["a mapping of keys"]),
    "nothing": ("", "1:1", ["a mapping of keys"]),
    "comments alone": ("# nothing yet\n", "1:1", ["a mapping of keys"]),
}


class TestBad:
    @pytest.mark.parametrize(("text", "place", "parts"), BAD.values(), ids=BAD.keys())
    def test_says_where_and_what(
        self, sweep_file: Write, text: str, place: str, parts: list[str]
    ) -> None:
        path = sweep_file(text)

        message = refusal(path)

        assert message.startswith(f"{path}:{place}: ")
        assert [part for part in parts if part not in message] == []

    def test_names_every_mistake_at_once(self, sweep_file: Write) -> None:
        path = sweep_file("name: a\nk: 0\npairz: 1\n")

        lines = refusal(path).splitlines()

        assert [line.split(": ")[0] for line in lines[:-1]] == [
            f"{path}:1:1",
            f"{path}:2:4",
            f"{path}:3:1",
        ]
        assert lines[-1] == "Nothing was submitted."

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            (f"{GOOD}label: {'[' * 3000}{']' * 3000}\n", "nested too deeply"),
            (f"{GOOD}label: \0\n", "special characters are not allowed"),
            (GOOD + 'label: "\\U00110000"\n', "not valid YAML"),
        ],
        ids=["deep", "control character", "beyond Unicode"],
    )
    def test_names_the_file_where_no_line_is_known(
        self, sweep_file: Write, text: str, part: str
    ) -> None:
        path = sweep_file(text)

        message = refusal(path)

        assert message.startswith(str(path))
        assert part in message
        assert "\n" not in message


class TestFile:
    def test_that_is_not_there(self, tmp_path: Path) -> None:
        message = refusal(tmp_path / "nowhere.yaml")

        assert "There is no sweep file" in message
        assert "farm submit --example" in message

    def test_that_is_a_folder(self, tmp_path: Path) -> None:
        assert f"{tmp_path} is a folder" in refusal(tmp_path)

    def test_that_is_not_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "sweep.yaml"
        path.write_bytes(GOOD.encode() + b"label: \xff\n")

        assert f"{path} can't be read as text" in refusal(path)

    def test_that_starts_with_a_byte_order_mark(self, tmp_path: Path) -> None:
        path = tmp_path / "sweep.yaml"
        path.write_text(GOOD, encoding="utf-8-sig")

        assert load_sweep(path)[0].name == "first"
