"""A web server of a few files, which may misbehave."""

import http.server
import threading
from typing import Self


class FileServer(http.server.ThreadingHTTPServer):
    """Serves at `url` while it is used as a context.

    Attributes:
      files: what it serves, by path; anything else is 404.
      status: what it answers to everything, when not 200.
      ranges: whether it knows ranges.
      cut_at: after how many bytes it breaks off; None: never.
      requests: what it was asked for: path and range.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.status = 200
        self.ranges = True
        self.cut_at: int | None = None
        self.requests: list[tuple[str, str | None]] = []
        self._thread = threading.Thread(target=self.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *args):
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        data = self.server.files.get(self.path)
        if self.server.status != 200 or data is None:
            self.send_error(404 if data is None else self.server.status)
            return
        start = 0
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: self.server.cut_at])

    def log_message(self, format, *args):
        pass
