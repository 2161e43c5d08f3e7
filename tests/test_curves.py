"""Recorded curves: reading them, the surrogate made of them, replays."""

import pathlib
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from experiments import curves, replay
from experiments.curves import Surrogate, quality, read
from experiments.simulated import SimulatedBackend, SimulatedTuner
from hpo.journal import Journal, load
from hpo.searchers import RandomSearch
from hpo.space import choice, domains, loguniform, space_to_json, uniform
from train import mlp_fashion_mnist

SPACE = {"x": uniform(0, 1), "rate": loguniform(1e-4, 1), "kind": choice(["a", "b"]), "epochs": 9}


def true_accuracy(config, epoch):
    level = 0.9 - 0.5 * (config["x"] - 0.3) ** 2 - 0.05 * abs(np.log10(config["rate"]) + 2)
    return level - (level - 0.1) * 0.5**epoch


def training(config, rng, epochs=range(1, 10)):
    if config["x"] > 0.97:
        raise MemoryError("too large")
    for epoch in epochs:
        accuracy = true_accuracy(config, epoch) * rng.normal(1, 0.002)
        seconds = {"a": 10, "b": 30}[config["kind"]] * rng.uniform(0.9, 1.1)
        yield seconds, {"epoch": epoch, "accuracy": accuracy}


def record(folder, n_trials=60, space=SPACE, objective=training):
    run = {"space": space_to_json(space), "metric": "accuracy", "mode": "max", "arguments": {}}
    journal, searcher = Journal.create(folder, run), RandomSearch(space, 3)
    SimulatedTuner(journal, searcher, SimulatedBackend(objective), 4, n_trials=n_trials).run()
    journal.close()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return record(tmp_path_factory.mktemp("recorded") / "run")


@pytest.fixture(scope="module")
def recording(folder):
    return read([folder, folder])  # what is given twice counts once


# ---- Recordings ----
def test_folder_is_read_with_its_times(folder, recording):
    trials = [trial for trial in load(folder) if trial.status != "failed"]
    assert recording.about == "59 recorded curves, 59 of them to epoch 9"
    for trial, curve in zip(trials, recording.curves, strict=True):
        assert {**SPACE, **curve.config} == trial.config
        assert list(zip(curve.epochs, curve.losses)) == trial.curve
        assert curve.seconds.sum() == pytest.approx(trial.ended - trial.started, abs=0.01)
        assert curve.seconds == pytest.approx(10 if trial.config["kind"] == "a" else 30, rel=0.11)


def test_seconds_are_those_of_the_first_machine_where_recordings_share_a_configuration(recording):
    a, b, c = recording.curves[:3]
    slow = [replace(curve, seconds=2 * curve.seconds) for curve in (b, c)]
    curves.put_on_one_clock([replace(recording, curves=part) for part in ([a, b], slow)])
    assert slow[1].seconds == pytest.approx(c.seconds)


def test_runs_in_the_repository_are_of_the_main_job():
    recording = read(pathlib.Path(curves.__file__).parent.glob("runs/*.jsonl"))
    assert recording.about == "1715 recorded curves, 141 of them to epoch 81"
    assert domains(recording.space) == domains(mlp_fashion_mnist.config_space)


def test_runs_of_other_problems_are_refused(folder, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"space": 1}\n')
    record(tmp_path / "none", 0)
    record(tmp_path / "other", 1, {**SPACE, "dataset": "synthetic"})
    for name, words in (
        ("none", "no trial has reported accuracy"),
        ("bad.jsonl", "not a file of packed curves"),
        ("nowhere", "No such file or directory; expected the folder of a run"),
        ("other", "its space, metric or mode differs"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*: {words}"):
            read([folder, tmp_path / name])
    elsewhere = record(tmp_path / "elsewhere", 1, {**SPACE, "data_path": "elsewhere"})
    assert len(read([folder, elsewhere]).curves) == 59


# ---- The surrogate ----
def test_parts_of_the_surrogate_on_cases_worked_out_by_hand():
    Z = np.array([[4.0, 3, 2, 1], [9, 9, 9, 9], [4.6, 3.4, 0, 0], [8.0, 0, 0, 0]])
    completed = [[4, 3, 2, 1], [9, 9, 9, 9], [4.6, 3.4, 2.5, 1.5], [8, 8, 8, 8]]
    np.testing.assert_allclose(curves.complete(Z, np.array([4, 4, 2, 1])), completed)
    smooth = np.array([[1.0, 1], [3, 3], [5, 5], [7, 9]])
    assert curves.repetition_spread(smooth, "aabc") == pytest.approx(np.sqrt(2))
    assert curves.repetition_spread(smooth, "abcd") == 0


def test_quality_tells_real_curves_from_shuffled_ones(recording):
    pairs = zip(recording.curves, np.random.default_rng(0).permutation(recording.curves))
    shuffled = [replace(curve, config=other.config) for curve, other in pairs]
    for these, low, high in ((recording.curves, 0.8, 1), (shuffled, -1, 0.4)):
        line = quality(replace(recording, curves=these), 3, n_trees=25)
        assert low < float(line.split("correlation ")[1].split(",")[0]) < high


def test_surrogate_draws_curves_with_the_noise_of_the_recorded(recording):
    surrogate = Surrogate(recording, n_trees=60)
    config = {"x": 0.35, "rate": 0.01, "kind": "b"}
    rngs = map(np.random.default_rng, range(200))
    drawn, seconds = np.transpose([surrogate.sample(config, rng) for rng in rngs], (1, 0, 2))
    mean = surrogate.mean(config)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.01)
    assert -mean[-1] == pytest.approx(true_accuracy(config, 9), abs=0.04)
    assert 0.0003 < drawn[:, -1].std() < 0.005  # 0.002 of the accuracy went in
    assert seconds.mean() == pytest.approx(30, rel=0.2)


def test_reports_of_some_epochs_are_drawn_at_these(tmp_path):
    objective = partial(training, epochs=(0, 3, 6, 9))  # 0: before any training
    recording = read([record(tmp_path / "run", 20, objective=objective)])
    surrogate = Surrogate(recording, n_trees=5)
    drawn = surrogate.objective(recording.curves[0].config, np.random.default_rng(0))
    assert [metrics["epoch"] for _, metrics in drawn] == [3, 6, 9]
    _, n_epochs, n_trials = replay.run(surrogate, "random + none", 0, 3600, 1)
    assert n_epochs % 3 == 0 and 8 * n_trials < n_epochs <= 9 * n_trials


# ---- Replay ----
def test_replayed_run_is_deterministic_and_counts_epochs(recording):
    surrogate = Surrogate(recording, n_trees=10)
    runs = [replay.run(surrogate, "random + asha", seed, 3600, 4) for seed in (0, 0, 1)]
    errors = [found for found, *_ in runs]
    np.testing.assert_array_equal(errors[0], errors[1])
    assert runs[0][1:] == runs[1][1:] and not np.array_equal(errors[0], errors[2])
    assert np.all(np.diff(errors[0]) <= 0) and 0 < errors[0][-1] < 0.3 and len(errors[0]) == 4
    _, n_epochs, n_trials = replay.run(surrogate, "random + none", 0, 3600, 4)
    assert n_trials < runs[0][2]  # more trials in the same time
    assert n_epochs == pytest.approx(3600 * 4 / 20, rel=0.3)  # 4 workers, 10 or 30 s an epoch


def test_table_is_at_its_minutes_and_paired_and_counts_no_result_as_the_worst():
    runs = {"a": [([0.45, 0.4], 10, 2), ([np.nan, 0.25], 30, 4)]}
    runs["b"] = [(np.array(errors) - 0.125, *counts) for errors, *counts in runs["a"]]
    head, a, b, _, differences = replay.report(runs, 1200)
    assert head.split() == ["10", "min", "20", "min", "epochs", "trials", "runs"]
    assert [a.split()[i] for i in (1, 4, 7, 8, 9)] == ["0.4500", "0.3250", "20", "3", "2"]
    assert differences.split()[1:4] == ["-0.1250", "[-0.1250", "-0.1250]"] and b[0] == "b"


def test_replay_command(folder, monkeypatch, in_this_process, capsys):
    monkeypatch.setattr(replay, "Surrogate", partial(Surrogate, n_trees=10))
    monkeypatch.setattr(replay, "quality", lambda recording: "the quality")  # takes seconds
    words = f"{folder} --repetitions 2 --hours 0.4 --workers 8 --searcher random"
    replay.main(words.split())
    out = capsys.readouterr().out
    assert "the quality\n" in out and " 24 min  epochs  trials  runs\n" in out
    tables = out.split("difference to random + halving, paired")
    assert [table.count("\nrandom + none") for table in tables] == [1, 1]
    assert [table.count("\nrandom + halving") for table in tables] == [1, 0]
