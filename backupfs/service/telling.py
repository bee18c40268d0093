"""How far a request is, on its way to whoever asked: the newest, every so often, however often there is something new."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from backupfs.engine.seams import Progress
from backupfs.service.control import Replies
from backupfs.service.groups import cause
from backupfs.service.messages import Stage

PROGRESS_S: Final = 0.5


class Telling:
    """What there is to tell, stage by stage."""

    def __init__(self) -> None:
        self.sample: Callable[[], None] | None = None
        """Called before each telling, for what has to be asked how far it is."""
        self._newest: tuple[int, int, Stage] | None = None
        self._told: tuple[int, int, Stage] | None = None

    def of(self, stage: Stage) -> Progress:
        """What takes the progress of that stage."""

        def note(done: int, total: int) -> None:
            self._newest = done, total, stage

        return note

    async def tell(self, replies: Replies) -> None:
        """Tell the newest, if it has not been told. Whole: a reply cut off in the middle would spoil those after it."""
        if self.sample is not None:
            self.sample()
        if self._newest is not None and self._newest != self._told:
            self._told = self._newest
            with trio.CancelScope(shield=True):
                await replies.progress(*self._newest)


@asynccontextmanager
async def telling(replies: Replies) -> AsyncIterator[Telling]:
    """What is noted meanwhile is told every `PROGRESS_S`; nothing else may be sent to `replies` until this ends. When whoever asked has gone, what is
    done inside is cancelled.
    """
    about = Telling()

    async def tell() -> None:
        while True:
            await trio.sleep(PROGRESS_S)
            await about.tell(replies)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            yield about
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise cause(group) from None
