"""A stand-in for servers that can't be here: it replies with what was recorded or documented."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """An answer, piece by piece. breaks: the connection ends without the answer's end. hangs: it
    stays open and silent until the test is over. mute: so it stays from the start, without even a
    head. gap_s: the pause between pieces."""

    pieces: Sequence[bytes] = ()
    status: int = 200
    breaks: bool = False
    hangs: bool = False
    mute: bool = False
    gap_s: float = 0.0


def json_reply(value: Any, status: int = 200) -> Reply:
    """Return an answer that is one JSON text."""
    return Reply((json.dumps(value).encode(),), status)


def text_reply(text: str) -> Reply:
    """Return a stream, a piece for each of its lines."""
    return Reply(tuple(text.encode().splitlines(keepends=True)))


@dataclass
class StandIn:
    """A server on this machine. Each path has its replies in order, of which the last repeats."""

    url: str
    replies: dict[str, list[Reply]]
    asked: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """Return what was posted to a path."""
        return [body for where, body, _ in self.asked if where == path]


@contextmanager
def stand_in(replies: Mapping[str, Reply | list[Reply]]) -> Iterator[StandIn]:
    """Run a server with a reply for each path; others are 404."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                self._reply({})

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            # Whoever asked may have hung up.
            with contextlib.suppress(OSError):
                self._reply(json.loads(content))

        def log_message(self, *_: Any) -> None:
            return None

        def _reply(self, body: dict[str, Any]) -> None:
            server.asked.append((self.path, body, self.headers.get("Authorization", "")))
            waiting = server.replies.get(self.path, [json_reply({"detail": "Not Found"}, 404)])
            reply = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            if reply.mute:
                over.wait()
            self.send_response(reply.status)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in reply.pieces:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
                over.wait(reply.gap_s)
            if reply.hangs:
                over.wait()
            if not reply.breaks:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    known = {path: one if isinstance(one, list) else [one] for path, one in replies.items()}
    server = StandIn(f"http://127.0.0.1:{listener.server_port}", known)
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        over.set()
        listener.shutdown()
        listener.server_close()
