"""python run.py --resume: nothing is lost, and the run goes on as if nothing had happened.

That every suggestion of a killed and resumed run is recomputed equal: tests/test_explain.py.
"""

import csv
import json
import signal
import time

import pytest

from hpo.journal import load

OBJECTIVE = """
import time
from hpo import Reporter, choice, loguniform, uniform

config_space = {
    "x": uniform(-1, 1), "rate": loguniform(1e-4, 1), "kind": choice(["a b", 'c"d', "e,f\\n"]),
    "epochs": 3, "pause": 0.0,
}
metric, mode = "score", "max"

def objective(config):
    report = Reporter()
    if config["kind"] == 'c"d':
        raise ValueError('a "bad", kind')
    for epoch in range(1, config["epochs"] + 1):
        time.sleep(config["pause"])
        report(epoch=epoch, score=-config["x"] ** 2 - config["rate"] / epoch, text=config["kind"])
"""


@pytest.fixture
def objective(tmp_path):
    path = tmp_path / "objective.py"
    path.write_text(OBJECTIVE)
    return path


@pytest.fixture
def ends_well(main):
    """A function that calls main, which must end well and without a warning; what it printed."""

    def call(*words):
        code, out, err = main(*words)
        assert (code, err) == (0, "")
        return out

    return call


def events(folder, kind):
    """The events of a kind so far, such as "start"; a last line may be half written."""
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(True)[1:] if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [event for event in found if kind in event]


def end_after(process, n, folder, number, kind="report"):
    """Sends a signal when the journal has n events of a kind; returns the exit code."""
    until = time.monotonic() + 60
    while len(events(folder, kind)) < n:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate(timeout=30)
    return process.returncode


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- As if nothing had happened ------------------------------------------------------------------
def without_times(folder, name):
    with open(folder / name, newline="") as file:
        rows = list(csv.DictReader(file))
    times = ("started", "ended", "seconds", "suggest_seconds", "time")
    return [{key: cell for key, cell in row.items() if key not in times} for row in rows]


def test_killed_and_interrupted_run_has_the_csvs_of_an_uninterrupted_one(
    objective, tmp_path, start_py, ends_well
):
    """One worker; ended by SIGKILL, SIGTERM and Ctrl-C."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = (objective, "--trials", 12, "--workers", 1, "--seed", 5, "--set", "pause=0.03")
    arguments += ("--stopping", "none", "--results")
    resume = ("run.py", "--resume", parts)
    first = start_py("run.py", *arguments, parts)
    assert end_after(first, 4, parts, signal.SIGKILL) == -signal.SIGKILL
    assert end_after(start_py(*resume), 13, parts, signal.SIGTERM) == 143
    assert end_after(start_py(*resume), 25, parts, signal.SIGINT) == 130
    ends_well("--resume", parts)
    ends_well(*arguments, whole)
    assert 12 < len(events(parts, "start")) <= 12 + 3  # a signal may come between two trials
    for name in ("trials.csv", "reports.csv"):
        assert without_times(parts, name) == without_times(whole, name)
    assert {trial.status for trial in load(whole)} == {"done", "failed"}  # its error is the same


# ---- A larger budget, another place --------------------------------------------------------------
def test_finished_run_goes_on_with_a_larger_budget_from_anywhere(
    objective, tmp_path, ends_well, monkeypatch
):
    """The folder, the objective's file, and the folder from which the run is resumed have moved."""
    start_file, elsewhere = tmp_path / "start.json", tmp_path / "elsewhere"
    start_file.write_text('[{"x": 0.5, "kind": "a b"}, {"x": 0.25, "kind": "e,f\\n"}]')
    arguments = ("--start", "start.json", "--set", "epochs=2", "--trials", 1, "--workers", 1)
    monkeypatch.chdir(tmp_path)
    ends_well("objective.py", *arguments, "--results", "run")
    start_file.unlink()  # its configurations are in the journal
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    folder = (tmp_path / "run").rename(elsewhere / "moved")
    n_lines = len((folder / "journal.jsonl").read_text().splitlines())
    ends_well("--resume", "moved")  # it has finished: only the session is noted
    assert len((folder / "journal.jsonl").read_text().splitlines()) == n_lines + 1
    objective.rename(elsewhere / "objective.py")
    ends_well("objective.py", "--resume", "moved", "--trials", 3)
    assert [trial.config["x"] for trial in load(folder)[:2]] == [0.5, 0.25]
    assert [trial.config["epochs"] for trial in load(folder)] == [2, 2, 2]
    assert events(folder, "session")[-1]["session"]["arguments"]["trials"] == 3


def test_hours_are_those_of_all_sessions_and_more_of_them_extend_a_run(
    objective, tmp_path, ends_well
):
    """What the deadline has cut is not started again; the time between sessions does not count."""
    folder = tmp_path / "run"
    arguments = (objective, "--set", "pause=0.2", "--hours", 1.0 / 3600, "--results", folder)
    assert "ended (deadline)" in ends_well(*arguments)
    n_trials = len(load(folder))
    assert {trial.status for trial in load(folder)} >= {"timeout"}
    out = ends_well("--resume", folder)
    assert "--hours with a larger number gives it more" in out and "ended (deadline)" in out
    assert len(load(folder)) == n_trials
    assert "a larger" not in ends_well("--resume", folder, "--hours", 2.0 / 3600)
    trials = load(folder)
    assert len(trials) > n_trials and {trial.attempt for trial in trials} == {1}
    assert all(1.0 <= trial.started < trial.ended < 8.0 for trial in trials[n_trials:])


# ---- What is refused -----------------------------------------------------------------------------
DIFFERENT = [
    (["--seed", "5"], "--seed: DIR has 4, got 5"),
    (["--searcher", "random"], "--searcher: DIR has 'gp', got 'random'"),
    (["--stopping", "none"], "--stopping: DIR has 'auto', got 'none'"),
    (["--mode", "min"], "--mode: DIR has 'max', got 'min'"),
    (["--set", "epochs=27"], "--set: DIR has ['epochs=2'], got ['epochs=27']"),
    (["--space", "HERE/space.json"], "--space: DIR has None, got {'x'"),
    (["--start", "HERE/start.json"], "--start: DIR has None, got [{'x': 0.5}]"),
    (["--results", "HERE/elsewhere"], "--results: a resumed run keeps its folder"),
    (["HERE/other.py"], "OBJECTIVE: DIR has 'HERE/objective.py', got 'HERE/other.py'"),
    (["--trials", "0"], "--trials: expected an integer >= 1, got 0"),
]


@pytest.mark.filterwarnings("ignore:.*is torn")
def test_option_that_differs_is_refused_by_name(objective, tmp_path, main, ends_well):
    """The same value is none that differs."""
    (tmp_path / "space.json").write_text('{"x": {"uniform": [-1, 1]}, "epochs": 2}')
    (tmp_path / "start.json").write_text('[{"x": 0.5}]')
    folder = tmp_path / "run"
    same = [objective, "--seed", 4, "--set", "epochs=2", "--workers", 1]
    ends_well(*same, "--trials", 1, "--results", folder)
    with open(folder / "journal.jsonl", "a") as file:
        file.write('{"start": 1, "att')  # a torn line is cut only when the run goes on
    before = contents(tmp_path)
    for arguments, words in DIFFERENT:
        words = words.replace("DIR", str(folder)).replace("HERE", str(tmp_path))
        given = [argument.replace("HERE", str(tmp_path)) for argument in arguments]
        code, _, err = main("--resume", folder, *given)
        assert code == 2 and words in err and err.count("\n") == 1, (arguments, err)
    assert contents(tmp_path) == before
    same += ["--metric", "score", "--searcher", "gp", "--trials", 2]
    ends_well("--resume", folder, *same)
    assert [trial.attempt for trial in load(folder)] == [1, 1]


def test_second_run_is_refused_and_let_in_after_a_kill(objective, tmp_path, start_py, main):
    folder = tmp_path / "run"
    arguments = (objective, "--set", "pause=99.0", "--set", "kind=a b", "--workers", 2)
    first = start_py("run.py", *arguments, "--results", folder)
    while len(events(folder, "start")) < 2:
        assert first.poll() is None
        time.sleep(0.01)
    for arguments, words in (
        (["--resume", folder], "another run is using it"),
        ([objective, "--results", folder], "expected a new folder"),
    ):
        code, _, err = main(*arguments)
        assert code == 2 and words in err and err.count("\n") == 1
    first.kill()
    first.communicate()
    resumed = start_py("run.py", "--resume", folder)
    assert end_after(resumed, 4, folder, signal.SIGINT, kind="start") == 130
    assert [trial.attempt for trial in load(folder)] == [2, 2]
