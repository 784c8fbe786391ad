"""The explorer on a port of this machine: until the process ends, or for as long as a notebook wants it."""

import secrets
import signal
import socket
import webbrowser
from contextlib import suppress
from typing import Any

from jscope_tl.errors import InputError
from jscope_tl.explorer.answers import predict

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY = ("0.0.0.0", "::")


def serve(model: Any, host: str = "127.0.0.1", port: int = 8765, opened: bool = True) -> None:
    """Serve the explorer until the process is interrupted or terminated; prints its address when it is ready.

    Args:
        host: the address to listen at; others than this machine's own are reached by everyone on the network who knows the token.
        port: 0 takes one that is free.
        opened: whether to open a browser.

    Raises:
        InputError: the address cannot be listened at.
    """
    import uvicorn

    listening = listen(host, port)
    config, address = configured(model, listening, host)
    with suppress(InputError):  # the first call takes longer: not the first visitor's
        predict(model, {"prompt": "the"})

    class Server(uvicorn.Server):
        """Says when it is ready."""

        async def startup(self, sockets: Any = None) -> None:
            """Print the address once there is somebody to answer."""
            await super().startup(sockets)
            print(address, flush=True)
            if opened:
                webbrowser.open(address)

    # uvicorn shuts down at both signals and then raises them again.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            Server(config).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)


def configured(model: Any, listening: socket.socket, host: str, ancestors: str = "'self'") -> tuple[Any, str]:
    """What uvicorn runs, and the page's address with a new token; ``ancestors``: pages that may show it in a frame."""
    import uvicorn

    from jscope_tl.explorer.server import app

    port, token = listening.getsockname()[1], secrets.token_urlsafe(24)
    names = {*LOOPBACK[:2], host} if host in LOOPBACK else {host, socket.gethostname(), *LOOPBACK[:2]}
    names |= {"*"} if host in ANY else set()
    hosts = frozenset(f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in names)
    shown = f"[{host}]" if ":" in host else host
    asgi = app(model, token, hosts, ancestors)
    config = uvicorn.Config(asgi, log_level="warning", timeout_graceful_shutdown=2, lifespan="on")
    return config, f"http://{shown}:{port}/?token={token}"


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        InputError: the address cannot be listened at.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise InputError(
            f"Nothing can listen at {host}:{port} ({error}). Give another --port, or 0 for one that is free."
        ) from error
    return listening
