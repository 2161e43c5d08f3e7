"""The status line: what it says, and that it rewrites itself on a terminal alone."""

import pathlib
import sys
from types import SimpleNamespace

import pytest

from hpo.results import SIGN
from hpo.status import Status
from hpo.trial import Trial


class Clock:
    seconds = 0.0

    def now(self):
        return self.seconds


@pytest.fixture
def make(monkeypatch, capsys):
    def status(live, stand_in=False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: live)
        results = SimpleNamespace(
            metric="accuracy", mode="max", folder=pathlib.Path("run"), to_metric=lambda loss: -loss
        )
        return Status(SimpleNamespace(space=None), Clock(), results, stand_in)

    assert SIGN["max"] == -1  # as to_metric above
    return status


def trial(id, status, *losses):
    return Trial(id, {}, "random", status=status, curve=list(enumerate(losses, 1)), ended=9.0)


def test_line_counts_the_trials_and_names_the_best(make):
    status, tuner = make(False), SimpleNamespace(running={}, seconds=7200.0)
    assert status.line(tuner) == (
        "0:00:00 elapsed, 2:00:00 left | no result yet | 0 done, 0 running, 0 stopped, 0 failed | 0 trials/h"
    )
    for ended in (
        trial(0, "done", -0.5, -0.75),
        trial(1, "stopped", -0.25),
        trial(2, "failed", -0.99),
        trial(3, "stopped"),
    ):
        status.note(ended)
    status.backend.seconds, tuner.running = 3661.0, {4: trial(4, "running"), 5: trial(5, "running", -0.625)}
    assert status.line(tuner) == (
        "1:01:01 elapsed, 0:58:59 left | best accuracy=0.75 (trial 0) | 1 done, 2 running, 2 stopped, 1 failed | 4 trials/h"
    )
    tuner.running[5].curve.append((2, -0.875))
    status.note(trial(6, "timeout", -0.1))
    line = status.line(tuner)
    assert "best accuracy=0.875 (trial 5)" in line and "2 stopped, 1 timed out, 1 failed" in line
    assert make(False, stand_in=True).line(tuner).startswith("STAND-IN DATA | ")


def test_line_rewrites_itself_on_a_terminal_within_its_width(make, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    status, tuner = make(True), SimpleNamespace(running={}, seconds=60.0)
    for status.backend.seconds in (0.0, 1.0, 1.01, 2.0):  # one comes too early
        status.tick(tuner)
    first, *lines = capsys.readouterr().out.split("\r\x1b[K")
    assert first == "" and [line[:7] for line in lines] == ["0:00:01", "0:00:02"]
    assert all(len(line) == 39 and "\n" not in line for line in lines)
    status.ended(trial(0, "done", -0.5))
    assert capsys.readouterr().out.startswith("\r\x1b[Ktrial    0 done     | accuracy=0.5 at epoch 1 | 1 epochs")


def test_elsewhere_there_is_a_plain_line_every_minute(make, capsys):
    status, tuner = make(False), SimpleNamespace(running={}, seconds=600.0)
    for status.backend.seconds in range(0, 130, 10):
        status.tick(tuner)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:7] for line in lines] == ["0:01:00", "0:02:00"]
