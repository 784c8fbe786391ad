"""The explorer's JSON interface: the same numbers as the entry points, refusals in a sentence, nobody but its own page."""

import asyncio
import http.client
import json
import random
import signal
import string
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
import torch

import jscope_tl as js
from jscope_tl.explorer.questions import QUESTIONS
from jscope_tl.explorer.requests import PROMPT, SETTINGS, TEXT
from jscope_tl.explorer.server import MOST_BYTES
from jscope_tl.explorer.work import MOST_WAITING, Cancelled, Worker
from jscope_tl.results.files import listed, plain
from tests.explorer.launched import Launched, launched

pytestmark = [pytest.mark.newest_line, pytest.mark.slow]
TEXTS = "the keys to the cabinet near the doors"


def saved(result: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(plain(result, listed), default=repr))


def without_cost(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in found.items()
        if name not in ("provenance", "off_scale", "series", "seconds", "continued")
    }


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"scope": "fisher"},
        {"scope": "contrastive", "options": {"target": " are", "baseline": " is"}, "position": 3},
        {"scope": "log_prob", "at": "resid_pre", "gradient": "attnlrp"},
        {"scope": "log_prob", "options": {"target": " are old"}, "reduction": "dot"},
    ],
)
def test_explanations_are_what_attribute_saves(explorer: Launched, pocket: Any, how: dict[str, Any]) -> None:
    status, found, _ = explorer.ask("/api/explain", {"prompt": TEXTS, **how})
    assert status == 200, found
    given = {name: value for name, value in how.items() if name not in ("scope", "options")}
    expected = saved(js.attribute(pocket, TEXTS, how.get("scope", "semantic"), **given, **how.get("options", {})))
    assert found.keys() == {*expected, "off_scale", "series", "seconds"}
    assert without_cost(explorer.ask("/api/explain", found)[1]) == without_cost(found)  # what it gives it takes
    torch.testing.assert_close(torch.tensor(found["scores"]), torch.tensor(expected["scores"]), rtol=1e-4, atol=1e-6)
    for name in ("tokens", "str_tokens", "position", "scope", "unit", "warnings", "hook_points"):
        assert found[name] == expected[name]


def test_causes_are_what_explain_saves(explorer: Launched, pocket: Any) -> None:
    """With all that it takes, and once more from what it gave."""
    how = {"target": " are", "baseline": " is", "n": 2}
    given = {"prompt": TEXTS, "scope": "explain", "options": how, "position": 5, "gradient": "relp"}
    _, found, _ = explorer.ask("/api/explain", given)
    expected = saved(js.explain(pocket, TEXTS, position=5, gradient="relp", **how))
    torch.testing.assert_close(torch.tensor(found["scores"]), torch.tensor(expected["scores"]), rtol=1e-3, atol=1e-6)
    assert without_cost(explorer.ask("/api/explain", found)[1]) == without_cost(found)


def test_what_else_is_answered(explorer: Launched, pocket: Any) -> None:
    _, tokens, _ = explorer.ask("/api/tokens", {"prompt": TEXTS})
    assert tokens["tokens"] == pocket.to_tokens(TEXTS)[0].tolist()
    _, predicted, _ = explorer.ask("/api/predict", {"prompt": TEXTS, "position": 2})
    assert predicted["top"][0]["str_token"] == js.attribute(pocket, TEXTS, position=2).prediction.top[0].str_token
    _, ablated, _ = explorer.ask("/api/ablate", {"prompt": TEXTS, "token": 2, "target": " are"})
    expected = js.patching.ablate(pocket, TEXTS, "fisher_input", method="exact")
    assert ablated["kl"] == pytest.approx(float(expected.kl[2]), rel=1e-4)
    assert ablated["log_prob"] == pytest.approx(float(expected.log_prob[2]), rel=1e-4)
    assert ablated["predicted_kl"] == pytest.approx(float(expected.scope.scores[2]), rel=1e-3)
    _, replaced, _ = explorer.ask("/api/ablate", {"prompt": TEXTS, "token": 2, "replacement": " key"})
    assert replaced["predicted_kl"] is None  # Fisher information knows of small changes and of setting to 0
    other = js.patching.ablate(pocket, TEXTS, "fisher_input", method="exact", replacement=" key")
    assert replaced["kl"] == pytest.approx(float(other.kl[2]), rel=1e-4)
    _, answer, _ = explorer.ask("/api/answer", {"prompt": TEXTS, "continuation": " are old", "by": "word"})
    text = js.attribute_text(pocket, TEXTS, " are old", by="word")
    torch.testing.assert_close(torch.tensor(answer["scores"]), text.scores, rtol=1e-4, atol=1e-6)
    assert [source["text"] for source in answer["sources"]] == [source.text for source in text.sources]
    _, heads, _ = explorer.ask("/api/heads", {"prompt": TEXTS, "measure": 2})
    effects = js.patching.components(pocket, TEXTS, "fisher")
    torch.testing.assert_close(torch.tensor(heads["predicted"]), effects.predicted, rtol=1e-3, atol=1e-5)
    assert [one["how"] for one in heads["top"][:2]] == ["measured", "measured"]
    for how in ({}, {"at": "blocks.1.hook_resid_post", "position": 4}, {"gradient": "relp"}):
        _, control, _ = explorer.ask("/api/control", {"prompt": TEXTS, **how})
        expected = js.attribute(pocket, TEXTS, "random_direction", **how)
        torch.testing.assert_close(torch.tensor(control["scores"]), expected.scores, rtol=1e-3, atol=1e-5)
        assert control["scope"] == expected.scope


@pytest.mark.parametrize(
    ("path", "given", "says"),
    [
        ("explain", {"prompt": ""}, "empty"),
        ("explain", {}, "A prompt must be given as exactly one of"),
        ("explain", {"prompt": "a", "tokens": [1]}, "got prompt, tokens"),
        ("explain", {"promt": "a"}, "Did you mean 'prompt'"),
        ("explain", {"prompt": 3}, "prompt must be a text"),
        ("explain", {"prompt": TEXTS, "scope": "fischer"}, "Did you mean 'fisher'"),
        ("explain", {"prompt": TEXTS, "position": 99}, "outside the prompt"),
        ("explain", {"prompt": TEXTS, "options": {"rank": {}}}, "options must be an object"),
        ("explain", {"prompt": TEXTS, "options": {"scope": "fisher"}}, "none of them named"),
        ("answer", {"prompt": TEXTS, "options": {"model": 1}}, "none of them named"),
        ("heads", {"prompt": TEXTS, "options": {"of": "heads"}}, "none of them named"),
        ("runs", {"folder": "x" * 5000}, "cannot be opened"),
        ("explain", {"tokens": [10**6]}, "out of range"),
        ("explain", {"messages": [{"role": "user", "content": "x"}]}, "no chat template"),
        ("ablate", {"prompt": TEXTS}, "token is missing"),
        ("ablate", {"prompt": TEXTS, "token": 5, "position": 3}, "comes after"),
        ("answer", {"prompt": TEXTS, "continuation": "xyz", "spans": [[3, 1]]}, "span|merges"),
        ("explain", {"prompt": TEXTS, "scope": "explain", "options": {"targte": " are"}}, "Did you mean 'target'"),
        ("explain", {"prompt": TEXTS, "scope": "explain", "at": "blocks.2.hook_resid_post"}, "explain takes no at"),
        ("explain", [1], "A request must be a JSON object"),
    ],
)
def test_wrong_requests_cost_a_sentence(explorer: Launched, path: str, given: Any, says: str) -> None:
    status, found, _ = explorer.ask(f"/api/{path}", given)
    assert status == 400
    assert set(found) == {"error"}
    assert any(word in found["error"] for word in says.split("|")), found


def test_what_is_no_request(explorer: Launched) -> None:
    for raw in (b"", b"{", b"\xff\xfe", b"[" * 100_000):
        assert explorer.ask("/api/explain", raw=raw)[0] == 400
    assert explorer.ask("/api/explain", raw=b'"' + b"x" * (MOST_BYTES + 1) + b'"')[0] == 400
    assert explorer.ask("/api/nothing", {})[0] == 404
    assert explorer.ask("/api/explain")[0] == 405
    assert explorer.ask("/static/../server.py")[0] == 404
    assert explorer.ask("/api/cancel", {})[0] == 400
    assert explorer.ask("/api/cancel", {"job": "nobody"})[1] == {"cancelled": False}
    assert explorer.ask("/api/progress?job=nobody")[0] == 404


def test_nobody_but_its_own_page(explorer: Launched) -> None:
    """Another site in the same browser (DNS rebinding, cross-site requests), or somebody without the token."""
    host = explorer.base.removeprefix("http://")
    for headers in (
        {"Host": "evil.example"},
        {"Host": f"evil.example:{host.rpartition(':')[2]}"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ):
        for path, given in (("/", None), ("/api/explain", {"prompt": TEXTS}), ("/healthz", None)):
            assert explorer.ask(path, given, **headers)[0] == 403, headers
    for token in ("", "x" * 32, explorer.token[:-1], "é"):
        assert explorer.ask("/api/explain", {"prompt": TEXTS}, **{"x-jscope-token": token})[0] == 403
    assert explorer.ask("/api/explain", {"prompt": TEXTS}, Origin=explorer.base)[0] == 200
    status, _, headers = explorer.ask("/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert explorer.ask("/healthz")[:2] == (200, "ok")


def test_a_call_is_cancelled_and_the_model_is_as_before(explorer: Launched) -> None:
    prompt = " ".join(["the keys to the cabinet near the doors are old ."] * 12)
    before = explorer.ask("/api/explain", {"prompt": TEXTS})[1]
    long = {"prompt": prompt, "scope": "fisher", "options": {"method": "sampled", "probes": 100_000}, "job": "long"}
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(explorer.ask("/api/explain", long)))
    thread.start()
    for _ in range(600):
        status, at, _ = explorer.ask("/api/progress?job=long")
        if status == 200 and at["state"] == "running" and at["done"] > 8:
            break
        time.sleep(0.05)
    assert at["total"] > 1000
    assert explorer.ask("/api/explain", {**long, "prompt": TEXTS})[0] == 400  # that name is taken
    assert explorer.ask("/api/cancel", {"job": "long"})[1] == {"cancelled": True}
    thread.join(60)
    assert found[0][0] == 409
    assert explorer.ask("/api/progress?job=long")[1]["state"] == "cancelled"
    after = explorer.ask("/api/explain", {"prompt": TEXTS})[1]
    assert without_cost(after) == without_cost(before)


def test_a_call_is_cancelled_after_its_last_step() -> None:
    worker = Worker()

    async def asked() -> Any:
        return await worker.run("a", lambda: worker.cancel("a"), asyncio.Event().wait())

    with ThreadPoolExecutor(1) as thread, pytest.raises(Cancelled):
        thread.submit(asyncio.run, asked()).result()  # a browser's event loop may be running in this thread
    job = worker.progress("a")
    assert job is not None
    assert job.state == "cancelled"
    worker.close()


def test_a_waiting_call_is_cancelled(explorer: Launched) -> None:
    """One explanation at a time; the others wait for their turn."""
    long = {"prompt": " ".join([TEXTS] * 20), "scope": "fisher", "options": {"method": "sampled", "probes": 100_000}}
    found: dict[str, int] = {}
    threads = [
        threading.Thread(
            target=lambda name=name: found.update({name: explorer.ask("/api/explain", {**long, "job": name})[0]})
        )
        for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
        time.sleep(1)
    assert explorer.ask("/api/progress?job=two")[1]["state"] == "waiting"
    for name in ("two", "one"):
        explorer.ask("/api/cancel", {"job": name})
    for thread in threads:
        thread.join(60)
    assert found == {"one": 409, "two": 409}


def test_the_queue_has_an_end(explorer: Launched) -> None:
    """One runs, `MOST_WAITING` wait; one more is refused, and comes in when they are gone."""
    prompt, how = " ".join([TEXTS] * 12), {"method": "sampled", "probes": 100_000}
    long = {"prompt": prompt, "scope": "fisher", "options": how}
    names = [f"queued {n}" for n in range(MOST_WAITING + 1)]
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda name=name: found.append(explorer.ask("/api/explain", {**long, "job": name})[0]))
        for name in names
    ]
    for name, thread in zip(names, threads, strict=True):
        thread.start()
        for _ in range(200):
            if explorer.ask(f"/api/progress?job={quote(name)}")[0] == 200:
                break
            time.sleep(0.05)
    status, refused, _ = explorer.ask("/api/tokens", {"prompt": TEXTS})
    for name in names[::-1]:
        explorer.ask("/api/cancel", {"job": name})
    for thread in threads:
        thread.join(60)
    assert status == 429
    assert "are waiting" in refused["error"]
    assert found == [409] * len(names)
    assert explorer.ask("/api/tokens", {"prompt": TEXTS})[0] == 200


def test_a_call_that_nobody_waits_for_ends(explorer: Launched) -> None:
    """A page that was closed or loaded again keeps nobody waiting."""
    host, _, port = explorer.base.removeprefix("http://").partition(":")
    prompt, how = " ".join([TEXTS] * 12), {"method": "sampled", "probes": 100_000}
    long = {"prompt": prompt, "scope": "fisher", "options": how, "job": "left alone"}
    body = json.dumps(long)
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("POST", "/api/explain", body, {"x-jscope-token": explorer.token})
    for _ in range(600):
        status, at, _ = explorer.ask("/api/progress?job=left%20alone")
        if status == 200 and at["state"] == "running":
            break
        time.sleep(0.05)
    connection.close()
    assert explorer.ask("/api/predict", {"prompt": TEXTS})[0] == 200
    assert explorer.ask("/api/progress?job=left%20alone")[1]["state"] == "cancelled"


def anything(rng: random.Random, depth: int = 0) -> Any:
    values: list[Any] = [
        None, True, 0, -1, 3, 10**20, 1.5, float("nan"), "", "the keys", " are", "hook_embed", "fisher", "plain", "dot", "é😀\ud800", "x" * 2000,
        "".join(rng.choices(string.printable, k=20)),
    ]  # fmt: skip
    if depth < 3:
        values += [
            [anything(rng, depth + 1) for _ in range(rng.randrange(3))],
            {"role": anything(rng, depth + 1), "content": "x"},
        ]
        values += [{str(anything(rng, 3))[:20]: anything(rng, depth + 1) for _ in range(rng.randrange(3))}]
    return rng.choice(values)


def test_no_request_is_the_servers_fault(explorer: Launched) -> None:
    """200 random requests are answered or refused, and the server is there afterwards."""
    rng = random.Random(0)
    fields = sorted({*PROMPT, *SETTINGS, *TEXT, "token", "measure", "replacement", "anything"} - {"job"})
    answered = 0
    for _ in range(200):
        given = {rng.choice(fields): anything(rng) for _ in range(rng.randrange(4))}
        given |= {"prompt": TEXTS} if rng.random() < 0.7 else {}
        given |= {"token": 2} if rng.random() < 0.3 else {}
        status, found, _ = explorer.ask(f"/api/{rng.choice(sorted(QUESTIONS))}", given)
        assert status in (200, 400), (status, found, given)
        answered += status == 200
    assert answered > 20
    assert explorer.ask("/api/explain", {"prompt": TEXTS})[0] == 200


def test_a_port_that_is_taken(explorer: Launched, capsys: pytest.CaptureFixture[str]) -> None:
    from jscope_tl.cli.command import main

    port = explorer.base.rpartition(":")[2]
    assert main(["app", "--no-open", "--port", port]) == 2
    assert f"The server cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert main(["app", "--no-open", "--port", "70000"]) == 2
    assert "--port is a number from 0 to 65535" in capsys.readouterr().err


def test_all_addresses_of_the_machine() -> None:
    """Under whichever number it is reached; a name, which another site can point here, is refused. It ends when it is told to."""
    with launched("--host", "0.0.0.0") as server:
        port = server.base.rpartition(":")[2]
        for host, status in (
            (f"192.168.1.5:{port}", 200),
            (f"[fe80::1]:{port}", 200),
            (f"evil.example:{port}", 403),
            ("192.168.1.5:1", 403),
        ):
            assert server.ask("/healthz", Host=host)[0] == status, host
            assert server.ask("/healthz", Host=f"127.0.0.1:{port}", Origin=f"http://{host}")[0] == status, host
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
