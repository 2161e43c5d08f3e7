"""A torch model that reports each epoch, and goes on from its checkpoint. From the root:

python run.py experiments/examples/spiral.py --hours 0.05
"""

import math

import torch
from torch import nn

from hpo import Reporter, lograndint, loguniform

config_space = {
    "learning_rate": loguniform(1e-4, 1),
    "n_units": lograndint(2, 256),
    "weight_decay": loguniform(1e-8, 1e-1),
    "epochs": 27,
}
metric, mode = "loss", "min"


def data(n, seed):
    """Points (n, 2) of two spirals and their numbers (n,), 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (n,), generator=generator)
    radius = torch.rand(n, generator=generator).sqrt()
    angle = 3 * math.pi * radius + math.pi * label
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return points + 0.03 * torch.randn(n, 2, generator=generator), label


def objective(config):
    x, y = data(2000, seed=0)
    x_valid, y_valid = data(1000, seed=1)
    model = nn.Sequential(
        nn.Linear(2, config["n_units"]), nn.ReLU(), nn.Linear(config["n_units"], 64), nn.ReLU(),
        nn.Linear(64, 2),
    )  # fmt: skip
    decay = config["weight_decay"]
    optimizer = torch.optim.Adam(model.parameters(), config["learning_rate"], weight_decay=decay)
    report, first = Reporter(), 1
    path = report.checkpoint_path and report.checkpoint_path / "state.pt"
    if path and path.exists():
        first, *states = torch.load(path)
        model.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
    for epoch in range(first, config["epochs"] + 1):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(x_valid), y_valid)
        report(epoch=epoch, loss=loss)
        if path:
            torch.save((epoch + 1, model.state_dict(), optimizer.state_dict()), path)
