"""A local page with a text box: `asarm infill --serve`. For one person at the machine that it runs on.

The server listens on the loopback interface, answers one request at a time, reads bounded input, and takes texts only
from its own page: requests that name another host or come from other pages are refused.
"""

import errno
import html
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import cast
from urllib.parse import parse_qs

import torch

from asarm.filling.infiller import Infiller
from asarm.filling.page import POLICY, page, player_of, sequential_player
from asarm.sampling.config import SamplerConfig
from asarm.utils.errors import InputError, shortage

HOST = "127.0.0.1"
MOST_BYTES = 1 << 16  # of a request's body
SECONDS = 10.0  # that a client may take to send it
EXAMPLE = "Once upon a time ___ lived in a ___5 by the sea."


class Page:
    """What the server answers: the form, and a text filled as the settings say."""

    def __init__(self, infiller: Infiller, config: SamplerConfig, allowed: torch.Tensor | None, seed: int):
        self.infiller, self.config, self.allowed, self.seed = infiller, config, allowed, seed

    def empty(self) -> str:
        """The page before a text is given."""
        return page([], self.form(EXAMPLE, str(self.seed)))

    def filled(self, text: str, seed: str) -> str:
        """The page that plays the filling of a text, or says what is wrong with it."""
        form = self.form(text, seed)
        try:
            if not seed.isdecimal() or len(seed) > 18:
                raise InputError(f"the seed must be a number from 0 on with at most 18 digits, not {seed[:30]!r}")
            batch = self.infiller.parse(text)
            ((one,),) = self.infiller.fill([batch], self.config, [int(seed)], allowed=self.allowed, trace=True)
            others = sequential_player(self.infiller, text, self.config, one, self.allowed)
            return page([player_of(self.infiller, self.config, one), *others], form)
        except (ValueError, MemoryError, RuntimeError) as error:
            reason = shortage(error)
            if reason is None and not isinstance(error, ValueError):
                raise
            return page([], form, reason or str(error))

    def form(self, text: str, seed: str) -> str:
        """The text box, with a text in it."""
        return (
            '<form method="post" action="/" accept-charset="utf-8"><p><textarea name="text" rows="5" maxlength="20000" '
            f'aria-label="text with gaps" autofocus>\n{html.escape(text)}</textarea></p><p><label>seed '
            f'<input name="seed" type="number" min="0" value="{html.escape(seed)}"></label> '
            "<button>Fill</button> ___ is a gap, ___5 one of five tokens</p></form>"
        )


class Handler(BaseHTTPRequestHandler):
    """Answers GET and POST of /, from this machine's own page."""

    timeout = SECONDS
    server_version, sys_version = "asarm", ""
    page: Page

    def do_GET(self) -> None:
        """The empty page."""
        if self.is_welcome():
            self.answer(HTTPStatus.OK, self.page.empty())

    def do_POST(self) -> None:
        """The text of the form, filled."""
        if not self.is_welcome():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 9 or int(length) > MOST_BYTES:
            self.answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, page([], "", f"a text takes at most {MOST_BYTES} bytes"))
            return
        body = self.rfile.read(int(length))
        try:
            fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=4)
        except ValueError:
            self.answer(HTTPStatus.BAD_REQUEST, page([], "", "this is no form in UTF-8"))
            return
        text = fields.get("text", [""])[0].replace("\r\n", "\n")
        self.answer(HTTPStatus.OK, self.page.filled(text, fields.get("seed", ["0"])[0]))

    def is_welcome(self) -> bool:
        """Whether the request is for / of this host, and from its own page, if from any; else it is refused."""
        port = cast(HTTPServer, self.server).server_port
        hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in hosts or (origin and origin not in {f"http://{one}" for one in hosts}):
            self.answer(HTTPStatus.FORBIDDEN, page([], "", "this page is for this machine only"))
            return False
        if self.path != "/":
            self.answer(HTTPStatus.NOT_FOUND, page([], "", "there is nothing here"))
            return False
        return True

    def answer(self, status: HTTPStatus, text: str) -> None:
        """Send a page."""
        data = text.encode("utf-8", "replace")
        self.send_response(status)
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(data)),
            "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
            "Connection": "close",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the texts are the user's own."""


def listening(port: int) -> HTTPServer:
    """A server on a port of this machine (0 for any free one), which waits for a page. Raises InputError if the port
    cannot be had."""
    try:
        return HTTPServer((HOST, port), Handler)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise InputError(f"port {port} {reason}: choose another --port") from error


def serve(server: HTTPServer, page: Page) -> None:
    """Answer with the page until it is interrupted."""
    server.RequestHandlerClass = type("PageHandler", (Handler,), {"page": page})
    print(f"http://{HOST}:{server.server_port} (Ctrl-C ends it)", flush=True)
    with suppress(KeyboardInterrupt):
        server.serve_forever()
