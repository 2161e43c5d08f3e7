"""The running example: a multilayer perceptron on FashionMNIST, tuned in seven hyperparameters.

    python run.py                                                             tunes it
    python -m train.mlp_fashion_mnist --n_units_1 512 --n_units_2 128 ...     trains one configuration

This is a plain PyTorch script, with two lines more: those with `report` in `objective`. The seed of torch's generator,
from which weights, batches and dropout come, is the caller's.
"""

import torch
import torch.nn.functional as F
from torch import nn

from hpo import Reporter, loguniform, randint, run_as_program, uniform
from train import fashion_mnist

config_space = {
    "n_units_1": randint(4, 1024),
    "n_units_2": randint(4, 1024),
    "batch_size": randint(8, 128),
    "dropout_1": uniform(0, 0.99),
    "dropout_2": uniform(0, 0.99),
    "learning_rate": loguniform(1e-6, 1),
    "weight_decay": loguniform(1e-8, 1),
    "epochs": 81,
    "dataset": "auto",  # or fashion_mnist, or synthetic: see train/fashion_mnist.py
    "dataset_path": "data",
    "report": "epoch",  # or end: once, after the last epoch
}
metric = "accuracy"
mode = "max"


def prepare(constants):
    """The constants that change once the data is on disk; raises ValueError for those that make no sense."""
    epochs, report = constants["epochs"], constants["report"]
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs: expected an integer >= 1, got {epochs!r}")
    if report not in ("epoch", "end"):
        raise ValueError(f"report: expected epoch or end, got {report!r}")
    return {"dataset": fashion_mnist.prepare(constants["dataset"], constants["dataset_path"])}


def objective(config):
    """Train for config["epochs"] epochs and report the accuracy on the validation images."""
    torch.set_flush_denormal(True)  # weights that decay towards 0 would slow the processor down several times
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, labels, _, _ = fashion_mnist.load(config["dataset"], config["dataset_path"])
    x = torch.from_numpy(images).to(device).flatten(1).float().div_(255)
    y = torch.from_numpy(labels).to(device).long()
    model = build(config).to(device)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config["learning_rate"], weight_decay=config["weight_decay"], fused=True
    )
    report = Reporter()
    for epoch in range(1, config["epochs"] + 1):
        train(model, optimizer, x[:50000], y[:50000], config["batch_size"])
        if config["report"] == "epoch" or epoch == config["epochs"]:
            accuracy = validate(model, x[50000:], y[50000:])
            report(epoch=epoch, accuracy=accuracy)


def build(config):
    return nn.Sequential(
        nn.Linear(784, config["n_units_1"]),
        nn.Dropout(config["dropout_1"]),
        nn.ReLU(),
        nn.Linear(config["n_units_1"], config["n_units_2"]),
        nn.Dropout(config["dropout_2"]),
        nn.ReLU(),
        nn.Linear(config["n_units_2"], 10),
    )


def train(model, optimizer, x, y, batch_size):
    """One epoch of shuffled batches, the last partial one dropped."""
    model.train()
    order = torch.randperm(len(x), device=x.device)
    for batch in order[: len(x) // batch_size * batch_size].split(batch_size):
        loss = F.cross_entropy(model(x.index_select(0, batch)), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def validate(model, x, y):
    """Share of the images that the model classifies correctly."""
    model.eval()
    n_correct = sum(
        (model(images).argmax(1) == labels).sum().item() for images, labels in zip(x.split(1000), y.split(1000))
    )
    return n_correct / len(x)


if __name__ == "__main__":
    run_as_program(objective, config_space, prepare)
