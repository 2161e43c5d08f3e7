"""experiments/torture.py: a small part of it, and that its counting would notice."""

import json
import pathlib
import subprocess
import sys

from experiments import torture

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_torture_loses_nothing():
    counts = ["--kills", 1, "--trials", 13, "--servers", 0, "--folders", 1, "--fuzz", 0]
    command = [sys.executable, "-m", "experiments.torture", *map(str, counts)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("\n0 problems\n"), (
        done.stdout + done.stderr
    )
    rows = {line[:60].strip(): line[60:].split() for line in done.stdout.splitlines()[1:-1]}
    assert sum(int(cells[0]) for cells in rows.values()) == 1 + (13 + 1) + 1
    assert int(next(cells for name, cells in rows.items() if "SIGKILLed" in name)[1]) > 2


def test_torture_counts_what_is_lost_twice_or_invented(tmp_path):
    run = torture.Run(tmp_path / "home", torture.Tally())
    run.finish()
    assert (run.tally.expected, run.tally.lost, run.tally.twice) == (4 * torture.N_EPOCHS + 4, 0, 0)
    path = run.folder / "journal.jsonl"
    first, second, third, *_ = [line for line in path.read_text().splitlines() if "token" in line]
    text = path.read_text().replace(first + "\n", "").replace(second, f"{second}\n{second}")
    path.write_text(text.replace(json.loads(third)["metrics"]["token"], "another"))
    run.tally = torture.Tally()
    run.check()
    assert (run.tally.lost, run.tally.twice) == (2, 1)
    assert run.tally.wrong == [
        "a report that no trial has made: another",
        "the CSVs are not what the journal makes of them",
    ]
