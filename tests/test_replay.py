"""Recorded runs replayed, and the picture of a run."""

import importlib.util
from functools import partial

import numpy as np
import pytest

from experiments import command, plot, replay
from experiments.curves import Curve, Recording, Surrogate, pack
from hpo.journal import Journal
from hpo.space import choice, loguniform, sample, space_to_json, uniform

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None  # run.py does not need it
SPACE = {"x": uniform(0, 1), "rate": loguniform(1e-4, 1), "kind": choice(["a", "b"]), "epochs": 9}


def record(epochs):
    """60 curves that end between 0.6 and 0.9; an epoch of kind a takes 10 seconds, of b 30."""
    rng, curves = np.random.default_rng(0), []
    for _ in range(60):
        config = sample(SPACE, rng)
        level = 0.9 - 0.5 * (config["x"] - 0.3) ** 2 - 0.05 * abs(np.log10(config["rate"]) + 2)
        accuracies = (level - (level - 0.1) * 0.5**epochs) * rng.normal(1, 0.002, len(epochs))
        seconds = np.diff(epochs, prepend=0) * (10.0 if config["kind"] == "a" else 30.0)
        curves.append(Curve(config, epochs, -accuracies, seconds * rng.uniform(0.9, 1.1)))
    problem = {"space": SPACE, "metric": "accuracy", "mode": "max", "max_epochs": 9}
    return Recording(**problem, curves=curves, machine="a machine")


@pytest.fixture(scope="module")
def surrogate():
    return Surrogate(record(np.arange(1, 10)), n_trees=10)


@pytest.fixture
def recorded(tmp_path, monkeypatch, in_this_process):
    """The path of a packed recording, of which a surrogate of few trees is made."""
    monkeypatch.setattr(replay, "Surrogate", partial(Surrogate, n_trees=10))
    monkeypatch.setattr(replay, "quality", lambda recording: ["the quality"])  # takes seconds
    pack(record(np.arange(1, 10)), tmp_path / "recorded.jsonl")
    return str(tmp_path / "recorded.jsonl")


# ---- Replay --------------------------------------------------------------------------------------
def test_replayed_run_is_deterministic_and_counts_epochs(surrogate):
    method = "random", "asha", 1, 3
    runs = [replay.run(surrogate, method, seed, 1800, 4) for seed in (0, 0, 1)]
    for (errors, *counts), (again, *others), is_equal in zip(runs, runs[1:], (True, False)):
        assert (counts == others) == is_equal == np.array_equal(errors, again, equal_nan=True)
    first = {replay.run(surrogate, method, seed, 60, 1)[0][-1] for seed in range(5)}
    assert len(first) > 1  # all of the same configuration, with the noise of each seed
    for errors, *_ in runs:
        found = errors[~np.isnan(errors)]
        assert np.all(np.diff(found) <= 0) and 0 < found[-1] < 0.3 and np.isnan(errors[0]) == 0
        assert replay.times(1800)[[19, -1]].tolist() == [600, 1800] and len(errors) == 60
    _, n_epochs, n_trials = replay.run(surrogate, ("random", "none", 1, 3), 0, 1800, 4)
    assert n_trials < runs[0][2]  # more trials in the same time
    assert n_epochs == pytest.approx(1800 * 4 / 20, rel=0.3)  # 4 workers, 10 or 30 s an epoch


def test_epochs_are_counted_where_only_every_third_is_reported():
    surrogate = Surrogate(record(np.arange(3, 10, 3)), n_trees=5)
    _, n_epochs, _ = replay.run(surrogate, ("random", "none", 1, 3), 0, 3600, 1)
    assert n_epochs % 3 == 0 and n_epochs == pytest.approx(3600 / 20, rel=0.3)


def test_table_is_at_its_minutes_and_paired_and_counts_no_result_as_the_worst():
    at = replay.times(1200)
    runs = {"a": [(0.5 - at / 12000, 10, 2), (np.where(at < 700, np.nan, 0.25), 30, 4)]}
    runs["b"] = [(errors - 0.125, *counts) for errors, *counts in runs["a"]]
    head, a, b, _, differences = replay.report(runs, 1200)
    assert head.split() == ["10", "min", "20", "min", "epochs", "trials", "runs"]
    assert [a.split()[i] for i in (1, 4, 7, 8, 9)] == ["0.4500", "0.3250", "20", "3", "2"]
    assert differences.split()[1:4] == ["-0.1250", "[-0.1250", "-0.1250]"] and b[0] == "b"


def test_replay_command(recorded, tmp_path, capsys):
    words = [recorded, "--repetitions", "2", "--results", str(tmp_path), "--workers", "8"]
    replay.main([*words, "--searcher", "random", "--eta", "2", "--first_rung", "3"])
    out = capsys.readouterr().out
    assert "the quality\n" in out and " 20 min  epochs  trials  runs\n" in out
    hours = sum(curve.seconds.sum() for curve in record(np.arange(1, 10)).curves) / 8 / 3600
    assert f"2 repetitions of {hours:.2g} hours" in out  # as much as was recorded
    tables = out.split("difference to random + halving, paired")
    assert [table.count("\nrandom + none") for table in tables] == [1, 1]
    assert [table.count("\nrandom + halving") for table in tables] == [1, 0]
    rows = command.read_rows(tmp_path / "runs.csv", replay.COLUMNS)
    methods = {(row["method"], row["repetition"]) for row in rows}
    assert methods == {(f"random + {rule}", i) for rule in ("halving", "none") for i in (0, 1)}
    assert 0 < np.nanmin([row["error"] for row in rows]) < 0.3
    assert not HAS_MATPLOTLIB or (tmp_path / "replay.png").stat().st_size > 5000


def test_what_cannot_be_replayed_is_named(recorded, tmp_path):
    words = [recorded, "--repetitions", "1", "--quick", "--results", str(tmp_path / "out")]
    (tmp_path / "mine.py").write_text("def rule(trial, trials, max_epochs):\n    trial.curve[7]")
    for flags, text in (
        (["--stopping", f"{tmp_path}/mine.py:rule"], 'mine.py", line 2, in rule'),
        (["--hours", "0.001"], "no report in 0.001 hours; give more --hours"),
    ):
        with pytest.raises(command.Failed) as failure:
            replay.main([*words, "--searcher", "random", *flags])
        assert text in str(failure.value)
    assert not (tmp_path / "out").exists()


# ---- Picture -------------------------------------------------------------------------------------
def test_picture_of_a_run(tmp_path, capsys):
    if not HAS_MATPLOTLIB:
        with pytest.raises(command.Failed, match="pip install matplotlib"):
            plot.main([str(tmp_path)])
        return
    run = {"space": space_to_json(SPACE), "metric": "accuracy", "mode": "max", "arguments": {}}
    journal = Journal.create(tmp_path / "run", run)
    picture, config = tmp_path / "run" / "run.png", sample(SPACE, np.random.default_rng(0))
    for i, attempt, status in (0, 1, "interrupted"), (0, 2, "done"), (1, 1, "failed"), (2, 1, None):
        which = {"attempt": attempt, "at": 60.0 * (i + attempt)}
        journal.append({"start": i, **which, "config": config, "origin": "random"})
        journal.append({"report": i, **which, "epoch": 1 + i, "metrics": {"accuracy": 0.1 * i}})
        if status:
            journal.append({"end": i, **which, "status": status, "error": ""})
    journal.close()
    plot.main([str(tmp_path / "run")])
    assert capsys.readouterr().out == f"{picture}\n" and picture.stat().st_size > 5000
    for words, text in ([], "expected the folder of a run"), (["nofile"], "expected a picture"):
        with pytest.raises(SystemExit) as leave:
            plot.main([str(tmp_path), *words])
        assert leave.value.code == 2 and text in capsys.readouterr().err
