"""Seconds per epoch of train/mlp_fashion_mnist.py with one thread, and of the plain pipeline, kept
here: DataLoader, ToTensor for each image, autograd, torch.optim.Adam.

    python -m experiments.train_speed               a table, in about three minutes
    python -m experiments.train_speed --quick       on a tenth of the images

Where there is a GPU it is timed too. All ways take turns, and each goes on with the weights that it
has. A cell has the median seconds of an epoch, validation included, and the accuracy after the last
one, which should hardly differ.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from experiments import command
from train import fashion_mnist
from train.mlp_fashion_mnist import N_TRAIN, Adam, build, train, validate

SIZES = [(512, 128, 64), (64, 64, 8), (1024, 1024, 128)]  # n_units_1, n_units_2, batch_size
DROPOUT, LEARNING_RATE, WEIGHT_DECAY = 0.2, 1e-3, 1e-6


def load(step=1):
    """(images (n, 784), labels (n,), how many of them are for training): every step-th one."""
    images, labels, *_ = fashion_mnist.load(fashion_mnist.prepare("auto", "data"), "data")
    images, labels = torch.from_numpy(images[::step]), torch.from_numpy(labels[::step])
    return images.flatten(1), labels.long(), N_TRAIN // step


def make_model(sizes):
    n_units = {"n_units_1": sizes[0], "n_units_2": sizes[1]}
    return build({**n_units, "dropout_1": DROPOUT, "dropout_2": DROPOUT})


# ---- Ways: each returns epoch(), which trains for one and returns the validation accuracy ----
def ours(sizes, images, labels, n_train, device="cpu"):
    images, labels, model = images.to(device), labels.to(device), make_model(sizes).to(device)
    optimizer = Adam(model.parameters(), LEARNING_RATE, WEIGHT_DECAY)

    def epoch():
        torch.set_flush_denormal(True)
        train(model, optimizer, images[:n_train], labels[:n_train], sizes[2])
        return validate(model, images[n_train:], labels[n_train:])

    return epoch


class Images(Dataset):
    """Items as those of torchvision's FashionMNIST(transform=ToTensor())."""

    def __init__(self, images, labels):
        self.images, self.labels = torch.as_tensor(images), torch.as_tensor(labels)
        self.transform = ToTensor()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = self.images[i].view(28, 28).numpy()
        return self.transform(Image.fromarray(image)), int(self.labels[i])


def plain(sizes, images, labels, n_train):
    training = Images(images[:n_train], labels[:n_train])
    batches = DataLoader(training, batch_size=sizes[2], shuffle=True, drop_last=True)
    validation = DataLoader(Images(images[n_train:], labels[n_train:]), batch_size=sizes[2])
    model = make_model(sizes)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def epoch():
        torch.set_flush_denormal(False)
        plain_epoch(model, optimizer, batches)
        model.eval()
        with torch.no_grad():
            correct = [model(x.flatten(1)).argmax(1) == y for x, y in validation]
        return torch.cat(correct).float().mean().item()

    return epoch


def plain_epoch(model, optimizer, batches):
    """Train on batches of images (B, 1, 28, 28) and labels (B,); the tests compare with it too."""
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x.flatten(1)), y).backward()
        optimizer.step()


# ---- The table ----
def timed(epoch):
    """(seconds, accuracy) of an epoch."""
    before = time.perf_counter()
    accuracy = epoch()
    return time.perf_counter() - before, accuracy


def main(arguments=None):
    parser = command.parser("train_speed", __doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    step = 10 if parser.parse_args(arguments).quick else 1
    torch.set_num_threads(1)
    ways, data = {"plain": (plain,), "ours": (ours,)}, load(step)
    if torch.cuda.is_available():
        ways["GPU"] = ours, "cuda"
        print(torch.cuda.get_device_name())
    print(f"torch {torch.__version__}, dropout {DROPOUT}; seconds per epoch (accuracy)\n")
    print(f"| n_units_1, n_units_2, batch_size | {' | '.join(ways)} |")
    print("|---" * (1 + len(ways)) + "|")
    for sizes in SIZES:
        epochs = [make(sizes, *data, *options) for make, *options in ways.values()]
        runs = [[timed(epoch) for epoch in epochs] for _ in range(6)]  # the first one warms up
        seconds = np.median(runs[1:], axis=0)[:, 0]
        cells = [f"{step * s:.2f} ({a:.3f})" for s, (_, a) in zip(seconds, runs[-1])]
        print(f"| {sizes} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    command.run("train_speed")
