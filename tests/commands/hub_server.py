"""A stand-in of the hub on this machine: repositories, uploads and commits, as its client speaks to it."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What the server has, and what it was asked.

    Args:
        repositories: name -> private; None makes every request fail with `status`.
        status: of every answer, where it is no 200.
    """

    def __init__(self, repositories=(), status=200):
        self.repositories = dict(repositories)
        self.status = status
        self.files = {}
        self.stored = {}
        self.asked = []
        self.headers = []

    def answer(self, method, path, body):
        """(status, JSON, headers) of a request."""
        self.asked.append((method, path))
        if self.status != 200:
            return self.status, {"error": "as the test wants it"}, {}
        parts = path.split("?")[0].strip("/").split("/")
        if path.endswith("/api/validate-yaml"):
            return 200, {"errors": [], "warnings": []}, {}
        if path.endswith("/api/repos/create"):
            given = json.loads(body)
            name = "/".join(filter(None, (given.get("organization"), given["name"])))
            self.repositories[name] = given.get("private", given.get("visibility") == "private")
            return 200, {"url": f"{self.address}/{name}"}, {}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._upload(one) for one in json.loads(body)["objects"]]}, {}
        if method == "PUT":
            self.stored[parts[-1]] = body
            return 200, {}, {}
        name = "/".join(parts[2:4])
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if "preupload" in parts:
            modes = [
                (one["path"], "lfs" if "safetensors" in one["path"] else "regular") for one in json.loads(body)["files"]
            ]
            return 200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]}, {}
        if "commit" in parts:
            self._commit([json.loads(line) for line in body.splitlines()])
            return 200, {"commitOid": "0" * 40, "commitUrl": f"{self.address}/{name}/commit/0"}, {}
        siblings = [{"rfilename": file} for file in self.files]
        return 200, {"id": name, "private": self.repositories[name], "sha": "0" * 40, "siblings": siblings}, {}

    def _upload(self, one):
        return {**one, "actions": {"upload": {"href": f"{self.address}/store/{one['oid']}"}}}

    def _commit(self, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]


@contextmanager
def serving(hub):
    """The hub at an address of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.headers.append(dict(self.headers))
            status, content, headers = hub.answer(self.command, self.path, body)
            self.send_response(status)
            written = json.dumps(content).encode()
            for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(written)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(written)

        do_GET = do_POST = do_PUT = respond  # noqa: N815

        def log_message(self, *args):
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
