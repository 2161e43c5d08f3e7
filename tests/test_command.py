"""What the commands of experiments/ share: errors in one line, Ctrl-C, processes, CSVs."""

import argparse
import importlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments import command

ROOT = pathlib.Path(command.__file__).parent.parent
FILES = [p for p in (ROOT / "experiments").glob("*.py") if "command.run(" in p.read_text()]


@pytest.mark.parametrize("name", sorted(path.stem for path in FILES))
def test_wrong_flag_is_one_line(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--no_such_flag"])
    with pytest.raises(SystemExit) as leave:
        importlib.import_module(f"experiments.{name}").main()
    out, err = capsys.readouterr()
    assert leave.value.code == 2 and err.startswith(f"experiments.{name}: error: ")
    assert err.count("\n") == 1 and not out


def test_number_is_checked():
    assert command.positive("1e3") == 1000 and command.natural("0") == 0
    bad = {command.positive: "0 -1 nan inf x", command.positive_int: "0 1.5", command.natural: "-1"}
    for check, text in [(kind, text) for kind in bad for text in bad[kind].split()]:
        with pytest.raises(argparse.ArgumentTypeError, match=f"expected an? .*, got {text!r}"):
            check(text)


# ---- Processes ----
def test_processes_return_results_and_errors_and_have_their_threads():
    calls = {"1": ("1",), "two": ("two",)}
    assert dict(command.in_processes(os.getenv, {0: ("OMP_NUM_THREADS",)}, 1)) == {0: "1"}
    with pytest.raises(ValueError, match="invalid literal"):
        dict(command.in_processes(int, calls, 2))


SLEEP = """
import sys, time
from experiments import command
from hpo import searchers
def main():
    for _ in command.in_processes(time.sleep, {0: (0,), 1: (60,), 2: (60,)}, 2):
        print(*(p.pid for p in command.multiprocessing.active_children()), flush=True)
command.run("sleep", "nothing is kept")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("send, number", [(os.killpg, 2), (os.kill, 2), (os.kill, 9)])
def test_command_that_ends_leaves_one_line_and_no_process(send, number):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    begun = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True, **pipes)
    pids = [int(pid) for pid in begun.stdout.readline().split()]
    assert len(pids) == 2 and set(pids) < set(command.children_of(begun.pid))
    send(begun.pid, number)
    _, err = begun.communicate(timeout=10)
    if number == signal.SIGINT:
        assert (begun.returncode, err) == (130, "interrupted: nothing is kept\n")
    for _ in range(100):
        time.sleep(0.05 * any(map(command.is_alive, pids)))
    assert not any(map(command.is_alive, pids))


# ---- CSVs ----
def test_rows_come_back_and_a_bad_line_is_named(tmp_path):
    columns, path = {"name": str, "n": int}, tmp_path / "rows.csv"
    assert command.read_rows(path, columns) == []
    for row in (["a,b", 1], ["c", 2]):
        command.append_rows(path, columns, [row])
    assert command.read_rows(path, columns) == [{"name": "a,b", "n": 1}, {"name": "c", "n": 2}]
    for text in ("name,n\na,1\nb,x\n", "name,n\na,1\nb\n", "name\na\nb\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"rows.csv: expected columns name, n: "):
            command.read_rows(path, columns)
