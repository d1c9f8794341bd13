"""How each kind of server is asked for a completion, and what its answer means.

Facts from: llama.cpp tools/server/README.md; vLLM entrypoints/openai/completion/serving.py and
docs/features/speculative_decoding/acceptance_metrics.md; LM Studio's API changelog (0.3.10);
Ollama docs/api.md, and runner.go, whose eval_duration leaves the first token to the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from farm.domain.decoding import Sampling
from farm.endpoints.register import Api
from farm.endpoints.served import Served
from farm.errors import BenchmarkError
from worker.engines.answers import Answer, Drafts, Event, Token, well_formed
from worker.engines.completion import request as llama_server_request

# No kind drafts so many in a round: tokens that come at once were held back on the way.
MAX_BURST_TOKENS = 128
_NS_PER_MS = 1e6


class Wire(Protocol):
    """One API. `read` raises BenchmarkError: "garbage", "decode-failed", "server-lost",
    "unsupported"."""

    def request(
        self, text: str, tokens: int, sampling: Sampling, seed: int, alternatives: int
    ) -> tuple[str, dict[str, Any]]:
        """Return path and body of a request under which a token's law is the plain softmax."""

    def pieces(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the JSON texts of an answer as they come."""

    def read(self, events: Sequence[Event]) -> Answer:
        """Return what a whole answer says."""


def wire_of(served: Served) -> Wire:
    """Return how this server is spoken to."""
    match served.api:
        case Api.LLAMA_SERVER:
            return LlamaServerWire()
        case Api.OLLAMA:
            return OllamaWire(served.model)
        case _:
            return OpenAiWire(served)


class LlamaServerWire:
    """llama-server's own `/completion`: it times itself and returns every id, neither of which a
    stream would add to. (A stream leaves out the ids of a character's first bytes.)"""

    def request(
        self, text: str, tokens: int, sampling: Sampling, seed: int, alternatives: int
    ) -> tuple[str, dict[str, Any]]:
        """Return the request that the engine llama-server sends."""
        return "/completion", llama_server_request(text, tokens, sampling, seed, alternatives)

    def pieces(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the one object that is the answer."""
        yield b"".join(lines)

    def read(self, events: Sequence[Event]) -> Answer:
        """Return what the answer's `timings` and `tokens` say."""
        if not events:
            raise BenchmarkError("server-lost", "It broke off before it answered.")
        payload = events[-1].payload
        entries = payload.get("completion_probabilities") or ()
        with well_formed():
            timings = payload["timings"]
            ids = tuple(int(token) for token in payload["tokens"])
            generated = int(timings["predicted_n"])
            return Answer(
                text=str(payload["content"]),
                ids=ids if len(ids) == generated else None,
                prompt_tokens=int(timings["prompt_n"]),
                generated_tokens=generated,
                prompt_ms=float(timings["prompt_ms"]),
                decode_ms=float(timings["predicted_ms"]) if generated > 1 else 0.0,
                drafts=_timed_drafts(timings),
                tokens=tuple(_token(entry) for entry in entries),
            )


class OpenAiWire:
    """`/v1/completions` as a stream of events, with what vLLM and LM Studio add to it."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def request(
        self, text: str, tokens: int, sampling: Sampling, seed: int, alternatives: int
    ) -> tuple[str, dict[str, Any]]:
        """Return a request. Only servers known to take more than OpenAI's fields are sent more."""
        body: dict[str, Any] = {
            "model": self._served.model,
            "prompt": text,
            "max_tokens": tokens,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if alternatives:
            body["logprobs"] = alternatives
        if self._served.api is Api.VLLM:
            # Left out, vLLM takes them from the model's generation_config.json.
            body |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
        if self._served.api is Api.LM_STUDIO:
            body |= {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
            if self._served.draft_model is not None:
                body["draft_model"] = self._served.draft_model
        return "/v1/completions", body

    def pieces(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the data of server-sent events up to "[DONE]" (WHATWG HTML, section 9.2)."""
        data: list[bytes] = []
        for line in lines:
            stripped = line.strip()
            if not stripped and data:
                yield b"\n".join(data)
                data = []
            elif stripped == b"data: [DONE]":
                return
            elif stripped.startswith(b"data:"):
                data.append(stripped.removeprefix(b"data:").strip())
            elif stripped and not stripped.startswith((b":", b"event:", b"id:", b"retry:")):
                # No event: an answer that is one plain object, or not this API at all.
                data.append(stripped)
        if data:
            yield b"\n".join(data)

    def read(self, events: Sequence[Event]) -> Answer:
        """Return what the events say, by the client's clock where the server tells no times."""
        with well_formed():
            said: dict[str, Any] = {}
            pieces: list[tuple[float, dict[str, Any]]] = []
            for event in events:
                said |= {key: value for key, value in event.payload.items() if value}
                pieces += [(event.at_s, choice) for choice in event.payload.get("choices") or ()]
            if not any(choice.get("finish_reason") for _, choice in pieces):
                raise BenchmarkError("server-lost", "Its answer broke off before its end.")
            usage = said.get("usage") or {}
            if "completion_tokens" not in usage or "prompt_tokens" not in usage:
                raise BenchmarkError(
                    "unsupported",
                    "It does not say how many tokens it generated (no usage in the stream), so no "
                    "speed can be told: pieces of a stream are not tokens.",
                )
            generated = int(usage["completion_tokens"])
            timings = said.get("timings") or {}
            if "predicted_ms" in timings:
                prompt_ms = float(timings["prompt_ms"])
                decode_ms = float(timings["predicted_ms"]) if generated > 1 else 0.0
            else:
                prompt_ms, decode_ms = _clocked(pieces, generated)
            ids = tuple(int(one) for _, choice in pieces for one in choice.get("token_ids") or ())
            return Answer(
                text="".join(str(choice.get("text") or "") for _, choice in pieces),
                ids=ids if ids and len(ids) == generated else None,
                prompt_tokens=int(usage["prompt_tokens"]),
                generated_tokens=generated,
                prompt_ms=prompt_ms,
                decode_ms=decode_ms,
                drafts=_timed_drafts(timings) if timings else _drafts(said),
                tokens=tuple(
                    token for _, choice in pieces for token in _tokens(choice.get("logprobs"))
                ),
            )


class OllamaWire:
    """Ollama's `/api/generate`: a JSON object per line, its own counts and times in the last."""

    def __init__(self, model: str) -> None:
        self._model = model

    def request(
        self, text: str, tokens: int, sampling: Sampling, seed: int, alternatives: int
    ) -> tuple[str, dict[str, Any]]:
        """Return a request for the prompt as it is, without the model's template."""
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": text,
            "raw": True,
            "stream": True,
            "options": {
                "num_predict": tokens,
                "temperature": sampling.temperature,
                "seed": seed,
                "top_k": 0,
                "top_p": 1.0,
                "min_p": 0.0,
                "typical_p": 1.0,
                "repeat_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
            },
        }
        if alternatives:
            body |= {"logprobs": True, "top_logprobs": alternatives}
        return "/api/generate", body

    def pieces(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines."""
        return (line for line in lines if line.strip())

    def read(self, events: Sequence[Event]) -> Answer:
        """Return what the last line counts and times. Ollama reports no draft counts."""
        if not events or not events[-1].payload.get("done"):
            raise BenchmarkError("server-lost", "Its answer broke off before its end.")
        with well_formed():
            last = events[-1].payload
            generated = int(last["eval_count"])
            return Answer(
                text="".join(str(event.payload.get("response") or "") for event in events),
                ids=None,
                prompt_tokens=int(last["prompt_eval_count"]),
                generated_tokens=generated,
                prompt_ms=float(last["prompt_eval_duration"]) / _NS_PER_MS,
                decode_ms=float(last["eval_duration"]) / _NS_PER_MS if generated > 1 else 0.0,
                drafts=None,
                tokens=tuple(
                    _token(entry)
                    for event in events
                    for entry in event.payload.get("logprobs") or ()
                ),
            )


def _clocked(pieces: Sequence[tuple[float, dict[str, Any]]], generated: int) -> tuple[float, float]:
    """Return time to the first token, and from there to the last, in ms as they arrived here."""
    arrivals = [at_s for at_s, choice in pieces if choice.get("text") or choice.get("token_ids")]
    if generated > MAX_BURST_TOKENS and len(set(arrivals)) < 2:
        raise BenchmarkError(
            "unsupported",
            f"It sent {generated} tokens in one piece, so no speed can be told from its stream; "
            "is there a proxy between that holds answers back?",
        )
    first = arrivals[0] if arrivals else pieces[-1][0]
    return first * 1000.0, (pieces[-1][0] - first) * 1000.0 if generated > 1 else 0.0


def _timed_drafts(timings: dict[str, Any]) -> Drafts:
    """llama-server names drafts in its timings only where it drafted any."""
    return Drafts(int(timings.get("draft_n", 0)), int(timings.get("draft_n_accepted", 0)))


def _drafts(said: dict[str, Any]) -> Drafts | None:
    """Return LM Studio's counts (in `stats` or `usage`) or vLLM's (`metrics`), None without."""
    for place in (said.get("stats") or {}, said.get("usage") or {}):
        if "total_draft_tokens_count" in place:
            drafted, accepted = (
                int(place[f"{name}_draft_tokens_count"]) for name in ("total", "accepted")
            )
            return Drafts(drafted, accepted)
    counted = (said.get("metrics") or {}).get("speculative_decoding")
    if not counted:
        return None
    histogram = [int(count) for count in counted["acceptance_histogram"]]
    return Drafts(
        int(counted["num_draft_tokens"]),
        int(counted["num_accepted_draft_tokens"]),
        int(counted["num_spec_steps"]),
        tuple(sum(histogram[position:]) for position in range(1, len(histogram))),
    )


def _token(entry: dict[str, Any]) -> Token:
    """Return llama-server's or Ollama's entry of one token."""
    best = sorted((float(top["logprob"]) for top in entry.get("top_logprobs") or ()), reverse=True)
    return Token(str(entry["token"]), tuple(best[:2]))


def _tokens(logprobs: dict[str, Any] | None) -> Iterator[Token]:
    """Yield the tokens of OpenAI's `logprobs`, whose alternatives are keyed by their text, or as
    llama-server has them in either API."""
    if not logprobs:
        return
    if "content" in logprobs:
        yield from (_token(entry) for entry in logprobs["content"])
    else:
        tops = logprobs.get("top_logprobs") or [{} for _ in logprobs["tokens"]]
        for text, top in zip(logprobs["tokens"], tops, strict=True):
            best = sorted((float(value) for value in (top or {}).values()), reverse=True)
            yield Token(str(text), tuple(best[:2]))
