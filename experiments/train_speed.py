"""How fast the running example trains, train/mlp_fashion_mnist.py, and how trials share a GPU.

    python -m experiments.train_speed [--quick]         a table, in about three minutes
    python -m experiments.train_speed --part sharing    1 to 8 trials on one GPU; four minutes

The table has seconds per epoch with one thread, and on a GPU where there is one: ours, and the
plain pipeline, which is kept here (DataLoader, ToTensor for each image, autograd,
torch.optim.Adam). All ways take turns, and each goes on with the weights that it has. A cell has
the median seconds of an epoch, validation included, and the accuracy after the last one, which
should hardly differ. It needs FashionMNIST itself. Sharing: epochs per second of all trials
together, MiB of the GPU that each takes, and MiB that are not free again after their end.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset

from experiments import command
from experiments.speed import reports_of, tuned
from train import fashion_mnist
from train.mlp_fashion_mnist import N_TRAIN, Adam, build, train, validate

SIZES = [(512, 128, 64), (64, 64, 8), (1024, 1024, 128)]  # n_units_1, n_units_2, batch_size
DROPOUT, LEARNING_RATE, WEIGHT_DECAY = 0.2, 1e-3, 1e-6
SECONDS = 30  # of each run of `sharing`; its second half counts


def make_model(sizes):
    n_units = {"n_units_1": sizes[0], "n_units_2": sizes[1]}
    return build({**n_units, "dropout_1": DROPOUT, "dropout_2": DROPOUT})


# ---- Ways: each returns epoch(), which trains for one and returns the validation accuracy ----
def ours(sizes, step, device="cpu"):
    images, labels, *_ = fashion_mnist.load("fashion_mnist", "data")
    images = torch.from_numpy(images[::step]).flatten(1).to(device)
    labels = torch.from_numpy(labels[::step]).long().to(device)
    model, n = make_model(sizes).to(device), N_TRAIN // step
    optimizer = Adam(model.parameters(), LEARNING_RATE, WEIGHT_DECAY)

    def epoch():
        torch.set_flush_denormal(True)
        train(model, optimizer, images[:n], labels[:n], sizes[2])
        return validate(model, images[n:], labels[n:])

    return epoch


def plain(sizes, step):
    from torchvision.datasets import FashionMNIST
    from torchvision.transforms import ToTensor

    images = FashionMNIST("data", transform=ToTensor())
    training = Subset(images, range(0, N_TRAIN, step))
    batches = DataLoader(training, batch_size=sizes[2], shuffle=True, drop_last=True)
    held_out = Subset(images, range(N_TRAIN, len(images), step))
    model = make_model(sizes)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def epoch():
        torch.set_flush_denormal(False)
        plain_epoch(model, optimizer, batches)
        model.eval()
        with torch.no_grad():
            validation = DataLoader(held_out, batch_size=sizes[2])
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


def timed(epoch):
    """(seconds, accuracy) of an epoch."""
    before = time.perf_counter()
    accuracy = epoch()
    return time.perf_counter() - before, accuracy


# ---- The parts ----
def epochs(step):
    """Prints the table."""
    torch.set_num_threads(1)
    fashion_mnist.prepare("fashion_mnist", "data")
    ways = {"plain": (plain,), "ours": (ours,)}
    if torch.cuda.is_available():
        ways["GPU"] = ours, "cuda"
    print(f"| n_units_1, n_units_2, batch_size | {' | '.join(ways)} |")
    print("|---" * (1 + len(ways)) + "|")
    for sizes in SIZES:
        own = [make(sizes, step, *options) for make, *options in ways.values()]
        runs = [[timed(epoch) for epoch in own] for _ in range(6)]  # the first one warms up
        seconds = np.median(runs[1:], axis=0)[:, 0]
        cells = [f"{step * s:.2f} ({a:.3f})" for s, (_, a) in zip(seconds, runs[-1])]
        print(f"| {sizes} | {' | '.join(cells)} |", flush=True)


def sharing(step):
    """Free memory is asked of the driver, so it counts the processes of others too."""
    names = "n_units_1", "n_units_2", "batch_size"
    for sizes in SIZES[:2]:
        assignments = [f"{name}={n}" for name, n in zip(names, sizes)] + ["epochs=10000"]
        options = {"searcher": "random", "assignments": assignments, "hours": SECONDS / 3600}
        for n in (1, 2, 4, 8):
            before, used = free_memory(), []
            look = lambda *_, before=before, used=used: used.append(before - free_memory())
            with tuned("train/mlp_fashion_mnist.py", workers=n, stopping=look, **options) as run:
                n_epochs = sum(event["at"] >= SECONDS / 2 for event in reports_of(run))
            rate, left = 2 * n_epochs / SECONDS, before - free_memory()
            print(f"{sizes}, {n} trials: {rate:.2f} epochs a second", end="; ")
            print(f"{max(used) / n:.0f} MiB each, {left:.0f} after their end", flush=True)


def free_memory():
    """MiB of the GPU; 0 without one."""
    return torch.cuda.mem_get_info()[0] / 2**20 if torch.cuda.is_available() else 0


def main(arguments=None):
    parts = {"epochs": epochs, "sharing": sharing}
    parser = command.parser("train_speed", __doc__)
    parser.add_argument("--part", choices=parts, default="epochs", help="default epochs")
    parser.add_argument("--quick", action="store_true", help="epochs: a tenth of the images")
    args = parser.parse_args(arguments)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: the CPU"
    print(f"torch {torch.__version__}, {device}, dropout {DROPOUT}", flush=True)
    parts[args.part](10 if args.quick else 1)


if __name__ == "__main__":
    command.run("train_speed")
