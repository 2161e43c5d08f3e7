"""The commands of experiments.speed run and say what they are to say; speeds are not tested."""

import re
import sys

import pytest

from experiments import speed

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@LINUX
def test_loop_prints_what_a_trial_costs(capsys, monkeypatch):
    monkeypatch.setattr(speed, "OBJECTIVE", speed.OBJECTIVE.replace("import torch", "#"))
    speed.main(["--part", "loop", "--trials", "20", "--workers", "2"])
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"21 of 21 trials done, 2 workers: \d+\.\d a second", first)
    rows = [list(map(float, line.split())) for line in lines]
    assert [row[0] for row in rows] == list(range(4, 21, 2))
    for _, milliseconds, rate, megabytes, files, processes in rows:
        assert 0 < milliseconds < 1000 and rate > 0 and 10 < megabytes < 2000
        assert files > 3 and processes > 0


def test_reports_are_counted_in_the_second_half(capsys, monkeypatch):
    monkeypatch.setattr(speed, "OBJECTIVE", speed.OBJECTIVE.replace("import torch", "#"))
    speed.main(["--part", "reports", "--seconds", "1.5", "--workers", "1"])
    rows = [list(map(float, line.split())) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == [1, 16]
    assert all(rate > 10 and 0 < wait <= high for _, rate, _, wait, high in rows)


def test_suggestions_are_timed_for_each_searcher_and_size(capsys):
    words = ["--searcher", "random", "--searcher", "gp", "--n", "5", "20", "--suggestions", "2"]
    speed.main(["--part", "suggest", *words])
    _, head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["n", "random", "gp"]
    times = [list(map(float, line.replace("/", " ").split())) for line in lines]
    assert [row[0] for row in times] == [5, 20] and times[1][1] < times[1][3]  # random is faster
