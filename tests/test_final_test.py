"""experiments/final_test.py on a small run of the network's space and few images."""

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout

from experiments import command, final_test
from hpo.journal import Journal
from hpo.space import space_to_json
from train import fashion_mnist, mlp_fashion_mnist
from train.mlp_fashion_mnist import build, config_space, validate

HYPERPARAMETERS = {"n_units_1": 16, "n_units_2": 16, "batch_size": 32, "dropout_2": 0.1}
RATES = {"learning_rate": 1e-3, "weight_decay": 1e-6}
HEADER = "part,trial,seed,epoch,accuracy\n"


@pytest.fixture
def data(monkeypatch):
    rng = np.random.default_rng(0)

    def images(n):
        labels = rng.integers(0, 10, n)
        noise = rng.integers(0, 40, (n, 28, 28))
        return (20 * labels[:, None, None] + noise).astype(np.uint8), labels.astype(np.uint8)

    arrays = [*images(1000), *images(500)]
    monkeypatch.setattr(fashion_mnist, "load", lambda dataset, path: arrays)
    monkeypatch.setattr(fashion_mnist, "prepare", lambda dataset, path: dataset)
    monkeypatch.setattr(final_test, "N_TRAIN", 500)
    monkeypatch.setattr(final_test, "N_BEST", 2)
    monkeypatch.setattr(final_test, "N_SEEDS", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield arrays
    torch.set_flush_denormal(False)


def record(folder, objective=mlp_fashion_mnist.__file__, n_trials=4, **constants):
    """A run whose trial 2 is the best, then trial 0."""
    space = {**config_space, "epochs": 2, "dataset": "synthetic", **constants}
    run = {"space": space_to_json(space), "metric": "accuracy", "mode": "max", "note": "STAND-IN"}
    journal = Journal.create(folder, {**run, "arguments": {"objective": objective}})
    for i, accuracy in list(enumerate((0.8, 0.6, 0.9, 0.7)))[:n_trials]:
        config = {**space, **HYPERPARAMETERS, **RATES, "dropout_1": 0.1 * i}
        about = {"attempt": 1, "at": float(i)}
        journal.append({"start": i, "config": config, "origin": "random", **about})
        journal.append({"report": i, "epoch": 1, "metrics": {"accuracy": accuracy}, **about})
        journal.append({"end": i, "status": "done", "error": "", **about})
    journal.close()
    return folder


@pytest.mark.usefixtures("in_this_process")
def test_final_test_picks_on_validation_and_keeps_the_weights(tmp_path, data, capsys):
    folder = record(tmp_path / "run")
    final_test.main([str(folder)])
    out = capsys.readouterr().out
    assert "test accuracy 0." in out and "STAND-IN" in out
    rows = command.read_rows(folder / "final_test.csv", final_test.COLUMNS)
    means = {}
    for row in rows[:8]:
        assert row["part"] == "validation" and row["trial"] in (0, 2)
        key = row["trial"], row["epoch"]
        means[key] = means.get(key, 0) + row["accuracy"]
    chosen = max(means, key=means.get)
    assert [(row["trial"], row["epoch"]) for row in rows[8:]] == [chosen] * 4
    assert [row["seed"] for row in rows[8:]] == [0, 1, 0, 1]
    assert [bool(np.isnan(row["accuracy"])) for row in rows[8:]] == [True, True, False, False]
    saved = torch.load(folder / "best.pt", weights_only=True)
    model = build(saved["config"])
    model.load_state_dict(saved["weights"])
    images, labels = (torch.from_numpy(array) for array in data[2:])
    assert validate(model, images.flatten(1), labels.long()) == rows[10]["accuracy"]
    with pytest.raises(SystemExit) as leave:
        final_test.main([str(folder)])
    assert leave.value.code == 2 and "a second look would tune" in capsys.readouterr().err


@pytest.mark.usefixtures("in_this_process", "data")
def test_interrupted_final_test_goes_on(tmp_path, monkeypatch, capsys):
    """Cut off in the validation, then in the test: no training that had ended is done again."""
    folder, fit, calls = record(tmp_path / "run"), final_test.fit, []

    def interrupted_fit(*arguments):
        if len(calls) in (1, 6):
            calls.append(None)
            raise KeyboardInterrupt
        calls.append(str(arguments))
        return fit(*arguments)

    monkeypatch.setattr(final_test, "fit", interrupted_fit)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            final_test.main([str(folder)])
    final_test.main([str(folder)])
    assert "the test has begun, and goes on as chosen then" in capsys.readouterr().out
    assert len(calls) == 2 * 2 + 2 + 2 and len(set(calls)) == 2 * 2 + 2 + 1


def test_final_test_is_refused(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.touch()
    damaged = record(tmp_path / "damaged")
    (damaged / "final_test.csv").write_text(HEADER + "test,0,0,x,0.5\n")
    other = record(tmp_path / "other network", str(mine))
    for folder, words in (
        (tmp_path, "expected the folder of a run"),
        (other, "expected a run of train/mlp_fashion_mnist.py"),
        (record(tmp_path / "empty", n_trials=0), "with 0 results"),
        (damaged, "final_test.csv, line 2: expected part, trial, seed, epoch, accuracy, got"),
    ):
        with pytest.raises(SystemExit) as leave:
            final_test.main([str(folder)])
        err = capsys.readouterr().err
        assert leave.value.code == 2 and words in err and err.count("\n") == 1
    with FileLock(damaged / ".lock"), pytest.raises(Timeout):
        final_test.main([str(damaged)])  # a run, or another final test, is using the folder
