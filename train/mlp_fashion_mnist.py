"""The running example: a multilayer perceptron on FashionMNIST, tuned in seven hyperparameters.

    python run.py                                                           tunes it
    python -m train.mlp_fashion_mnist --n_units_1 512 --n_units_2 128 ...   trains one configuration

`objective` reads like any PyTorch script, and the two lines with `report` make it tunable. It saves
its state after each epoch, so that a trial that was cut off goes on in a resumed run. What it
calls is written for speed (measured by experiments/train_speed.py): the images stay in memory as
bytes, and the gradient of this one network is spelled out. Weights, batches and dropout come from
torch's generator, which the caller seeds.
"""

import shutil

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.adam import adam

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
N_WARM_UP = 3  # steps of an epoch before it becomes a CUDA graph
N_TRAIN = 50000  # of the 60,000 images; the others validate
STAND_IN = "STAND-IN DATA: generated images, NOT FashionMNIST, and so is every number of this run"


def prepare(constants):
    """The constants that are known once the data is on disk, and a note if it is the stand-in."""
    epochs, report = constants["epochs"], constants["report"]
    if type(epochs) is not int or epochs < 1:
        raise ValueError(f"epochs: expected an integer >= 1, got {epochs!r}")
    if report not in ("epoch", "end"):
        raise ValueError(f"report: expected epoch or end, got {report!r}")
    dataset = fashion_mnist.prepare(constants["dataset"], constants["dataset_path"])
    return {"dataset": dataset} | ({"note": STAND_IN} if dataset == "synthetic" else {})


def objective(config):
    """Train for config["epochs"] epochs and report the accuracy on the validation images."""
    torch.set_flush_denormal(True)  # weights near 0 would make small networks three times slower
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, labels = fashion_mnist.load(config["dataset"], config["dataset_path"])[:2]
    images = torch.from_numpy(images).flatten(1).to(device)  # (60000, 784), bytes
    labels = torch.from_numpy(labels).long().to(device)
    model = build(config).to(device)
    optimizer = Adam(model.parameters(), config["learning_rate"], config["weight_decay"])
    report = Reporter()
    checkpoint = Checkpoint(report.checkpoint_path, model, optimizer)
    with checkpoint:
        for epoch in range(checkpoint.load() + 1, config["epochs"] + 1):
            train(model, optimizer, images[:N_TRAIN], labels[:N_TRAIN], config["batch_size"])
            if config["report"] == "epoch" or epoch == config["epochs"]:
                accuracy = validate(model, images[N_TRAIN:], labels[N_TRAIN:])
                report(epoch=epoch, accuracy=accuracy)
            checkpoint.save(epoch)


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


@torch.no_grad()
def train(model, optimizer, images, labels, batch_size):
    """One epoch of shuffled batches of B images; the last partial one is dropped.

    Does what `F.cross_entropy(model(x), y).backward(); optimizer.step()` does. The gradient is
    spelled out because autograd and nn.Dropout would add 10% (large layers) to 180% (small ones).
    """
    W1, b1, W2, b2, W3, b3 = model.parameters()
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)  # overwritten in each step
    dropout_1, dropout_2 = (layer.p for layer in model if isinstance(layer, nn.Dropout))
    targets = F.one_hot(labels, 10).float()
    order = torch.randperm(len(images), device=images.device)
    batch = order[:batch_size].clone()  # (B,): the numbers of the images of this step

    def step():
        x = scale(images.index_select(0, batch))  # (B, 784)
        keep_1, keep_2 = mask(batch_size, b1, dropout_1), mask(batch_size, b2, dropout_2)
        h1 = torch.addmm(b1, x, W1.T).relu_().mul_(keep_1)  # (B, n_units_1)
        h2 = torch.addmm(b2, h1, W2.T).relu_().mul_(keep_2)  # (B, n_units_2)
        p = torch.addmm(b3, h2, W3.T).softmax(1)  # (B, 10)

        # g: gradient of the mean cross entropy by the output of a Linear
        # sign(h): 1 where ReLU and Dropout let it pass
        g3 = p.sub_(targets.index_select(0, batch)).div_(batch_size)
        g2 = torch.mm(g3, W3).mul_(keep_2).mul_(h2.sign())
        g1 = torch.mm(g2, W2).mul_(keep_1).mul_(h1.sign())
        for g, h, weight, bias in ((g3, h2, W3, b3), (g2, h1, W2, b2), (g1, x, W1, b1)):
            torch.mm(g.T, h, out=weight.grad)
            torch.sum(g, 0, out=bias.grad)
        optimizer.step()

    for i, start in enumerate(range(0, len(order) - batch_size + 1, batch_size)):
        if i == N_WARM_UP and images.is_cuda:
            step = as_graph(step)
        batch.copy_(order[start : start + batch_size])
        step()


def as_graph(step):
    """The step as one CUDA graph: launching its 50 kernels takes longer than they do."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def mask(n_rows, bias, dropout):
    """Factors (n_rows, len(bias)) of nn.Dropout: 0, or 1 / (1 - dropout) for what is kept."""
    if dropout == 0:
        return 1.0
    return torch.rand(n_rows, len(bias), device=bias.device).lt_(1 - dropout).div_(1 - dropout)


class Adam:
    """torch.optim.Adam, whose own class would import torch's compiler: 0.9 s and 150 MB a trial."""

    def __init__(self, parameters, learning_rate, weight_decay):
        self.parameters = list(parameters)
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.n_steps = [torch.zeros((), device=p.device) for p in self.parameters]
        self.settings = {"lr": learning_rate, "weight_decay": weight_decay}
        self.settings |= {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}

    def state(self):
        return [*self.means, *self.squares, *self.n_steps]

    def step(self):
        gradients = [p.grad for p in self.parameters]
        state = gradients, self.means, self.squares, [], self.n_steps
        adam(self.parameters, *state, **self.settings, fused=True, maximize=False)


class Checkpoint:
    """The state of a training in a folder; None: nowhere. As a context, it removes it at the end.

    A process that is killed does not come to the end of the context, and so leaves its state.
    """

    def __init__(self, folder, model, optimizer):
        self.folder, self.path = folder, folder and folder / "state.pt"
        self.tensors = [t for part in (model.parameters(), optimizer.state()) for t in part]

    def load(self):
        """The last epoch that was saved, whose state is taken over; 0 if there is none."""
        if not self.path or not self.path.exists():
            return 0
        epoch, saved, generators = torch.load(self.path, map_location="cpu")
        with torch.no_grad():
            for tensor, values in zip(self.tensors, saved, strict=True):
                tensor.copy_(values)
        torch.set_rng_state(generators[0])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(generators[1:])
        return epoch

    def save(self, epoch):
        if self.path:
            generators = [torch.get_rng_state()]
            if torch.cuda.is_available():
                generators += torch.cuda.get_rng_state_all()
            partial = self.path.with_suffix(".partial")
            torch.save((epoch, self.tensors, generators), partial)
            partial.replace(self.path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)  # it may be gone, with the run


@torch.no_grad()
def validate(model, images, labels):
    """Share of the images that the model classifies correctly."""
    model.eval()
    batches = zip(images.split(500), labels.split(500), strict=True)
    n_correct = sum((model(scale(x)).argmax(1) == y).sum() for x, y in batches)
    return n_correct.item() / len(images)  # the one wait for the GPU


def scale(images):
    """Pixels in [0, 1], as ToTensor makes them."""
    return images / 255


if __name__ == "__main__":
    run_as_program(objective, config_space, prepare)
