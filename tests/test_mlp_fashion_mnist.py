"""The training function, compared with the plain pipeline of experiments/train_speed.py."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from experiments.train_speed import Images, plain_epoch
from hpo.report import Reporter, StopTrial
from train import fashion_mnist, mlp_fashion_mnist
from train.mlp_fashion_mnist import Adam, mask, objective, prepare, train, validate

CONFIG = dict(zip(mlp_fashion_mnist.config_space, (64, 32, 32, 0.1, 0.1, 1e-3, 0.01)))
CONFIG |= {"epochs": 2, "dataset": "synthetic", "dataset_path": "nowhere", "report": "epoch"}


def random_images(n):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8)


def as_tensors(images, labels):
    return torch.from_numpy(images).flatten(1), torch.from_numpy(labels).long()


def make(**changes):
    torch.manual_seed(0)
    config = {**CONFIG, **changes}
    model = mlp_fashion_mnist.build(config)
    return model, Adam(model.parameters(), config["learning_rate"], config["weight_decay"])


def largest_difference(a, b):
    return max((p - q).abs().max() for p, q in zip(a.parameters(), b.parameters()))


# ---- Against the plain pipeline ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seed", "weight_decay", "agrees"), [(1, 0.01, True), (2, 0.01, False), (1, 0.009, False)]
)
def test_train_gives_the_weights_of_the_plain_pipeline(seed, weight_decay, agrees):
    images, labels = random_images(330)  # ten batches and a part of one, which is left out
    torch.manual_seed(seed)
    batches = [batch.tolist() for batch in torch.randperm(330).split(32)[:10]]
    loader = DataLoader(Images(images, labels), batch_sampler=batches)
    model, optimizer = make(dropout_1=0.0, dropout_2=0.0)
    start, other = copy.deepcopy(model), copy.deepcopy(model)
    other_optimizer = torch.optim.Adam(other.parameters(), 1e-3, weight_decay=weight_decay)
    for _ in range(2):
        torch.manual_seed(1)
        train(model, optimizer, *as_tensors(images, labels), 32)
        plain_epoch(other, other_optimizer, loader)
    assert largest_difference(model, start) > 5e-3
    assert (largest_difference(model, other) < 1e-5) == agrees


def test_train_with_dropout_has_the_gradient_of_autograd(monkeypatch):
    masks = {n: mask(32, torch.empty(n), 0.4) for n in (64, 32)}
    monkeypatch.setattr(mlp_fashion_mnist, "mask", lambda n_rows, bias, dropout: masks[len(bias)])
    monkeypatch.setattr(torch, "randperm", lambda n, device: torch.arange(n))
    images, labels = as_tensors(*random_images(32))
    model, optimizer = make()
    linear_1, _, _, linear_2, _, _, linear_3 = reference = copy.deepcopy(model)
    train(model, optimizer, images, labels, 32)
    h1 = (linear_1(images / 255) * masks[64]).relu()
    h2 = (linear_2(h1) * masks[32]).relu()
    F.cross_entropy(linear_3(h2), labels).backward()
    for p, q in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dropout", [0.0, 0.05, 0.5, 0.99])
def test_mask_multiplies_as_dropout_does(dropout):
    torch.manual_seed(0)
    values = [0, 1 / (1 - dropout)] if dropout else [1]
    ours = mask(400, torch.empty(500), dropout) * torch.ones(400, 500)
    for kept in (ours, F.dropout(torch.ones(400, 500), dropout)):
        assert kept.unique().tolist() == pytest.approx(values)
        standard_error = (dropout * (1 - dropout) / kept.numel()) ** 0.5
        assert abs((kept == 0).double().mean() - dropout) <= 4 * standard_error


def test_validate_counts_every_image():
    images, model = as_tensors(*random_images(1234))[0], make()[0]
    labels = model.eval()(images / 255).argmax(1)
    labels[-1] = (labels[-1] + 1) % 10
    assert validate(model.train(), images, labels) == 1233 / 1234


# ---- The objective -------------------------------------------------------------------------------
@pytest.fixture
def curve(monkeypatch, capsys):
    """A function: the (epoch, accuracy) that the objective reports with a seed.

    Without a GPU, and on few images, which show what they are: their accuracies differ.
    """
    images, labels = random_images(700)
    images[np.arange(700), labels, :9] = 255
    monkeypatch.setattr(fashion_mnist, "load", lambda dataset, path: [images, labels])
    monkeypatch.setattr(mlp_fashion_mnist, "N_TRAIN", 500)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def curve(seed, **changes):
        torch.manual_seed(seed)
        objective({**CONFIG, **changes})
        lines = capsys.readouterr().out.splitlines()
        reports = [json.loads(line.removeprefix("[tune-metric]: ")) for line in lines]
        return [(report["epoch"], report["accuracy"]) for report in reports]

    yield curve
    torch.set_flush_denormal(False)


def test_objective_repeats_itself_with_the_same_seed(curve):
    first = curve(0)
    assert [epoch for epoch, _ in first] == [1, 2]
    assert curve(0) == first != curve(1) and curve(0, report="end") == first[1:]


def test_objective_goes_on_where_it_was_killed(curve, tmp_path, monkeypatch):
    class Killing(Reporter):
        def __call__(self, **metrics):
            super().__call__(**metrics)
            if metrics["epoch"] == 3:
                raise StopTrial

    whole, folder = curve(0, epochs=5), tmp_path / "0000"
    assert len({accuracy for _, accuracy in whole}) > 3
    monkeypatch.setenv("TRIAL_CHECKPOINTS", str(folder))
    with monkeypatch.context() as patch, pytest.raises(StopTrial):
        patch.setattr(mlp_fashion_mnist, "Reporter", Killing)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process removes nothing
        curve(0, epochs=5)
    assert curve(1, epochs=5) == [*whole[:3], *whole[2:]] and not folder.exists()  # both have 3


# ---- prepare -------------------------------------------------------------------------------------
def test_prepare_tells_of_the_stand_in_in_a_note(monkeypatch):
    for dataset, note in (("synthetic", {"note": mlp_fashion_mnist.STAND_IN}), ("real", {})):
        monkeypatch.setattr(fashion_mnist, "prepare", lambda *_, dataset=dataset: dataset)
        assert prepare(CONFIG) == {"dataset": dataset, **note}


def test_prepare_refuses_bad_constants():
    for bad in ({"epochs": 0}, {"epochs": 1.5}, {"report": "never"}, {"dataset": "mnist"}):
        ((name, value),) = bad.items()
        with pytest.raises(ValueError, match=f"^{name}: expected .*, got {value!r}$"):
            prepare({**CONFIG, **bad})
