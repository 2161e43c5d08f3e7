"""Recorded curves and what is made of them: packing, the surrogate, replay, tutorial, pictures, the final test."""

import csv
import importlib.util
import pathlib
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from experiments import curves, final_test, plot, replay, tutorial
from experiments.curves import Forest, Surrogate, complete, held_out, rank_correlation, repetition_spread
from experiments.simulated import SimulatedBackend
from hpo.results import Results, load
from hpo.searchers import RandomSearch
from hpo.space import choice, domains, loguniform, uniform
from hpo.stopping import asha
from hpo.tuner import Tuner
from train import fashion_mnist, mlp_fashion_mnist

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None  # the program's own requirements lack it
SPACE = {"x": uniform(0, 1), "rate": loguniform(1e-4, 1), "kind": choice(["a", "b"]), "epochs": 9}


def true_accuracy(config, epoch):
    """From 0.1 towards a level that x and rate decide, kind alone how long an epoch takes."""
    level = 0.9 - 0.5 * (config["x"] - 0.3) ** 2 - 0.05 * abs(np.log10(config["rate"]) + 2)
    return level - (level - 0.1) * 0.5**epoch


def training(config, rng):
    for epoch in range(1, config["epochs"] + 1):
        if config["x"] > 0.97:
            raise MemoryError("too large")
        seconds = (10 if config["kind"] == "a" else 30) * rng.uniform(0.9, 1.1)
        yield seconds, {"epoch": epoch, "accuracy": true_accuracy(config, epoch) * rng.normal(1, 0.002)}


def record(folder, n_trials=60, space=SPACE, objective=training, **settings):
    results = Results.create(folder, space, "accuracy", "max", {"arguments": {"workers": 4}})
    settings = {"n_workers": 4, "n_trials": n_trials, "max_epochs": 9, **settings}
    tuner = Tuner(space, RandomSearch(space, 3), SimulatedBackend(objective), results, **settings)
    tuner.run()
    results.close()
    return tuner.trials


class Here:
    """A pool that works in this process."""

    def __init__(self, *args, initializer=None, initargs=()):
        if initializer:
            initializer(*initargs)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded") / "run"
    record(path)
    return path


@pytest.fixture(scope="module")
def recording(folder):
    return curves.read([folder])


# ---- Recordings ---------------------------------------------------------------------------------------------------------
def test_folder_is_read_with_its_times(folder, recording):
    trials = [trial for trial in load(folder) if trial.status != "failed"]
    assert 50 < len(trials) < 60 and len(recording.curves) == len(trials) and recording.max_epochs == 9
    for trial, curve in zip(trials, recording.curves):
        assert curve.config == trial.config and list(zip(curve.epochs, curve.losses)) == trial.curve
        assert curve.seconds.sum() == pytest.approx(trial.ended - trial.started, abs=0.01)
        low, high = (9, 11) if trial.config["kind"] == "a" else (27, 33)
        assert np.all((curve.seconds > low - 0.01) & (curve.seconds < high + 0.01))


def test_packed_file_is_small_and_gives_the_same(folder, recording, tmp_path, capsys):
    target = tmp_path / "runs" / "packed.jsonl"
    assert curves.main([str(folder), str(target)]) == 0 and "curves" in capsys.readouterr().out
    assert target.stat().st_size < 300 * len(recording.curves)
    again = curves.read([target])
    assert (again.space, again.metric, again.mode, again.max_epochs) == (SPACE, "accuracy", "max", 9)
    for curve, back in zip(recording.curves, again.curves, strict=True):
        assert back.config == curve.config and list(back.epochs) == list(curve.epochs)
        np.testing.assert_allclose(back.losses, curve.losses, rtol=1e-5)
        np.testing.assert_allclose(back.seconds, curve.seconds, rtol=1e-2)
    both = curves.read([folder, target])
    assert len(both.curves) == 2 * len(recording.curves)


def test_runs_in_the_repository_are_of_the_main_job_and_small():
    paths = sorted(pathlib.Path(curves.__file__).parent.glob("runs/*.jsonl"))
    recording = curves.read(paths)
    assert domains(recording.space) == domains(mlp_fashion_mnist.config_space) and recording.max_epochs == 81
    assert all(0 < -loss < 1 for curve in recording.curves for loss in curve.losses)
    assert sum(path.stat().st_size for path in paths) < 1500 * len(recording.curves)


def test_what_is_no_recording_is_refused(folder, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"space": 1}\n')
    record(tmp_path / "other", 4, {**SPACE, "x": uniform(0, 2)})
    for paths, words in (
        ([tmp_path / "bad.jsonl"], "not a file of packed curves"),
        ([tmp_path / "nowhere"], "expected the folder of a run"),
        ([folder, tmp_path / "other"], "its space differs"),
    ):
        with pytest.raises(ValueError, match=words):
            curves.read(paths)
    assert curves.main([]) == curves.main([str(folder)]) == 2
    for module in (replay, tutorial):
        with pytest.raises(SystemExit) as leave:
            module.main([str(tmp_path / "nowhere")])
        assert leave.value.code == 2 and "expected the folder of a run" in capsys.readouterr().err


# ---- The surrogate ------------------------------------------------------------------------------------------------------
def test_forest_weighs_its_neighbours():
    rng = np.random.default_rng(0)
    X = rng.random((80, 4))
    y = np.sin(6 * X[:, 0]) + X[:, 1]  # two columns are noise
    forest = Forest(X, y[:, None], np.random.default_rng(1), n_trees=60)
    for i in (0, 7, 79):
        np.testing.assert_allclose(forest.weights(X[i]), np.eye(80)[i])  # a recorded row is its own neighbour
    new = rng.random((200, 4))
    W = np.array([forest.weights(x) for x in new])
    assert W.min() >= 0 and W.sum(1) == pytest.approx(1)
    assert rank_correlation(W @ y, np.sin(6 * new[:, 0]) + new[:, 1]) > 0.85
    again = Forest(X, y[:, None], np.random.default_rng(1), n_trees=60)
    assert np.array_equal(again.weights(new[0]), W[0])
    constant = Forest(X, np.ones((80, 1)), np.random.default_rng(1), n_trees=5)
    assert constant.weights(new[0]) == pytest.approx(np.full(80, 1 / 80))  # nothing to split


def test_stopped_curve_is_completed_in_parallel_to_the_most_similar():
    Z = np.array([[4.0, 3, 2, 1], [9, 9, 9, 9], [4.5, 3.5, 0, 0], [8.0, 0, 0, 0]])
    done = complete(Z, np.array([4, 4, 2, 1]))
    np.testing.assert_allclose(done, [[4, 3, 2, 1], [9, 9, 9, 9], [4.5, 3.5, 2.5, 1.5], [8, 8, 8, 8]])
    assert Z[2, 2] == 0
    with pytest.raises(ValueError, match="no curve was recorded to epoch 4"):
        complete(Z, np.array([3, 3, 2, 1]))


def test_spread_between_repetitions_is_that_of_their_levels():
    smooth = np.array([[1.0, 1], [3, 3], [5, 5], [7, 9]])
    assert repetition_spread(smooth, ["a", "a", "b", "c"]) == (pytest.approx(np.sqrt(2)), 2)
    assert repetition_spread(smooth, ["a", "b", "c", "d"]) == (0.0, 0)


def test_surrogate_predicts_held_out_curves_and_not_shuffled_ones(recording):
    losses, seconds = held_out(recording, 3, n_trees=40)
    true = np.array([curve.losses for curve in recording.curves])
    assert rank_correlation(losses[:, -1], true[:, -1]) > 0.8
    assert np.abs(losses - true).mean() < 0.5 * np.abs(true - np.median(true, 0)).mean() + 0.02
    kinds = np.array([curve.config["kind"] for curve in recording.curves])
    assert seconds[kinds == "a"].max() < 15 and seconds[kinds == "b"].min() > 20
    rng = np.random.default_rng(0)
    configs = [recording.curves[i].config for i in rng.permutation(len(true))]
    shuffled = [curves.Curve(c, old.epochs, old.losses, old.seconds) for c, old in zip(configs, recording.curves)]
    part = curves.Recording(SPACE, "accuracy", "max", 9, shuffled)
    assert rank_correlation(held_out(part, 3, n_trees=40)[0][:, -1], true[:, -1]) < 0.4


def test_surrogate_draws_curves_with_the_noise_of_the_recorded(recording):
    surrogate = Surrogate(recording)
    config = {**SPACE, "x": 0.35, "rate": 0.01, "kind": "b"}
    drawn, seconds = np.transpose([surrogate.sample(config, np.random.default_rng(i)) for i in range(200)], (1, 0, 2))
    mean, mean_seconds = surrogate.mean(config)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.01)
    assert -mean[-1] == pytest.approx(true_accuracy(config, 9), abs=0.04)
    assert 0.0003 < drawn[:, -1].std() < 0.005  # 0.002 of the accuracy went in
    assert seconds.mean() == pytest.approx(mean_seconds, rel=0.05) == pytest.approx(30, rel=0.2)
    same = [surrogate.sample(config, np.random.default_rng(1)) for _ in range(2)]
    assert np.array_equal(same[0], same[1])


def test_stopped_runs_can_be_recorded_too(tmp_path):
    trials = record(tmp_path / "run", rule=asha)
    recording = curves.read([tmp_path / "run"])
    assert sum(trial.status == "stopped" for trial in trials) > 20
    surrogate = Surrogate(recording, n_trees=50)
    losses = np.array([surrogate.mean(curve.config)[0] for curve in recording.curves])
    true = [-true_accuracy(curve.config, 9) for curve in recording.curves]
    assert rank_correlation(losses[:, -1], true) > 0.8


# ---- Replay -------------------------------------------------------------------------------------------------------------
def test_replayed_run_is_deterministic_and_counts_epochs(recording):
    surrogate = Surrogate(recording)
    runs = [replay.run(surrogate, ("random", "asha"), seed, 1800, 4) for seed in (0, 0, 1)]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0][:5], runs[2][:5])
    for rows in runs:
        assert np.all(np.diff(rows, axis=0)[:, [0, 1, 3]] >= 0) and np.all(np.diff(rows[:, 2]) <= 0)
        assert rows[-1, 0] == pytest.approx(1800, abs=60) and 0 < rows[-1, 2] < 0.3
    full = replay.run(surrogate, ("random", "none"), 0, 1800, 4)
    assert full[-1, 3] < runs[0][-1, 3]  # more trials in the same time
    assert full[-1, 1] == pytest.approx(1800 * 4 / 20, rel=0.3)  # 4 workers, 10 or 30 seconds an epoch


def test_errors_are_read_at_their_times():
    rows = np.array([[10.0, 1, 0.5, 1], [20, 3, 0.25, 2], [60, 9, 0.25, 3]])
    found = replay.errors_at([rows, rows + [15, 0, 0.125, 0]], [5, 10, 15, 25, 99])
    np.testing.assert_array_equal(found, [[np.nan, 0.5, 0.5, 0.25, 0.25], [np.nan, np.nan, np.nan, 0.625, 0.375]])
    np.testing.assert_array_equal(replay.errors_at([rows], [1, 2, 3], column=1), [[0.5, 0.5, 0.25]])


def test_paired_difference_has_the_sign_of_the_better():
    rng = np.random.default_rng(0)
    second = [np.array([[0.0, 1, 0.2 + 0.05 * rng.normal(), 1]]) for _ in range(20)]
    first = [rows - [0, 0, 0.01 + 0.002 * rng.normal(), 0] for rows in second]
    ((middle, low, high),) = tutorial.paired_difference(first, second, [60.0])
    assert middle == pytest.approx(-0.01, abs=0.002) and -0.015 < low < middle < high < 0
    ((_, low, high),) = tutorial.paired_difference(first[::-1], second, [60.0])  # pairs torn apart
    assert high > 0


def test_replay_and_tutorial_commands(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(replay, "ProcessPoolExecutor", Here)
    common = [str(folder), "--hours", "0.5", "--repetitions", "2", "--results", str(tmp_path)]
    replay.main([*common, "--searcher", "random", "--stopping", "none", "--stopping", "median", "--quick"])
    out = capsys.readouterr().out
    assert "random + none" in out and "random + median" in out and "30 min" in out
    with open(tmp_path / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["repetition"] for row in rows} == {"0", "1"} and list(rows[0]) == replay.COLUMNS
    assert 0 < min(float(row["error"]) for row in rows) < 0.3
    assert not HAS_MATPLOTLIB or (tmp_path / "replay.png").stat().st_size > 5000

    tutorial.main([*common, "--searcher", "random"])
    out = capsys.readouterr().out
    assert "random + asha minus random + asha" in out
    assert "held-out" in out and "epoch 9" in out and "seconds of an epoch" in out
    with open(tmp_path / "difference.csv", newline="") as file:
        assert {row["median"] for row in csv.DictReader(file)} == {"0"}  # a method is as good as itself
    assert not HAS_MATPLOTLIB or (tmp_path / "tutorial.png").stat().st_size > 5000


def test_picture_of_a_run(folder, tmp_path, capsys):
    if not HAS_MATPLOTLIB:
        assert plot.main([str(folder)]) == 1 and "pip install matplotlib" in capsys.readouterr().err
        return
    assert plot.main([str(folder), str(tmp_path / "run.png")]) == 0
    assert (tmp_path / "run.png").stat().st_size > 5000
    assert plot.main([str(tmp_path)]) == 2 and "expected the folder of a run" in capsys.readouterr().err


# ---- The final test -----------------------------------------------------------------------------------------------------
@pytest.fixture
def small_run(tmp_path, monkeypatch):
    """The folder of a run of the MLP's space, and few images to train on."""
    rng = np.random.default_rng(0)

    def images(n):
        labels = rng.integers(0, 10, n)
        return (20 * labels[:, None, None] + rng.integers(0, 40, (n, 28, 28))).astype(np.uint8), labels.astype(np.uint8)

    data = [*images(1000), *images(500)]
    monkeypatch.setattr(fashion_mnist, "load", lambda dataset, path: data)
    monkeypatch.setattr(fashion_mnist, "prepare", lambda dataset, path: dataset)
    monkeypatch.setattr(final_test, "N_TRAIN", 500)
    monkeypatch.setattr(final_test, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    space = {**mlp_fashion_mnist.config_space, "epochs": 9, "n_units_1": 16, "n_units_2": 16, "dataset": "synthetic"}
    trials = record(tmp_path / "run", 6, space, lambda config, rng: [(1.0, {"accuracy": 1 - config["dropout_1"]})])
    yield tmp_path / "run", trials, data
    torch.set_flush_denormal(False)


def test_final_test_picks_on_validation_and_keeps_the_weights(small_run, capsys, monkeypatch):
    folder, trials, (_, _, images, labels) = small_run
    final_test.main([str(folder), "--seeds", "2", "--epochs", "2", "--best", "2"])
    out = capsys.readouterr().out
    assert "test accuracy" in out and "over 2 seeds" in out and "STAND-IN" in out
    with open(folder / "final_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    best = sorted(trials, key=lambda trial: trial.value)[:2]
    validation = [row for row in rows if row["part"] == "validation"]
    assert len(validation) == 2 * 2 * 2 and {int(row["trial"]) for row in validation} == {trial.id for trial in best}
    means = {}
    for row in validation:
        means.setdefault((row["trial"], row["epoch"]), []).append(float(row["accuracy"]))
    chosen = max(means, key=lambda key: np.mean(means[key]))
    tested = [row for row in rows if row["part"] == "test"]
    assert {(row["trial"], row["epoch"]) for row in tested} == {chosen} and {row["seed"] for row in tested} == {
        "0",
        "1",
    }

    saved = torch.load(folder / "best.pt", weights_only=True)
    model = mlp_fashion_mnist.build(saved["config"])
    model.load_state_dict(saved["weights"])
    accuracy = mlp_fashion_mnist.validate(model, torch.from_numpy(images).flatten(1), torch.from_numpy(labels).long())
    assert accuracy == float(next(row["accuracy"] for row in tested if row["seed"] == "0"))

    monkeypatch.setattr(final_test, "fit", None)  # nothing is trained, nor tested, twice
    final_test.main([str(folder), "--seeds", "2", "--epochs", "2", "--best", "2"])
    assert out.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]


def test_final_test_of_another_problem_is_refused(folder, tmp_path, capsys):
    for path, words in ((folder, "expected a run of train/mlp_fashion_mnist.py"), (tmp_path, "expected the folder")):
        with pytest.raises(SystemExit) as leave:
            final_test.main([str(path)])
        assert leave.value.code == 2 and words in capsys.readouterr().err
