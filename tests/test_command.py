"""What the commands of experiments/ share, and those commands that have no file of their own."""

import importlib
import json
import os
import pathlib
import re
import signal
import sys
import time

import numpy as np
import pytest

from experiments import command, repeat, speed, torture
from hpo import load

PATHS = sorted(pathlib.Path(command.__file__).parent.glob("*.py"))
FLAGS = [(p.stem, "--no_such_flag") for p in PATHS if "command.run(" in p.read_text()]
FLAGS.append(("repeat", "--seed=3"))  # its methods have the seeds of --seeds
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("name, flag", FLAGS)
def test_wrong_flag_is_one_line(name, flag, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", flag])
    with pytest.raises(SystemExit) as leave:
        importlib.import_module(f"experiments.{name}").main()
    out, err = capsys.readouterr()
    assert leave.value.code == 2 and err.startswith(f"experiments.{name}: error: ")
    assert err.count("\n") == 1 and not out


# ---- Processes ----
def test_processes_return_results_and_errors_and_have_their_threads():
    calls = {"1": ("1",), "two": ("two",)}
    assert dict(command.in_processes(os.getenv, {0: ("OMP_NUM_THREADS",)}, 1)) == {0: "1"}
    with pytest.raises(ValueError, match="invalid literal"):
        dict(command.in_processes(int, calls, 2))


SLEEP = """
import sys, time
from experiments import command
def main():
    for _ in command.in_processes(time.sleep, {0: (0,), 1: (60,), 2: (60,)}, 2):
        print(*(p.pid for p in command.multiprocessing.active_children()), flush=True)
command.run("sleep", "nothing is kept")
"""


@on_linux
@pytest.mark.parametrize("send, number", [(os.killpg, 2), (os.kill, 2), (os.kill, 9)])
def test_command_that_ends_leaves_one_line_and_no_process(start_py, send, number):
    begun = start_py("-c", SLEEP, start_new_session=True)
    pids = [int(pid) for pid in begun.stdout.readline().split()]
    assert len(pids) == 2 and set(pids) < set(command.children_of(begun.pid))
    send(begun.pid, number)
    _, err = begun.communicate(timeout=10)
    if number == signal.SIGINT:
        assert (begun.returncode, err) == (130, "interrupted: nothing is kept\n")
    until = time.monotonic() + 5
    while any(map(command.is_alive, pids)):
        assert time.monotonic() < until
        time.sleep(0.02)


# ---- experiments.repeat ----
def test_repeat_compares_methods_and_goes_on(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "square.py").write_text(
        "import hpo\nconfig_space = {'x': hpo.uniform(0, 1)}\nmetric, mode = 'loss', 'min'\n"
        "def objective(config): return config['x'] ** 2\n"
    )
    words = [str(tmp_path / "square.py"), "--workers", "1", "--results", str(tmp_path / "all")]
    words += ["--searcher", "gp", "--seeds", "2"]
    repeat.main([*words, "--searcher", "random", "--trials", "4"])
    out = capsys.readouterr().out
    folders = {f"{path.parent.name} {path.name}" for path in (tmp_path / "all").glob("*/*")}
    assert folders == {"random auto 0", "random auto 1", "gp auto 0", "gp auto 1"}
    assert "lowest loss of loss so far" in out and "2 runs in common" in out
    assert (tmp_path / "all/compared.png").stat().st_size > 5000
    before = load(tmp_path / "all/gp auto/1")
    repeat.main([*words, "--trials", "5"])
    again = load(tmp_path / "all/gp auto/1")
    assert again[:-1] == before and len(before) == 4  # what has ended is not run again


# ---- experiments.speed ----
@on_linux
def test_speed_says_what_it_is_to_say(monkeypatch, capsys):
    """How fast things are is not tested."""
    monkeypatch.setattr(speed, "OBJECTIVE", speed.OBJECTIVE.replace("import torch", "#"))
    monkeypatch.setattr(speed, "SIZES", (5, 20))
    monkeypatch.setattr(speed, "N_TIMED", 2)

    def lines(words):
        speed.main(["--part", *words.split()])
        return capsys.readouterr().out.splitlines()

    first, _, *table = lines("loop --trials 20 --workers 2")
    assert first.startswith("21 of 21 trials done, 2 workers: ")
    assert [int(line.split()[0]) for line in table] == list(range(4, 21, 2))
    table = [line.split() for line in lines("reports --seconds 1 --workers 1")[1:]]
    rows = np.array(table, float)
    assert rows[:, 0].tolist() == [1, 16] and (rows > 0).all() and (rows[:, 3] <= rows[:, 4]).all()
    text = r"gp after (\d+) trials: median \d\S* ms, 95% \d\S*"
    assert [re.fullmatch(text, line)[1] for line in lines("suggest")] == ["5", "20"]


# ---- experiments.torture ----
@on_linux
def test_torture_loses_nothing(capsys):
    words = "--kills 1 --trials 13 --servers 0 --folders 1 --fuzz 0 --seed 2"
    assert torture.main(words.split()) == 0
    _, *lines, last = capsys.readouterr().out.splitlines()
    rows = {line[:60].strip(): line[60:].split() for line in lines}
    assert sum(int(cells[0]) for cells in rows.values()) == 1 + (13 + 1) + 1
    assert int(next(cells for name, cells in rows.items() if "SIGKILLed" in name)[1]) > 2
    assert last == "0 problems"


@on_linux
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
    invented, differs = run.tally.wrong
    assert "no trial has made: another" in invented and "CSVs are not" in differs
