"""Seconds per epoch of train/mlp_fashion_mnist.py, one thread, beside two others:

- the plain pipeline, kept here: DataLoader, ToTensor for each image, autograd, torch.optim.Adam
- the limit: the matrix products of an epoch and nothing else

    python -m experiments.train_speed               a table, in about three minutes
    python -m experiments.train_speed --quick       on a tenth of the images
    python -m experiments.train_speed --accuracy    the final accuracies of ours and the plain pipeline over seeds

The three take turns, each repetition going on from the weights of the last, and the table has the medians.
"""

import itertools
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from experiments import command
from run import positive_int, whole
from train import fashion_mnist, mlp_fashion_mnist

try:
    from PIL import Image
    from torchvision.transforms import ToTensor
except ImportError as error:
    sys.exit(f"{error}; install what the pipeline needs: pip install -r requirements.txt")

SIZES = [(512, 128, 64), (64, 64, 8), (1024, 1024, 128)]  # n_units_1, n_units_2, batch_size
GOOD = {"dropout_1": 0.2, "dropout_2": 0.2, "learning_rate": 1e-3, "weight_decay": 1e-6}


# ---- Three ways to spend an epoch: each returns a function without arguments -----------------------------------------
def ours(config, images, labels, n_train):
    """Function that trains for an epoch and returns the validation accuracy."""
    images, labels = torch.from_numpy(images).flatten(1), torch.from_numpy(labels).long()
    model = mlp_fashion_mnist.build(config)
    optimizer = mlp_fashion_mnist.Adam(model.parameters(), config["learning_rate"], config["weight_decay"])

    def epoch():
        torch.set_flush_denormal(True)
        mlp_fashion_mnist.train(model, optimizer, images[:n_train], labels[:n_train], config["batch_size"])
        return mlp_fashion_mnist.validate(model, images[n_train:], labels[n_train:])

    return epoch


class Images(Dataset):
    """Items as those of torchvision's FashionMNIST(transform=ToTensor())."""

    def __init__(self, images, labels):
        self.images, self.labels, self.transform = torch.from_numpy(images), torch.from_numpy(labels), ToTensor()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i].numpy())), int(self.labels[i])


def pipeline(config, images, labels, n_train):
    """As `ours`, by the plain pipeline."""
    train_set, validation_set = Images(images[:n_train], labels[:n_train]), Images(images[n_train:], labels[n_train:])
    batches = DataLoader(train_set, batch_size=config["batch_size"], shuffle=True, drop_last=True)
    validation_batches = DataLoader(validation_set, batch_size=config["batch_size"])
    model = mlp_fashion_mnist.build(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"], weight_decay=config["weight_decay"])

    def epoch():
        torch.set_flush_denormal(False)
        plain_epoch(model, optimizer, batches)
        model.eval()
        with torch.no_grad():
            n_correct = sum((model(x.flatten(1)).argmax(1) == y).sum().item() for x, y in validation_batches)
        return n_correct / len(validation_set)

    return epoch


def plain_epoch(model, optimizer, batches):
    """Train on batches of images (B, 1, 28, 28) and labels (B,): the reference of the tests."""
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.flatten(1)), y)
        loss.backward()
        optimizer.step()


def limit(config, images, labels, n_train):
    """Function that multiplies matrices as an epoch has to: no data, no gradient descent."""
    n_rows = config["batch_size"]
    sizes = [784, config["n_units_1"], config["n_units_2"], 10]
    weights = [torch.rand(n_out, n_in) for n_in, n_out in itertools.pairwise(sizes)]
    gradients = [torch.empty_like(weight) for weight in weights]
    inputs, outputs = ([torch.rand(n_rows, n) for n in sizes] for _ in range(2))
    x = torch.rand(1000, 784)

    def epoch():
        for _ in range(n_train // n_rows):
            for i in range(3):
                torch.mm(inputs[i], weights[i].T, out=outputs[i + 1])
            for i in (2, 1, 0):
                torch.mm(inputs[i + 1].T, inputs[i], out=gradients[i])
                if i:
                    torch.mm(inputs[i + 1], weights[i], out=outputs[i])
        for _ in range((len(images) - n_train) // len(x)):
            h = x
            for weight in weights:
                h = h @ weight.T

    return epoch


# ---- Tables ----------------------------------------------------------------------------------------------------------
def print_speeds(images, labels, n_train, n_repetitions):
    print(f"torch {torch.__version__}, 1 thread, dropout {GOOD['dropout_1']}; sizes: n_units_1, n_units_2, batch_size")
    print("seconds per epoch, validation included\n")
    print("| sizes | plain pipeline | ours | products alone | pipeline / ours | products / ours |")
    print("|---|---|---|---|---|---|")
    scale = mlp_fashion_mnist.N_TRAIN / n_train
    for n_units_1, n_units_2, batch_size in SIZES:
        config = {**GOOD, "n_units_1": n_units_1, "n_units_2": n_units_2, "batch_size": batch_size}
        epochs = [make(config, images, labels, n_train) for make in (pipeline, ours, limit)]
        for epoch in epochs[1:]:  # warm up; the pipeline's first batches are as slow as the others
            epoch()
        times = [[scale * seconds(epoch) for epoch in epochs] for _ in range(n_repetitions)]
        slow, fast, least = (statistics.median(column) for column in zip(*times, strict=True))
        sizes = f"{n_units_1}, {n_units_2}, {batch_size}"
        ratios = f"{slow / fast:.1f} | {least / fast:.2f}"
        print(f"| {sizes} | {slow:.2f} | {fast:.2f} | {least:.2f} | {ratios} |", flush=True)


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def print_accuracies(images, labels, n_train, n_epochs, n_seeds):
    config = {**GOOD, "n_units_1": 512, "n_units_2": 128, "batch_size": 64}
    for make in (pipeline, ours):
        accuracies = []
        for seed in range(n_seeds):
            torch.manual_seed(seed)
            epoch = make(config, images, labels, n_train)
            accuracies.append([epoch() for _ in range(n_epochs)][-1])
        mean, error = statistics.mean(accuracies), statistics.stdev(accuracies) / n_seeds**0.5
        values = " ".join(f"{accuracy:.4f}" for accuracy in accuracies)
        print(f"{make.__name__:8}  after {n_epochs} epochs {values}  mean {mean:.4f} +- {error:.4f}", flush=True)


def main():
    parser = command.parser("train_speed", __doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    parser.add_argument("--accuracy", action="store_true", help="compare final accuracies, not times")
    parser.add_argument("--epochs", type=positive_int, default=5, help="for --accuracy (default: 5)")
    parser.add_argument("--seeds", type=whole(2), default=8, help="for --accuracy, at least 2 (default: 8)")
    parser.add_argument("--repetitions", type=positive_int, default=5, help="of which the median is shown (default: 5)")
    parser.add_argument("--dataset", default="auto", choices=fashion_mnist.CHOICES)
    parser.add_argument("--dataset_path", default="data")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = fashion_mnist.prepare(arguments.dataset, arguments.dataset_path)
    images, labels = fashion_mnist.load(dataset, arguments.dataset_path)[:2]
    n_train = mlp_fashion_mnist.N_TRAIN
    if arguments.quick:
        images, labels, n_train = images[::10], labels[::10], n_train // 10
    if arguments.accuracy:
        print_accuracies(images, labels, n_train, arguments.epochs, arguments.seeds)
    else:
        print_speeds(images, labels, n_train, arguments.repetitions)


if __name__ == "__main__":
    command.run("train_speed")
