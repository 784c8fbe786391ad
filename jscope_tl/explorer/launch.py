"""Start the explorer on a port of this machine, for the command line and for notebooks."""

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
        host: the address to listen on. With an address other than the loopback address, everyone on the network who knows the token can
            use the explorer.
        port: the port to listen on; 0: a free port.
        opened: whether to open a browser.

    Raises:
        InputError: the server cannot listen on this address.
    """
    import uvicorn

    listening = listen(host, port)
    config, address = configured(model, listening, host)
    with suppress(InputError):  # the first call is slow, so it is made before anyone uses the page
        predict(model, {"prompt": "the"})

    class Server(uvicorn.Server):
        """A server that prints its address when it is ready."""

        async def startup(self, sockets: Any = None) -> None:
            """Start the server, and then print the address."""
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
    """The configuration for uvicorn, and the page's address with a new token; ``ancestors``: pages that may show it in a frame."""
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
    """A socket that is bound to an address.

    Raises:
        InputError: the server cannot listen on this address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise InputError(
            f"The server cannot listen on {host}:{port} ({error}). Give another --port, or --port 0 for a free one."
        ) from error
    return listening
