"""experiments/torture.py: a small part of it, and that its counting would notice."""

import json
import pathlib
import subprocess
import sys

from experiments import torture

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_torture_loses_nothing():
    counts = ["--kills", "1", "--trials", "7", "--disks", "1", "--folders", "3", "--fuzz", "50"]
    command = [sys.executable, "-m", "experiments.torture", *counts]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0 and done.stdout.endswith("\n0 problems\n"), done.stdout + done.stderr
    events = {line[:45].strip(): line[45:].split() for line in done.stdout.splitlines()[1:-1]}
    assert sum(int(cells[0]) for cells in events.values()) == 1 + (7 + 2) + 1 + 3 + 50
    assert int(next(cells for name, cells in events.items() if "SIGKILLed" in name)[1]) > 2


def test_torture_counts_what_is_lost_twice_or_invented(tmp_path):
    (tmp_path / "run").mkdir()
    tokens = {"answered": ["a", "b", "c", "d"], "begun": ["a", "b", "c", "d", "e"]}
    log = [json.dumps([0.0, what, token]) + "\n" for what, found in tokens.items() for token in found]
    (tmp_path / "side.log").write_text("".join(log))
    (tmp_path / "run" / "reports.csv").write_text("trial,token\n0,a\n0,b\n0,b\n0,e\n0,f\n0,\n")
    tally = torture.Tally()
    torture.check_reports(tally, tmp_path / "run", tmp_path / "side.log")
    assert (tally.expected, tally.found, tally.lost, tally.twice) == (4, 2, 2, 1)
    assert tally.wrong == ["a report that no trial has made: f"]
