"""A chat endpoint on this machine whose replies a test decides."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def message(text, **choice):
    """A chat completion that says `text`."""
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | choice]}


@contextmanager
def serving(reply):
    """Yields a server's address and its requests; `reply(request, number)` gives (status, body, headers) or JSON."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
            answer = reply(requests[-1], len(requests) - 1)
            status, content, headers = answer if isinstance(answer, tuple) else (200, json.dumps(answer), {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content if isinstance(content, bytes) else content.encode())

        def log_message(self, *args):
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
