"""The data: the real download code, with a server in this process and four tiny archives."""

import gzip
import hashlib
import os
import socketserver
import threading

import numpy as np
import pytest
from filelock import FileLock, Timeout

from train import fashion_mnist

NAMES = list(fashion_mnist.SHAPES)
FILES = {name: f"the bytes of {name}".encode() * 50 for name in NAMES}
ARCHIVES = {f"{name}.gz": gzip.compress(data) for name, data in FILES.items()}
MIRROR = os.environ.get("FASHION_MNIST_MIRROR", "../shared/fashion-mnist")
RAW = "FashionMNIST/raw"
REFUSED = "http://127.0.0.1:9"  # the discard port: nothing listens


# ---- Sources -------------------------------------------------------------------------------------
def response(data, n_bytes=None):
    return b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (n_bytes or len(data), data)


FAULTS = {  # what a server answers, and a word of the error
    "missing": (b"HTTP/1.0 404 Not Found\r\n\r\n", "404"),
    "silent": (None, "timed out"),
    "page": (response(b"<html>log in first</html>"), "Not a gzipped file"),
    "other": (response(gzip.compress(b"another file")), "wrong MD5"),
    "broken off": (response(ARCHIVES[f"{NAMES[1]}.gz"][:20], 99), "IncompleteRead"),
}


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        name = self.rfile.readline().split()[1].decode().rsplit("/")[-1]
        self.server.asked.append(name)
        self.wfile.write(self.server.answers[name] or self.rfile.read())  # None: silence


@pytest.fixture
def server():
    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.answers = {name: response(data) for name, data in ARCHIVES.items()}
        server.url = f"http://127.0.0.1:{server.server_address[1]}/data"
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """FashionMNIST is four tiny files, no source answers, and the stand-in has no files."""
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in FILES.items()}
    monkeypatch.setitem(fashion_mnist.MD5, "fashion_mnist", md5)
    monkeypatch.delenv("FASHION_MNIST_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fashion_mnist, "SOURCES", (f"{REFUSED}/1", f"{REFUSED}/2"))
    monkeypatch.setattr(fashion_mnist, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(fashion_mnist, "_generate", lambda folder, names: None)


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def check_prepare(tmp_path):
    assert fashion_mnist.prepare("auto", tmp_path) == "fashion_mnist"
    paths = (tmp_path / RAW).glob("*ubyte*")
    assert {path.name: path.read_bytes() for path in paths} == FILES


@pytest.mark.parametrize("source", ["folder", "file://", "http", "source"])
def test_each_source_completes_the_folder(source, tmp_path, monkeypatch, server):
    mirror = write(tmp_path / "a mirror", ARCHIVES)
    urls = {"folder": str(mirror), "file://": mirror.as_uri(), "http": server.url + "/"}
    if source in urls:
        monkeypatch.setenv("FASHION_MNIST_MIRROR", urls[source])
    else:
        monkeypatch.setattr(fashion_mnist, "SOURCES", (REFUSED, server.url))
    check_prepare(tmp_path)
    assert server.asked == ([] if source in ("folder", "file://") else list(ARCHIVES))


@pytest.mark.parametrize("fault", FAULTS)
def test_source_that_fails(fault, tmp_path, monkeypatch, server, capsys):
    """The next source is asked. The stand-in is taken if there is none, unless data is damaged."""
    server.answers[f"{NAMES[1]}.gz"], words = FAULTS[fault]
    monkeypatch.setenv("FASHION_MNIST_MIRROR", server.url)
    found = rf"(?s){NAMES[1]}.gz: .*{words}.*{REFUSED}/1.*{REFUSED}/2.*put"
    with pytest.raises(fashion_mnist.Unreachable, match=found):
        fashion_mnist.prepare("fashion_mnist", tmp_path)
    if fault in ("missing", "silent"):
        assert fashion_mnist.prepare("auto", tmp_path) == "synthetic"
        assert "GENERATED stand-in images, because no source delivers" in capsys.readouterr().err
    else:
        with pytest.raises(fashion_mnist.Damaged):
            fashion_mnist.prepare("auto", tmp_path)
    others = write(tmp_path / "mirror", ARCHIVES).as_uri(), REFUSED
    monkeypatch.setattr(fashion_mnist, "SOURCES", others)
    check_prepare(tmp_path)
    assert server.asked == [f"{NAMES[i]}.gz" for i in (0, 1, 1, 1)]


# ---- The disk ------------------------------------------------------------------------------------
def test_files_that_are_missing_or_wrong_are_fetched(tmp_path, monkeypatch, server):
    write(tmp_path / RAW, FILES | {NAMES[2]: b"half"})
    (tmp_path / RAW / NAMES[0]).unlink()
    with pytest.raises(fashion_mnist.Damaged, match=f"{NAMES[2]}: wrong MD5"):
        fashion_mnist.prepare("auto", tmp_path)
    monkeypatch.setenv("FASHION_MNIST_MIRROR", server.url)
    check_prepare(tmp_path)
    assert server.asked == [f"{NAMES[0]}.gz", f"{NAMES[2]}.gz"]
    monkeypatch.setattr(fashion_mnist, "FileLock", None)  # a complete folder may be read-only
    check_prepare(tmp_path)


def test_one_run_at_a_time_writes(tmp_path, monkeypatch):
    def download(folder, names):
        with pytest.raises(Timeout):
            FileLock(folder / "prepare.lock", timeout=0).acquire()
        write(folder, FILES)

    monkeypatch.setattr(fashion_mnist, "_download", download)
    check_prepare(tmp_path)


# ---- The real data and the stand-in --------------------------------------------------------------
@pytest.mark.skipif(not os.path.isdir(MIRROR), reason="no folder in FASHION_MNIST_MIRROR")
def test_real_archives_load_as_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("FASHION_MNIST_MIRROR", MIRROR)
    assert fashion_mnist.prepare("auto", tmp_path) == "fashion_mnist"
    images, labels, _, test_labels = fashion_mnist.load("fashion_mnist", tmp_path)
    assert images.dtype == labels.dtype == np.uint8 and labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert np.bincount(labels).tolist() == [6000] * 10
    assert np.bincount(test_labels).tolist() == [1000] * 10
    assert images.mean() / 255 == pytest.approx(0.2860, abs=5e-5)  # published with the data


def test_stand_in_has_the_same_bytes_everywhere(tmp_path, monkeypatch):
    monkeypatch.undo()
    assert fashion_mnist.prepare("synthetic", tmp_path) == "synthetic"
    assert fashion_mnist._wrong_files("synthetic", tmp_path / "synthetic" / "v1") == []
    shapes = [array.shape for array in fashion_mnist.load("synthetic", tmp_path)]
    assert shapes == [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]
