"""The data: real download code against a server of this process, with four tiny archives in the place of FashionMNIST."""

import errno
import gzip
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from filelock import FileLock

from train import fashion_mnist

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = list(fashion_mnist.SHAPES)
FILES = {name: f"the bytes of {name}".encode() * 50 for name in NAMES}
ARCHIVES = {f"{name}.gz": gzip.compress(data) for name, data in FILES.items()}
REAL = pathlib.Path(os.environ.get("FASHION_MNIST_MIRROR", ROOT.parent / "shared" / "fashion-mnist"))


def md5s(files):
    return {name.removesuffix(".gz"): hashlib.md5(data).hexdigest() for name, data in files.items()}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves server.files by name; a name in server.faults goes wrong in the way that is said there."""

    def do_GET(self):
        name = self.path.rsplit("/", 1)[1]
        self.server.asked.append(name)
        fault = self.server.faults.get(name)
        if fault == "silent":
            self.server.closing.wait(10)
            return
        if fault == "missing" or name not in ARCHIVES:
            self.send_error(404)
            return
        data = b"<html>log in first</html>" if fault == "wrong" else ARCHIVES[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "broken off" else data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.faults, server.asked, server.closing = {}, [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}/data"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_internet(monkeypatch):
    """Each source refuses until a test gives one; the real data's tests give theirs."""
    refused = "http://127.0.0.1:9"  # the discard port: nothing listens
    monkeypatch.delenv("FASHION_MNIST_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "*")  # which would be asked for 127.0.0.1 too
    monkeypatch.setattr(fashion_mnist, "REPOSITORY", f"{refused}/repository")
    set_torchvision(monkeypatch, [f"{refused}/torchvision/"])


def set_torchvision(monkeypatch, mirrors):
    datasets = types.SimpleNamespace(FashionMNIST=types.SimpleNamespace(mirrors=mirrors))
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=datasets))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


@pytest.fixture
def tiny(monkeypatch):
    """The four tiny archives are the data set, and the stand-in takes no time."""
    monkeypatch.setattr(fashion_mnist, "ARCHIVE_MD5", md5s(ARCHIVES))
    monkeypatch.setitem(fashion_mnist.FILE_MD5, "fashion_mnist", md5s(FILES))
    monkeypatch.setattr(fashion_mnist, "_generate", lambda folder, names: [(folder / n).touch() for n in names])


def raw(tmp_path):
    return tmp_path / "FashionMNIST" / "raw"


def assert_whole(tmp_path):
    assert {path.name: path.read_bytes() for path in raw(tmp_path).glob("*ubyte")} == FILES
    assert not list(tmp_path.rglob("*.partial"))


def write_mirror(folder, archives=ARCHIVES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in archives.items():
        (folder / name).write_bytes(data)
    return folder


# ---- Sources ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "source", ["folder", "file://", "http", "torchvision", "repository", "raw folder", "data folder"]
)
@pytest.mark.usefixtures("tiny")
def test_prepare_completes_the_folder_from_each_source(source, tmp_path, monkeypatch, server):
    data = tmp_path / "data with a space"
    if source in ("folder", "file://"):
        mirror = write_mirror(tmp_path / "mirror")
        monkeypatch.setenv("FASHION_MNIST_MIRROR", mirror.as_uri() if source == "file://" else str(mirror))
    elif source == "http":
        monkeypatch.setenv("FASHION_MNIST_MIRROR", server.url + "/")
    elif source == "torchvision":
        set_torchvision(monkeypatch, [server.url + "/"])
    elif source == "repository":
        monkeypatch.setattr(fashion_mnist, "REPOSITORY", server.url)
    else:
        write_mirror(raw(data) if source == "raw folder" else data)
    assert fashion_mnist.prepare("auto", data) == "fashion_mnist"
    assert_whole(data)
    assert len(server.asked) == (4 if source in ("http", "torchvision", "repository") else 0)


@pytest.mark.usefixtures("tiny")
def test_prepare_of_a_complete_folder_needs_neither_lock_nor_source(tmp_path, monkeypatch):
    raw(tmp_path).mkdir(parents=True)
    for name, data in FILES.items():
        (raw(tmp_path) / name).write_bytes(data)
    monkeypatch.setattr(fashion_mnist, "FileLock", lambda path: pytest.fail("the folder may be read-only"))
    assert fashion_mnist.prepare("fashion_mnist", str(tmp_path)) == "fashion_mnist"
    assert len(list(raw(tmp_path).iterdir())) == 4


@pytest.mark.usefixtures("tiny")
def test_prepare_fetches_only_what_is_missing_and_replaces_what_is_corrupt(tmp_path, monkeypatch, server):
    monkeypatch.setenv("FASHION_MNIST_MIRROR", server.url)
    fashion_mnist.prepare("auto", tmp_path)
    server.asked.clear()
    (raw(tmp_path) / NAMES[0]).unlink()
    (raw(tmp_path) / NAMES[2]).write_bytes(FILES[NAMES[2]][:-1] + b"?")
    assert fashion_mnist.prepare("auto", tmp_path) == "fashion_mnist"
    assert server.asked == [f"{NAMES[0]}.gz", f"{NAMES[2]}.gz"]
    assert_whole(tmp_path)


@pytest.mark.parametrize("fault", ["missing", "wrong", "broken off", "silent"])
@pytest.mark.usefixtures("tiny")
def test_prepare_goes_on_to_the_next_source_after(fault, tmp_path, monkeypatch, server):
    if fault == "silent":
        monkeypatch.setattr(fashion_mnist, "ANSWER_SECONDS", 0.2)
    server.faults[f"{NAMES[1]}.gz"] = fault
    monkeypatch.setenv("FASHION_MNIST_MIRROR", server.url)
    set_torchvision(monkeypatch, [write_mirror(tmp_path / "mirror").as_uri()])
    assert fashion_mnist.prepare("auto", tmp_path) == "fashion_mnist"
    assert server.asked == [f"{NAMES[0]}.gz", f"{NAMES[1]}.gz"]
    assert_whole(tmp_path)


# ---- No source -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fault", ["missing", "silent"])
@pytest.mark.usefixtures("tiny")
def test_auto_without_a_reachable_source_announces_the_stand_in(fault, tmp_path, monkeypatch, server, capsys):
    monkeypatch.setattr(fashion_mnist, "ANSWER_SECONDS", 0.2)
    server.faults[f"{NAMES[0]}.gz"] = fault
    monkeypatch.setenv("FASHION_MNIST_MIRROR", server.url)
    assert fashion_mnist.prepare("auto", tmp_path) == "synthetic"
    error = capsys.readouterr().err
    assert "NOT FashionMNIST" in error and "GENERATED" in error and "!" * 40 in error
    assert ("404" if fault == "missing" else "no answer in 0.2 s") in error
    assert sorted(path.name for path in (tmp_path / "synthetic" / "v1").glob("*ubyte")) == sorted(NAMES)


@pytest.mark.usefixtures("tiny")
def test_fashion_mnist_without_a_source_names_each_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("FASHION_MNIST_MIRROR", str(tmp_path / "nowhere"))
    for module in ("torchvision", "torchvision.datasets"):
        monkeypatch.setitem(sys.modules, module, None)  # its import fails
    with pytest.raises(fashion_mnist.Unreachable) as caught:
        fashion_mnist.prepare("fashion_mnist", tmp_path)
    text = str(caught.value)
    assert f"FASHION_MNIST_MIRROR={tmp_path / 'nowhere'}: {NAMES[0]}.gz: " in text and "No such file" in text
    assert "torchvision: cannot import it: " in text
    assert f"{fashion_mnist.REPOSITORY}: {NAMES[0]}.gz: " in text and "refused" in text
    assert "FASHION_MNIST_MIRROR, or" in text and "--set dataset=synthetic" in text


@pytest.mark.parametrize("fault", ["wrong", "broken off"])
@pytest.mark.usefixtures("tiny")
def test_auto_with_only_a_damaged_source_is_an_error(fault, tmp_path, monkeypatch, server):
    server.faults[f"{NAMES[3]}.gz"] = fault
    monkeypatch.setenv("FASHION_MNIST_MIRROR", server.url)
    with pytest.raises(fashion_mnist.Damaged, match="MD5" if fault == "wrong" else "broke off"):
        fashion_mnist.prepare("auto", tmp_path)
    assert sorted(path.name for path in raw(tmp_path).glob("*")) == sorted([*NAMES[:3], "prepare.lock"])


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.usefixtures("tiny")
def test_auto_with_a_corrupt_copy_that_cannot_be_replaced_is_an_error(suffix, tmp_path):
    raw(tmp_path).mkdir(parents=True)
    (raw(tmp_path) / f"{NAMES[0]}{suffix}").write_bytes(b"half")
    with pytest.raises(fashion_mnist.Damaged, match=NAMES[0]):
        fashion_mnist.prepare("auto", tmp_path)
    assert not (tmp_path / "synthetic").exists()


def test_prepare_refuses_an_unknown_dataset(tmp_path):
    with pytest.raises(ValueError, match="dataset: expected one of auto, fashion_mnist, synthetic, got 'mnist'"):
        fashion_mnist.prepare("mnist", tmp_path)
    with pytest.raises(ValueError, match="expected what prepare returns, fashion_mnist or synthetic, got 'auto'"):
        fashion_mnist.load("auto", tmp_path)


# ---- The disk --------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("tiny")
def test_full_disk_is_an_error_that_names_the_path(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("FASHION_MNIST_MIRROR", str(write_mirror(tmp_path / "mirror")))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: .*{NAMES[0]}"):
        fashion_mnist.prepare("auto", tmp_path)
    assert [path.name for path in raw(tmp_path).iterdir()] == ["prepare.lock"]


@pytest.mark.usefixtures("tiny")
def test_dataset_path_that_is_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(OSError, match="data"):
        fashion_mnist.prepare("auto", tmp_path / "data")


@pytest.mark.usefixtures("tiny")
def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*paths):
        assert pathlib.Path(paths[0]).exists()
        raise KeyboardInterrupt

    monkeypatch.setenv("FASHION_MNIST_MIRROR", str(write_mirror(tmp_path / "mirror")))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fashion_mnist.prepare("auto", tmp_path)
    assert [path.name for path in raw(tmp_path).iterdir()] == ["prepare.lock"]
    (raw(tmp_path) / f"{NAMES[0]}.partial").write_bytes(b"of a run that was killed with SIGKILL")
    assert fashion_mnist.prepare("auto", tmp_path) == "fashion_mnist"
    assert_whole(tmp_path)


def test_second_run_waits_for_the_first_and_uses_its_files(tmp_path):
    raw(tmp_path).mkdir(parents=True)
    program = (
        "import json, sys; from train import fashion_mnist;"
        "fashion_mnist.FILE_MD5['fashion_mnist'] = json.loads(sys.argv[1]);"
        "fashion_mnist._download = None;"  # a call would fail
        "print(fashion_mnist.prepare('auto', sys.argv[2]))"
    )
    lock = FileLock(raw(tmp_path) / "prepare.lock")
    lock.acquire()
    with subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(md5s(FILES)), str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as second:
        try:
            assert "waiting for another run" in second.stderr.readline()
            for name, data in FILES.items():
                (raw(tmp_path) / name).write_bytes(data)
            assert second.poll() is None
        finally:
            lock.release()
        assert second.communicate(timeout=20)[0] == "fashion_mnist\n"


# ---- The real data and the stand-in ----------------------------------------------------------------------------------
@pytest.mark.skipif(not REAL.is_dir(), reason="no archives of FashionMNIST here; set FASHION_MNIST_MIRROR to a folder")
def test_real_archives_load_as_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.setenv("FASHION_MNIST_MIRROR", str(REAL))
    assert fashion_mnist.prepare("auto", tmp_path) == "fashion_mnist"
    train_images, train_labels, test_images, test_labels = fashion_mnist.load("fashion_mnist", tmp_path)
    assert train_images.shape == (60000, 28, 28) and test_images.shape == (10000, 28, 28)
    assert train_images.dtype == train_labels.dtype == np.uint8
    assert np.bincount(train_labels).tolist() == [6000] * 10 and np.bincount(test_labels).tolist() == [1000] * 10
    assert train_labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert abs(train_images.mean() / 255 - 0.2860) < 5e-5  # the mean that is published with the data set


def test_archive_md5s_are_those_of_torchvision(monkeypatch):
    monkeypatch.undo()
    datasets = pytest.importorskip("torchvision.datasets")
    assert {f"{name}.gz": md5 for name, md5 in fashion_mnist.ARCHIVE_MD5.items()} == dict(
        datasets.FashionMNIST.resources
    )
    assert all(url.startswith("http") for url in datasets.FashionMNIST.mirrors)


def test_stand_in_has_the_same_bytes_everywhere(tmp_path, capsys):
    assert fashion_mnist.prepare("synthetic", tmp_path) == "synthetic"
    assert "NOT FashionMNIST" in capsys.readouterr().err
    folder = tmp_path / "synthetic" / "v1"
    assert {name: fashion_mnist._file_md5(folder / name) for name in NAMES} == fashion_mnist.FILE_MD5["synthetic"]
    images, labels, test_images, test_labels = fashion_mnist.load("synthetic", tmp_path)
    assert images.shape == (60000, 28, 28) and test_images.shape == (10000, 28, 28)
    for counts, expected in ((np.bincount(labels), 6000), (np.bincount(test_labels), 1000)):
        assert counts.shape == (10,) and (abs(counts - expected) < 0.06 * expected + 60).all()
    assert 60 < images.mean() < 90  # FashionMNIST: 73
