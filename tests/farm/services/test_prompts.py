import json
from collections import Counter
from pathlib import Path

import pytest

from farm.domain.prompt import Category, Prompt
from farm.errors import UserError
from farm.paths import resource
from farm.services.prompts import find_prompt_set, load_prompt_set, standard

GOOD = '{"category": "chat", "text": "Hello there"}'


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.jsonl"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_prompt_set(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


class TestStandard:
    def test_covers_the_categories_in_report_order(self) -> None:
        assert standard().name == "standard"
        assert standard().categories == tuple(Category)

    def test_keeps_each_category_together(self) -> None:
        order = [list(Category).index(Category(p.category)) for p in standard().prompts]

        assert order == sorted(order)

    def test_has_twelve_prompts_in_each_category(self) -> None:
        counts = Counter(prompt.category for prompt in standard().prompts)

        assert counts == dict.fromkeys(Category, 12)

    def test_repeats_neither_id_nor_text(self) -> None:
        prompts = standard().prompts

        assert len({prompt.id for prompt in prompts}) == len(prompts)
        assert len({prompt.text for prompt in prompts}) == len(prompts)

    def test_numbers_the_ids_within_their_category(self) -> None:
        expected = [f"{category}-{n:02}" for category in Category for n in range(1, 13)]

        assert [prompt.id for prompt in standard().prompts] == expected

    def test_texts_are_as_long_as_real_requests(self) -> None:
        words = {prompt.id: len(prompt.text.split()) for prompt in standard().prompts}

        assert {name: count for name, count in words.items() if not 30 <= count <= 300} == {}

    def test_tool_lists_are_valid_json(self) -> None:
        for prompt in standard().prompts:
            if prompt.category == Category.TOOL_CALLS:
                start = prompt.text.index('[{"name"')
                tools, _ = json.JSONDecoder().raw_decode(prompt.text, start)
                assert all(tool["parameters"]["type"] == "object" for tool in tools), prompt.id

    def test_structured_output_is_half_json_and_half_sql(self) -> None:
        texts = [p.text for p in standard().prompts if p.category == Category.STRUCTURED_OUTPUT]

        assert sum("CREATE TABLE" in text for text in texts) == 6
        assert sum("JSON" in text and '{"' in text for text in texts) == 6

    def test_digest_is_the_same_at_each_load(self) -> None:
        assert standard().digest == standard().digest

    def test_digest_changes_with_one_character(self, file: Path) -> None:
        shipped = resource("configs") / "prompts" / "standard.jsonl"
        content = shipped.read_text(encoding="utf-8")
        file.write_text(content, encoding="utf-8", newline="\n")
        assert load_prompt_set(file).digest == standard().digest

        assert content.count("Hey, I've just moved") == 1
        changed = content.replace("Hey, I've just moved", "Hey! I've just moved")
        file.write_text(changed, encoding="utf-8", newline="\n")

        assert load_prompt_set(file).digest != standard().digest


class TestLoad:
    def test_reads_prompts_in_file_order(self, file: Path) -> None:
        write(
            file,
            '{"id": "b", "category": "legal-2", "text": "One"}',
            '{"text": "Two", "category": "chat", "id": "a"}',
        )

        loaded = load_prompt_set(file)

        assert loaded.name == "mine"
        assert loaded.prompts == (Prompt("b", "legal-2", "One"), Prompt("a", "chat", "Two"))

    def test_takes_the_given_name(self, file: Path) -> None:
        assert load_prompt_set(write(file, GOOD), "evening").name == "evening"

    def test_numbers_prompts_without_id_by_their_line(self, file: Path) -> None:
        write(file, "", GOOD, "  ", '{"id": null, "category": "legal", "text": "Two"}', "")

        assert [prompt.id for prompt in load_prompt_set(file).prompts] == ["chat-2", "legal-4"]

    def test_keeps_the_text_exactly(self, file: Path) -> None:
        text = "  def f():\n\tgrüße = '\u2028'\n    "
        write(file, json.dumps({"category": "chat", "text": text}, ensure_ascii=False))

        assert load_prompt_set(file).prompts[0].text == text

    def test_accepts_a_byte_order_mark_and_windows_line_ends(self, file: Path) -> None:
        second = '{"category": "chat", "text": "Two"}'
        file.write_bytes(f"\ufeff{GOOD}\r\n\r\n{second}\r\n".encode())

        assert [prompt.text for prompt in load_prompt_set(file).prompts] == ["Hello there", "Two"]

    def test_accepts_one_text_in_two_categories(self, file: Path) -> None:
        write(file, GOOD, GOOD.replace("chat", "legal"))

        assert len(load_prompt_set(file).prompts) == 2


class TestRefusals:
    def test_missing_file(self, file: Path) -> None:
        message = refusal(file)

        assert "there is no prompt file" in message
        assert "'standard'" in message

    def test_file_used_as_a_folder(self, file: Path) -> None:
        write(file, GOOD)

        assert "there is no prompt file" in refusal(file / "inner.jsonl")

    def test_folder(self, tmp_path: Path) -> None:
        assert "is a folder" in refusal(tmp_path)

    def test_unreadable_file(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def deny(_: Path) -> bytes:
            raise PermissionError(13, "Permission denied")

        write(file, GOOD)
        monkeypatch.setattr(Path, "read_bytes", deny)

        assert "cannot be read (Permission denied)" in refusal(file)

    def test_not_utf8(self, file: Path) -> None:
        file.write_bytes(GOOD.encode() + b"\n" + GOOD.replace("Hello", "Grüße").encode("latin-1"))

        message = refusal(file)

        assert "line 2: byte 0xfc is not UTF-8" in message
        assert "save the file as UTF-8" in message

    @pytest.mark.parametrize("content", ["", "\n  \n\r\n", "\ufeff"])
    def test_no_prompts(self, file: Path, content: str) -> None:
        message = refusal(write(file, content))

        assert "holds no prompts" in message
        assert "category, text and, optionally, id" in message

    def test_not_json_tells_line_and_column(self, file: Path) -> None:
        message = refusal(write(file, GOOD, "", '{"category": "chat" "text": "Hi"}'))

        assert "line 3, column 21: not JSON (Expecting ',' delimiter)" in message
        assert "one JSON object per line" in message

    @pytest.mark.parametrize(
        ("bad", "problem"),
        [
            ('{"category": "chat", "text": "Hi", "lang": "en"}', "unknown key 'lang'"),
            ('{"category": "chat"}', "missing key 'text'"),
            ('{"text": "Hi"}', "missing key 'category'"),
            (
                '{"category": "chat", "prompt": "Hi"}',
                "missing key 'text' and unknown key 'prompt'",
            ),
            ('{"category": "chat", "text": ""}', "text is empty"),
            ('{"category": "chat", "text": " \\n\\t"}', "text is empty"),
            ('{"category": "", "text": "Hi"}', "category is empty"),
            ('{"category": "chat", "text": "Hi", "id": ""}', "id is empty"),
            ('{"category": "chat", "text": 5}', "text is a JSON number, not a string"),
            ('{"category": "chat", "text": null}', "text is a JSON null, not a string"),
            ('{"category": "chat", "text": true}', "text is a JSON boolean, not a string"),
            ('{"category": "chat", "text": ["Hi"]}', "text is a JSON array, not a string"),
            ('{"category": {}, "text": "Hi"}', "category is a JSON object, not a string"),
            ('{"category": "chat", "text": "\\ud800"}', "text is not valid text"),
            ('{"category": "chat", "text": "Hi", "\\ud800": 1}', "a key is not valid text"),
            ("[" * 100_000, "nested too deeply to be a prompt"),
        ],
    )
    def test_line_with_wrong_keys_or_values(self, file: Path, bad: str, problem: str) -> None:
        message = refusal(write(file, GOOD, "", bad, GOOD))

        assert f"line 3: {problem}; " in message or f"line 3: {problem} (" in message
        assert "the allowed keys are category, text and, optionally, id" in message

    @pytest.mark.parametrize("word", ["Chat", "my chat", "-chat", "chat_2", "chat\n", "größe"])
    def test_category_that_is_no_word(self, file: Path, word: str) -> None:
        message = refusal(write(file, GOOD, json.dumps({"category": word, "text": "Hi"})))

        assert f"line 2: category {word!r} is not a category word" in message
        assert "lower-case letters, digits and hyphens" in message

    @pytest.mark.parametrize(
        ("line", "kind"),
        [("[1]", "array"), ('"Hi"', "string"), ("1" * 5000, "number"), ("null", "null")],
    )
    def test_line_that_is_no_object(self, file: Path, line: str, kind: str) -> None:
        assert f"line 2: a JSON {kind} where an object belongs" in refusal(write(file, GOOD, line))

    def test_repeated_key(self, file: Path) -> None:
        bad = '{"category": "chat", "text": "Hi", "text": "Ho"}'

        assert "line 2: key 'text' appears twice" in refusal(write(file, GOOD, bad))

    def test_duplicate_id(self, file: Path) -> None:
        first = '{"id": "greeting", "category": "chat", "text": "One"}'
        second = '{"id": "greeting", "category": "legal", "text": "Two"}'

        message = refusal(write(file, first, "", second))

        assert "line 3: id 'greeting' is already used in line 1" in message

    def test_id_that_takes_a_line_number_of_another(self, file: Path) -> None:
        first = '{"id": "chat-2", "category": "chat", "text": "One"}'

        assert "line 2: id 'chat-2' is already used in line 1" in refusal(write(file, first, GOOD))

    def test_duplicate_text_within_a_category(self, file: Path) -> None:
        other = '{"category": "chat", "text": "Other"}'

        message = refusal(write(file, GOOD, other, GOOD))

        assert "line 3: the text repeats line 1 in category 'chat'" in message


class TestFind:
    def test_standard_is_the_shipped_set_whatever_lies_beside_the_sweep(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path / "standard", GOOD)

        assert find_prompt_set("standard", tmp_path) == standard()

    def test_relative_path_starts_at_the_sweeps_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sweeps = tmp_path / "sweeps"
        elsewhere = tmp_path / "elsewhere"
        for folder, text in ((sweeps, "near the sweep"), (elsewhere, "near the shell")):
            (folder / "sets").mkdir(parents=True)
            write(folder / "sets" / "mine.jsonl", GOOD.replace("Hello there", text))
        monkeypatch.chdir(elsewhere)

        found = find_prompt_set("sets/mine.jsonl", sweeps)

        assert found.name == "mine"
        assert [prompt.text for prompt in found.prompts] == ["near the sweep"]

    def test_absolute_path_stands_for_itself(self, file: Path, tmp_path: Path) -> None:
        write(file, GOOD)

        assert find_prompt_set(str(file), tmp_path / "sweeps").name == "mine"

    def test_unknown_reference_names_the_path_tried(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"there is no prompt file .*standrad") as caught:
            find_prompt_set("standrad", tmp_path)

        assert str(tmp_path / "standrad") in str(caught.value)
