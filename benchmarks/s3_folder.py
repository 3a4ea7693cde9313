"""A folder as an S3 bucket of the same name, on loopback: GET, HEAD, PUT and LIST, as fast as Python sends files.

    python -m benchmarks.s3_folder FOLDER --latency-ms 20

For measurements: moto's server, which the tests use, computes for milliseconds over each request. Signatures are not
looked at, listings are never cut, and there are no conditions.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from datetime import UTC, datetime
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import click


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    latency_seconds: float

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:
        time.sleep(self.latency_seconds)
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        if "list-type" in query:
            self._send(200, _listing(self.folder, query), "application/xml")
            return
        path = self._file()
        if path is None:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
            return
        size = path.stat().st_size
        start, stop = 0, size
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = (int(first), min(int(last or size) + 1, size)) if first else (size - int(last), size)
        self._head(206 if asked else 200, path, stop - start, f"bytes {start}-{stop - 1}/{size}" if asked else None)
        if self.command == "GET":
            self.wfile.flush()
            with path.open("rb") as file:
                while start < stop:
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(self.latency_seconds)
        path = self.folder / unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _file(self) -> Path | None:
        path = self.folder / unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]
        return path if path.is_file() else None

    def _head(self, status: int, path: Path, length: int, content_range: str | None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", _etag(path, path.stat().st_mtime_ns))
        modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        self.send_header("Last-Modified", modified.strftime("%a, %d %b %Y %H:%M:%S GMT"))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@lru_cache(maxsize=1_000_000)
def _etag(path: Path, modified_ns: int) -> str:
    return f'"{hashlib.md5(f"{path}{modified_ns}".encode(), usedforsecurity=False).hexdigest()}"'


def _listing(folder: Path, query: dict[str, list[str]]) -> bytes:
    prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
    below = folder / prefix if prefix.endswith("/") or not prefix else (folder / prefix).parent
    found: list[str] = []
    for path in sorted(below.iterdir() if delimiter else below.rglob("*")) if below.is_dir() else []:
        key = path.relative_to(folder).as_posix()
        if path.is_dir() and delimiter and key.startswith(prefix):
            found.append(f"<CommonPrefixes><Prefix>{escape(key)}/</Prefix></CommonPrefixes>")
        elif path.is_file() and key.startswith(prefix):
            etag = escape(_etag(path, path.stat().st_mtime_ns))
            found.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{etag}</ETag><Size>{path.stat().st_size}</Size></Contents>"
            )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(found)}</ListBucketResult>".encode()


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--latency-ms", type=click.FloatRange(0), default=0.0, show_default=True, help="Before each answer.")
@click.option("--port", type=int, default=0, help="[default: a free one]")
def main(folder: Path, latency_ms: float, port: int) -> None:
    """Serve FOLDER, print the URL, and go on until ended."""
    Handler.folder, Handler.latency_seconds = folder, latency_ms / 1000
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        click.echo(f"http://127.0.0.1:{server.server_port}")
        server.serve_forever()


if __name__ == "__main__":
    main()
