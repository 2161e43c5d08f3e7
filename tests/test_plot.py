"""Pictures of runs, and the page: what is drawn, from journals written here event by event."""

import math
import shutil
import subprocess
import xml.dom.minidom

import numpy as np
import pytest

from experiments import plot, report
from hpo.journal import Journal
from hpo.space import choice, encode, loguniform, randint, sample, space_to_json, uniform

pytest.importorskip("matplotlib")
SPACE = {"x": uniform(0, 1), "lr": loguniform(1e-5, 1), "n": randint(1, 4)}
SPACE |= {"kind": choice(["<script>alert(1)</script>", "$b$"]), "epochs": 9}
ARGUMENTS = {"searcher": "random", "stopping": "auto", "seed": 0, "epochs_name": "epochs"}
ARGUMENTS |= {"first_rung": 1, "eta": 3, "workers": 2, "hours": 1.0, "start": None}


def write_run(folder, trials=(), extra=(), space=SPACE, mode="min", **arguments):
    """A run of trials (status, loss or None, number of epochs), 100 seconds each, then extra."""
    run = {"space": space_to_json(space), "metric": "loss", "mode": mode}
    journal = Journal.create(folder, run | {"arguments": ARGUMENTS | arguments})
    rng = np.random.default_rng(0)
    for i, (status, loss, n_epochs) in enumerate(trials):
        config, at = sample(space, rng), 100.0 * i
        loss = loss(encode(space, config)) if callable(loss) else loss
        which = {"attempt": 1}
        journal.append({"start": i, **which, "config": config, "origin": "random", "at": at})
        for epoch in range(1, n_epochs + 1):
            metrics = {"loss": loss + 1 / epoch}
            journal.append(
                {"report": i, **which, "epoch": epoch, "metrics": metrics, "at": at + epoch}
            )
        if status != "running":
            end = {"status": status, "error": "<b>bad</b> & $x$", "at": at + 99}
            journal.append({"end": i, **which, **end})
    for event in extra:
        journal.append(event)
    journal.close()
    return plot.Run(folder)


def bowl(x):
    return 5 * (x[0] - 0.4) ** 2


DONE, FAILED = [("done", bowl, 9)], [("failed", 0.0, 2)]
MIXED = [*DONE * 8, ("stopped", 50.0, 1), *FAILED, ("timeout", 0.0, 0), ("running", 0.3, 3)] * 2
EACH = ["history", "curves", "parameters", "importance", "pairs", "workers"]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    "trials, names",
    [
        ([("running", 0.0, 0)], ["history", "parameters", "workers"]),  # no result yet
        (FAILED * 4, ["history", "curves", "parameters", "workers"]),
        (DONE, ["history", "curves", "parameters", "workers"]),  # one trial
        ([("done", bowl, 1)] * 8, [name for name in EACH if name != "curves"]),  # no curves
        (MIXED, EACH),
    ],
)
def test_pictures_of_each_state_of_a_run(tmp_path, trials, names, mode):
    run = write_run(tmp_path / "run", trials, mode=mode)
    plot.main([str(tmp_path / "run"), "--format", "svg"])
    paths = sorted((tmp_path / "run" / "pictures").iterdir())
    assert [path.stem for path in paths] == sorted(names)
    for path in paths:
        assert "<script" not in path.read_text()
        xml.dom.minidom.parse(str(path))
    figure = plot.draw_history(run)
    for axis in figure.axes:  # a mark for each trial in view, poor and failed ones too
        (low, high), marks = axis.get_ylim(), [m for m in axis.lines if m.get_ls() == "None"]
        y = np.concatenate([[], *(mark.get_ydata() for mark in marks)])
        assert len(y) == len(run.shown) and ((low < y) & (y < high)).all()


def test_poor_trials_are_counted_and_epochs_are_powers_of_three(tmp_path):
    trials = [("done", 0.1 * i, 9) for i in range(9)]
    run = write_run(tmp_path / "run", [*trials, ("stopped", 50.0, 1), ("stopped", 90.0, 3)])
    axis = plot.draw_curves(run).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "3", "9"]
    _, labels = axis.get_legend_handles_labels()
    assert "2 stopped" in labels and any(text.startswith("2 of them worse") for text in labels)
    assert len([line for line in axis.lines if line.get_ls() == ":"]) == 2  # rungs 1 and 3


def test_spans_of_killed_resumed_and_running_attempts(tmp_path):
    config, session = sample(SPACE, np.random.default_rng(0)), {"arguments": {}, "at": 150.0}
    again = {"start": 1, "attempt": 2, "config": config, "origin": "random", "at": 160.0}
    news = {"report": 1, "attempt": 2, "epoch": 1, "metrics": {"loss": 0.5}, "at": 200.0}
    extra = [{"session": session}, again, news]
    run = write_run(tmp_path / "run", [("done", 1.0, 1), ("running", 0.0, 1)], extra)
    spans = [(0, 99, 0, "done"), (100, 150, 1, "interrupted"), (160, 200, 1, "running")]
    assert run.spans() == spans
    _, labels = plot.draw_history(run).axes[0].get_legend_handles_labels()
    assert "resumed" in labels
    times, losses = run.best_by_time()  # what the killed attempt had reported is no result
    assert times.tolist() == [1, 200, 200] and losses.tolist() == [2, 0.5, 0.5]


def test_importance_finds_what_matters(tmp_path):
    run = write_run(tmp_path / "run", [("done", bowl, 1)] * 30)
    belief = plot.Belief(run)
    shares = plot.importance(run, belief)
    assert list(shares) == ["x", *list(shares)[1:4], "combinations"]
    assert shares["x"][0] > 0.7 and max(shares[name][0] for name in ("lr", "n", "kind")) < 0.2
    assert all(low <= high for _, low, high in shares.values())
    x, (loss, deviation) = plot.grid(SPACE["x"], 11)[:, 0], belief.effect(["x"], 11, 50)
    assert abs(x[loss.argmin()] - 0.4) < 0.11 and (deviation > 0).all()
    assert belief.effect(["x", "kind"], 11, 50)[0].shape == (11, 2)


def test_runs_that_differ_in_the_seed_are_one_method(tmp_path, capsys):
    losses = {("random", 0): 1.0, ("random", 1): 3.0, ("random", 2): 2.0, ("gp", 0): 0.5}
    folders = [str(tmp_path / f"{name}{seed}") for name, seed in losses]
    for folder, ((name, seed), loss) in zip(folders, losses.items()):
        write_run(folder, [("done", loss, 1)] * 3, searcher=name, seed=seed)
    plot.main([*folders, "--results", str(tmp_path / "out")])
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()[1:3]]
    assert rows[0] == ["3", "3", "[2,", "4]", "3", "0", "0.08306", "searcher=random"]
    assert rows[1] == ["1", "1.5", "[1.5,", "1.5]", "3", "0", "0.08306", "searcher=gp"]
    assert (tmp_path / "out" / "compared.png").stat().st_size > 5000
    x, table = plot.on_one_axis(
        [(np.array([1, 3, 5]), np.array([9.0, 4, 4])), (np.array([2, 4]), np.array([math.nan, 7]))]
    )
    assert x.tolist() == [4] and table.tolist() == [[4], [7]]


def test_what_cannot_be_drawn_is_named(tmp_path, capsys):
    write_run(tmp_path / "idle")
    for mode in ("min", "max"):
        write_run(tmp_path / mode, DONE, mode=mode)
    for words, text in (
        (["none"], "expected the folder of a run"),
        (["idle"], "nothing to draw yet"),
        (["min", "max"], "expected loss"),
    ):
        with pytest.raises(SystemExit) as leave:
            plot.main([str(tmp_path / word) for word in words])
        assert leave.value.code == 2 and text in capsys.readouterr().err


def test_page_is_whole_and_escapes_what_users_write(tmp_path):
    write_run(tmp_path / "run", MIXED)
    report.main([str(tmp_path / "run")])
    page = tmp_path / "run" / "report.html"
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "&lt;b&gt;bad&lt;/b&gt;" in text
    assert text.count("<svg") == 6 and "src=" not in text
    write_run(tmp_path / "idle")
    report.main([str(tmp_path / "idle"), str(tmp_path / "idle.html")])
    assert "No trial has reported loss" in (tmp_path / "idle.html").read_text()
    if not (browser := shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("no chromium here")
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    shown = subprocess.check_output(words, stderr=subprocess.DEVNULL, text=True, timeout=60)
    assert shown.count("</svg>") == 6 and "&lt;script&gt;" in shown and "<script" not in shown
