"""How fast the running example trains, train/mlp_fashion_mnist.py, and how trials share a GPU.

    python -m experiments.train_speed [--quick]         a table, in about three minutes
    python -m experiments.train_speed --part memory     GPU memory of a trial, and after its end
    python -m experiments.train_speed --part sharing    epochs per second of 1 to 8 trials at a time

The table has seconds per epoch with one thread, and on a GPU where there is one: ours, and the
plain pipeline, which is kept here (DataLoader, ToTensor for each image, autograd,
torch.optim.Adam). All ways take turns, and each goes on with the weights that it has. A cell has
the median seconds of an epoch, validation included, and the accuracy after the last one, which
should hardly differ. It needs FashionMNIST itself.
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


def trained(sizes, **options):
    """Context with the Run of `tune` on the running example, with layers and batches of a size."""
    names = "n_units_1", "n_units_2", "batch_size"
    assignments = [f"{name}={n}" for name, n in zip(names, sizes)] + ["epochs=10000"]
    options |= {"searcher": "random", "assignments": assignments}
    return tuned("train/mlp_fashion_mnist.py", **options)


def memory(step):
    """Free memory is asked of the driver, so it counts the processes of others too."""
    before, used = free_memory(), []

    def rule(trial, trials, max_epochs):
        used.append(before - free_memory())
        return True

    with trained(SIZES[2], stopping=rule, workers=1, trials=1):
        left = before - free_memory()
    print(f"a trial takes {used[0]:.0f} MiB of the GPU; after its end {left:.0f} MiB are not free")
    return 1 if left > used[0] / 10 > 0 else 0


def free_memory():
    """MiB of the GPU; 0 without one."""
    return torch.cuda.mem_get_info()[0] / 2**20 if torch.cuda.is_available() else 0


def sharing(step):
    for sizes in SIZES[:2]:
        for n in (1, 2, 4, 8):
            with trained(sizes, workers=n, stopping="none", hours=SECONDS / 3600) as run:
                n_epochs = sum(event["at"] >= SECONDS / 2 for event in reports_of(run))
            print(f"{sizes}, {n} at a time: {2 * n_epochs / SECONDS:.2f} epochs a second")


def main(arguments=None):
    parts = {"epochs": epochs, "memory": memory, "sharing": sharing}
    parser = command.parser("train_speed", __doc__)
    parser.add_argument("--part", choices=parts, default="epochs", help="default epochs")
    parser.add_argument("--quick", action="store_true", help="epochs: a tenth of the images")
    args = parser.parse_args(arguments)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: the CPU"
    print(f"torch {torch.__version__}, {device}, dropout {DROPOUT}", flush=True)
    return parts[args.part](10 if args.quick else 1)


if __name__ == "__main__":
    command.run("train_speed")
