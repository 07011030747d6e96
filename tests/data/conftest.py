"""IDX files and a mirror for the tests of data sets."""

import gzip
import hashlib
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from robustbench_inv.data import fetch as sources


@pytest.fixture(scope="session")
def idx() -> Callable[[np.ndarray], bytes]:
    """Array → the bytes of its IDX file, written from the format's definition."""

    def encode(array: np.ndarray) -> bytes:
        header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(
            f">{array.ndim}I", *array.shape
        )
        return header + array.astype(np.uint8).tobytes()

    return encode


@dataclass
class Mirror:
    """A web server: path → (status, body, length that it promises)."""

    url: str
    answers: dict[str, tuple[int, bytes, int]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def serve(
        self, path: str, body: bytes, *, status: int = 200, promised: int | None = None
    ) -> None:
        self.answers[path] = (status, body, len(body) if promised is None else promised)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A mirror on this machine that has nothing yet."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    result = Mirror("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            result.requests.append(self.path)
            status, body, length = result.answers.get(self.path, (404, b"gone", 4))
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    result.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield result
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class TinyMnist:
    """A stand-in for MNIST's test set that has checksums of its own."""

    images: np.ndarray
    labels: np.ndarray
    files: dict[str, bytes]

    def packed(self, name: str) -> bytes:
        return gzip.compress(self.files[name])


@pytest.fixture
def tiny_mnist(
    idx: Callable[[np.ndarray], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> TinyMnist:
    """Twenty images under the names of MNIST's test set, whose checksums the program expects; an empty cache."""
    images = (np.arange(20 * 28 * 28) % 256).reshape(20, 28, 28)
    labels = np.arange(20) % 10
    files = {"t10k-images-idx3-ubyte": idx(images), "t10k-labels-idx1-ubyte": idx(labels)}
    entry = {
        "folders": ["mnist", "MNIST/raw"],
        "mirrors": [],
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    monkeypatch.setattr(sources, "_sources", lambda: {"mnist": entry})
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    for name in ("INVBENCH_DATA", "INVBENCH_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    return TinyMnist(images, labels, files)
