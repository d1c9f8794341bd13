"""One endpoint as the engine uses it: asked, timed, counted, and hung up on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from farm.domain.decoding import Sampling
from farm.endpoints.connection import Exchange, get
from farm.endpoints.register import Api, Endpoint
from farm.endpoints.served import Served, ask
from farm.errors import BenchmarkError
from worker.engines.answers import Answer, Drafts, Event, payload_of
from worker.engines.counters import Counters, difference, read_counters
from worker.engines.waiting import Waiting, beside
from worker.engines.wires import Wire, wire_of

# vLLM answers before it counts; this long it is asked again.
COUNTING_S = 1.0
AFTER_DEADLINE_S = 5.0
_POLL_S = 0.02

T = TypeVar("T")


class Remote:
    """A server that is asked one thing at a time."""

    def __init__(self, endpoint: Endpoint, served: Served) -> None:
        self.endpoint = endpoint
        self.served = served
        self._wire: Wire = wire_of(served)
        self._exchange: Exchange | None = None

    def parameters(self, tokens: int, sampling: Sampling) -> dict[str, Any]:
        """Return what it says of itself, and what it is asked for but for prompt and seed."""
        path, body = self._wire.request("", tokens, sampling, 0, 0)
        asked = {key: value for key, value in body.items() if key not in ("prompt", "seed")}
        if isinstance(options := asked.get("options"), dict):
            asked["options"] = {key: options[key] for key in options if key != "seed"}
        served = self.served
        return {
            "server": served.server,
            "place": self.endpoint.place,
            "model": served.model,
            **dict(served.facts),
            "path": path,
            "request": asked,
        }

    def ask_again(self, deadline: float) -> Waiting[Served]:
        """Return what the server says of itself now. Raises BenchmarkError."""
        return (yield from self._beside(lambda: ask(self.endpoint), deadline))

    def complete(
        self,
        text: str,
        tokens: int,
        sampling: Sampling,
        seed: int,
        deadline: float,
        *,
        alternatives: int = 0,
        counted: bool = False,
    ) -> Waiting[Answer]:
        """Return the answer to a prompt. counted: look at the server's counters too.

        Raises BenchmarkError: "server-lost", "unauthorized", "server-busy", "bad-request",
        "decode-failed", "garbage", "unsupported", "timeout".
        """
        path, body = self._wire.request(text, tokens, sampling, seed, alternatives)
        # Past the deadline by a little: whoever waits gives up first, and says why.
        limit_s = max(deadline - time.monotonic(), 0.0) + AFTER_DEADLINE_S
        self._exchange = exchange = Exchange(self.endpoint, path, body, limit_s)

        def answer() -> Answer:
            before = self._counters() if counted else None
            found = self._answer(exchange)
            return self._with_counters(found, before) if before is not None else found

        return (yield from self._beside(answer, deadline))

    def hang_up(self) -> None:
        """Break off whatever is being asked."""
        if self._exchange is not None:
            self._exchange.hang_up()

    def _answer(self, exchange: Exchange) -> Answer:
        sent_at = time.perf_counter()
        try:
            exchange.send()
            raw = [
                (time.perf_counter() - sent_at, piece)
                for piece in self._wire.pieces(exchange.lines())
            ]
            return self._wire.read([Event(at_s, payload_of(piece)) for at_s, piece in raw])
        finally:
            exchange.close()

    def _counters(self) -> Counters | None:
        """Return the counters of a server that has them, None where it shows none."""
        if self.served.api not in (Api.VLLM, Api.LLAMA_SERVER):
            return None
        with contextlib.suppress(BenchmarkError):
            text = get(self.endpoint, "/metrics")
            return read_counters(text) if text else None
        return None

    def _with_counters(self, answer: Answer, before: Counters) -> Answer:
        """Add what the counters say of this request, where it is this request alone they count."""
        give_up = time.monotonic() + COUNTING_S
        while (after := self._counters()) is not None:
            moved = (after.generated or 0) - (before.generated or 0)
            if moved >= answer.generated_tokens or time.monotonic() > give_up:
                break
            time.sleep(_POLL_S)
        if after is None or moved != answer.generated_tokens:
            return answer
        return replace(answer, drafts=_counted(answer.drafts, before, after, self.served.api))

    def _beside(self, call: Callable[[], T], deadline: float) -> Waiting[T]:
        def look() -> None:
            if time.monotonic() >= deadline:
                self.hang_up()
                raise BenchmarkError(
                    "timeout",
                    f"The job ran past its time limit while the endpoint {self.endpoint.name} was "
                    "asked; raise job_timeout_s or ask for less.",
                )

        try:
            return (yield from beside(call, deadline, look))
        except BenchmarkError as error:
            raise self._named(error) from None

    def _named(self, error: BenchmarkError) -> BenchmarkError:
        """Return an error that says which endpoint it is about."""
        who, said = f"endpoint {self.endpoint.name} ", str(error)
        if who in said:
            return error
        return BenchmarkError(error.kind, f"The {who}can't be measured. {said}")


def _counted(drafts: Drafts | None, before: Counters, after: Counters, api: Api) -> Drafts | None:
    """Return the counts of one request, from its own answer where that has them."""
    if after.drafts is None or after.drafted is None or after.accepted is None:
        # vLLM counts speculation wherever it speculates; an older llama-server never does.
        return drafts or (Drafts(0, 0) if api is Api.VLLM else None)
    counts = Drafts(
        after.drafted - (before.drafted or 0),
        after.accepted - (before.accepted or 0),
        after.drafts - (before.drafts or 0),
        difference(after.accepted_per_position, before.accepted_per_position),
    )
    if drafts is None:
        return counts
    return replace(
        counts,
        drafted=drafts.drafted,
        accepted=drafts.accepted,
        rounds=counts.rounds if drafts.rounds is None else drafts.rounds,
    )
