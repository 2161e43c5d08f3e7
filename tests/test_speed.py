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
    lowest, highest = [0, 0, 10], [1000, 10000, 2000]
    assert np.all((lowest < rows[:, 1:]) & (rows[:, 1:] < highest))


def test_reports_are_counted_in_the_second_half(capsys):
    speed.main(["--part", "reports", "--seconds", "1.5", "--workers", "1"])
    rows = np.array([line.split() for line in capsys.readouterr().out.splitlines()[1:]], float)
    assert rows[:, 0].tolist() == [1, 16] and rows[:, 1].min() > 10
    assert np.all((0 < rows[:, 3]) & (rows[:, 3] <= rows[:, 4]))


def test_suggestions_are_timed_for_each_size(capsys, monkeypatch):
    monkeypatch.setattr(speed, "SIZES", (5, 20))
    monkeypatch.setattr(speed, "N_TIMED", 2)
    speed.main(["--part", "suggest"])
    text = capsys.readouterr().out
    found = re.findall(r"gp after (\d+) trials: median (\S+) ms, 95% (\S+)\n", text)
    numbers = np.array(found, float)
    assert numbers[:, 0].tolist() == [5, 20] and (numbers[:, 1] <= numbers[:, 2]).all()
