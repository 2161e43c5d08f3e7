"""Recorded curves and what is made of them: packing, the surrogate, replay, tutorial, pictures, the final test."""

import csv
import importlib.util
import json
import pathlib
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from filelock import FileLock

from experiments import command, curves, final_test, plot, replay, tutorial
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded") / "run"
    record(path)
    return path


@pytest.fixture(scope="module")
def recording(folder):
    return curves.read([folder])


@pytest.fixture(scope="module")
def surrogate(recording):
    return Surrogate(recording, n_trees=60)


# ---- Recordings ---------------------------------------------------------------------------------------------------------
def test_seconds_are_those_of_the_first_machine(recording):
    """By the configurations that a recording shares with those before it; without one they stay."""
    parts = [recording.curves[0:2], recording.curves[1:4], recording.curves[3:5], recording.curves[6:8]]
    slowed = [
        replace(recording, curves=[replace(curve, seconds=factor * curve.seconds) for curve in part])
        for part, factor in zip(parts, (1, 2, 0.5, 3))
    ]
    curves.put_on_one_clock(slowed)
    for part, made, factor in zip(parts, slowed, (1, 1, 1, 3)):
        for curve, own in zip(part, made.curves):
            assert own.seconds == pytest.approx(factor * curve.seconds)


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
    curves.main([str(folder), str(target)])
    assert f"{target}: 59 recorded curves, 59 of them to epoch 9; 531 epochs" in capsys.readouterr().out
    assert target.stat().st_size < 300 * len(recording.curves)
    again = curves.read([target])
    assert (again.space, again.metric, again.mode, again.max_epochs) == (SPACE, "accuracy", "max", 9)
    for curve, back in zip(recording.curves, again.curves, strict=True):
        assert back.config == curve.config and list(back.epochs) == list(curve.epochs)
        np.testing.assert_allclose(back.losses, curve.losses, rtol=1e-5)
        np.testing.assert_allclose(back.seconds, curve.seconds, rtol=1e-2)
    both = curves.read([folder, target])
    assert len(both.curves) == len(recording.curves)  # each training counts once
    with pytest.raises(SystemExit):
        curves.main([str(folder), str(target)])
    assert "packed.jsonl: exists" in capsys.readouterr().err and curves.read([target]).about == again.about


def test_training_that_is_recorded_twice_counts_once_and_a_repetition_of_its_own():
    def curve(x, *losses):
        return curves.Curve({"x": x}, np.arange(1, len(losses) + 1), np.array(losses), np.ones(len(losses)))

    found = curves.distinct(
        [curve(1, 0.5, 0.4), curve(2, 0.5), curve(1, 0.5, 0.4, 0.3), curve(1, 0.5, 0.41), curve(1, 0.5)]
    )
    assert [(c.config["x"], *c.losses) for c in found] == [(1, 0.5, 0.4, 0.3), (1, 0.5, 0.41), (2, 0.5)]


def test_runs_in_the_repository_are_of_the_main_job_and_small():
    paths = sorted(pathlib.Path(curves.__file__).parent.glob("runs/*.jsonl"))
    recording = curves.read(paths)
    assert domains(recording.space) == domains(mlp_fashion_mnist.config_space) and recording.max_epochs == 81
    assert all(0 < -loss < 1 for curve in recording.curves for loss in curve.losses)
    assert sum(path.stat().st_size for path in paths) < 1500 * len(recording.curves)


def test_same_configuration_is_found_where_its_data_lie_elsewhere(tmp_path):
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        record(folder, 4, {**SPACE, "data_path": str(folder)})
    recording = curves.read(folders)
    assert len(recording.curves) == 4 and {curve.config["data_path"] for curve in recording.curves} == {str(folders[0])}


def test_reports_of_some_epochs_alone_are_replayed_at_these(tmp_path):
    """With the seconds of the epochs between them; what is measured before any training is none of them."""

    def every_third(config, rng):
        yield 1, {"epoch": 0, "accuracy": 0.1}
        for epoch in range(3, 10, 3):
            yield 30, {"epoch": epoch, "accuracy": true_accuracy(config, epoch)}

    record(tmp_path / "run", 20, objective=every_third)
    surrogate = Surrogate(curves.read([tmp_path / "run"]), n_trees=10)
    drawn = list(surrogate.objective({**SPACE, "x": 0.3, "rate": 0.01, "kind": "a"}, np.random.default_rng(0)))
    assert [metrics["epoch"] for _, metrics in drawn] == [3, 6, 9]
    assert [seconds for seconds, _ in drawn] == pytest.approx([31, 30, 30], abs=1.5)
    rows = replay.run(surrogate, ("random", "none"), 0, 1800, 4)
    assert rows[-1, 1] == pytest.approx(4 * 1800 / 10, rel=0.05)  # epochs, not reports


def test_few_whole_curves_are_replayed_unchecked(recording):
    few = replace(recording, curves=[recording.curves[0]])
    assert Surrogate(few, n_trees=5).mean(SPACE | {"x": 0.5, "rate": 0.01, "kind": "a"})[0] == pytest.approx(
        few.curves[0].losses, abs=0.01
    )
    assert curves.quality(few) == [
        "not checked on held-out curves: too few curves were recorded to epoch 9; record more with --stopping none"
    ]
    with pytest.raises(ValueError, match="too few curves were recorded to epoch 10"):
        Surrogate(replace(recording, max_epochs=10))


def test_what_is_no_recording_is_refused(folder, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"space": 1}\n')
    record(tmp_path / "other", 4, {**SPACE, "x": uniform(0, 2)})
    record(tmp_path / "stand-in", 4, {**SPACE, "dataset": "synthetic"})
    record(tmp_path / "none", 0)
    for paths, words in (
        ([tmp_path / "none"], "none: no trial has reported accuracy"),
        ([tmp_path / "bad.jsonl"], "not a file of packed curves"),
        ([tmp_path / "nowhere"], "expected the folder of a run"),
        ([folder, tmp_path / "other"], "its space differs"),
        ([folder, tmp_path / "stand-in"], "its space differs"),
    ):
        with pytest.raises(ValueError, match=words):
            curves.read(paths)
    capsys.readouterr()
    nowhere, target = str(tmp_path / "nowhere"), str(tmp_path / "packed.jsonl")
    for module, arguments, words in (
        (curves, [str(folder)], "required: NAME.jsonl"),
        (curves, [str(folder), str(folder)], "expected the file to write last"),
        (curves, [str(folder), nowhere, target], "nowhere/run.json"),
        (replay, [nowhere], "expected the folder of a run"),
        (replay, [str(folder), "--hours", "-1"], "expected a positive number"),
        (replay, [str(folder), "--results", str(tmp_path / "bad.jsonl")], "expected a folder to write to"),
        (tutorial, [nowhere], "expected the folder of a run"),
        (tutorial, [nowhere, "--eta", "1"], "argument --eta: expected an integer >= 2"),
        (tutorial, [nowhere, "--first_rung", "0"], "argument --first_rung: expected an integer >= 1"),
    ):
        with pytest.raises(SystemExit) as leave:
            module.main(arguments)
        err = capsys.readouterr().err
        assert leave.value.code == 2 and words in err and err.count("\n") == 1
    assert not (tmp_path / "packed.jsonl").exists()


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


def test_spread_between_repetitions_is_that_of_their_levels():
    smooth = np.array([[1.0, 1], [3, 3], [5, 5], [7, 9]])
    assert repetition_spread(smooth, ["a", "a", "b", "c"]) == (pytest.approx(np.sqrt(2)), 2)
    assert repetition_spread(smooth, ["a", "b", "c", "d"]) == (0.0, 0)


def test_surrogate_predicts_held_out_curves_and_not_shuffled_ones(recording):
    losses, seconds = held_out(recording, 3, n_trees=25)
    true = np.array([curve.losses for curve in recording.curves])
    assert rank_correlation(losses[:, -1], true[:, -1]) > 0.8
    assert np.abs(losses - true).mean() < 0.5 * np.abs(true - np.median(true, 0)).mean() + 0.02
    kinds = np.array([curve.config["kind"] for curve in recording.curves])
    assert seconds[kinds == "a"].max() < 15 and seconds[kinds == "b"].min() > 20
    rng = np.random.default_rng(0)
    configs = [recording.curves[i].config for i in rng.permutation(len(true))]
    shuffled = [curves.Curve(c, old.epochs, old.losses, old.seconds) for c, old in zip(configs, recording.curves)]
    part = curves.Recording(SPACE, "accuracy", "max", 9, shuffled)
    assert rank_correlation(held_out(part, 3, n_trees=25)[0][:, -1], true[:, -1]) < 0.4


def test_surrogate_draws_curves_with_the_noise_of_the_recorded(surrogate):
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
    assert recording.about.endswith(" alone: the ends of most are guessed, record more with --stopping none")
    surrogate = Surrogate(recording, n_trees=50)
    losses = np.array([surrogate.mean(curve.config)[0] for curve in recording.curves])
    true = [-true_accuracy(curve.config, 9) for curve in recording.curves]
    assert rank_correlation(losses[:, -1], true) > 0.8


# ---- Replay -------------------------------------------------------------------------------------------------------------
def test_replayed_run_is_deterministic_and_counts_epochs(surrogate):
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


def test_repetition_without_a_result_counts_as_the_worst():
    empty = replay.History()
    assert np.isnan(empty.row(60.0)[2])
    runs = [np.array([empty.row(60.0)]), np.array([[30.0, 1, 0.5, 1]]), np.array([[30.0, 1, 0.25, 1]])]
    np.testing.assert_array_equal(replay.quartiles(replay.errors_at(runs, [60.0]))[:, 0], [0.375, 0.5, 0.5])


def test_paired_difference_has_the_sign_of_the_better():
    rng = np.random.default_rng(0)
    second = [np.array([[0.0, 1, 0.2 + 0.05 * rng.normal(), 1]]) for _ in range(20)]
    first = [rows - [0, 0, 0.01 + 0.002 * rng.normal(), 0] for rows in second]
    ((middle, low, high, n),) = tutorial.paired_difference(first, second, [60.0])
    assert middle == pytest.approx(-0.01, abs=0.002) and -0.015 < low < middle < high < 0 and n == 20
    ((_, low, high, _),) = tutorial.paired_difference(first[::-1], second, [60.0])  # pairs torn apart
    assert high > 0


def test_pairs_without_a_result_yet_are_left_out_of_that_time_alone():
    first = [np.array([[seconds, 1, 0.25, 1]]) for seconds in (0.0, 90.0)]
    found = tutorial.paired_difference(first, [np.array([[0.0, 1, 0.5, 1]])] * 2, [30.0, 60.0, 120.0])
    assert [(middle, n) for middle, *_, n in found] == [(-0.25, 1), (-0.25, 1), (-0.25, 2)]


@pytest.fixture
def small_forests(monkeypatch):
    """Ten trees instead of 200, which take seconds to grow."""
    monkeypatch.setattr(replay, "Surrogate", partial(Surrogate, n_trees=10))
    monkeypatch.setattr(curves, "held_out", partial(held_out, n_trees=10))


@pytest.mark.usefixtures("small_forests")
def test_replay_and_tutorial_commands(folder, tmp_path, capsys, in_this_process):
    common = [str(folder), "--repetitions", "2", "--results", str(tmp_path)]
    replay.main([*common, "--searcher", "random", "--stopping", "none", "--stopping", "median", "--quick"])
    out = capsys.readouterr().out
    seconds = sum(trial.ended - trial.started for trial in load(folder) if trial.value is not None)
    assert f"2 repetitions of {seconds / 4 / 3600:.2g} hours each" in out  # as much training as was recorded
    assert "random + none" in out and "random + median" in out and "30 min" in out
    with open(tmp_path / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["repetition"] for row in rows} == {"0", "1"} and list(rows[0]) == replay.COLUMNS
    assert 0 < min(float(row["error"]) for row in rows) < 0.3
    assert not HAS_MATPLOTLIB or (tmp_path / "replay.png").stat().st_size > 5000

    tutorial.main([*common, "--hours", "0.5", "--searcher", "random", "--eta", "2", "--first_rung", "3"])
    out = capsys.readouterr().out
    assert "random + halving minus random + halving" in out
    assert "held-out" in out and "epoch 9" in out and "seconds of an epoch" in out
    with open(tmp_path / "difference.csv", newline="") as file:
        assert {row["median"] for row in csv.DictReader(file)} == {"0"}  # a method is as good as itself
    assert not HAS_MATPLOTLIB or (tmp_path / "tutorial.png").stat().st_size > 5000


MINE = """
from hpo.searchers import RandomSearch

class Raises(RandomSearch):
    def suggest(self, trials):
        raise ArithmeticError("my mistake")

def rule(trial, trials, max_epochs):
    return trial.curve[7]
"""


@pytest.mark.usefixtures("small_forests")
def test_raising_searcher_or_rule_is_named_with_its_own_traceback(folder, tmp_path, in_this_process, monkeypatch):
    monkeypatch.setattr(replay, "quality", lambda recording: [])  # seconds, and tested elsewhere
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    common = [str(folder), "--repetitions", "1", "--results", str(tmp_path / "out")]
    for module, arguments, line, frame in (
        (replay, ["--quick", "--searcher", f"{mine}:Raises"], "Raises.suggest raised ArithmeticError: my mistake", 6),
        (
            tutorial,
            ["--searcher", "random", "--stopping", f"{mine}:rule"],
            "the stopping rule raised IndexError: list index out of range",
            9,
        ),
    ):
        with pytest.raises(command.Failed) as failure:
            module.main([*common, *arguments])
        first, _, place, *_ = str(failure.value).splitlines()
        assert str(mine) in first and first.endswith(f", repetition 0: {line}")
        assert place.startswith(f'  File "{mine}", line {frame}, in ')
    with pytest.raises(command.Failed, match="random . none: no trial reports in 0.001 hours; give more --hours"):
        replay.main([*common, "--quick", "--searcher", "random", "--hours", "0.001"])
    assert not (tmp_path / "out").exists()


def test_picture_of_a_run(folder, tmp_path, capsys):
    if not HAS_MATPLOTLIB:
        with pytest.raises(command.Failed, match="pip install matplotlib"):
            plot.main([str(folder)])
        return
    space = {name: domain for name, domain in SPACE.items() if name != "epochs"}
    record(tmp_path / "one", 9, space, lambda config, rng: [(1.0, {"accuracy": config["x"]})])  # a report each
    for run in (folder, tmp_path / "one"):
        plot.main([str(run), str(tmp_path / "run.png")])
        assert capsys.readouterr().out == f"{tmp_path / 'run.png'}\n"
        assert (tmp_path / "run.png").stat().st_size > 5000
        (tmp_path / "run.png").unlink()
    for arguments, words in (
        ([tmp_path], "expected the folder of a run"),
        ([tmp_path / "nowhere"], f"{tmp_path / 'nowhere'}/run.json: cannot be read"),
        ([folder, tmp_path / "one"], f"{tmp_path / 'one'}: expected the picture to write"),
        ([folder, tmp_path / "nowhere"], f"{tmp_path / 'nowhere'}: expected the picture to write"),
        ([folder, tmp_path / "nowhere" / "a.png"], "a.png: expected the picture to write"),
        ([folder, tmp_path / "a.png", tmp_path], f"unrecognized arguments: {tmp_path}"),
    ):
        with pytest.raises(SystemExit) as leave:
            plot.main(list(map(str, arguments)))
        err = capsys.readouterr().err
        assert leave.value.code == 2 and words in err and err.count("\n") == 1


# ---- The final test -----------------------------------------------------------------------------------------------------
@pytest.fixture
def small_run(tmp_path, monkeypatch, in_this_process):
    """The folder of a run of the MLP's space, and few images to train on."""
    rng = np.random.default_rng(0)

    def images(n):
        labels = rng.integers(0, 10, n)
        return (20 * labels[:, None, None] + rng.integers(0, 40, (n, 28, 28))).astype(np.uint8), labels.astype(np.uint8)

    data = [*images(1000), *images(500)]
    monkeypatch.setattr(fashion_mnist, "load", lambda dataset, path: data)
    monkeypatch.setattr(fashion_mnist, "prepare", lambda dataset, path: dataset)
    monkeypatch.setattr(final_test, "N_TRAIN", 500)
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
    announced, tested = ([row for row in rows if row["part"] == "test"][i : i + 2] for i in (0, 2))
    assert [row["accuracy"] for row in announced] == ["nan", "nan"]
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
    for arguments in (["--seeds", "2", "--epochs", "2", "--best", "2"], ["--seeds", "3"], ["--epochs", "4"]):
        with pytest.raises(SystemExit) as leave:
            final_test.main([str(folder), *arguments])
        err = capsys.readouterr().err
        assert leave.value.code == 2 and err.count("\n") == 1 and "test images have been measured" in err
        assert next(line for line in out.splitlines() if line.startswith("test accuracy")) in err


def test_final_test_goes_on_with_what_it_had_chosen(small_run, capsys, monkeypatch):
    """Interrupted in the validation, then in the test: no training that had ended is done again."""
    folder, fit, calls = small_run[0], final_test.fit, []

    def interrupted_fit(config, seed, threads, n_epochs, on_all=False):
        if len(calls) in (1, 6):
            calls.append("interrupted")
            raise KeyboardInterrupt
        calls.append((config["dropout_1"], seed, n_epochs, on_all))
        return fit(config, seed, threads, n_epochs, on_all)

    monkeypatch.setattr(final_test, "fit", interrupted_fit)
    arguments = [str(folder), "--seeds", "2", "--epochs", "2", "--best", "2"]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            final_test.main(arguments)
    capsys.readouterr()
    final_test.main([*arguments[:3], "--epochs", "9"])  # what else it asks for comes too late
    out = capsys.readouterr().out
    assert "the test has begun: it goes on as chosen then" in out and "with 2 seeds" in out and "over 2 seeds" in out
    trainings = [call for call in calls if call != "interrupted"]
    assert len(set(trainings)) == len(trainings) == 2 * 2 + 2
    rows = command.read_rows(folder / "final_test.csv", final_test.COLUMNS)
    assert len([row for row in rows if row["part"] == "test" and row["accuracy"] >= 0]) == 2


def test_final_test_is_refused_while_the_folder_is_in_use(small_run, capsys):
    with FileLock(small_run[0] / ".lock"), pytest.raises(SystemExit) as leave:
        final_test.main([str(small_run[0])])
    assert leave.value.code == 2 and "a run or another final test is using it" in capsys.readouterr().err
    assert not (small_run[0] / "final_test.csv").exists()


def test_damaged_final_test_is_one_line(small_run, capsys):
    folder = small_run[0]
    for text, words in (
        ("part,trial\n", "line 1: expected part, trial, seed, epoch, accuracy"),
        (
            "part,trial,seed,epoch,accuracy\ntest,0,0,x,0.5\n",
            "line 2: expected part (str), trial (int), seed (int), epoch (int), accuracy (float), got 'test,0,0,x,0.5'",
        ),
        ("part,trial,seed,epoch,accuracy\ntest,77,0,1,0.5\n", "column trial: expected one of the 6"),
    ):
        (folder / "final_test.csv").write_text(text)
        with pytest.raises(SystemExit) as leave:
            final_test.main([str(folder)])
        err = capsys.readouterr().err
        assert leave.value.code == 2 and words in err and err.count("\n") == 1
        assert (folder / "final_test.csv").read_text() == text


def test_final_test_of_another_network_is_refused(small_run, tmp_path, capsys):
    """It would train ours, and call it theirs."""
    (tmp_path / "mine.py").write_text("")
    run = json.loads((small_run[0] / "run.json").read_text())
    run["arguments"]["objective"] = str(tmp_path / "mine.py")
    (small_run[0] / "run.json").write_text(json.dumps(run))
    with pytest.raises(SystemExit) as leave:
        final_test.main([str(small_run[0])])
    assert leave.value.code == 2 and "expected a run of train/mlp_fashion_mnist.py, got" in capsys.readouterr().err


def test_final_test_of_another_problem_is_refused(folder, tmp_path, capsys):
    for path, words in ((folder, "expected a run of train/mlp_fashion_mnist.py"), (tmp_path, "expected the folder")):
        with pytest.raises(SystemExit) as leave:
            final_test.main([str(path)])
        assert leave.value.code == 2 and words in capsys.readouterr().err
