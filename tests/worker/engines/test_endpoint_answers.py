"""What other servers report, from answers that were recorded or documented (recorded/README.md)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from endpoint_servers import Endpoints
from endpoint_stand_in import Reply, StandIn, json_reply, stand_in, text_reply
from engine_contract import LIMIT_S, measured, of_arm

from farm.domain.job import Arm
from farm.domain.measurement import Parity, Sample
from farm.endpoints import register
from farm.endpoints.register import Endpoint, pair_build
from farm.errors import BenchmarkError
from worker.bench.warm_up import WARM_UP_TEXT
from worker.engines.contract import PreparedPrompt
from worker.engines.endpoint import EndpointFactory

RECORDED = Path(__file__).parent / "recorded"
PROMPT = PreparedPrompt("digest", "The capital of France is")

Replies = dict[str, Reply | list[Reply]]
Serve = Callable[..., StandIn]


def recorded(name: str) -> Reply:
    return text_reply((RECORDED / name).read_text())


def recorded_json(name: str) -> Any:
    return json.loads((RECORDED / name).read_text())


def events(*payloads: dict[str, Any]) -> Reply:
    """Return a stream of server-sent events, each a piece of its own."""
    pieces = [f"data: {json.dumps(payload)}\n\n".encode() for payload in payloads]
    return Reply((*pieces, b"data: [DONE]\n\n"))


def said(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish} | more]}


def used(tokens: int, **more: Any) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}} | more


def vllm(**changes: Reply | list[Reply]) -> Replies:
    """Return vLLM's replies, without speculation unless changed."""
    models = {"data": [{"id": "Qwen/Qwen2.5-7B-Instruct", "object": "model", "owned_by": "vllm",
                        "root": "Qwen/Qwen2.5-7B-Instruct", "max_model_len": 32768}]}  # fmt: skip
    counted = ("vllm:generation_tokens_total 16.0\n", "vllm:generation_tokens_total 24.0\n")
    return {
        "/v1/models": json_reply(models),
        "/version": json_reply({"version": "0.11.2"}),
        "/metrics": [text_reply(text) for text in counted],
        "/v1/completions": recorded("vllm-completions-constructed.txt"),
    } | changes


def lm_studio(**changes: Reply | list[Reply]) -> Replies:
    models = [{"id": "granite-3.0-2b-instruct", "object": "model"}]
    known = [models[0] | {"compatibility_type": "gguf", "state": "loaded"}]
    return {
        "/v1/models": json_reply({"data": models}),
        "/api/v0/models": json_reply({"data": known}),
        "/v1/completions": recorded("lm-studio-completions-constructed.txt"),
    } | changes


def ollama(**changes: Reply | list[Reply]) -> Replies:
    return {
        "/v1/models": json_reply({"data": [{"id": "llama3.2:latest", "owned_by": "library"}]}),
        "/api/version": json_reply({"version": "0.12.11"}),
        "/api/tags": json_reply(recorded_json("ollama-tags-documented.json")),
        "/api/generate": recorded("ollama-generate-documented.txt"),
    } | changes


def plain_openai(answer: Reply) -> Replies:
    return {"/v1/models": json_reply({"data": [{"id": "m"}]}), "/v1/completions": answer}


@pytest.fixture
def serve(register_home: Path) -> Iterator[Serve]:
    """Return a starter of stand-ins under a name in this test's register."""
    with ExitStack() as stack:

        def serve(name: str, replies: Replies, **registration: Any) -> StandIn:
            server = stack.enter_context(stand_in(replies))
            register.add(Endpoint(name, server.url, **registration))
            return server

        yield serve


def run(generate_tokens: int = 8) -> list[Sample]:
    """Measure the endpoints "plain" and "fast" with one prompt."""
    build = pair_build("plain", "fast")
    job = Endpoints("", "").job(build, "chat", [PROMPT.digest], generate_tokens)
    deadline = time.monotonic() + LIMIT_S
    engine = EndpointFactory().load(job, Path(), None, Path(), deadline)
    return measured(engine, job, [PROMPT], deadline)


def arms(samples: list[Sample]) -> tuple[Sample, Sample]:
    (plain,), (fast,) = (of_arm(samples, arm) for arm in Arm)
    return plain, fast


class TestVllm:
    METRICS = (
        recorded("vllm-metrics-before-constructed.txt"),
        recorded("vllm-metrics-after-constructed.txt"),
    )

    def test_its_counters_say_what_was_drafted(self, serve: Serve) -> None:
        serve("plain", vllm())
        serve("fast", vllm(**{"/metrics": list(self.METRICS)}))
        plain, fast = arms(run())
        assert (fast.drafted, fast.accepted, fast.rounds) == (9, 4, 3)
        assert fast.accepted_per_position == (3, 1, 0)
        # Its counters of speculation are there wherever it speculates.
        assert (plain.drafted, plain.accepted, plain.rounds) == (0, 0, 0)

    def test_ids_are_compared(self, serve: Serve) -> None:
        server = serve("plain", vllm())
        serve("fast", vllm(**{"/metrics": list(self.METRICS)}))
        plain, fast = arms(run())
        assert plain.output_ids == fast.output_ids == (12095, 11, 264, 3283, 389, 279, 1345, 13)
        assert (fast.parity, fast.first_divergence) == (Parity.EXACT, None)
        assert (plain.prompt_tokens, plain.generated_tokens) == (5, 8)
        warm_up, asked = server.bodies("/v1/completions")
        assert (warm_up["prompt"], asked["prompt"]) == (WARM_UP_TEXT, PROMPT.text)
        assert asked["stream_options"] == {"include_usage": True}
        assert asked["return_token_ids"] is True

    def test_counters_that_others_moved_too_are_not_reported(self, serve: Serve) -> None:
        after = (RECORDED / "vllm-metrics-after-constructed.txt").read_text()
        busy = text_reply(after.replace("1024.0", "1300.0"))
        serve("plain", vllm())
        serve("fast", vllm(**{"/metrics": [self.METRICS[0], busy]}))
        _, fast = arms(run())
        assert (fast.drafted, fast.accepted, fast.rounds) == (None, None, None)
        assert fast.accepted_per_position is None

    def test_counters_that_come_late_are_waited_for(self, serve: Serve) -> None:
        before, after = self.METRICS
        serve("plain", vllm())
        serve("fast", vllm(**{"/metrics": [before, before, before, after]}))
        _, fast = arms(run())
        assert fast.drafted == 9

    def test_what_it_says_of_the_request_itself_comes_first(self, serve: Serve) -> None:
        serve("plain", vllm())
        own = recorded("vllm-completions-metrics-constructed.txt")
        hidden = json_reply({"detail": "Not Found"}, 404)
        serve("fast", vllm(**{"/v1/completions": own, "/metrics": hidden}))
        _, fast = arms(run())
        assert (fast.drafted, fast.accepted, fast.rounds) == (9, 4, 3)
        assert fast.accepted_per_position == (3, 1, 0)

    def test_a_server_started_without_speculation_fails_the_job(self, serve: Serve) -> None:
        serve("plain", vllm())
        serve("fast", vllm())
        with pytest.raises(BenchmarkError, match="fast drafted not one token") as caught:
            run()
        assert caught.value.kind == "not-speculating"

    def test_a_baseline_that_speculates_fails_the_job(self, serve: Serve) -> None:
        serve("plain", vllm(**{"/metrics": list(self.METRICS)}))
        serve("fast", vllm())
        with pytest.raises(BenchmarkError, match="plain speculates itself") as caught:
            run()
        assert caught.value.kind == "unsupported"


class TestLmStudio:
    def test_the_draft_is_asked_for_and_its_counts_are_read(self, serve: Serve) -> None:
        stream = (RECORDED / "lm-studio-completions-constructed.txt").read_text().splitlines()
        *others, last, _, _, _ = stream
        bare = json.loads(last.removeprefix("data: ")) | {"stats": {}}
        without = text_reply("\n".join([*others, f"data: {json.dumps(bare)}", "", "data: [DONE]"]))
        plain_server = serve("plain", lm_studio(**{"/v1/completions": without}))
        fast_server = serve("fast", lm_studio(), draft_model="granite-3.0-0.1b-draft")
        plain, fast = arms(run())
        assert (fast.drafted, fast.accepted, fast.rounds) == (12, 6, None)
        assert (plain.drafted, plain.accepted, plain.rounds) == (None, None, None)
        drafts = [
            server.bodies("/v1/completions")[-1].get("draft_model")
            for server in (plain_server, fast_server)
        ]
        assert drafts == [None, "granite-3.0-0.1b-draft"]

    def test_counts_in_the_usage_are_read_too(self, serve: Serve) -> None:
        stats = recorded_json("lm-studio-usage-0.4.24.json")
        answer = events(said("a"), said("b", "length"), {"choices": []} | stats)
        serve("plain", plain_openai(events(said("a"), said("b", "length"), used(2))))
        serve("fast", lm_studio(**{"/v1/completions": answer}))
        _, fast = arms(run())
        assert (fast.drafted, fast.accepted) == (492, 176)


class TestOllama:
    def test_its_own_counts_and_times_are_taken(self, serve: Serve) -> None:
        server = serve("plain", ollama())
        serve("fast", ollama())
        plain, fast = arms(run())
        assert (plain.prompt_tokens, plain.generated_tokens) == (26, 259)
        assert plain.prompt_ms == pytest.approx(130.079)
        assert plain.decode_ms == pytest.approx(4232.71)
        assert plain.decode_tok_s == pytest.approx(258 / 4.23271)
        asked = server.bodies("/api/generate")[-1]
        assert asked["raw"] is True
        assert (asked["options"]["num_predict"], asked["options"]["temperature"]) == (8, 0.0)
        assert fast.parity is Parity.EXACT

    def test_it_reports_no_drafts_and_the_run_stands(self, serve: Serve) -> None:
        serve("plain", ollama())
        serve("fast", ollama())
        for sample in run():
            counts = (sample.drafted, sample.accepted, sample.rounds, sample.draft_ms)
            assert counts == (None, None, None, None)
            assert sample.accepted_per_position is None
            assert sample.acceptance_rate is None


class TestParityByText:
    SAME = "Grüße an die Welt"

    def answers(self, text: str, **logprobs: Any) -> Reply:
        half = len(text) // 2
        return events(said(text[:half]), said(text[half:], "length", **logprobs), used(4))

    def test_equal_texts_are_exact(self, serve: Serve) -> None:
        serve("plain", plain_openai(self.answers(self.SAME)))
        serve("fast", plain_openai(self.answers(self.SAME)))
        plain, fast = arms(run())
        assert fast.parity is Parity.EXACT
        assert plain.output_ids == fast.output_ids == ()
        assert plain.output_digest == fast.output_digest

    def test_a_divergence_counts_characters(self, serve: Serve) -> None:
        serve("plain", plain_openai(self.answers(self.SAME)))
        serve("fast", plain_openai(self.answers("Grüße an alle")))
        plain, fast = arms(run())
        assert fast.first_divergence == len("Grüße an ")
        assert (fast.parity, fast.margin_logits) == (Parity.MISMATCH, None)
        assert plain.output_digest != fast.output_digest

    @pytest.mark.parametrize(
        ("second", "parity"), [(-0.8, Parity.NEAR_TIE), (-3.1, Parity.MISMATCH)]
    )
    def test_the_baselines_margin_decides_where_it_is_told(
        self, serve: Serve, second: float, parity: Parity
    ) -> None:
        """The walk's logprobs are for all of its tokens; "die" begins at the tenth character."""
        logprobs = {
            "tokens": ["Grüße", " an", " die", " Welt"],
            "token_logprobs": [-0.1, -0.2, -0.7, -0.1],
            "top_logprobs": [
                {"Grüße": -0.1, "Hallo": -5.0},
                {" an": -0.2, " aus": -6.0},
                {" die": -0.7, " alle": second},
                {" Welt": -0.1, " Runde": -7.0},
            ],
        }
        walk = events(said(self.SAME, "length", logprobs=logprobs), used(4))
        run_twice = self.answers(self.SAME)
        server = serve("plain", plain_openai(run_twice))
        server.replies["/v1/completions"] = [run_twice, run_twice, walk]
        serve("fast", plain_openai(self.answers("Grüße an alle")))
        _, fast = arms(run())
        assert server.bodies("/v1/completions")[-1]["logprobs"] == 2
        assert fast.margin_logits == pytest.approx(-0.7 - second)
        assert fast.parity is parity

    def test_a_walk_that_went_elsewhere_tells_nothing(self, serve: Serve) -> None:
        logprobs = {"tokens": ["Hallo"], "top_logprobs": [{"Hallo": -0.1, "Grüße": -0.2}]}
        walk = events(said("Hallo", "length", logprobs=logprobs), used(1))
        server = serve("plain", plain_openai(self.answers(self.SAME)))
        server.replies["/v1/completions"] = [self.answers(self.SAME)] * 2 + [walk]
        serve("fast", plain_openai(self.answers("Grüße an alle")))
        _, fast = arms(run())
        assert (fast.parity, fast.margin_logits) == (Parity.MISMATCH, None)


class TestTimes:
    def test_without_times_of_its_own_the_clients_clock_counts(self, serve: Serve) -> None:
        serve("plain", plain_openai(events(said("a"), said("b", "length"), used(2))))
        serve("fast", plain_openai(events(said("a"), said("b", "length"), used(2))))
        for sample in run():
            assert 0 < sample.prompt_ms < math.inf
            assert 0 <= sample.decode_ms < math.inf

    def test_times_that_come_with_the_answer_are_taken(self, serve: Serve) -> None:
        """As a proxy in front of llama-server passes them on."""
        timings = {"prompt_ms": 12.5, "predicted_ms": 250.0, "predicted_n": 4}
        spoken = timings | {"draft_n": 6, "draft_n_accepted": 2}
        for name, times in (("plain", timings), ("fast", spoken)):
            serve(name, plain_openai(events(said("abcd", "length"), used(4, timings=times))))
        plain, fast = arms(run())
        assert (plain.prompt_ms, plain.decode_ms, plain.drafted) == (12.5, 250.0, 0)
        assert (fast.drafted, fast.accepted) == (6, 2)

    def test_one_token_has_no_decoding_time(self, serve: Serve) -> None:
        for name in ("plain", "fast"):
            serve(name, plain_openai(events(said("a", "stop"), used(1))))
        assert {(one.decode_ms, one.decode_tok_s) for one in run()} == {(0.0, None)}
