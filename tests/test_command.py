"""What the commands of experiments/ share: errors in one line, Ctrl-C, CSVs that are not torn."""

import ast
import contextlib
import importlib
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments import command, compare_searchers

FOLDER = pathlib.Path(command.__file__).parent
SLOW = """
import time
from hpo.searchers import RandomSearch

class Slow(RandomSearch):
    def suggest(self, trials):
        time.sleep(0.1)
        return super().suggest(trials)
"""


def commands():
    """Names of the modules that are commands: what they import is installed, but for scikit-learn's."""
    names = [path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    return sorted(name for name in names if name != "record_tables")


@pytest.mark.parametrize("name", commands())
def test_wrong_flag_is_one_line(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--no_such_flag"])
    with pytest.raises(SystemExit) as leave:
        importlib.import_module(f"experiments.{name}").main()
    out, err = capsys.readouterr()
    assert leave.value.code == 2 and err.startswith(f"experiments.{name}: error: ") and err.count("\n") == 1 and not out


def test_every_command_is_run_by_its_own_name():
    """Else Ctrl-C would end it as if it were still being imported."""
    for path in FOLDER.glob("*.py"):
        last = ast.parse(path.read_bytes()).body[-1]
        if isinstance(last, ast.If) and "__main__" in ast.unparse(last.test):
            assert ast.unparse(last.body[0]).startswith(f"command.run('{path.stem}'"), path


# ---- Ctrl-C --------------------------------------------------------------------------------------------------------------
def descendants(pid):
    """The ids of a process and of what it has started, and that."""
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
    found = {pid}
    for _ in range(4):
        found |= {child for child, parent in parents.items() if parent in found}
    return found


def wait_until(condition, seconds):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


COMPARE = ["compare_searchers", "--searcher", "SLOW", "--problems", "branin2", "--trials", "9"]
REPLAY = ["replay", str(FOLDER / "runs/random_seed1.jsonl"), "--searcher", "SLOW", "--quick"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for orphans in /proc")
@pytest.mark.parametrize(
    "arguments, send, number, kept",
    [
        (COMPARE, os.killpg, signal.SIGINT, "runs that had ended are kept"),
        (COMPARE, os.kill, signal.SIGTERM, "runs that had ended are kept"),
        (REPLAY, os.kill, signal.SIGINT, "no file was written"),
    ],
)
def test_interrupt_ends_with_one_line_and_no_orphans(tmp_path, arguments, send, number, kept):
    (tmp_path / "mine.py").write_text(SLOW)
    searcher, results = f"{tmp_path / 'mine.py'}:Slow", tmp_path / "results"
    arguments = [searcher if argument == "SLOW" else argument for argument in arguments]
    with open(tmp_path / "err", "w") as err:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                f"experiments.{arguments[0]}",
                *arguments[1:],
                "--processes",
                "2",
                "--results",
                results,
            ],
            cwd=FOLDER.parent,
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
        )
    is_at_work = (
        (lambda: results.exists() and list(results.glob("*.csv")))
        if arguments[0] == "compare_searchers"
        else (
            lambda: len(descendants(process.pid)) == 4  # with the resource tracker
        )
    )
    assert wait_until(is_at_work, 60)
    started, before = descendants(process.pid), time.monotonic()
    assert len(started) == 4
    send(process.pid, number)
    assert process.wait(30) == 128 + number and time.monotonic() - before < 5
    assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in started), 5)
    (line,) = [line for line in (tmp_path / "err").read_text().splitlines() if " done, about " not in line]
    assert line.startswith(f"interrupted: {kept}")
    if arguments[0] == "compare_searchers":
        assert 1 <= len(compare_searchers.read_runs(results, searcher)) < 10
    else:
        assert not results.exists()


def test_interrupt_of_an_import_is_one_line():
    """A command whose imports take a while, told to end while they do."""
    code = "import sys; sys.argv[0] = '-m'; import experiments, os, signal; os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted: nothing had begun\n")


def test_reader_that_leaves_is_no_error():
    program = f"{sys.executable} -m experiments.problems {50 * 'branin2 '} | head -1"
    done = subprocess.run(program, shell=True, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("problem ") and done.stderr == ""


# ---- CSVs ----------------------------------------------------------------------------------------------------------------
def test_rows_are_appended_whole_after_a_torn_line(tmp_path):
    columns, path = {"name": str, "n": int}, tmp_path / "rows.csv"
    assert command.read_rows(path, columns) == []
    for torn in ("na", "name,n\na,1\nb"):
        path.write_text(torn)
        assert len(command.read_rows(path, columns)) == torn.count("a,1")
        command.append_rows(path, columns, [["c", 2]])
        assert command.read_rows(path, columns)[-1] == {"name": "c", "n": 2}
    assert path.read_text() == "name,n\na,1\nc,2\n"
    for damaged, words in (
        ("name,n\na\n", "line 2: expected name .str., n .int., got 'a'"),
        ("name\n", "line 1: expected name, n, got 'name'"),
        ("name,n\na,1\nb,x\n", "line 3: expected name .str., n .int., got 'b,x'"),
        ("name,n\na,1\n\n", "line 3: expected"),
        ('name,n\na\r,1\n"b,2\n', "line 2: expected"),
    ):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=words):
            command.read_rows(path, columns)
