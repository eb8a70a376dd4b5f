"""Shared test set-up: CPU, a persistent compilation cache, and the optional folder of golden cases beside the checkout."""

import gc
import logging
import os
import socket
import urllib.parse
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several test processes compile for TPUs at once
# Most of the suite's time is compilation: XLA's cheap passes do, and torch beside them needs one thread. Processes that tests start inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests import cheap_xla

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

cheap_xla.use_here()
gc.set_threshold(200_000, 20, 100)  # tracing makes many objects that live on


def pytest_collection_modifyitems(items):
    """Slow files first: with several workers, none is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden cases, manifests and DreamBench photos; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED.name} beside the checkout: golden cases and DreamBench photos are not here")
    return SHARED


class Bucket:
    """The bucket gs://bucket, for this process and those that it starts."""

    def __init__(self):
        import fsspec

        self.files = fsspec.filesystem("gcs", use_listings_cache=False)

    def versions(self, folder: str) -> dict[str, str]:
        """The version of each object below a folder of the bucket, by its name there."""
        return {
            path.removeprefix(f"bucket/{folder}/"): entry["generation"] for path, entry in self.files.find(f"bucket/{folder}", detail=True).items()
        }


def with_generations(emulator) -> dict[str, type]:
    """Classes of the emulator with what TensorStore counts on and it lacks: an object's generation, in answers and in the conditions of requests."""

    class Response(emulator.Response):
        def close(self):
            if self._handler.generation != "0":
                self["x-goog-generation"] = self._handler.generation
            super().close()

    class Router(emulator.Router):
        def handle(self, method):
            handler, address = self._request_handler, urllib.parse.urlsplit(self._request_handler.path)
            query = {name: values[0] for name, values in urllib.parse.parse_qs(address.query).items()}
            name = query.get("name") or urllib.parse.unquote(address.path.partition("/o/")[2])
            objects = handler.storage.objects.get("bucket", {})
            handler.generation = objects[name]["generation"] if name in objects else "0"
            if query.get("ifGenerationMatch", handler.generation) != handler.generation:
                status = HTTPStatus.PRECONDITION_FAILED
            elif query.get("ifGenerationNotMatch") == handler.generation != "0":
                status = HTTPStatus.NOT_MODIFIED
            else:
                return super().handle(method)
            handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
            response = Response(handler)
            response.status = status
            return response.close()

    return {"Response": Response, "Router": Router}


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    """Google Cloud Storage in this process's memory. One for all tests: TensorStore looks once where it is."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        for name, changed in with_generations(emulator).items():
            patch.setattr(emulator, name, changed)
        patch.setattr(emulator.server.HTTPServer, "request_queue_size", 128)  # it answers one after the other; more than wait are not heard
        server = emulator.create_server("localhost", port, in_memory=True, default_bucket="bucket")
        server.start()
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, f"http://localhost:{port}")
        # Nobody is asked for credentials, which it does not want, nor for the sort of the bucket.
        for name, value in {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "NO_GCE_CHECK": "true", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}.items():
            patch.setenv(name, value)
        pytest.importorskip("gcsfs")
        yield Bucket()
        server.stop()
