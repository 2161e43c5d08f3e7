"""FashionMNIST on disk, fetched once and verified; without a network, a generated stand-in.

    dataset = prepare("auto", "data")  # once per run: "fashion_mnist" or "synthetic"
    train_images, train_labels, test_images, test_labels = load(dataset, "data")  # in each trial

On disk are the four uncompressed files of the data set, where torchvision puts them:

    DATASET_PATH/FashionMNIST/raw/train-images-idx3-ubyte ...   from a mirror, or one of SOURCES
    DATASET_PATH/synthetic/v1/train-images-idx3-ubyte ...       the same format, from `_generate`

A file is right if its MD5 is. A folder whose files are all right may be read-only and shared.
"""

import gzip
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
from filelock import FileLock

FOLDERS = {"fashion_mnist": Path("FashionMNIST", "raw"), "synthetic": Path("synthetic", "v1")}
SHAPES = {
    "train-images-idx3-ubyte": (60000, 28, 28),
    "train-labels-idx1-ubyte": (60000,),
    "t10k-images-idx3-ubyte": (10000, 28, 28),
    "t10k-labels-idx1-ubyte": (10000,),
}
MD5 = {
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
SOURCES = (  # torchvision's, and the authors' own
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
)
TIMEOUT_SECONDS = 10  # for each answer, and each part of a download


class Unreachable(OSError):
    """No source delivers the files."""


class Damaged(Unreachable):
    """The same, and what is there is wrong: a mistake that the stand-in would hide."""


# ---- What the rest of the program uses -----------------------------------------------------------
def load(dataset, dataset_path):
    """Arrays of uint8: training images (60000, 28, 28) and labels (60000,), then 10000 for testing.

    dataset: what `prepare` returned, which has verified the files.
    """
    folder = Path(dataset_path) / FOLDERS[dataset]
    arrays = []
    for name, shape in SHAPES.items():
        n_header = 4 + 4 * len(shape)  # bytes: a magic number and the shape
        arrays.append(np.fromfile(folder / name, np.uint8, offset=n_header).reshape(shape))
    return arrays


def prepare(dataset, dataset_path):
    """The data set to train on, "fashion_mnist" or "synthetic", its files complete and verified.

    dataset: one of these, or "auto": the stand-in if no source of FashionMNIST can be reached.
    Raises ValueError for another name; Unreachable or Damaged if FashionMNIST cannot be had.
    """
    if dataset not in ("auto", *FOLDERS):
        raise ValueError(f"dataset: expected one of auto, {', '.join(FOLDERS)}, got {dataset!r}")
    reason = "as dataset=synthetic asks for"
    if dataset != "synthetic":
        try:
            _complete("fashion_mnist", dataset_path, _download)
            return "fashion_mnist"
        except Unreachable as error:
            if dataset == "fashion_mnist" or isinstance(error, Damaged):
                raise
            reason = f"because {error}"
    _complete("synthetic", dataset_path, _generate)
    text = f"NOT FashionMNIST: training on GENERATED stand-in images, {reason}"
    print(text, file=sys.stderr)
    return "synthetic"


# ---- Files ---------------------------------------------------------------------------------------
def _complete(dataset, dataset_path, make):
    """Call make(folder, names) for the files that are missing or wrong, one run at a time."""
    folder = Path(dataset_path) / FOLDERS[dataset]
    if _wrong_files(dataset, folder):
        print(f"preparing {folder}", file=sys.stderr)  # or waiting for another run that does
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "prepare.lock"):
            if names := _wrong_files(dataset, folder):
                make(folder, names)


def _wrong_files(dataset, folder):
    """Names of the files that are missing or have another MD5."""
    paths = {name: folder / name for name in SHAPES}
    found = {name: _md5(path.read_bytes()) for name, path in paths.items() if path.exists()}
    return [name for name in SHAPES if found.get(name) != MD5[dataset][name]]


def _md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _write(path, data):
    """Write a file that other processes see whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


# ---- Download ------------------------------------------------------------------------------------
def _download(folder, names):
    """Fetch the files; each source has to deliver those that the sources before it did not."""
    missing, failures, kind = list(names), [], Unreachable
    if damaged := [name for name in names if (folder / name).exists()]:
        failures, kind = [f"{folder / damaged[0]}: wrong MD5"], Damaged
    for source in (*_mirrors(), *SOURCES):
        try:
            while missing:
                _write(folder / missing[0], _fetch(source, missing[0]))
                missing.pop(0)
            return
        except Unreachable as error:
            kind = Damaged if isinstance(error, Damaged) else kind
            failures.append(f"{source}/{missing[0]}.gz: {error}")
    text = "\n  ".join(["no source delivers FashionMNIST:", *failures])
    text += "\nput the four .gz files into a folder and name it in the environment variable "
    text += "FASHION_MNIST_MIRROR, or try the program without them: --set dataset=synthetic"
    raise kind(text)


def _mirrors():
    """The user's own base URL, if there is one."""
    mirror = os.environ.get("FASHION_MNIST_MIRROR")
    return [mirror if "://" in mirror else Path(mirror).resolve().as_uri()] if mirror else []


def _fetch(source, name):
    """The bytes of a file, from the archive that a source has of it."""
    url = f"{source.rstrip('/')}/{name}.gz"
    print(f"fetching {url}", file=sys.stderr)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            data = gzip.decompress(response.read())
    except urllib.error.HTTPError as error:
        error.close()
        raise Unreachable(str(error)) from None
    except (gzip.BadGzipFile, EOFError, zlib.error, http.client.IncompleteRead) as error:
        raise Damaged(f"broken off, or no archive: {error}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a malformed URL
        raise Unreachable(str(error).strip("<>")) from None
    if _md5(data) != MD5["fashion_mnist"][name]:
        raise Damaged("wrong MD5")
    return data


# ---- The stand-in --------------------------------------------------------------------------------
def _generate(folder, names):
    """Write the named files of the stand-in; another generator needs another folder and other MD5s.

    A class has four blurred patterns of 8 x 8 random patches. An image is a random window of one,
    mixed with a window of another class of up to the same weight, and noise. So a linear model
    reaches 0.85 and the best networks 0.93, and dropout, units and learning rate matter as they do
    on FashionMNIST. Numpy has frozen RandomState, so the bytes are the same on every machine.
    """
    rng = np.random.RandomState(2017)
    n = 70000

    def draw(low, high, shape):
        return rng.randint(low, high, shape, dtype=np.int64)

    patches = np.maximum(draw(-200, 256, (10, 4, 8, 8)), 0)  # nearly half black, as FashionMNIST
    patterns = np.kron(patches, np.ones((4, 4), np.int64))  # (10, 4, 32, 32)
    for axis in (2, 3, 2, 3):
        patterns = (np.roll(patterns, 1, axis) + 2 * patterns + np.roll(patterns, -1, axis)) // 4
    # (10, 4, 5, 5, 28, 28)
    windows = np.lib.stride_tricks.sliding_window_view(patterns, (28, 28), (2, 3))
    labels = draw(0, 10, n)
    others = (labels + draw(1, 10, n)) % 10
    weights = draw(8, 17, n)[:, None, None]  # of the own class, in sixteenths

    def random_windows(classes):
        m = len(classes)
        return windows[classes, draw(0, 4, m), draw(0, 5, m), draw(0, 5, m)]  # (m, 28, 28)

    images = np.empty((n, 28, 28), np.uint8)
    for part in np.split(np.arange(n), 50):  # keeps the temporary arrays small
        own = weights[part] * random_windows(labels[part])
        mixed = own + (16 - weights[part]) * random_windows(others[part])
        noise = np.frombuffer(rng.bytes(2 * mixed.size), np.uint8).reshape(2, *mixed.shape)
        noise = noise.sum(0, dtype=np.int64) - 255  # triangular, -255 to 255
        images[part] = (mixed // 16 + noise * 5 // 16).clip(0, 255)
    parts = {"train": slice(60000), "t10k": slice(60000, n)}
    for name in names:
        data = (images if "images" in name else labels.astype(np.uint8))[parts[name.split("-")[0]]]
        header = np.array([0x800 + data.ndim, *data.shape], ">i4")
        _write(folder / name, header.tobytes() + data.tobytes())
