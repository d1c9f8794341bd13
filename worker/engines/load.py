"""A server under constant load: every slot at work, all the time."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from farm.domain.job import JobSpec
from worker.bench.warm_up import WARM_UP_TEXT
from worker.engines.completion import request
from worker.engines.contract import PreparedPrompt
from worker.engines.server import POLL_S, Answers, Server
from worker.engines.waiting import Waiting

Request = dict[str, Any]
Answer = dict[str, Any]


def fill_ins(
    spec: JobSpec,
    prompts: Sequence[PreparedPrompt],
    numbers: Iterator[int],
    in_context: Callable[[PreparedPrompt], str | list[int]],
) -> Iterator[Request]:
    """Yield requests as heavy as a job's own, without end.

    n-gram kinds remember: theirs are texts of their own with the next of the numbers, so that none
    comes twice. in_context: gives a prompt as it is sent.
    """
    for index in itertools.count():
        prompt = prompts[index % len(prompts)]
        if spec.speculation.kind.is_ngram:
            prompt = replace(prompt, text=f"{next(numbers)}. {WARM_UP_TEXT}")
        yield request(in_context(prompt), spec.generate_tokens, spec.sampling, index)


class Load:
    """Users of one server: each asks, waits for the answer, and asks the next thing.

    There is one more than the server has slots. A request that comes after an answer misses the
    pass that has begun by then; one that waits at the server takes the slot before it begins.
    Recorded requests start when every slot works, and fill-ins keep all of them at work until the
    last recorded one is answered: each has had its neighbours for its whole life. The first
    requests are fill-ins of different lengths, so that prompts are read at different times.
    """

    def __init__(
        self, server: Server, slots: int, recorded: Sequence[Request], fill_ins: Iterator[Request]
    ) -> None:
        self._server = server
        self._answers: Answers[tuple[int, Answer]] = queue.Queue()
        self._recorded = len(recorded)
        self._over = threading.Event()
        self._taking = threading.Lock()
        staggered = (
            fill_in | {"n_predict": -(-fill_in["n_predict"] * (slot + 1) // slots)}
            for slot, fill_in in enumerate(itertools.islice(fill_ins, slots))
        )
        unrecorded = itertools.repeat(None)
        self._requests: Iterator[tuple[int | None, Request]] = itertools.chain(
            zip(unrecorded, staggered, strict=False),
            enumerate(recorded),
            zip(unrecorded, fill_ins, strict=False),
        )
        self._users = [threading.Thread(target=self._use, daemon=True) for _ in range(slots + 1)]

    def run(self, deadline: float) -> Generator[tuple[int, Answer] | None, None, None]:
        """Yield (index, answer) of the recorded requests as they are answered, None while waiting;
        when it ends the server is idle again. Raises as `Server.listen`."""
        try:
            for user in self._users:
                user.start()
            for _ in range(self._recorded):
                yield (yield from self._server.listen(self._answers, deadline))
        finally:
            self._over.set()
            self._server.hang_up()
        yield from self._quiet(deadline)

    def _use(self) -> None:
        while not self._over.is_set():
            try:
                with self._taking:
                    index, request = next(self._requests)
                answer = self._server.answer(request)
            except Exception as error:
                if not self._over.is_set():
                    self._answers.put(error)
                return
            if index is not None:
                self._answers.put((index, answer))

    def _quiet(self, deadline: float) -> Waiting[None]:
        """Wait until nobody asks and no slot works."""
        while any(user.is_alive() for user in self._users) or any(self._server.busy()):
            # Someone may have been about to ask.
            self._server.hang_up()
            self._server.give_up_at(deadline)
            yield None
            time.sleep(POLL_S)
