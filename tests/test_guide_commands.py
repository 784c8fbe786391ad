"""Every `jscope` line of README and guide runs, in the order of its page, in a folder with the files that it names."""

import asyncio
import json
import re
import shlex
import signal
import socket
import urllib.request
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import jscope_tl as js
from jscope_tl.cli import corpus, main
from jscope_tl.explorer import launch

pytestmark = [pytest.mark.newest_line, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "examples" / "guide").glob("*.md"))]


def shell_lines(path: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def commands(path: Path) -> list[list[str]]:
    """The arguments of each line that this machine alone can run: not those of a cluster."""
    found = (re.match(r"(?:pip install \S+ && )?jscope (.*)", line) for line in shell_lines(path))
    return [shlex.split(one[1], comments=True) for one in found if one]


def test_there_are_some() -> None:
    assert {"README", "command_line", "components", "corpora", "explorer"} <= {
        path.stem for path in PAGES if commands(path)
    }
    assert sum(len(commands(path)) for path in PAGES) >= 14


def test_commands_of_other_machines_are_understood() -> None:
    """Lines for a cluster or a scheduler: every one is a corpus run, with options that it knows."""
    found = [one[1] for line in shell_lines(ROOT / "examples/guide/corpora.md")
             if (one := re.search(r"\S.*\bjscope corpus (?!summary)([^;]*)", line))]  # fmt: skip
    assert len(found) >= 5
    for line in found:
        corpus.parser().parse_args(shlex.split(line, comments=True))


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pages of the explorer that a browser would have opened; the server ends once it has answered one."""
    found: list[str] = []

    async def one_visit(server: uvicorn.Server) -> None:
        with await asyncio.to_thread(urllib.request.urlopen, found[-1], timeout=60) as answer:
            assert b"<title>jscope" in answer.read()

    def free(host: str, port: int) -> socket.socket:
        return listen(host, 0)

    listen = launch.listen
    monkeypatch.setattr(launch, "listen", free)
    monkeypatch.setattr(webbrowser, "open", found.append)
    monkeypatch.setattr(uvicorn.Server, "main_loop", one_visit)
    return found


def run(words: list[str]) -> int:
    """The command's exit code; the explorer in a thread: a browser of other tests has left its event loop running in this one."""
    if words[0] != "app":
        return main(words)
    with ThreadPoolExecutor(1) as thread, pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: None)  # signals are for the main thread
        return thread.submit(main, words).result()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the pocket model in the place of what a hub would send."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jscope_tl.cli.models.load_model", lambda name, *how: js.load_pocket_model())
    prompts = [{"prompt": one.text} for one in js.pocket_prompts("agreement", 40)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (tmp_path / "prompts.txt").write_text("\n".join(one["prompt"] for one in prompts[:3]))
    (tmp_path / "classes.json").write_text('{" the": "article", "the": "article"}')
    (tmp_path / "chat.json").write_text('[{"role": "user", "content": "the keys"}]')
    return tmp_path


@pytest.mark.parametrize("path", [path for path in PAGES if commands(path)], ids=lambda path: path.stem)
def test_commands_run(path: Path, folder: Path, visited: list[str], capsys: Any) -> None:
    for words in commands(path):
        if "--no-open" in words:
            words.remove("--no-open")
        assert run(words) == 0, (words, capsys.readouterr().err)
        assert capsys.readouterr().out.strip(), words
        for written in re.findall(r"--(?:html|save|out) (\S+)", " ".join(words)):
            assert (folder / written).exists()
    assert len(visited) == sum(words[0] == "app" for words in commands(path))
