"""FashionMNIST on disk: fetched once, verified, read in milliseconds; where no network is, a generated stand-in.

    dataset = prepare("auto", "data")  # "fashion_mnist" or "synthetic", its files whole and verified; once per run
    train_images, train_labels, test_images, test_labels = load(dataset, "data")  # in each trial

On disk are the four uncompressed files of the data set, where torchvision puts them:

    DATASET_PATH/FashionMNIST/raw/train-images-idx3-ubyte ...   from one of `_sources`
    DATASET_PATH/synthetic/v1/train-images-idx3-ubyte ...       the same format, from `_generate`

A file is right when its MD5 is, and appears under its name only whole. A complete folder may be read-only and shared;
the lock is taken only to complete one.
"""

import gzip
import hashlib
import http.client
import os
import queue
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

CHOICES = ("auto", "fashion_mnist", "synthetic")
FOLDERS = {"fashion_mnist": Path("FashionMNIST", "raw"), "synthetic": Path("synthetic", "v1")}
SHAPES = {
    "train-images-idx3-ubyte": (60000, 28, 28),
    "train-labels-idx1-ubyte": (60000,),
    "t10k-images-idx3-ubyte": (10000, 28, 28),
    "t10k-labels-idx1-ubyte": (10000,),
}
ARCHIVE_MD5 = {  # of the .gz files, as torchvision lists them
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
FILE_MD5 = {  # of the files in them, and of those that _generate makes
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    "synthetic": {
        "train-images-idx3-ubyte": "3ea389c5363df11bd8ce800457979387",
        "train-labels-idx1-ubyte": "c1cc93d44bd9fb6b5ad76a35be2c2f77",
        "t10k-images-idx3-ubyte": "85cccba8d3a3ef761dcb880cdceb13bd",
        "t10k-labels-idx1-ubyte": "86569d826516fa318c775c9fac9c375b",
    },
}
REPOSITORY = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
ANSWER_SECONDS = 5  # for a source to begin its answer: without a network two sources fail within 10 s
STALL_SECONDS = 30  # without a byte in the middle of a download


class Unreachable(OSError):
    """No source answers, or has the file."""


class Damaged(OSError):
    """A source, or the disk, holds something else than the data, and no other source helped."""


# ---- What the rest of the program uses -------------------------------------------------------------------------------
def load(dataset, dataset_path):
    """Arrays of uint8: training images (60000, 28, 28) and labels (60000,), test images (10000, 28, 28) and labels.

    dataset: what `prepare` returned, which has verified the files.
    """
    if dataset not in FOLDERS:
        raise ValueError(f"dataset: expected what prepare returns, {' or '.join(FOLDERS)}, got {dataset!r}")
    folder = Path(dataset_path) / FOLDERS[dataset]
    header = {3: 16, 1: 8}  # bytes by number of dimensions: a magic number and the shape, 4 bytes each
    return [
        np.fromfile(folder / name, np.uint8, offset=header[len(shape)]).reshape(shape) for name, shape in SHAPES.items()
    ]


def prepare(dataset, dataset_path):
    """The data set to train on, "fashion_mnist" or "synthetic", after its files have been completed and verified.

    dataset: one of these, or "auto": FashionMNIST, or the stand-in where no source of it can be reached. Raises
    ValueError for another name, Unreachable or Damaged when FashionMNIST cannot be had, and OSError naming a path that
    cannot be written.
    """
    if dataset not in CHOICES:
        raise ValueError(f"dataset: expected one of {', '.join(CHOICES)}, got {dataset!r}")
    why = "as dataset=synthetic asks for"
    if dataset != "synthetic":
        try:
            _complete("fashion_mnist", Path(dataset_path), _download)
            return "fashion_mnist"
        except Unreachable as error:
            if dataset == "fashion_mnist":
                raise
            why = f"because {error}"
    _complete("synthetic", Path(dataset_path), _generate)
    _say(f"{'!' * 80}\nNOT FashionMNIST: training on GENERATED stand-in images, {why}\n{'!' * 80}")
    return "synthetic"


# ---- Files: verified, atomic, one writer at a time -------------------------------------------------------------------
def _complete(dataset, dataset_path, make):
    """Call make(folder, names of the files that are missing or wrong) under the lock, if there are any."""
    folder = dataset_path / FOLDERS[dataset]
    if not _incomplete(dataset, folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "prepare.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        _say(f"waiting for another run that is preparing {folder}")
        held = lock.acquire()
    with held:
        for leftover in folder.glob("*.partial"):  # of a run that was killed
            leftover.unlink()
        names = _incomplete(dataset, folder)
        if names:
            make(folder, names)


def _incomplete(dataset, folder):
    return [name for name, md5 in FILE_MD5[dataset].items() if _file_md5(folder / name) != md5]


def _file_md5(path):
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, _md5).hexdigest()
    except FileNotFoundError:
        return None


def _md5(data=b""):
    return hashlib.md5(data, usedforsecurity=False)


def _write(path, data):
    """Write a file that is never seen in part, not even after a power failure."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # ENOSPC comes without a path
    finally:
        partial.unlink(missing_ok=True)


def _say(text):
    print(text, file=sys.stderr, flush=True)


# ---- Download --------------------------------------------------------------------------------------------------------
def _download(folder, names):
    """Fetch files into the folder, from each source those that the ones before it did not deliver."""
    missing = list(names)
    failures = [f"{folder / name}: wrong MD5, to be replaced" for name in names if (folder / name).exists()]
    damaged = bool(failures)
    for source, url in _sources(folder, failures):
        try:
            while missing:
                _write(folder / missing[0], _fetch(f"{url}/{missing[0]}.gz", ARCHIVE_MD5[missing[0]]))
                missing.pop(0)
            return
        except (Unreachable, Damaged) as error:
            damaged |= isinstance(error, Damaged)
            failures.append(f"{source}: {missing[0]}.gz: {error}")
    raise (Damaged if damaged else Unreachable)(
        "no source delivers FashionMNIST:\n  "
        + "\n  ".join(failures)
        + "\nput the four .gz files into a folder and name it in the environment variable FASHION_MNIST_MIRROR, or try the "
        "program without them: --set dataset=synthetic"
    )


def _sources(folder, failures):
    """Yields (name for a message, base URL) in the order in which they are tried."""
    for local in (folder, folder.parents[1]):
        if any((local / f"{name}.gz").exists() for name in ARCHIVE_MD5):
            yield local, local.resolve().as_uri()
    mirror = os.environ.get("FASHION_MNIST_MIRROR")
    if mirror:
        url = mirror if "://" in mirror else Path(mirror).resolve().as_uri()
        yield f"FASHION_MNIST_MIRROR={mirror}", url.rstrip("/")
    try:
        from torchvision.datasets import FashionMNIST  # takes a second, and only here
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: built for another torch
        failures.append(f"torchvision: cannot import it: {error}")
    else:
        for url in FashionMNIST.mirrors:
            yield url, url.rstrip("/")
    yield REPOSITORY, REPOSITORY


def _fetch(url, md5):
    """Bytes of the file in the archive at the URL."""
    try:
        response = _open(url)
    except urllib.error.HTTPError as error:
        error.close()
        raise Unreachable(str(error)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a malformed URL
        raise Unreachable(str(error).strip("<>")) from error
    _say(f"fetching {url}")
    try:
        with response:
            archive = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Damaged(f"the download broke off: {error}") from error
    if _md5(archive).hexdigest() != md5:
        raise Damaged(f"{len(archive)} bytes of the wrong MD5")
    return gzip.decompress(archive)


def _open(url):
    """urlopen with a limit on all of it: its own holds for each address of a name anew, and not for the name server."""
    answer = queue.SimpleQueue()

    def ask():
        try:
            answer.put(urllib.request.urlopen(url, timeout=STALL_SECONDS))
        except Exception as error:  # raised below
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        result = answer.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer in {ANSWER_SECONDS} s") from None
    if isinstance(result, Exception):
        raise result
    return result


# ---- The stand-in ----------------------------------------------------------------------------------------------------
def _generate(folder, names):
    """Write the named files of the stand-in; another generator is another folder (FOLDERS) and other MD5s.

    A class has four blurred patterns of 8 x 8 random patches; an image is a random window of one, mixed with a window of
    another class of up to the same weight, and noise. So a linear model reaches 0.85 and the best networks 0.93, and
    dropout, units and learning rate matter as they do on FashionMNIST. Integers from a generator that numpy has frozen:
    the same bytes on every machine.
    """
    rng = np.random.RandomState(2017)
    n = sum(SHAPES[name][0] for name in SHAPES if "labels" in name)

    def draw(low, high, shape):
        return rng.randint(low, high, shape, dtype=np.int64)

    patches = np.maximum(draw(-200, 256, (10, 4, 8, 8)), 0)  # nearly half are black, as in FashionMNIST
    patterns = np.kron(patches, np.ones((4, 4), np.int64))  # (10, 4, 32, 32)
    for axis in (2, 3, 2, 3):
        patterns = (np.roll(patterns, 1, axis) + 2 * patterns + np.roll(patterns, -1, axis)) // 4
    windows = np.lib.stride_tricks.sliding_window_view(patterns, (28, 28), (2, 3))  # (10, 4, 5, 5, 28, 28)
    labels = draw(0, 10, n)
    others = (labels + draw(1, 10, n)) % 10
    weights = draw(8, 17, n)[:, None, None]  # of the own class, in sixteenths

    def random_windows(classes):
        return windows[classes, draw(0, 4, len(classes)), draw(0, 5, len(classes)), draw(0, 5, len(classes))]

    images = np.empty((n, 28, 28), np.uint8)
    for part in np.split(np.arange(n), 50):  # keeps the temporary arrays small
        mixed = weights[part] * random_windows(labels[part]) + (16 - weights[part]) * random_windows(others[part])
        noise = np.frombuffer(rng.bytes(2 * mixed.size), np.uint8).reshape(2, *mixed.shape).sum(0, dtype=np.int64) - 255
        images[part] = (mixed // 16 + noise * 5 // 16).clip(0, 255)
    parts = {"train": slice(60000), "t10k": slice(60000, n)}
    for name in names:
        data = (images if "images" in name else labels.astype(np.uint8))[parts[name.split("-")[0]]]
        header = np.array([0x800 + data.ndim, *data.shape], ">i4")
        _write(folder / name, header.tobytes() + data.tobytes())
