"""The commands of experiments.speed run and say what they are to say; speeds are not tested."""

import re
import sys

import numpy as np
import pytest

from experiments import speed


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(speed, "OBJECTIVE", speed.OBJECTIVE.replace("import torch", "#"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loop_prints_what_a_trial_costs(capsys):
    speed.main(["--part", "loop", "--trials", "20", "--workers", "2"])
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"21 of 21 trials done, 2 workers: \d+\.\d a second", first)
    rows = np.array([line.split() for line in lines], float)
    assert rows[:, 0].tolist() == list(range(4, 21, 2))
    lowest, highest = [0, 0, 10, 3, 0], [1000, 10000, 2000, 1000, 1000]
    assert np.all((lowest < rows[:, 1:]) & (rows[:, 1:] < highest))


def test_reports_are_counted_in_the_second_half(capsys):
    speed.main(["--part", "reports", "--seconds", "1.5", "--workers", "1"])
    rows = np.array([line.split() for line in capsys.readouterr().out.splitlines()[1:]], float)
    assert rows[:, 0].tolist() == [1, 16] and rows[:, 1].min() > 10
    assert np.all((0 < rows[:, 3]) & (rows[:, 3] <= rows[:, 4]))


def test_suggestions_are_timed_for_each_searcher_and_size(capsys):
    words = ["--searcher", "random", "--searcher", "gp", "--n", "5", "20", "--suggestions", "2"]
    speed.main(["--part", "suggest", *words])
    _, head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["n", "random", "gp"]
    times = [list(map(float, line.replace("/", " ").split())) for line in lines]
    assert [row[0] for row in times] == [5, 20] and times[1][1] < times[1][3]  # random is faster
