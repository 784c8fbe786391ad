"""`app`: the explorer in a notebook."""

import json
import threading
import time
from dataclasses import dataclass, field
from html import escape
from typing import Any
from urllib.parse import quote

from jscope_tl.errors import InputError, whole
from jscope_tl.explorer.answers import about, control, explain
from jscope_tl.explorer.frozen import frozen_page
from jscope_tl.explorer.launch import configured, listen
from jscope_tl.explorer.requests import PROMPT, checked

FRAMES = "'self' http://localhost:* https://localhost:* http://127.0.0.1:* https://127.0.0.1:* vscode-webview:"
"""Addresses of notebooks on this machine, which may show the page in a frame."""
LIVE = """<script>fetch({health}, {{mode: "no-cors"}}).then(() => location.replace({address})).catch(() => {{}})</script>"""
"""A script in the frozen page: if the browser can reach the server, it loads the live page instead."""


@dataclass(frozen=True)
class Explorer:
    """A running explorer, which a notebook displays; ``close()`` stops it.

    Attributes:
        url: its address on this machine, with the token of this launch.
        height: the height of the frame, in pixels.
        frozen: the page that is shown if the browser cannot reach the server.
    """

    url: str
    height: int
    frozen: str = field(repr=False)
    _server: Any = field(repr=False)
    _thread: threading.Thread = field(repr=False)

    def close(self) -> None:
        """Stop the server; the model is unchanged."""
        self._server.should_exit = True
        self._thread.join(10)

    def _repr_html_(self) -> str:
        style = f"width:100%;height:{self.height}px;border:1px solid #d0d7de;border-radius:6px"
        return f'<iframe title="jscope explorer" style="{style}" srcdoc="{escape(self.frozen)}"></iframe>'


def app(
    model: Any, prompt: str | None = None, *, scope: str = "log_prob", port: int = 0, height: int = 800
) -> Explorer:
    """Start the explorer of ``jscope app`` in a notebook: type a prompt, click a token, see the scores of its prediction, and test them.

    The server listens only on this machine and needs the token in its address. A notebook shows it in a frame. If the browser runs on
    another machine (Colab, a cluster), it cannot reach the server: then the frame shows the explanation of ``prompt``, which is still
    interactive, and ``jscope app --host`` or a forwarded port gives the rest.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`; it can be used outside the explorer at the same time, one call at a time.
        prompt: the first explained prompt; an example by default.
        scope: the scope of the first explanation.
        port: the port to listen on; 0: a free port.
        height: the height of the frame, in pixels.

    Returns:
        An `Explorer`, with ``url`` and ``close()``.

    Raises:
        InputError: the port is taken, or the prompt cannot be explained.

    Example:
        >>> import jscope_tl as js
        >>> explorer = js.app(js.load_pocket_model(), "the keys to the cabinet")
        >>> explorer.url.startswith("http://127.0.0.1:")
        True
        >>> explorer.close()
    """
    if not 0 <= (-1 if whole(port) is None else port) < 2**16:
        raise InputError(f"port must be a number from 0 to 65535; got {port!r}.")
    if (whole(height) or 0) < 1:
        raise InputError(f"height must be a number of pixels; got {height!r}.")
    facts = about(model)
    text = facts["examples"][0]["prompt"] if prompt is None else prompt
    results = _explained(model, text, scope)
    server, thread, url = _started(model, port)
    address = f"{url}#{quote(json.dumps({'prompt': text, 'scope': scope}))}"
    live = LIVE.format(health=json.dumps(f"{url.partition('?')[0]}healthz"), address=json.dumps(address))
    page = frozen_page({"about": facts, "results": results}, below=live, connect=url.partition("/?")[0])
    return Explorer(url, height, page, server, thread)


def _explained(model: Any, prompt: Any, scope: str) -> list[dict[str, Any]]:
    """The results that the page shows without a server."""
    asked = checked({"prompt": prompt}, PROMPT)
    found = explain(model, {**asked, "scope": scope})
    beside = {**control(model, asked), "off_scale": found["off_scale"], "name": "random direction (control)"}
    return [{**found, "name": scope, "control": beside}]


def _started(model: Any, port: int) -> tuple[Any, threading.Thread, str]:
    """A started server, its thread and its address."""
    import uvicorn

    listening = listen("127.0.0.1", port)
    config, url = configured(model, listening, "127.0.0.1", FRAMES)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="jscope explorer", daemon=True)
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.01)
    return server, thread, url
