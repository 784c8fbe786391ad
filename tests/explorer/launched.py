"""The explorer as its users start it, and questions to it."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Launched:
    """A running server: its address with and without the token."""

    url: str
    process: subprocess.Popen[str]

    @property
    def base(self) -> str:
        return self.url.partition("/?token=")[0]

    @property
    def token(self) -> str:
        return self.url.partition("?token=")[2]

    def ask(
        self, path: str, given: Any = None, raw: bytes | None = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, answer (JSON where it is) and headers."""
        body = raw if raw is not None else None if given is None else json.dumps(given).encode()
        request = urllib.request.Request(self.base + path, data=body, headers={"x-jscope-token": self.token, **headers})
        try:
            with urllib.request.urlopen(request, timeout=120) as found:
                return found.status, _read(found.read()), dict(found.headers)
        except urllib.error.HTTPError as error:
            return error.code, _read(error.read()), dict(error.headers)


def _read(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()


@contextmanager
def launched(*arguments: str) -> Iterator[Launched]:
    """``jscope app --port 0 --no-open``."""
    command = [sys.executable, "-W", "ignore", "-m", "jscope_tl.cli", "app", "--port", "0", "--no-open", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        yield Launched(process.stdout.readline().strip(), process)
    finally:
        process.kill()
        process.wait(30)
