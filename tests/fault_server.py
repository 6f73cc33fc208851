"""An HTTP server over a folder that does to each request what `faults` says: the network of a rented machine."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, List, Optional
from urllib.parse import unquote, urlsplit

# A fault is called with the handler and the bytes that would be sent; it answers by itself and returns True, or returns
# False to let the request through.
Fault = Callable[["Handler", bytes, int], bool]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, owner: "FaultServer", *args: Any) -> None:
        self.owner = owner
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked = urlsplit(self.path).path.lstrip("/")  # a proxy is asked for the whole address
        path = next(
            (
                path
                for path in (self.owner.root / asked, self.owner.root / unquote(asked))
                if path.is_file()
            ),
            Path(asked),
        )
        self.owner.requests[path.name] += 1
        self.owner.seen.append(self.path)
        if not path.is_absolute():
            return self.answer(404, b"")
        content, start = path.read_bytes(), 0
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and self.owner.ranges:
            start = int(wanted[6:].split("-")[0])
        self.owner.started.append(start)
        if self.owner.fault and self.owner.fault(self, content, start):
            return
        if start >= len(content) and start:
            return self.answer(416, b"")
        self.answer(206 if start else 200, content[start:], start, len(content))

    def answer(
        self, status: int, body: bytes, start: int = 0, total: int = 0, **headers: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_part(self, content: bytes, start: int, end: int) -> None:
        """Promises everything from `start` and sends only as far as `end`."""
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:end])
        self.wfile.flush()
        self.close_connection = True


class FaultServer:
    """Serves `root` at `address`. `ranges`: honours Range. `requests` counts by file name, `seen` lists the paths."""

    def __init__(self, root: Path) -> None:
        self.root, self.stop = root, threading.Event()
        self.reset()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self._http.daemon_threads = True
        self._http.handle_error = lambda *args: None  # type: ignore[method-assign]  # clients break off
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"

    def reset(self) -> None:
        """Ends what stalls, and forgets the fault and all requests."""
        self.stop.set()
        self.stop, self.ranges = threading.Event(), True
        self.fault: Optional[Fault] = None
        self.requests: "Counter[str]" = Counter()
        self.seen: List[str] = []
        self.started: List[int] = []

    def __enter__(self) -> "FaultServer":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.stop.set()
        self._http.shutdown()
        self._http.server_close()

    def stall(self) -> None:
        self.stop.wait()
