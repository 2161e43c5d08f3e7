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
    def status(live=False, note=""):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: live)
        run = {"space": {"x": uniform(0, 1)}, "metric": "accuracy", "mode": "max", "arguments": {}}
        return Status(Journal({**run, "note": note}), SimpleNamespace(now=lambda: status.now))

    status.now = 0.0
    return status


def trial(id, status, *losses, error=""):
    return Trial(id, {"x": 0.25}, "random", 1, status, [*enumerate(losses, 1)], error, ended=9.0)


def test_line_counts_the_trials_and_names_the_best(make):
    status, tuner = make(), SimpleNamespace(trials=[], running={}, seconds=7200.0, max_epochs=9)
    assert make(note="a").line(tuner, 0.0).startswith("NOTE ABOVE | 0:00:00 elapsed, 2:00:00 left")
    ended = [trial(0, "done", -0.5, -0.75), trial(1, "stopped", -0.25), trial(2, "failed", -0.99)]
    tuner.running = {3: trial(3, "running"), 4: trial(4, "running", -0.625)}
    tuner.trials = [*ended, *tuner.running.values()]
    for one in ended:
        status.ended(one)
    assert status.line(tuner, 3661.0) == (
        "1:01:01 elapsed, 0:58:59 left | best accuracy=0.75 (trial 0) | 2 running, 1 done, "
        "1 stopped, 1 failed | 3 trials/h | now at epoch 0 1 of 9"
    )
    tuner.trials.append(trial(5, "timeout", -0.1))
    tuner.running[4].earlier = [[(1, -0.5), (2, -0.875)]]  # of an attempt that was interrupted
    line = status.line(tuner, 3661.0)
    assert "best accuracy=0.875 (trial 4)" in line and "1 stopped, 1 failed, 1 timeout" in line


def test_line_rewrites_itself_on_a_terminal_within_its_width(make, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    tuner = SimpleNamespace(trials=[], running={}, seconds=60.0, max_epochs=None)
    status = make(live=True)
    for make.now in (0.0, 1.0, 1.01, 2.0):  # the first and the third come too early
        status.tick(tuner)
    line = "\r\x1b[K0:00:0{} elapsed, 0:00:5{} left | no resu"
    assert capsys.readouterr().out == line.format(1, 9) + line.format(2, 8)
    status.ended(trial(0, "failed", -0.5, error="red \x1b[31m\x07\rover \u202e"))
    end = "trial    0 failed   | 9 s | x=0.25 | red \\x1b[31m\\x07\\rover \\u202e\n"
    assert capsys.readouterr().out == f"\r\x1b[K{end}"


def test_elsewhere_there_is_a_plain_line_every_minute(make, capsys, monkeypatch):
    status, tuner = make(), SimpleNamespace(trials=[], running={}, seconds=60.0, max_epochs=None)
    for make.now in range(2, 130, 10):
        status.tick(tuner)
    assert [line[:7] for line in capsys.readouterr().out.splitlines()] == ["0:01:02", "0:02:02"]
    for i in range(2):
        status.ended(Trial(i, {"x": 0.25}, "random", curve=[(0, -0.5)], ended=9.0))
    assert capsys.readouterr().out.count("warning: epochs are counted from 0") == 1
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "ascii"))
    status.ended(trial(0, "failed", error="größer"))
    assert b"gr\\xf6\\xdfer" in output.getvalue()  # a terminal that lacks these letters
