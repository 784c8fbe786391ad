"""One call at a time, on a thread of its own: how far it is, and how it is ended."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from jscope_tl.engine.progress import watched
from jscope_tl.errors import InputError

MOST_WAITING = 8
"""Calls that wait for their turn; more are refused."""
REMEMBERED = 64
"""Calls that can still be asked about."""


class Cancelled(Exception):
    """The call was ended before it was done."""


class Busy(Exception):
    """Too many calls wait already."""


@dataclass
class Job:
    """A call.

    Attributes:
        state: ``"waiting"``, ``"running"``, ``"done"`` or ``"cancelled"``.
        what: what is counted at present.
        done, total: how many, of how many.
    """

    state: str = "waiting"
    what: str = ""
    done: int = 0
    total: int | None = None
    cancelled: bool = False

    def watch(self, what: str, done: int, total: int | None) -> None:
        """Called at every step."""
        if self.cancelled:
            raise Cancelled
        self.what, self.done, self.total = what, done, total


class Worker:
    """Runs calls in the order in which they come."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jscope")
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    async def run(self, name: str, call: Callable[[], Any], gone: Awaitable[Any]) -> Any:
        """What the call returns; it is ended when ``gone``, which is awaited meanwhile, says that nobody waits for it any more.

        Raises:
            Cancelled, Busy, InputError: it was ended, too many wait, or one of that name is there.
            Exception: whatever the call raises.
        """
        job = self._waiting(name)
        leaving = asyncio.ensure_future(_ended(job, gone))
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, job, call)
        finally:
            leaving.cancel()

    def _waiting(self, name: str) -> Job:
        if name and self._jobs.get(name, Job("done")).state in ("waiting", "running"):
            raise InputError(f"There is a job {name!r} already; give each its own name.")
        if sum(job.state == "waiting" and not job.cancelled for job in self._jobs.values()) >= MOST_WAITING:
            raise Busy
        job = Job()
        self._jobs[name or f"#{id(job)}"] = job
        self._jobs.move_to_end(name or f"#{id(job)}")  # a name that is used again is as young as its call
        while len(self._jobs) > REMEMBERED:
            self._jobs.popitem(last=False)
        return job

    @staticmethod
    def _call(job: Job, call: Callable[[], Any]) -> Any:
        job.state = "running"
        try:
            with watched(job.watch):
                job.watch("", 0, None)
                found = call()
                job.watch(job.what, job.done, job.total)  # ended after its last step
            job.state = "done"
            return found
        except Cancelled:
            job.state = "cancelled"
            raise
        finally:
            job.state = job.state if job.state != "running" else "done"

    def cancel(self, name: str) -> bool:
        """End a call at its next step; whether there is one of that name that is not done."""
        job = self._jobs.get(name)
        if job is None or job.state not in ("waiting", "running"):
            return False
        job.cancelled = True
        return True

    def progress(self, name: str) -> Job | None:
        """How far a call is; None where there is none of that name."""
        return self._jobs.get(name)

    def close(self) -> None:
        """End all calls."""
        for job in self._jobs.values():
            job.cancelled = True
        self._thread.shutdown(wait=True, cancel_futures=True)


async def _ended(job: Job, gone: Awaitable[Any]) -> None:
    await gone
    job.cancelled = True
