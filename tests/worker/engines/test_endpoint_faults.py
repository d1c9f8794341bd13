"""Servers that refuse, break off, fall silent or talk nonsense: each is a named, clear failure."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from endpoint_servers import Endpoints
from endpoint_stand_in import Reply, StandIn, json_reply, stand_in
from engine_contract import LIMIT_S, measured

from farm.domain.job import Arm, JobSpec, ModelRef
from farm.endpoints import register
from farm.endpoints.connection import Exchange
from farm.endpoints.register import Endpoint, pair_build
from farm.errors import BenchmarkError
from worker.engines.contract import PreparedPrompt
from worker.engines.endpoint import EndpointEngine, EndpointFactory
from worker.engines.waiting import THREAD
from worker.engines.wires import MAX_BURST_TOKENS

PROMPTS = [PreparedPrompt("digest", "text")]
MODELS = json_reply({"data": [{"id": "m"}]})
KEY = "sk-secret-4711"


def event(**payload: object) -> bytes:
    return f"data: {json.dumps(payload)}\n\n".encode()


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 2, "completion_tokens": tokens}


HELLO = event(choices=[{"text": "Hel"}])
END = event(choices=[{"text": "lo", "finish_reason": "length"}])
GOOD = Reply((HELLO, END, event(choices=[], usage=usage(2)), b"data: [DONE]\n\n"))


@pytest.fixture
def plain(register_home: Path) -> Iterator[StandIn]:
    with stand_in({"/v1/models": MODELS, "/v1/completions": GOOD}) as server:
        register.add(Endpoint("plain", server.url))
        yield server


@pytest.fixture
def fast(plain: StandIn) -> Iterator[StandIn]:
    with stand_in({"/v1/models": MODELS, "/v1/completions": GOOD}) as server:
        register.add(Endpoint("fast", server.url))
        yield server


def job() -> JobSpec:
    return Endpoints("", "").job(pair_build("plain", "fast"), "chat", ["digest"], 8)


def load(spec: JobSpec | None = None) -> EndpointEngine:
    deadline = time.monotonic() + LIMIT_S
    return EndpointFactory().load(spec or job(), Path(), None, Path(), deadline)


def failure(answer: Reply, fast: StandIn, limit_s: float = LIMIT_S) -> BenchmarkError:
    """Return what a job fails with whose speculative endpoint answers so."""
    fast.replies["/v1/completions"] = [answer]
    spec = job()
    with pytest.raises(BenchmarkError) as caught:
        measured(load(spec), spec, PROMPTS, time.monotonic() + limit_s)
    assert "fast" in str(caught.value)
    assert str(caught.value).endswith((".", "?"))
    return caught.value


@pytest.mark.parametrize(
    ("status", "kind", "sentence"),
    [
        (400, "bad-request", "answered 400: the context is too small"),
        (401, "unauthorized", "register it with --key-env"),
        (403, "unauthorized", "answered 403"),
        (404, "bad-request", "farm endpoints check"),
        (429, "server-busy", "when nobody else uses it"),
        (500, "decode-failed", "answered 500: the context is too small"),
        (503, "decode-failed", "answered 503"),
        (302, "bad-request", "answered 302"),
    ],
)
def test_a_refusal_is_named(fast: StandIn, status: int, kind: str, sentence: str) -> None:
    error = failure(json_reply({"error": {"message": "the context is too small"}}, status), fast)
    assert error.kind == kind
    assert sentence in str(error)


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (Reply((HELLO,), breaks=True), "server-lost", "broke"),
        (Reply((), breaks=True), "server-lost", "broke"),
        (Reply((HELLO,)), "server-lost", "broke off before its end"),
        (Reply((HELLO, b"data: {never closed\n\n")), "garbage", "no JSON object"),
        (Reply((b"<html>a proxy's page</html>",)), "garbage", "a proxy's page"),
        (Reply((b"\xff\xfe\x00\n\n",)), "garbage", "no JSON object"),
        (Reply((event(choices=[{"text": 1}, 2]),)), "garbage", "not as its API has it"),
        (Reply((HELLO, event(error={"message": "out of KV cache"}))), "decode-failed", "KV cache"),
        (Reply((HELLO, END, b"data: [DONE]\n\n")), "unsupported", "does not say how many tokens"),
        (
            Reply((event(choices=[{"text": "a" * 999, "finish_reason": "length"}]),
                   event(choices=[], usage=usage(MAX_BURST_TOKENS + 1)))),
            "unsupported",
            "in one piece",
        ),
    ],
)  # fmt: skip
def test_a_broken_answer_is_named(fast: StandIn, answer: Reply, kind: str, sentence: str) -> None:
    error = failure(answer, fast)
    assert error.kind == kind
    assert sentence in str(error)


def test_an_answer_without_an_end_is_broken_off(
    fast: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.endpoints.connection.MAX_ANSWER_BYTES", 1 << 20)
    error = failure(Reply((HELLO, *[b"a" * (1 << 18)] * 8), hangs=True), fast)
    assert error.kind == "garbage"
    assert "more than 1 MiB" in str(error)


# llama-server sends the head of an answer that is no stream only with its end.
SILENT = [Reply((HELLO,), hangs=True), Reply(mute=True)]


def nobody_waits_on() -> None:
    give_up = time.monotonic() + LIMIT_S
    while any(thread.name == THREAD for thread in threading.enumerate()):
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.mark.parametrize("answer", SILENT)
def test_silence_ends_at_the_deadline_and_nothing_waits_on(fast: StandIn, answer: Reply) -> None:
    error = failure(answer, fast, limit_s=0.5)
    assert error.kind == "timeout"
    nobody_waits_on()


@pytest.mark.parametrize("answer", SILENT)
def test_an_engine_that_ends_hangs_up_long_before_the_deadline(
    fast: StandIn, answer: Reply
) -> None:
    """A lost lease, say."""
    fast.replies["/v1/completions"] = [answer]
    spec = job()
    engine = load(spec)
    run = engine.run(spec, PROMPTS, time.monotonic() + 10 * LIMIT_S)
    while not fast.bodies("/v1/completions"):
        next(run)
    engine.end()
    nobody_waits_on()


def test_what_was_hung_up_on_before_it_was_sent_is_never_sent(fast: StandIn) -> None:
    exchange = Exchange(register.find("fast"), "/v1/completions", {}, LIMIT_S)
    exchange.hang_up()
    with pytest.raises(BenchmarkError) as caught:
        exchange.send()
    exchange.close()
    assert caught.value.kind == "server-lost"
    assert fast.asked == []


def test_a_server_that_is_gone_is_named_with_its_address(fast: StandIn) -> None:
    spec = job()
    engine = load(spec)
    with stand_in({}) as gone:
        pass
    register.add(Endpoint("fast", gone.url))
    with pytest.raises(BenchmarkError, match=f"{gone.url} does not answer") as caught:
        load(spec)
    assert caught.value.kind == "server-lost"
    engine.end()


class TestKeys:
    def test_a_key_is_sent_and_never_shown(
        self, fast: StandIn, register_home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAST_KEY", KEY)
        register.add(Endpoint("fast", fast.url, key_variable="FAST_KEY"))
        error = failure(json_reply({"error": f"{KEY} has no credit"}, 402), fast)
        used = {header for path, _, header in fast.asked if path == "/v1/completions"}
        assert used == {f"Bearer {KEY}"}
        assert KEY not in str(error)
        assert "[key] has no credit" in str(error)
        assert KEY not in (register_home / "endpoints" / "fast.json").read_text()

    def test_a_refused_key_names_its_variable(
        self, fast: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAST_KEY", KEY)
        register.add(Endpoint("fast", fast.url, key_variable="FAST_KEY"))
        error = failure(json_reply({"error": f"bad key {KEY}"}, 401), fast)
        assert error.kind == "unauthorized"
        assert "look at the key in FAST_KEY" in str(error)
        assert KEY not in str(error)

    def test_a_variable_that_is_not_set_is_named(self, fast: StandIn) -> None:
        spec = job()
        register.add(Endpoint("fast", fast.url, key_variable="NO_SUCH_KEY"))
        with pytest.raises(BenchmarkError, match="NO_SUCH_KEY, which is not set") as caught:
            load(spec)
        assert caught.value.kind == "unauthorized"


class TestWhatAJobCanName:
    def test_an_address_in_a_job_leads_nowhere(self, fast: StandIn) -> None:
        asked = len(fast.asked)
        spec = replace(job(), build=f"endpoint==plain+{fast.url}")
        spent = len(fast.asked)
        with pytest.raises(BenchmarkError, match="name has up to 40 letters") as caught:
            load(spec)
        assert caught.value.kind == "build-changed"
        assert len(fast.asked) == spent > asked

    @pytest.mark.parametrize("name", ["../../etc/passwd", "x", ""])
    def test_a_name_that_is_not_registered_is_refused(self, fast: StandIn, name: str) -> None:
        with pytest.raises(BenchmarkError) as caught:
            load(replace(job(), build=f"endpoint==plain+{name}"))
        assert caught.value.kind == "build-changed"

    def test_another_model_than_at_planning_is_refused(self, fast: StandIn) -> None:
        spec = job()
        fast.replies["/v1/models"] = [json_reply({"data": [{"id": "other"}]})]
        with pytest.raises(BenchmarkError, match="not what they served") as caught:
            load(spec)
        assert caught.value.kind == "model-changed"

    def test_a_server_that_was_replaced_between_jobs_is_refused(self, fast: StandIn) -> None:
        spec = job()
        engine = load(spec)
        assert len(measured(engine, spec, PROMPTS)) == 2
        fast.replies["/v1/models"] = [json_reply({"data": [{"id": "other"}]})]
        with pytest.raises(BenchmarkError, match="not what it was") as caught:
            measured(engine, spec, PROMPTS)
        assert caught.value.kind == "model-changed"

    def test_a_server_that_says_the_same_elsewhere_is_another(
        self, plain: StandIn, fast: StandIn
    ) -> None:
        before = load()
        with stand_in({"/v1/models": MODELS}) as moved:
            register.add(Endpoint("fast", moved.url))
            after = load()
            assert before.build.digest != after.build.digest
            spec = job()
            places = [one.parameters(spec)[Arm.SPECULATIVE]["place"] for one in (before, after)]
            assert places[0] != places[1]
            said = f"{after.build}{after.parameters(spec)}"
            assert "127.0.0.1" not in said
            assert f":{urlsplit(moved.url).port}" not in said

    def test_a_target_of_another_digest_is_refused(self, fast: StandIn) -> None:
        spec = replace(job(), target=ModelRef("plain", "0" * 64, "m"))
        with pytest.raises(BenchmarkError) as caught:
            load(spec)
        assert caught.value.kind == "model-changed"


def test_an_address_that_turns_out_to_be_outside_gets_no_prompt(
    fast: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that was private when it was registered can stand for another host later."""
    spec, spent = job(), len(fast.asked)
    monkeypatch.setattr("farm.endpoints.connection.is_near", lambda _: False)
    with pytest.raises(BenchmarkError, match="--remote") as caught:
        load(spec)
    assert caught.value.kind == "unsupported"
    assert len(fast.asked) == spent
