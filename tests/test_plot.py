"""Pictures of runs: what is drawn, from journals written here event by event."""

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
            journal.append(
                {"report": i, **which, "epoch": epoch, "metrics": {"loss": loss + 1 / epoch}}
            )
        end = {"status": status, "error": "<b>bad</b> & $x$", "attempt": 1, "at": 100.0 * i + 99}
        if status != "running":
            journal.append({"end": i, **end})
    for event in extra:
        journal.append(event)
    journal.close()
    return plot.Run(folder)


def bowl(x):
    return 5 * (x[0] - 0.4) ** 2


DONE, FAILED, RUNNING = ("done", bowl, 9), ("failed", 0.0, 2), ("running", 0.3, 3)
MIXED = [*[DONE] * 8, ("stopped", 50.0, 1), FAILED, ("timeout", 0.0, 0), RUNNING] * 2
FEW, ALL = ["curves", "history", "parameters", "workers"], ["importance", "pairs"]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("trials, names", [
    ([("running", 0.0, 0)], FEW[1:]), ([FAILED] * 4, FEW), ([DONE], FEW),
    ([("done", bowl, 1)] * 8, FEW[1:] + ALL), (MIXED, FEW + ALL),
])  # fmt: skip
def test_pictures_of_each_state_of_a_run(tmp_path, trials, names, mode):
    run = write_run(tmp_path / "run", trials, mode=mode)
    plot.main([str(tmp_path / "run"), "--format", "svg"])
    paths = list((tmp_path / "run" / "pictures").iterdir())
    assert {path.stem for path in paths} == {*names}
    for path in paths:
        assert "<script" not in xml.dom.minidom.parse(str(path)).toxml()
    assert "$b$" in (tmp_path / "run" / "pictures" / "parameters.svg").read_text()  # no formula
    for axis in plot.draw_history(run).axes:  # a mark in view for each trial, failed ones too
        low, high = axis.get_ylim()
        marks = [line.get_ydata() for line in axis.lines if line.get_ls() == "None"]
        y = np.concatenate([[], *marks])
        assert len(y) == len(run.shown) and ((low < y) & (y < high)).all()


@pytest.mark.parametrize("mode, best", [("min", 0.2), ("max", 9.0)])
def test_poor_trials_are_counted_and_the_best_of_a_curve_is_in_view(tmp_path, mode, best):
    """Though it ends worse."""
    reports = [
        {"report": 11, "attempt": 1, "epoch": epoch, "metrics": {"loss": loss}, "at": 1200.0}
        for epoch, loss in ((10, best), (11, 1.2))
    ]
    trials = [*[("done", 1.0, 9)] * 9, ("stopped", 50.0 if mode == "min" else -50.0, 1)]
    trials += [("failed", 1.0, 0), ("running", 1.0, 9)]
    axis = plot.draw_curves(write_run(tmp_path / "run", trials, reports, mode=mode)).axes[0]
    low, high = axis.get_ylim()
    assert low < best < high
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "3", "9"]
    labels = " ".join(axis.get_legend_handles_labels()[1])
    assert "9 done" in labels and "2 worse than" in labels


def test_attempts_that_were_killed_resumed_and_are_running(tmp_path):
    again = {"start": 1, "attempt": 2, "config": CONFIG, "origin": "random", "at": 160.0}
    news = {"report": 1, "attempt": 2, "epoch": 1, "metrics": {"loss": 0.5}, "at": 200.0}
    extra = [{"session": {"arguments": {}, "at": 150.0}}, again, news]
    run = write_run(tmp_path / "run", [("done", 1.0, 1), ("running", 0.0, 1)], extra)
    bars = plot.draw_workers(run).axes[0].patches  # of the last attempts
    found = [60 * x for bar in bars for x in (bar.get_x(), bar.get_width())]
    assert found == pytest.approx([0, 99, 160, 40])
    assert "resumed" in plot.draw_history(run).axes[0].get_legend_handles_labels()[1]
    times, losses = run.best_by_time()  # what the killed attempt had reported was real
    assert times.tolist() == [0, 100, 200, 200] and losses.tolist() == [2, 1, 0.5, 0.5]


def test_importance_and_effects_find_what_matters(tmp_path):
    run = write_run(tmp_path / "run", [("done", bowl, 1)] * 30)
    belief = plot.Belief(run)
    (first, share), *others, (last, _) = belief.shares().items()
    assert (first, last) == ("x", "combinations")
    assert share > 0.7 and max(other for _, other in others) < 0.2
    loss, deviation = belief.effect(["x", "kind"], 11, 50)
    assert loss.shape == (11, 2) and loss[:, 0].argmin() in (3, 4, 5) and (deviation > 0).all()


def test_runs_are_compared(tmp_path):
    for name, loss in {"random": 1.0, "gp": 0.5}.items():
        write_run(tmp_path / name, [("done", loss, 1)] * 3, searcher=name)
    folders = [str(tmp_path / name) for name in ("random", "gp")]
    plot.main([*folders, "--results", str(tmp_path / "out")])
    assert (tmp_path / "out" / "compared.png").stat().st_size > 5000
    axis = plot.draw_comparison({"a": [*map(plot.Run, folders)]}).axes[1]
    assert [line.get_ydata().tolist() for line in axis.lines] == [[2, 2, 2], [1.5, 1.5, 1.5]]


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
