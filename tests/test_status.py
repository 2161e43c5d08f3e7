"""hpo/status.py: what the status line says, and where it goes."""

import io
import sys
from types import SimpleNamespace

import pytest

from hpo.journal import Journal
from hpo.space import uniform
from hpo.status import Status
from hpo.trial import Trial


@pytest.fixture
def make(monkeypatch):
    """A function: (Status, a Tuner as it sees one); its `now` is the time."""

    def status(live=False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: live)
        run = {"space": {"x": uniform(0, 1)}, "metric": "accuracy", "mode": "max", "arguments": {}}
        backend = SimpleNamespace(now=lambda: status.now)
        tuner = SimpleNamespace(trials=[], running={}, seconds=7200.0)
        return Status(Journal({**run, "note": ""}), backend), tuner

    status.now = 0.0
    return status


def trial(id, status, *losses, error=""):
    return Trial(id, {"x": 0.25}, "random", 1, status, [*enumerate(losses, 1)], error, ended=9.0)


def test_line_counts_the_trials_and_names_the_best(make):
    status, tuner = make()
    assert status.line(tuner, 0.0).startswith("0:00:00 elapsed, 2:00:00 left | no result yet")
    tuner.trials = [trial(0, "done", -0.5, -0.75), trial(1, "stopped", -0.25)]
    tuner.trials += [trial(2, "failed", -0.99), trial(3, "timeout", -0.1)]
    tuner.running = {4: trial(4, "running"), 5: trial(5, "running", -0.625)}
    tuner.trials += tuner.running.values()
    assert status.line(tuner, 3661.0) == (
        "1:01:01 elapsed, 0:58:59 left | best accuracy=0.75 (trial 0) | 2 running, 1 done, "
        "1 stopped, 1 failed, 1 timeout | 4 trials/h | at epoch 0 1"
    )
    tuner.running[5].earlier = [[(1, -0.5), (2, -0.875)]]  # of an attempt that was interrupted
    assert "best accuracy=0.875 (trial 5)" in status.line(tuner, 3661.0)


def test_line_rewrites_itself_on_a_terminal_within_its_width(make, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    status, tuner = make(live=True)
    for make.now in (0.0, 1.0, 1.01, 2.0):  # the first and the third come too early
        status.tick(tuner)
    line = "\r\x1b[K0:00:0{} elapsed, 1:59:5{} left | no resu"
    assert capsys.readouterr().out == line.format(1, 9) + line.format(2, 8)
    status.ended(trial(0, "failed", -0.5, error="red \x1b[31m\x07\rover \u202e"))
    end = "trial    0 failed   | 9 s | x=0.25 | red \\x1b[31m\\x07\\rover \\u202e\n"
    assert capsys.readouterr().out == f"\r\x1b[K{end}"


def test_elsewhere_there_is_a_plain_line_every_minute(make, capsys, monkeypatch):
    status, tuner = make()
    for make.now in range(2, 130, 10):
        status.tick(tuner)
    assert [line[:7] for line in capsys.readouterr().out.splitlines()] == ["0:01:02", "0:02:02"]
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "ascii"))
    status.ended(trial(0, "failed", error="größer"))
    assert b"gr\\xf6\\xdfer" in output.getvalue()  # a terminal that lacks these letters
