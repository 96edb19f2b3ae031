"""Stand-ins for where models come from: a web server that answers like the Hub, and a command that answers like pip."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b"GGUF" + bytes(range(256)) * 1200
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def _at(repo: str, revision: str) -> str:
    return repo if revision in ("", "main") else f"{repo}@{revision}"


@dataclass
class FakeHub:
    """What the stand-in serves: files by 'owner/repo/path', of a revision 'owner/repo@revision/path', and how it
    misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)  # in place of the true checksum
    cut_at: int | None = None  # a download breaks off after this many bytes, once
    silent: bool = False  # accepts connections, never answers
    status: int | None = None  # answers everything with this
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range header
    no_ranges: bool = False  # answers every range with the whole file
    token_seen: list[str | None] | None = None  # Authorization headers of downloads
    elsewhere: str = ""  # downloads are redirected to this endpoint
    pause_s: float = 0.0  # in the middle of a download
    endpoint: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        self.requests.append((handler.command, path, handler.headers.get("Range", "")))
        if self.silent:
            self.released.wait(60)
            return
        if self.status is not None:
            handler.send_error(self.status)
            return
        if path.startswith("/api/models/"):
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self._repository(handler, _at(repo, unquote(revision)))
        elif "/resolve/" in path:
            repo, _, rest = path.strip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            self._file(handler, _at(repo, unquote(revision)), unquote(name))
        else:  # the client asks for other things of its own accord
            handler.send_error(404)

    def _missing(self, handler: BaseHTTPRequestHandler, code: str) -> None:
        handler.send_response(404)
        handler.send_header("X-Error-Code", code)
        handler.send_header("X-Error-Message", "not here")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def _repository(self, handler: BaseHTTPRequestHandler, repo: str) -> None:
        names = [name.removeprefix(repo + "/") for name in self.files if name.startswith(repo + "/")]
        if not names:
            known = any(other.startswith(repo.partition("@")[0] + "/") for other in self.files)
            self._missing(handler, "RevisionNotFound" if known else "RepoNotFound")
            return
        siblings = [{"rfilename": name} for name in names]
        body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []}).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _file(self, handler: BaseHTTPRequestHandler, repo: str, name: str) -> None:
        key = f"{repo}/{name}"
        if key not in self.files:
            known = any(other.startswith(repo + "/") for other in self.files)
            self._missing(handler, "EntryNotFound" if known else "RepoNotFound")
            return
        body = self.files[key]
        if self.elsewhere:
            handler.send_response(302)
            handler.send_header("Location", self.elsewhere + handler.path)
            handler.send_header("X-Linked-Size", str(len(body)))
            handler.send_header("X-Linked-ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            handler.send_header("X-Repo-Commit", COMMIT)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        wanted = "" if self.no_ranges else handler.headers.get("Range") or ""
        start = int((wanted or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        handler.send_response(206 if start else 200)
        if handler.command == "GET" and self.token_seen is not None:
            self.token_seen.append(handler.headers.get("Authorization"))
        handler.send_header("Content-Length", str(len(body) - start))
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("ETag", f'"{self.etags.get(key, hashlib.sha256(body).hexdigest())}"')
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if self.cut_at is not None and start < self.cut_at:
            handler.wfile.write(body[start : self.cut_at])
            self.cut_at = None
            handler.close_connection = True
            return
        middle = (start + len(body)) // 2
        handler.wfile.write(body[start:middle])
        self.released.wait(self.pause_s)
        handler.wfile.write(body[middle:])


@contextmanager
def serving(fake: FakeHub) -> Iterator[FakeHub]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def do_GET(self) -> None:
            fake.serve(self)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    fake.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        fake.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


PIP = """
    import os, shutil, sys, time
    from pathlib import Path
    here = Path(__file__).parent
    with open(here / "calls", "a") as log:
        log.write(" ".join(sys.argv[1:]) + "\\n")
    if (here / "slow").exists():
        Path(os.environ["TMPDIR"], "partial").write_bytes(b"x" * 4096)
        (here / "started").touch()
        time.sleep(60)
    name = sys.argv[-1].partition("==")[0].replace("-", "_")
    found = list((here / "index").glob(f"{name}-*.whl"))
    if not found:
        sys.exit("ERROR: Could not find a version\\nERROR: No matching distribution found for " + sys.argv[-1])
    shutil.copy(found[0], sys.argv[sys.argv.index("-d") + 1])
"""


@dataclass
class FakePip:
    """A command that stands in for pip: `download` copies wheels from a folder."""

    folder: Path

    def add_wheel(self, name: str, member: str, content: bytes) -> Path:
        path = self.folder / "index" / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)
        return path

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []
