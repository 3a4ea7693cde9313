"""An S3 server on loopback that can be told to fail: moto's, behind a WSGI layer of our own.

The layer also lets one write through at a time: moto looks whether a condition holds and then writes, and two
requests may pass between; S3 itself does not let them.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from stores.remote import RemotePath

Fault = Callable[[dict, Callable], list]  # a WSGI application that answers in moto's place
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test", "AWS_REGION": "us-east-1"}


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # a connection and a thread for many requests, not for each

    def log(self, type: str, message: str, *args) -> None:
        pass


class FaultyStorage:
    """`faults` are asked in turn, each with method and path; the first that gives a `Fault` has it answer."""

    def __init__(self):
        self.faults: list[Callable[[str, str], Fault | None]] = []
        self.requests: list[str] = []  # "PUT /bucket/key", in order
        self.latency_seconds = 0.0
        self._frozen: dict[str, dict[str, tuple[int, str]]] = {}  # bucket -> key -> size, etag
        self._writes = threading.Lock()
        self._moto = create_backend_app("s3")
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Quiet)
        self._server.handle_error = lambda *_: None  # connections that it was told to reset
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].encode("latin-1").decode()
        self.requests.append(f"{method} {path}")
        if self.latency_seconds:
            time.sleep(self.latency_seconds)
        for choose in self.faults:
            if (fault := choose(method, path)) is not None:
                if fault is lost_answer:
                    list(self._answer(environ, lambda *_: None))
                return fault(environ, start_response)
        query = parse_qs(environ["QUERY_STRING"])
        bucket = path.strip("/")
        if method == "GET" and "list-type" in query and bucket in self._frozen:
            return self._old_listing(bucket, query, start_response)
        return self._answer(environ, start_response)

    def _answer(self, environ, start_response):
        if environ["REQUEST_METHOD"] == "GET":
            return self._moto(environ, start_response)
        with self._writes:
            return list(self._moto(environ, start_response))

    def new_bucket(self) -> str:
        name = f"test-{uuid.uuid4().hex[:8]}"
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/{name}", method="PUT")).close()
        return name

    def freeze_listings(self, bucket: RemotePath, nothing: bool = False) -> None:
        """From now on listings show what is there now; or nothing."""
        there = [] if nothing else bucket.objects.all_below("")
        self._frozen[bucket.bucket.partition("://")[2]] = {facts.key: (facts.size, facts.etag) for facts in there}

    def forget(self) -> None:
        """No faults, no frozen listings, no requests."""
        self.faults.clear()
        self.requests.clear()
        self._frozen.clear()
        self.latency_seconds = 0.0

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _old_listing(self, bucket, query, start_response):
        prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
        entries, folders = [], set()
        for key, (size, etag) in sorted(self._frozen[bucket].items()):
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            entries.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{escape(etag)}</ETag><Size>{size}</Size></Contents>"
            )
        entries += [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders)]
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(entries)}</ListBucketResult>"
        start_response("200 OK", [("Content-Type", "application/xml")])
        return [body.encode()]


def answers(status: str, code: str) -> Fault:
    """`answers("503 Slow Down", "SlowDown")`."""

    def fault(environ, start_response):
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>Told to.</Message></Error>".encode()]

    return fault


def reset(environ, start_response):
    """The connection is reset before anything is done."""
    _reset(environ)
    return []


def lost_answer(environ, start_response):
    """The request is carried out, then the connection is reset."""
    _reset(environ)
    return []


def _reset(environ) -> None:
    connection = environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())  # `close` would wait for the server's other views of the socket
    raise ConnectionResetError


def cut(content: bytes) -> Fault:
    """Half of an answer, then a reset."""

    def fault(environ, start_response):
        write = start_response("200 OK", [("Content-Length", str(len(content))), ("ETag", '"x"')])
        write(content[: len(content) // 2])
        _reset(environ)
        return []

    return fault


def every_object(path: RemotePath) -> dict[str, bytes]:
    """Contents by key, as counted from `path`."""
    found = path.objects.all_below(path.key)
    contents = path.objects.many(lambda facts: bytes(path.objects.get(facts.key).content), found)
    return {facts.key[len(path.key) :].lstrip("/"): content for facts, content in zip(found, contents, strict=True)}


@contextmanager
def failing(storage: FaultyStorage, choose: Callable[[str, str], Fault | None]) -> Iterator[None]:
    storage.faults.append(choose)
    try:
        yield
    finally:
        storage.faults.remove(choose)
