"""Pages that play a decoding, and the server of the page with a text box."""

import json
import re
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from html.parser import HTMLParser

import pytest

from asarm.filling.page import comparison_page, evaluations_of
from asarm.filling.server import HOST, MOST_BYTES, Handler, Page, listening
from asarm.sampling import TraceStep
from asarm.utils.errors import InputError

HOSTILE = 'Say </script><img src=x onerror=alert(1)><b>b</b> ___3 & "this" \u2028 ___2 <!-- {{DATA}}'


class Tags(HTMLParser):
    """Counts the elements of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.found: Counter = Counter()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found[tag] += 1


def data_of(page: str):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.mark.parametrize("settings", [{"sampler": "fused", "k": 3}, {"sampler": "assd", "coupling": "block"}], ids=str)
def test_frames_count_evaluations_and_end_in_the_text(infiller, settings):
    config = infiller.config(**settings)
    ((one,),) = infiller.fill([infiller.parse(HOSTILE)], config, [3], trace=True)
    ours, sequential = data_of(comparison_page(infiller, HOSTILE, config, one))
    assert ours["frames"][0]["nfe"] == 0
    assert ours["frames"][-1]["nfe"] == one.nfe <= sequential["frames"][-1]["nfe"] == 5
    assert "".join(text for text, label in ours["frames"][-1]["spans"] if label != "rejected") == one.text
    assert ours["frames"][-1]["accepted"] == sum(one.accepted)
    assert ours["frames"][-1]["drafts"] == sum(one.proposed)


def test_hostile_text_stays_text(infiller):
    pages = []
    for text in ("Say ___3 and ___2", HOSTILE):
        config = infiller.config()
        ((one,),) = infiller.fill([infiller.parse(text)], config, [0], trace=True)
        pages.append(comparison_page(infiller, text, config, one))
        assert "http" not in pages[-1].replace("http-equiv", "")
    assert Tags(pages[0]).found == Tags(pages[1]).found
    assert "onerror=alert" in json.dumps(data_of(pages[1]))


def test_a_page_for_the_sequential_sampler_has_one_player(infiller):
    config = infiller.config(sampler="sequential")
    ((one,),) = infiller.fill([infiller.parse("a ___3")], config, [0], trace=True)
    assert [player["name"] for player in data_of(comparison_page(infiller, "a ___3", config, one))] == ["sequential"]


def test_evaluations_of_a_step(infiller):
    two, one = TraceStep([0, 1], [5, 6], 1, []), TraceStep([0], [5], 1, [])
    assert [evaluations_of(step, infiller.config(sampler="assd")) for step in (two, one)] == [2, 1]
    assert evaluations_of(two, infiller.config()) == 1
    assert evaluations_of(two, infiller.config(sampler="assd", draft="ngram")) == 1


@pytest.fixture
def address(infiller):
    """Of a server of the page."""
    server = listening(0)
    server.RequestHandlerClass = type("Ours", (Handler,), {"page": Page(infiller, infiller.config(), None, 0)})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://{HOST}:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def ask(url: str, fields: dict | None = None, **headers: str) -> tuple[int, str]:
    data = None if fields is None else urllib.parse.urlencode(fields).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data, headers)) as answer:
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_server_fills_what_its_form_sends(address):
    status, empty = ask(address + "/")
    assert (status, data_of(empty)) == (200, [])
    status, page = ask(address + "/", {"text": HOSTILE, "seed": "4"})
    assert (status, len(data_of(page))) == (200, 2)
    assert Tags(page).found == Tags(empty).found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "no gap"}, "no ___ in the text"),
        ({}, "the text is empty"),
        ({"text": "a ___", "seed": "-1"}, "the seed must be a number"),
        ({"text": "a ___9999"}, "takes at most 128"),
    ],
    ids=str,
)
def test_the_page_says_what_is_wrong(address, fields, message):
    status, page = ask(address + "/", fields)
    assert status == 200
    assert message in page
    assert data_of(page) == []


def test_strangers_are_refused(address):
    assert ask(address + "/", Host="evil.example")[0] == 403
    assert ask(address + "/", {"text": "a ___"}, Origin="http://evil.example")[0] == 403
    assert ask(address + "/etc/passwd")[0] == 404
    assert ask(address + "/", {"text": "a" * MOST_BYTES})[0] == 413
    assert ask(address + "/")[0] == 200


def test_a_client_that_sends_nothing_does_not_hold_the_server(address, monkeypatch):
    monkeypatch.setattr(Handler, "timeout", 0.2)
    with socket.create_connection((HOST, int(address.rpartition(":")[2]))):
        assert ask(address + "/")[0] == 200


def test_a_port_in_use_is_one_line():
    with listening(0) as server, pytest.raises(InputError, match="is in use: choose another --port"):
        listening(server.server_address[1])
