"""Pictures of runs, and the page: what is drawn, from journals written here event by event."""

import xml.dom.minidom

import numpy as np
import pytest

from experiments import plot, report
from hpo.journal import Journal
from hpo.space import choice, encode, loguniform, randint, sample, space_to_json, uniform

pytest.importorskip("matplotlib")
SPACE = {"x": uniform(0, 1), "learning_rate": loguniform(1e-5, 1), "n": randint(1, 4)}
SPACE |= {"kind": choice(["<script>alert(1)</script>", "$b$"]), "epochs": 9}
ARGUMENTS = {"searcher": "random", "stopping": "auto", "seed": 0, "epochs_name": "epochs"}
ARGUMENTS |= {"first_rung": 1, "eta": 3, "workers": 2, "hours": 1.0, "start": None}
CONFIG = sample(SPACE, np.random.default_rng(0))


def write_run(folder, trials=(), extra=(), mode="min", **arguments):
    """A run of trials (status, loss, number of epochs), 100 seconds each, then extra events."""
    run = {"space": space_to_json(SPACE), "metric": "loss", "mode": mode}
    journal = Journal.create(folder, run | {"arguments": ARGUMENTS | arguments})
    rng = np.random.default_rng(0)
    for i, (status, loss, n_epochs) in enumerate(trials):
        config, which = sample(SPACE, rng), {"attempt": 1, "at": 100.0 * i}
        loss = loss(encode(SPACE, config)) if callable(loss) else loss
        journal.append({"start": i, **which, "config": config, "origin": "random"})
        for epoch in range(1, n_epochs + 1):
            metrics = {"loss": loss + 1 / epoch}
            journal.append({"report": i, **which, "epoch": epoch, "metrics": metrics})
        if status != "running":
            end = {"end": i, "attempt": 1, "at": 100.0 * i + 99, "status": status}
            journal.append({**end, "error": "<b>bad</b> & $x$"})
    for event in extra:
        journal.append(event)
    journal.close()
    return plot.Run(folder)


def bowl(x):
    return 5 * (x[0] - 0.4) ** 2


DONE, FAILED, RUNNING = ("done", bowl, 9), ("failed", 0.0, 2), ("running", 0.3, 3)
MIXED = [*[DONE] * 8, ("stopped", 50.0, 1), FAILED, ("timeout", 0.0, 0), RUNNING] * 2
FEW, ALL = ["curves", "history", "parameters", "workers"], ["importance", "pairs"]


@pytest.mark.parametrize("mode, trials, names", [
    ("min", [("running", 0.0, 0)], FEW[1:]), ("max", [FAILED] * 4, FEW), ("min", [DONE], FEW),
    ("min", [("done", bowl, 1)] * 8, FEW[1:] + ALL), ("max", MIXED, FEW + ALL),
])  # fmt: skip
def test_pictures_of_each_state_of_a_run(tmp_path, mode, trials, names):
    run = write_run(tmp_path / "run", trials, mode=mode)
    plot.main([str(tmp_path / "run"), "--format", "svg"])
    paths = list((tmp_path / "run" / "pictures").iterdir())
    assert {path.stem for path in paths} == {*names}
    for path in paths:
        assert "<script" not in xml.dom.minidom.parse(str(path)).toxml()
    assert "$b$" in (tmp_path / "run" / "pictures" / "parameters.svg").read_text()  # no formula
    for axis in plot.draw_history(run).axes:  # a mark in view for each trial, failed ones too
        marks = [line.get_ydata() for line in axis.lines if line.get_ls() == "None"]
        (low, high), y = axis.get_ylim(), np.concatenate([[], *marks])
        assert len(y) == len(run.shown) and ((low < y) & (y < high)).all()


def test_poor_trials_are_counted_and_epochs_are_powers_of_three(tmp_path):
    trials = [("done", 0.1 * i, 9) for i in range(9)]
    run = write_run(tmp_path / "run", [*trials, ("stopped", 50.0, 1), ("stopped", 90.0, 3)])
    axis = plot.draw_curves(run).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "3", "9"]
    labels = " ".join(axis.get_legend_handles_labels()[1])
    assert "2 stopped" in labels and "2 of them worse" in labels
    assert [line.get_xdata()[0] for line in axis.lines if line.get_ls() == ":"] == [1, 3]  # rungs


@pytest.mark.parametrize("mode, best", [("min", 0.2), ("max", 9.0)])
def test_the_best_of_a_curve_is_in_view_though_it_ends_worse(tmp_path, mode, best):
    which, found = {"report": 3, "attempt": 1, "at": 400.0}, {10: best, 11: 1.2}
    reports = [{**which, "epoch": e, "metrics": {"loss": loss}} for e, loss in found.items()]
    trials = [*[("done", 1.0, 9)] * 3, ("running", 1.0, 9)]
    run = write_run(tmp_path / "run", trials, reports, mode=mode)
    low, high = plot.draw_curves(run).axes[0].get_ylim()
    assert low < best < high


def test_attempts_that_were_killed_resumed_and_are_running(tmp_path):
    again = {"start": 1, "attempt": 2, "config": CONFIG, "origin": "random", "at": 160.0}
    news = {"report": 1, "attempt": 2, "epoch": 1, "metrics": {"loss": 0.5}, "at": 200.0}
    extra = [{"session": {"arguments": {}, "at": 150.0}}, again, news]
    run = write_run(tmp_path / "run", [("done", 1.0, 1), ("running", 0.0, 1)], extra)
    assert [status for *_, status in run.spans()] == ["done", "interrupted", "running"]
    assert [span[:3] for span in run.spans()] == [(0, 99, 0), (100, 150, 1), (160, 200, 1)]
    assert "resumed" in plot.draw_history(run).axes[0].get_legend_handles_labels()[1]
    times, losses = run.best_by_time()  # what the killed attempt had reported was real
    assert times.tolist() == [0, 100, 200, 200] and losses.tolist() == [2, 1, 0.5, 0.5]


def test_importance_and_effects_find_what_matters(tmp_path):
    run = write_run(tmp_path / "run", [("done", bowl, 1)] * 30)
    belief = plot.Belief(run)
    (first, share), *others, (last, _) = plot.importance(run, belief).items()
    assert (first, last) == ("x", "combinations") and share == sorted(share)
    assert share[1] > 0.7 and max(other[1] for _, other in others) < 0.2
    loss, deviation = belief.effect(["x", "kind"], 11, 50)
    assert loss.shape == (11, 2) and loss[:, 0].argmin() in (3, 4, 5) and (deviation > 0).all()


def test_runs_that_differ_in_the_seed_are_one_method(tmp_path, capsys):
    losses = {("random", 0): 1.0, ("random", 1): 3.0, ("random", 2): 2.0, ("gp", 0): 0.5}
    for (name, seed), loss in losses.items():
        write_run(tmp_path / f"{name}{seed}", [("done", loss, 1)] * 3, searcher=name, seed=seed)
    folders = [str(tmp_path / f"{name}{seed}") for name, seed in losses]
    plot.main([*folders, "--results", str(tmp_path / "out")])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:3]]
    assert rows[0] == ["3", "3", "[2,", "4]", "3", "0", "0.08306", "searcher=random"]
    assert rows[1] == ["1", "1.5", "[1.5,", "1.5]", "3", "0", "0.08306", "searcher=gp"]
    assert (tmp_path / "out" / "compared.png").stat().st_size > 5000


def test_what_cannot_be_drawn_is_named(tmp_path, capsys):
    for name in "idle", "min", "max":
        write_run(tmp_path / name, [DONE] * (name != "idle"), mode=name.replace("idle", "min"))
    for names, text in (
        (["none"], "expected the folder of a run"),
        (["idle"], "nothing to draw yet"),
        (["min", "max"], "expected loss"),
    ):
        with pytest.raises(SystemExit) as leave:
            plot.main([str(tmp_path / name) for name in names])
        assert leave.value.code == 2 and text in capsys.readouterr().err


def test_page_is_whole_and_escapes_what_users_write(tmp_path):
    for name, trials in ("idle", []), ("run", MIXED):
        write_run(tmp_path / name, trials)
        report.main([str(tmp_path / name)])
    assert "No trial has reported loss" in (tmp_path / "idle" / "report.html").read_text()
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "&lt;b&gt;bad&lt;/b&gt;" in text
    assert text.count("<svg") == 6 and "src=" not in text
