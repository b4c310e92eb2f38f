"""A helper thread that works on what the pump's own thread prepares."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Generic, TypeVar

Token = TypeVar("Token")
Job = TypeVar("Job")


class Relay(Generic[Token, Job]):
    """One helper thread; ``work(job)`` runs there, in order.

    Every job holds one of the ``tokens`` (buffers, or permits), which bound how far the
    owner runs ahead: :meth:`take` one, :meth:`put` it with a job, and it comes back when
    the job is done. After ``work`` has raised, ``failed`` is called there once, and later
    jobs are dropped; tokens still come back, so neither side can wait for ever.
    """

    def __init__(
        self,
        tokens: Iterable[Token],
        work: Callable[[Job], None],
        failed: Callable[[BaseException], None],
        name: str,
    ) -> None:
        self._work = work
        self._failed = failed
        self._jobs: SimpleQueue[tuple[Token, Job] | None] = SimpleQueue()
        self._tokens: SimpleQueue[Token] = SimpleQueue()
        self._count = 0
        for token in tokens:
            self._tokens.put(token)
            self._count += 1
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def take(self) -> Token:
        """A free token, waited for. Raises the helper's error."""
        token = self._tokens.get()
        if self.error is not None:
            self._tokens.put(token)
            raise self.error
        return token

    def put(self, token: Token, job: Job) -> None:
        self._jobs.put((token, job))

    def give_back(self, token: Token) -> None:
        """Return a token that was taken but is not needed."""
        self._tokens.put(token)

    def finish(self) -> list[Token]:
        """Let the helper finish what it has, join it, and hand the tokens back. Does not
        raise: look at :attr:`error`. Every token taken must have been put or given back."""
        self._jobs.put(None)
        self._thread.join()
        return [self._tokens.get() for _ in range(self._count)]

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            token, job = item
            if self.error is None:
                try:
                    self._work(job)
                except BaseException as error:
                    self.error = error
                    self._failed(error)
            self._tokens.put(token)
