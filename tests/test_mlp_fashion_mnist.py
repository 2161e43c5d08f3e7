"""The training function, with the plain pipeline (DataLoader, ToTensor, autograd, torch.optim.Adam) as the oracle."""

import copy
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from experiments.train_speed import Images, plain_epoch
from train import fashion_mnist, mlp_fashion_mnist

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = {
    "n_units_1": 64,
    "n_units_2": 32,
    "batch_size": 32,
    "dropout_1": 0.1,
    "dropout_2": 0.1,
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "epochs": 2,
    "dataset": "synthetic",
    "dataset_path": "nowhere",
    "report": "epoch",
}


@pytest.fixture(autouse=True)
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """Folder that holds the generated images."""
    folder = tmp_path_factory.mktemp("data")
    fashion_mnist.prepare("synthetic", folder)
    return folder


@pytest.fixture
def few_images(stand_in, monkeypatch):
    """The objective sees 700 of the images and trains on 500 of them."""
    images, labels = fashion_mnist.load("synthetic", stand_in)[:2]
    monkeypatch.setattr(fashion_mnist, "load", lambda dataset, path: [images[:700], labels[:700], None, None])
    monkeypatch.setattr(mlp_fashion_mnist, "N_TRAIN", 500)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def random_images(n):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8)


def as_tensors(images, labels):
    return torch.from_numpy(images).flatten(1), torch.from_numpy(labels).long()


def make(seed=0, **changes):
    config = {**CONFIG, **changes}
    torch.manual_seed(seed)
    model = mlp_fashion_mnist.build(config)
    return model, mlp_fashion_mnist.Adam(model.parameters(), config["learning_rate"], config["weight_decay"])


def largest_difference(model, other):
    return max((p - q).abs().max().item() for p, q in zip(model.parameters(), other.parameters(), strict=True))


def reports(capsys):
    """What has been printed by a Reporter outside of a trial: [(epoch, accuracy)]."""
    metrics = [json.loads(line.split(": ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    return [(m["epoch"], m["accuracy"]) for m in metrics]


# ---- Against the plain pipeline --------------------------------------------------------------------------------------
@pytest.mark.parametrize("shuffled_alike", [True, False])
def test_train_gives_the_weights_of_the_plain_pipeline(shuffled_alike):
    images, labels = random_images(330)  # ten batches and a partial one
    model, optimizer = make(dropout_1=0.0, dropout_2=0.0)
    other = copy.deepcopy(model)
    start = copy.deepcopy(model)
    other_optimizer = torch.optim.Adam(other.parameters(), lr=CONFIG["learning_rate"], weight_decay=1e-4)
    for seed in (1, 2):
        torch.manual_seed(seed)
        mlp_fashion_mnist.train(model, optimizer, *as_tensors(images, labels), 32)
        torch.manual_seed(seed if shuffled_alike else seed + 10)
        batches = [batch.tolist() for batch in torch.randperm(330).split(32)[:10]]
        plain_epoch(other, other_optimizer, DataLoader(Images(images, labels), batch_sampler=batches))
    assert largest_difference(model, start) > 5e-3
    assert (largest_difference(model, other) < 1e-5) == shuffled_alike


def test_train_with_dropout_gives_the_gradient_of_autograd(monkeypatch):
    keep_1, keep_2 = (mlp_fashion_mnist.mask(32, torch.empty(n), 0.4) for n in (64, 32))
    monkeypatch.setattr(mlp_fashion_mnist, "mask", lambda n_rows, bias, dropout: {64: keep_1, 32: keep_2}[len(bias)])
    monkeypatch.setattr(torch, "randperm", lambda n, device: torch.arange(n))
    images, labels = as_tensors(*random_images(32))
    model, optimizer = make()
    reference = copy.deepcopy(model)
    mlp_fashion_mnist.train(model, optimizer, images, labels, 32)
    linear_1, _, _, linear_2, _, _, linear_3 = reference
    h1 = (linear_1(images / 255) * keep_1).relu()
    h2 = (linear_2(h1) * keep_2).relu()
    F.cross_entropy(linear_3(h2), labels).backward()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dropout", [0.05, 0.5, 0.99])
def test_mask_multiplies_as_dropout_does(dropout):
    torch.manual_seed(0)
    for kept in (mlp_fashion_mnist.mask(400, torch.empty(500), dropout), F.dropout(torch.ones(400, 500), dropout)):
        values = kept.unique()
        torch.testing.assert_close(values, torch.tensor([0, 1 / (1 - dropout)]))
        share = (kept == 0).double().mean().item()
        assert abs(share - dropout) < 4 * (dropout * (1 - dropout) / kept.numel()) ** 0.5  # 4 standard errors


def test_mask_without_dropout_keeps_everything():
    assert mlp_fashion_mnist.mask(2, torch.empty(3), 0.0) == 1.0


def test_adam_steps_as_the_one_of_torch():
    generator = torch.Generator().manual_seed(0)
    model, optimizer = make(weight_decay=0.1)
    other = copy.deepcopy(model)
    other_optimizer = torch.optim.Adam(other.parameters(), lr=CONFIG["learning_rate"], weight_decay=0.1)
    start = copy.deepcopy(model)
    for _ in range(20):
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        with torch.no_grad():
            optimizer.step()
        other_optimizer.step()
    assert largest_difference(model, start) > 1e-3
    assert largest_difference(model, other) < 1e-6


# ---- Batches and images that do not fit ------------------------------------------------------------------------------
def test_train_leaves_out_the_partial_batch():
    images, labels = as_tensors(*random_images(31))
    model, optimizer = make()
    start = copy.deepcopy(model)
    mlp_fashion_mnist.train(model, optimizer, images, labels, 32)
    assert largest_difference(model, start) == 0
    mlp_fashion_mnist.train(model, optimizer, images, labels, 31)
    assert largest_difference(model, start) > 0


def test_validate_counts_every_image():
    images, labels = as_tensors(*random_images(1234))
    model, _ = make()
    model.eval()
    with torch.no_grad():
        n_correct = (model(images / 255).argmax(1) == labels).sum().item()
    assert mlp_fashion_mnist.validate(model, images, labels) == n_correct / 1234
    labels[-1] = (model(images[-1:] / 255).argmax() + (labels[-1] == model(images[-1:] / 255).argmax())) % 10
    assert mlp_fashion_mnist.validate(model, images, labels) != n_correct / 1234  # the last image counts


def test_scale_is_totensor():
    images, labels = random_images(5)
    expected = torch.stack([Images(images, labels)[i][0] for i in range(5)])
    assert torch.equal(mlp_fashion_mnist.scale(torch.from_numpy(images)), expected[:, 0])


# ---- The objective ---------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("few_images")
def test_objective_repeats_itself_with_the_same_seed(capsys):
    curves = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        mlp_fashion_mnist.objective(CONFIG)
        curves.append(reports(capsys))
    assert curves[0] == curves[1] != curves[2]
    assert [epoch for epoch, _ in curves[0]] == [1, 2]


@pytest.mark.usefixtures("few_images")
def test_objective_that_reports_at_the_end_reports_once(capsys):
    torch.manual_seed(0)
    mlp_fashion_mnist.objective(CONFIG)
    last = reports(capsys)[-1]
    torch.manual_seed(0)
    mlp_fashion_mnist.objective({**CONFIG, "report": "end"})
    assert reports(capsys) == [last]


def test_stand_in_accuracy_depends_on_the_hyperparameters(stand_in):
    images, labels = as_tensors(*fashion_mnist.load("synthetic", stand_in)[:2])

    def accuracy(**changes):
        model, optimizer = make(batch_size=128, **changes)
        mlp_fashion_mnist.train(model, optimizer, images[:20000], labels[:20000], 128)
        return mlp_fashion_mnist.validate(model, images[50000:], labels[50000:])

    assert 0.7 < accuracy() < 0.95
    assert accuracy(learning_rate=1e-6) < 0.3
    assert accuracy(learning_rate=1.0) < 0.15
    assert accuracy(dropout_1=0.95, dropout_2=0.95) < 0.5
    assert accuracy(n_units_1=4, n_units_2=4) < 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_trial_adds_little_memory_to_torch_and_needs_no_torchvision(stand_in):
    program = """
import json, sys, torch
from train import mlp_fashion_mnist
torch.set_num_threads(1)
def megabytes():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = megabytes()
train = mlp_fashion_mnist.train
mlp_fashion_mnist.train = lambda model, optimizer, x, y, n: train(model, optimizer, x[: 10 * n], y[: 10 * n], n)
mlp_fashion_mnist.N_TRAIN = 59000
mlp_fashion_mnist.objective(json.loads(sys.argv[1]))
assert megabytes() - before < 150, megabytes() - before
print([name for name in ("torchvision", "sympy", "torch._dynamo.eval_frame") if name in sys.modules])
"""
    config = {**CONFIG, "n_units_1": 1024, "n_units_2": 1024, "batch_size": 128}
    config = {**config, "epochs": 1, "dataset_path": str(stand_in)}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # whose driver takes memory of its own
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"  # sympy comes with torch's compiler


def test_prepare_returns_the_data_set_that_is_used(stand_in):
    constants = {"epochs": 81, "dataset": "synthetic", "dataset_path": str(stand_in), "report": "epoch"}
    assert mlp_fashion_mnist.prepare(constants) == {"dataset": "synthetic"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("epochs", 1.5), ("epochs", True), ("report", "never"), ("dataset", "mnist"), ("dataset_path", 3)],
)
def test_prepare_refuses_bad_constants(name, value, tmp_path):
    constants = {"epochs": 81, "dataset": "synthetic", "dataset_path": str(tmp_path), "report": "epoch"}
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got {value!r}$"):
        mlp_fashion_mnist.prepare({**constants, name: value})
    assert not list(tmp_path.iterdir())
