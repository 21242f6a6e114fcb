"""A Hugging Face Hub on the loopback interface: what loading a model or streaming a dataset asks for, from folders."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


def commit_of(repository: str, branch: str) -> str:
    return hashlib.sha1(f"{repository}@{branch}".encode()).hexdigest()


class Hub:
    """Serves `repositories`: {name: {branch: folder}}, of models and datasets alike. Weights come from a second
    address, as large files do.

    requests: what was asked for, in order. torn: paths of files that break off halfway, though their headers are right.
    """

    def __init__(self, repositories: dict[str, dict[str, Path]]):
        self.repositories = repositories
        self.requests: list[str] = []
        self.torn: set[Path] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def find(self, repository: str, revision: str) -> tuple[str, Path]:
        """The commit and folder of a branch, by its name or commit. KeyError: the Hub's word for what is missing."""
        if repository not in self.repositories:
            raise KeyError("RepoNotFound")
        for branch, folder in self.repositories[repository].items():
            commit = commit_of(repository, branch)
            if revision in (branch, commit):
                return commit, folder
        raise KeyError("RevisionNotFound")


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        try:
            match path.strip("/").removeprefix("datasets/").split("/"):
                case ["api", "models" | "datasets", owner, name]:
                    self.send_info(f"{owner}/{name}", "main")
                case ["api", "models" | "datasets", owner, name, "revision", revision]:
                    self.send_info(f"{owner}/{name}", revision)
                case ["api", "models" | "datasets", owner, name, "tree", revision]:
                    self.send_tree(f"{owner}/{name}", revision)
                case ["cdn", owner, name, revision, file]:
                    self.send_file(self.hub.find(f"{owner}/{name}", revision)[1] / file, {})
                case [owner, name, "resolve", revision, file]:
                    self.send_resolved(f"{owner}/{name}", revision, file)
                case _:
                    self.send_missing("EntryNotFound")
        except KeyError as error:
            self.send_missing(error.args[0])

    def send_missing(self, code: str) -> None:
        status = 401 if code == "RepoNotFound" else 404  # the Hub does not tell strangers what is private
        self.answer(status, json.dumps({"error": code}).encode(), {"X-Error-Code": code})

    def send_info(self, repository: str, revision: str) -> None:
        commit, folder = self.hub.find(repository, revision)
        files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
        info = {"_id": "0", "id": repository, "modelId": repository, "sha": commit, "private": False, "siblings": files}
        # The message of each answer to strangers.
        self.answer(200, json.dumps(info).encode(), {"X-HF-Warning": "unauthenticated; log in for higher rate limits"})

    def send_tree(self, repository: str, revision: str) -> None:
        entries = []
        for path in sorted(self.hub.find(repository, revision)[1].iterdir()):
            size = path.stat().st_size
            large = {"lfs": {"oid": digest(path), "size": size, "pointerSize": 100}} if is_large(path) else {}
            entries.append({"type": "file", "path": path.name, "size": size, "oid": digest(path)[:40]} | large)
        self.answer(200, json.dumps(entries).encode(), {})

    def send_resolved(self, repository: str, revision: str, file: str) -> None:
        commit, folder = self.hub.find(repository, revision)
        path = folder / file
        if not path.is_file():
            self.answer(404, b"Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif is_large(path):
            linked = {"X-Linked-Size": str(path.stat().st_size), "X-Linked-Etag": f'"{digest(path)}"'}
            location = f"http://localhost:{self.hub.server.server_port}/cdn/{repository}/{commit}/{file}"
            self.answer(302, b"", {"X-Repo-Commit": commit, "Location": location} | linked)
        else:
            self.send_file(path, {"X-Repo-Commit": commit})

    def send_file(self, path: Path, headers: dict[str, str]) -> None:
        content, headers = path.read_bytes(), headers | {"ETag": f'"{digest(path)}"'}
        start = 0
        if wanted := self.headers.get("Range"):  # bytes=START-
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = len(content) // 2 if path in self.hub.torn else len(content)
        self.answer(206 if wanted else 200, content[start:], headers, send=max(0, cut - start))

    def answer(self, status: int, body: bytes, headers: dict[str, str], send: int | None = None) -> None:
        """Headers for all of the body, and its first `send` bytes; if that is not all, the connection breaks off."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:send])
            self.close_connection = send is not None and send < len(body)


def is_large(path: Path) -> bool:
    return path.suffix in (".safetensors", ".bin")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
