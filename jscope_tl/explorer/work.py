"""A worker that runs one call at a time on its own thread, with progress and cancellation."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from jscope_tl.engine.progress import watched
from jscope_tl.errors import InputError

MOST_WAITING = 8
"""The largest number of waiting calls; further calls are refused."""
REMEMBERED = 64
"""The number of calls whose state is kept."""


class Cancelled(Exception):
    """The call was cancelled before it was finished."""


class Busy(Exception):
    """Too many calls are waiting."""


@dataclass
class Job:
    """A call.

    Attributes:
        state: ``"waiting"``, ``"running"``, ``"done"`` or ``"cancelled"``.
        what: the name of the current step.
        done, total: the number of finished units of this step, and of all units.
    """

    state: str = "waiting"
    what: str = ""
    done: int = 0
    total: int | None = None
    cancelled: bool = False

    def watch(self, what: str, done: int, total: int | None) -> None:
        """Record the progress; it is called at every step. If the job is cancelled, raise `Cancelled`."""
        if self.cancelled:
            raise Cancelled
        self.what, self.done, self.total = what, done, total


class Worker:
    """Runs calls in the order in which they arrive."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jscope")
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    async def run(self, name: str, call: Callable[[], Any], gone: Awaitable[Any]) -> Any:
        """Run a call and return its result. The call is cancelled if ``gone``, which is awaited in parallel, returns because the client has
        disconnected.

        Raises:
            Cancelled, Busy, InputError: the call was cancelled, too many calls are waiting, or a call with this name is not finished.
            Exception: any exception of the call.
        """
        job = self._waiting(name)
        leaving = asyncio.ensure_future(_ended(job, gone))
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, job, call)
        finally:
            leaving.cancel()

    def _waiting(self, name: str) -> Job:
        if name and self._jobs.get(name, Job("done")).state in ("waiting", "running"):
            raise InputError(f"There is already a job {name!r}; give each job its own name.")
        if sum(job.state == "waiting" and not job.cancelled for job in self._jobs.values()) >= MOST_WAITING:
            raise Busy
        job = Job()
        self._jobs[name or f"#{id(job)}"] = job
        self._jobs.move_to_end(name or f"#{id(job)}")  # a name that is used again moves to the end
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
                job.watch(job.what, job.done, job.total)  # in case it was cancelled after its last step
            job.state = "done"
            return found
        except Cancelled:
            job.state = "cancelled"
            raise
        finally:
            job.state = job.state if job.state != "running" else "done"

    def cancel(self, name: str) -> bool:
        """Cancel a call at its next step. Returns whether there is an unfinished call with this name."""
        job = self._jobs.get(name)
        if job is None or job.state not in ("waiting", "running"):
            return False
        job.cancelled = True
        return True

    def progress(self, name: str) -> Job | None:
        """The progress of a call; None if there is no call with this name."""
        return self._jobs.get(name)

    def close(self) -> None:
        """Cancel all calls."""
        for job in self._jobs.values():
            job.cancelled = True
        self._thread.shutdown(wait=True, cancel_futures=True)


async def _ended(job: Job, gone: Awaitable[Any]) -> None:
    await gone
    job.cancelled = True
