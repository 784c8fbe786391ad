"""`jscope app`: the explorer on a port of this machine."""

import secrets
import signal
import socket
import webbrowser
from contextlib import suppress
from typing import Any

from jscope_tl.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


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

    from jscope_tl.explorer.server import app

    listening = _listening(host, port)
    port, token = listening.getsockname()[1], secrets.token_urlsafe(24)
    names = {*LOOPBACK[:2], host} if host in LOOPBACK else {host, socket.gethostname(), *LOOPBACK[:2]}
    hosts = frozenset(f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in names)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/?token={token}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            print(address, flush=True)
            if opened:
                webbrowser.open(address)

    config = uvicorn.Config(app(model, token, hosts), log_level="warning", timeout_graceful_shutdown=2, lifespan="on")
    # uvicorn shuts down at both signals and then raises them again.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            Server(config).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)


def _listening(host: str, port: int) -> socket.socket:
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
