"""Earlier runs (--start DIR, --learn_from DIR), how a Run shows itself, and --trials_per_gpu."""

import pytest

from experiments import explain
from hpo import choice, load, randint, tune, uniform
from hpo.journal import Journal, load_run
from hpo.space import space_to_json
from hpo.trial import LocalBackend

SPACE = {"x": uniform(0, 1), "n": randint(1, 8), "kind": choice(["a", "b"]), "epochs": 3}
OPTIONS = {"metric": "loss", "mode": "min", "workers": 1, "stopping": "none"}
train = lambda config: config["x"] ** 2  # without a name: its trials are forks, which start at once


@pytest.fixture
def earlier(tmp_path):
    """The folder of a run with six trials; the losses of trial i are 1 / (i + epoch)."""
    arguments = {"objective": "x.py", "config_space": None, "stopping": "none", "searcher": "gp"}
    run = {"space": space_to_json(SPACE), "metric": "loss", "mode": "min", "arguments": arguments}
    journal = Journal.create(tmp_path / "earlier", {**run, "note": ""})
    for i, status in enumerate(["done", "stopped", "failed", "done", "timeout", "running"]):
        config = {"x": 0.1 * i, "n": i + 1, "kind": "ab"[i % 2], "epochs": 3}
        event = {"attempt": 1, "at": i}
        journal.append({"start": i, "config": config, "origin": "random", **event})
        for epoch in range(1, 2 + (status == "done") + (i == 0)):
            metrics = {"loss": 1 / (i + epoch)}
            journal.append({"report": i, "epoch": epoch, "metrics": metrics, **event})
        if status != "running":
            journal.append({"end": i, "status": status, "error": "", **event})
    journal.close()
    return tmp_path / "earlier"


def test_start_takes_the_best_trials_of_another_space(earlier, tmp_path, capsys):
    space = {"x": uniform(0.35, 2), "kind": choice(["b", "c"]), "depth": randint(1, 5), "epochs": 9}
    run = tune(train, space, start=str(earlier), trials=4, results=tmp_path / "run", **OPTIONS)
    # what has become the same is tried once
    assert [trial.origin for trial in run.trials] == ["start", "start", "start", "initial"]
    for trial, x in zip(run.trials, [0.5, 0.35, 0.4]):
        assert trial.config == {"x": x, "kind": "b", "depth": 3, "epochs": 9}
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("--start: the 3 best of"))
    for change in ("depth is new", "n is gone", "x=0.3", "kind=a becomes b"):
        assert change in line
    again = tune(train, trials=5, resume=tmp_path / "run")  # what was taken is in the journal
    assert len(again.trials) == 5 and again.trials[:4] == run.trials


def test_searcher_knows_the_trials_of_earlier_runs(earlier, tmp_path, capsys):
    options = {**OPTIONS, "trials": 3}
    run = tune(train, SPACE, learn_from=earlier, results=tmp_path / "run", **options)
    assert [t.origin for t in run.trials] == ["start", "model", "model"]  # no initial design
    known = load(run.folder, before=1)
    statuses = ["done", "stopped", "failed", "done", "timeout", "interrupted", "done"]
    assert [(t.id, t.status) for t in known] == [*enumerate(statuses, -6)]
    assert [t.curve for t in known[:6]] == [t.curve for t in load(earlier)]
    assert "--learn_from: 6 of 6 trials of" in capsys.readouterr().out
    assert explain.main([str(run.folder)]) == explain.main([str(run.folder), "2"]) == 0
    narrow = {**SPACE, "n": randint(1, 3)}
    run = tune(train, narrow, learn_from=[earlier], results=tmp_path / "narrow", **options)
    assert len(load_run(run.folder)["learned"]) == 3
    assert "3 of 6 trials of" in capsys.readouterr().out
    with pytest.raises(ValueError, match="minimises loss; this run maximises loss"):
        tune(train, SPACE, learn_from=earlier, **{**options, "mode": "max"})


def test_run_shows_its_best_trials(tmp_path):
    space = {"x": uniform(0, 1), "kind": choice(["<b>", "&"])}
    run = tune(train, space, trials=12, searcher="random", results=tmp_path / "run", **OPTIONS)
    assert len(repr(run)) < 500
    frame = pytest.importorskip("pandas") and run.to_frame()
    shown = run._repr_html_()
    assert shown.count("<tr") == 11 and "config_x" in shown and "suggest_seconds" not in shown
    assert "&lt;b&gt;" in shown and "<b>" not in shown
    assert frame["value"].is_monotonic_increasing and len(frame) == 12
    assert frame.loc[0, "config_x"] == run.best.config["x"]


def test_trials_per_gpu_limits_the_workers(tmp_path, monkeypatch, capsys):
    describe = LocalBackend.describe

    def with_gpus(backend, **options):
        found = describe(backend, **options)
        backend.gpus = ["0", "1"]
        return found

    monkeypatch.setattr(LocalBackend, "describe", with_gpus)
    options = {**OPTIONS, "workers": 8, "trials": 2, "trials_per_gpu": 2}
    tune(train, SPACE, results=tmp_path / "run", **options)
    assert "4 workers with" in capsys.readouterr().out
