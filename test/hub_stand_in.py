"""A small Hugging Face hub on 127.0.0.1: what `huggingface_hub` asks for, from a dictionary of files. It
notes every request.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = 'a' * 40


class Hub:
    """repositories: name -> {file name: content}. tokens: where not None, those it accepts. private, gated:
    repositories that need one.
    broken: file names whose download breaks off. hanging: those that stop in the middle until `close`.
    status: answered to everything, where not None.
    """

    def __init__(self, repositories: dict[str, dict[str, bytes]]):
        self.repositories = repositories
        self.tokens: set[str] | None = None
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.broken: set[str] = set()
        self.hanging: set[str] = set()
        self.ended = threading.Event()
        self.status: int | None = None
        self.html = False
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, token
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), self._handler())
        self.endpoint = f'http://127.0.0.1:{self._server.server_port}'
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def fetched(self) -> set[str]:
        """Names of files that were downloaded."""
        return {
            path.split('/resolve/')[1].partition('/')[2]
            for method, path, _ in self.requests
            if method == 'GET' and '/resolve/' in path
        }

    def _handler(hub):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self._answer(body=False)

            def do_GET(self):
                self._answer(body=True)

            def _answer(self, body: bool):
                path = unquote(urlsplit(self.path).path)
                token = (self.headers.get('Authorization') or '').removeprefix('Bearer ') or None
                hub.requests.append((self.command, path, token))
                if hub.status is not None:
                    return self._send(hub.status, b'{"error": "out of order"}')
                if hub.html:
                    return self._send(
                        200, b'<html>Please log in to this network</html>', {'Content-Type': 'text/html'}
                    )
                if token is not None and hub.tokens is not None and token not in hub.tokens:
                    return self._send(
                        401,
                        b'{"error": "Invalid credentials in Authorization header"}',
                        {'X-Error-Message': 'Invalid credentials in Authorization header'},
                    )
                name = '/'.join(path.removeprefix('/api/models').lstrip('/').split('/')[:2])
                files = hub.repositories.get(name)
                if files is None or (name in hub.private and token is None):
                    return self._send(
                        401 if token is None else 404,
                        b'{"error": "Repository not found"}',
                        {'X-Error-Code': 'RepoNotFound'},
                    )
                if path == f'/api/models/{name}' or path.startswith(f'/api/models/{name}/revision/'):
                    info = {
                        'id': name,
                        'modelId': name,
                        'sha': COMMIT,
                        'private': False,
                        'tags': [],
                        'siblings': [{'rfilename': file} for file in files],
                    }
                    return self._send(200, json.dumps(info).encode())
                if path.startswith(f'/api/models/{name}/tree/'):
                    return self._send(
                        200,
                        json.dumps(
                            [
                                {
                                    'type': 'file',
                                    'path': file,
                                    'size': len(data),
                                    'oid': hashlib.sha1(data).hexdigest(),
                                }
                                for file, data in files.items()
                            ]
                        ).encode(),
                    )
                file = path.partition('/resolve/')[2].partition('/')[2]
                if file not in files:
                    return self._send(404, b'', {'X-Error-Code': 'EntryNotFound'})
                if name in hub.gated and token is None:
                    return self._send(401, b'{"error": "gated"}', {'X-Error-Code': 'GatedRepo'})
                data = files[file]
                headers = {
                    'ETag': f'"{hashlib.sha1(data).hexdigest()}"',
                    'X-Repo-Commit': COMMIT,
                    'Content-Type': 'application/octet-stream',
                }
                if file in hub.broken and body:
                    self.close_connection = True
                    return self._send(500, b'', headers)
                self._send(200, data, headers, body)

            def _send(self, status: int, data: bytes, headers=(), body: bool = True):
                self.send_response(status)
                for key, value in {'Content-Type': 'application/json', **dict(headers)}.items():
                    self.send_header(key, value)
                self.send_header('Content-Length', str(len(data)))
                self.end_headers()
                if body and self.command != 'HEAD':
                    if self.path.rpartition('/')[2] in hub.hanging:
                        self.wfile.write(data[: len(data) // 2])
                        self.wfile.flush()
                        hub.ended.wait(60)
                    with contextlib.suppress(ConnectionError):  # of a client that was killed
                        self.wfile.write(data)

        return Handler
