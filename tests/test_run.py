"""run.py: runs that work, endings, --resume and bad input, many of them as a user runs them.

That every suggestion of a killed and resumed run is recomputed equal: tests/test_explain.py.
"""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from hpo import load
from hpo.objective import ROOT

QUICK = """
import random, time
from hpo import Reporter, choice, loguniform, randint, uniform

config_space = {
    "x": uniform(-1, 1), "rate": loguniform(1e-4, 1), "n": randint(1, 9),
    "kind": choice(["a b", 'c"d', "e,f\\n", "é"]), "epochs": 3, "pause": 0.0, "list": [1, None],
}
metric, mode = "loss", "min"

def objective(config):
    report = Reporter()
    for epoch in range(1, config["epochs"] + 1):
        time.sleep(config["pause"])
        report(epoch=epoch, loss=config["x"] ** 2 + 1 / epoch, luck=random.random())
"""
LONG = ["--set", "pause=0.05", "--set", "epochs=1000", "--stopping", "none"]  # 50 s a trial


def write_quick(folder, old="", new=""):
    """The path of the objective file, in which some words are replaced."""
    assert old in QUICK
    (folder / "quick.py").write_text(QUICK.replace(old, new) if old else QUICK, encoding="utf-8")
    return folder / "quick.py"


@pytest.fixture
def quick(tmp_path):
    return write_quick(tmp_path)


def rows(folder, name="trials.csv"):
    with open(folder / name, newline="", encoding="utf-8") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["trial"]))


def wait_for_reports(folder, n, n_trials=1):
    """Until so many reports have come, of so many trials."""
    path, until, found = folder / "journal.jsonl", time.monotonic() + 60, []
    while len(found) < n or len(set(found)) < n_trials:
        assert time.monotonic() < until
        time.sleep(0.01)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        found = re.findall(r'^{"report": (\d+)', text, re.MULTILINE)


@pytest.fixture
def ends_well(main):
    """A function that calls main, which must end well and without a warning; what it printed."""

    def call(*words):
        code, out, err = main(*words)
        assert (code, err) == (0, "")
        return out

    return call


# ---- A run that works ----------------------------------------------------------------------------
def test_run_writes_its_folder_and_a_summary(quick, tmp_path, run_py):
    folder = tmp_path / "new" / "run"
    flags = ["--workers", 1, "--stopping", "none", "--seed", 1, "--trials", 6, "--results", folder]
    code, out, err = run_py("run.py", quick, *flags)
    assert (code, err) == (0, "")
    names = {path.name for path in folder.rglob("*")} - {f"{i:04d}.log" for i in range(6)}
    assert names == {"journal.jsonl", "trials.csv", "reports.csv", "logs", ".lock"}
    trials, reports = rows(folder), rows(folder, "reports.csv")
    assert [row["trial"] for row in trials] == list("012345") and len(reports) == 6 * 3
    assert {row["origin"] for row in trials} == {"start", "initial", "model"}
    for row in trials:
        assert float(row["value"]) == float(row["config_x"]) ** 2 + 1 / 3
        assert (row["status"], row["best_epoch"], row["n_epochs"]) == ("done", "3", "3")
    best = min(trials, key=lambda row: float(row["value"]))
    config = json.loads(re.search(r"take home trial \d: (.*)", out)[1])
    assert config["x"] == float(best["config_x"]) and config["list"] == [1, None]
    assert f"best loss={float(best['value']):.6g} (trial {best['trial']}, epoch 3)" in out
    assert re.search(r"^expected if trained again: loss=\S+ \+- \S+ \(trial \d", out, re.MULTILINE)
    assert "warning: list is the constant [1, None]; to tune it, use choice(...)" in out
    assert "6 trials, 6 done" in out and "minimise loss over 4 hyperparameters" in out
    assert f"{folder / 'trials.csv'}\n{folder / 'reports.csv'}\n" in out and "% of the time" in out

    command = next(line for line in out.splitlines() if "-m hpo.objective" in line)
    code, out, err = run_py(*shlex.split(command)[3:])  # trains the best one again
    again = [json.loads(text) for text in re.findall(r"(?m)^\[tune-metric\]: (.*)$", out)]
    first = [row["luck"] for row in reports if row["trial"] == best["trial"]]
    assert (code, err) == (0, "") and [str(report["luck"]) for report in again] == first


def test_flags_and_prepare_change_the_problem_searcher_and_rule(tmp_path, main, monkeypatch):
    quick = write_quick(tmp_path, "epochs", "n_steps")
    with open(quick, "a") as file:
        file.write("def prepare(given): return {'n_steps': 9, 'note': str(len(given)) + ' IN!'}")
    space = '{"x": {"uniform": [0, 2]}, "n": {"randint": [1, 9]}, "n_steps": 2, "pause": 0}'
    (tmp_path / "space.json").write_text(space)
    (tmp_path / "start.json").write_text('[{"x": 1.5}, {"x": 0.25}]')
    (tmp_path / "mine.py").write_text(
        "import hpo\nclass Short(hpo.RandomSearch):\n    def suggest(self, trials):\n"
        "        return super().suggest(trials) if len(trials) < 4 else None\n"
        "def rule(trial, trials, max_epochs, first_rung, eta):\n"
        "    return len(trial.curve) == first_rung * eta < max_epochs"
    )
    flags = "--space space.json --start start.json --set n=8 --metric luck --mode max --eta 3 "
    flags += "--epochs_name n_steps --searcher mine.py:Short --stopping mine.py:rule --first_rung 2"
    monkeypatch.chdir(tmp_path)
    code, out, err = main(quick, *flags.split())
    assert (code, err) == (0, "") and "ended (exhausted)" in out and "maximise luck over 1" in out
    assert out.count("* 3 IN!\n") == 2  # before and after the run
    folder = tmp_path / re.search(r"^results: (\S+)", out, re.MULTILINE)[1]
    assert folder.parent == tmp_path / "results"  # the default, in the current folder
    found, reports = rows(folder), rows(folder, "reports.csv")
    assert [row["origin"] for row in found] == ["start", "start", "random", "random"]
    assert [row["config_x"] for row in found[:2]] == ["1.5", "0.25"]
    for row in found:
        assert (row["status"], row["n_epochs"]) == ("stopped", "6")
        assert (row["config_n"], row["config_n_steps"]) == ("8", "9")
        assert row["value"] == max(r["luck"] for r in reports if r["trial"] == row["trial"])


def test_main_job_at_toy_size(tmp_path, main):
    """Stand-in images, small networks, one epoch."""
    sets = ["dataset=synthetic", f"dataset_path={tmp_path / 'data'}", "epochs=1"]
    sets += ["batch_size=128", "n_units_1=16", "n_units_2=16"]
    flags = [word for value in sets for word in ("--set", value)]
    code, out, err = main(*flags, "--trials", 2, "--workers", 2, "--results", tmp_path / "run")
    assert code == 0 and out.count("STAND-IN DATA") == 2, err
    for row in rows(tmp_path / "run"):
        assert (row["config_dataset"], row["status"]) == ("synthetic", "done")
        assert 0.05 < float(row["value"]) < 1


# ---- Endings -------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_run_ends_in_order_by_a_signal(quick, tmp_path, start_py, how):
    """Ctrl-C, two signals in a moment (`timeout` sends them), a hang-up that ends the output."""
    process = start_py(
        "run.py", quick, *LONG, "--results", tmp_path / "run", start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup ignores it
    )  # fmt: skip
    wait_for_reports(tmp_path / "run", 4, n_trials=4)
    if how == "SIGHUP":
        process.stdout.close()
    elif how == "SIGTERM":
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    os.killpg(process.pid, getattr(signal, how))  # as a terminal does
    assert process.wait(timeout=20) == 128 + getattr(signal, how)
    ends = [(t.status, t.error, bool(t.curve)) for t in load(tmp_path / "run")]
    assert ends == [("interrupted", f"interrupted by {how}", True)] * 4
    if how != "SIGHUP":
        out, err = process.communicate()
        assert "4 interrupted\nbest loss=" in out and err == ""
        assert out.endswith(f"--resume {tmp_path / 'run'}\n")


def test_second_signal_after_a_second_kills_at_once(tmp_path, start_py):
    """The first leaves five seconds to trials that do not heed SIGTERM."""
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n        time.sleep(30"
    quick = write_quick(tmp_path, 'time.sleep(config["pause"]', ignore + " * (epoch > 1)")
    process = start_py("run.py", quick, "--stopping", "none", "--results", tmp_path / "run")
    wait_for_reports(tmp_path / "run", 4, n_trials=4)
    process.send_signal(signal.SIGINT)
    time.sleep(1.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=3)
    assert (process.returncode, err) == (130, "")
    assert rows(tmp_path / "run") == []  # as after a SIGKILL: they start again with --resume


# before, and while the file is described
@pytest.mark.parametrize("name, seconds", [("SIGINT", 0.0), ("SIGTERM", 0.4)])
def test_signal_while_starting_up_is_quiet_and_leaves_nothing(tmp_path, start_py, name, seconds):
    quick = write_quick(tmp_path, "metric, mode", "time.sleep(20)\nmetric, mode")
    process = start_py("run.py", quick, "--results", tmp_path / "run", start_new_session=True)
    assert process.stdout.readline().startswith("loading ")
    time.sleep(seconds)
    number = getattr(signal, name)
    os.killpg(process.pid, number)  # as a terminal does: to all of its processes
    _, err = process.communicate(timeout=15)
    assert (process.returncode, err) == (128 + number, "") and not (tmp_path / "run").exists()


def test_run_that_fails_says_why(tmp_path, main):
    """By the last error of the objective, or the traceback of the searcher."""
    quick = write_quick(tmp_path, "report = Reporter()", "raise KeyError(7)")
    code, out, err = main(quick, "--workers", 2, "--results", tmp_path / "run")
    assert code == 1 and "all of the first 3 trials failed" in err and err.endswith("KeyError: 7\n")
    assert "no trial has reported" in out
    text = "import hpo\nclass Mine(hpo.RandomSearch):\n    def suggest(self, trials): {}['lr']"
    (tmp_path / "mine.py").write_text(text)
    flags = ["--searcher", f"{tmp_path}/mine.py:Mine", "--results", tmp_path / "other"]
    code, _, err = main(write_quick(tmp_path), *flags)
    assert code == 1 and "run.py: failed: Mine.suggest raised KeyError: 'lr'\n" in err
    assert 'mine.py", line 3, in suggest' in err


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-", "| true"])
def test_run_goes_on_when_nobody_reads_its_output(quick, tmp_path, redirect):
    words = [sys.executable, "run.py", quick, "--trials", 1, "--results", tmp_path / "run"]
    command = f"set -o pipefail; {shlex.join(map(str, words))} {redirect}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=ROOT, check=True)
    assert done.stderr == b"" and len(rows(tmp_path / "run")) == 1


# ---- Resume --------------------------------------------------------------------------------------
def test_killed_run_has_the_csvs_of_one_that_was_not(tmp_path, start_py, ends_well, main):
    """One worker; ended by SIGKILL, SIGTERM and Ctrl-C."""
    fail = "assert config['n'] < 6, 'a \"bad\" n'\n    report = Reporter()"
    quick = write_quick(tmp_path, "report = Reporter()", fail)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = (quick, "--trials", 12, "--workers", 1, "--seed", 5, "--set", "pause=0.03")
    arguments += ("--stopping", "none", "--results")
    process = start_py("run.py", *arguments, parts)
    for number, n_reports in ((signal.SIGKILL, 4), (signal.SIGTERM, 11), (signal.SIGINT, 19)):
        wait_for_reports(parts, n_reports)
        code, _, err = main("--resume", parts)
        assert code == 2 and "another run is using it" in err and err.count("\n") == 1
        process.send_signal(number)
        assert process.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
        if number != signal.SIGINT:
            process = start_py("run.py", "--resume", parts)
    ends_well("--resume", parts)
    ends_well(*arguments, whole)
    n_starts = (parts / "journal.jsonl").read_text(encoding="utf-8").count('{"start":')
    assert 12 < n_starts <= 12 + 3  # a signal may come between two trials
    times = {"started", "ended", "seconds", "suggest_seconds", "time"}
    for name in ("trials.csv", "reports.csv"):
        for one, other in zip(rows(parts, name), rows(whole, name), strict=True):
            assert {k for k in one if one[k] != other[k]} <= times
    assert {trial.status for trial in load(whole)} == {"done", "failed"}  # its error is the same


def test_finished_run_goes_on_from_anywhere(quick, tmp_path, ends_well, monkeypatch):
    """The folder, the objective's file, and the folder from which the run is resumed have moved."""
    start_file, elsewhere = tmp_path / "start.json", tmp_path / "elsewhere"
    start_file.write_text('[{"x": 0.5, "kind": "a b"}, {"x": 0.25, "kind": "e,f\\n"}]')
    arguments = ("--start", "start.json", "--set", "epochs=2", "--trials", 1, "--workers", 1)
    monkeypatch.chdir(tmp_path)
    ends_well("quick.py", *arguments, "--results", "run")
    start_file.unlink()  # its configurations are in the journal
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    folder = (tmp_path / "run").rename(elsewhere / "moved")
    ends_well("--resume", "moved")
    assert len(load(folder)) == 1  # it had finished
    quick.rename(elsewhere / "quick.py")
    ends_well("quick.py", "--resume", "moved", "--trials", 2)
    assert [(t.config["x"], t.config["epochs"]) for t in load(folder)] == [(0.5, 2), (0.25, 2)]


def test_deadline_is_that_of_all_sessions_and_may_be_put_off(quick, tmp_path, ends_well):
    """What it has cut is not started again; the time between sessions does not count."""
    folder = tmp_path / "run"
    flags = ["--hours", 0.0004, "--workers", 2, "--results", folder]
    assert "ended (deadline) after 0:00:0" in ends_well(quick, *LONG, *flags)
    assert "--hours with a larger number gives it more" in ends_well("--resume", folder)
    flags = ["--hours", 1, "--trial_timeout", 0.9, "--trials", 4]
    assert "ended (trials)" in ends_well("--resume", folder, *flags)
    trials, errors = load(folder), ["deadline"] * 2 + ["--trial_timeout 0.9"] * 2
    ends = [(trial.status, trial.error, trial.attempt, bool(trial.curve)) for trial in trials]
    assert ends == [("timeout", error, 1, True) for error in errors]
    assert all(1.4 < trial.started < trial.ended < 9 for trial in trials[2:])


DIFFERENT = [
    (["--searcher", "random"], "--searcher: DIR has 'gp', got 'random'"),
    (["--space", "HERE/space.json"], "--space: DIR has None, got {'x'"),
    (["--start", "HERE/start.json"], "--start: DIR has None, got [{'x': 0.5, "),
    (["--results", "HERE/elsewhere"], "--results: DIR has 'DIR', got 'HERE/elsewhere'"),
    (["HERE/other.py"], "OBJECTIVE: DIR has 'HERE/quick.py', got 'HERE/other.py'"),
]


@pytest.mark.filterwarnings("ignore:.*is torn")
def test_option_that_differs_is_refused_by_name(quick, tmp_path, main, ends_well):
    """The same value is none that differs."""
    (tmp_path / "space.json").write_text('{"x": {"uniform": [-1, 1]}, "epochs": 2}')
    (tmp_path / "start.json").write_text('[{"x": 0.5}]')
    folder = tmp_path / "run"
    same = [quick, "--seed", 4, "--set", "epochs=2", "--workers", 1]
    ends_well(*same, "--trials", 1, "--results", folder)
    with open(folder / "journal.jsonl", "a") as file:
        file.write('{"start": 1, "att')  # a torn line is cut only when the run goes on
    contents = lambda: {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    before = contents()
    for arguments, words in DIFFERENT:
        words = words.replace("DIR", str(folder)).replace("HERE", str(tmp_path))
        given = [argument.replace("HERE", str(tmp_path)) for argument in arguments]
        code, _, err = main("--resume", folder, *given)
        assert code == 2 and words in err and err.count("\n") == 1, (arguments, err)
    assert contents() == before
    same += ["--metric", "loss", "--searcher", "gp", "--trials", 2]
    ends_well("--resume", folder, *same)
    assert [trial.attempt for trial in load(folder)] == [1, 1]


# ---- Bad input -----------------------------------------------------------------------------------
BAD = [  # (flags, what is replaced in the objective file or a file's name, by this, error)
    ("--bogus", "", "", "unrecognized arguments: --bogus"),
    ("--hours nan", "", "", "--hours: expected a positive number, got nan"),
    ("--searcher {}/mine.py:Mine", "mine.py", "exit(0)", "mine.py, line 1: SystemExit"),
    ("--searcher {}/mine.py:Mine", "mine.py", "class Mine: pass", "suggest(trials)"),
    ("--stopping asha", ": 3", ": randint(1, 3)", "--stopping asha: "),
    ("--set epochs=many", "", "", "--set epochs=many: epochs: expected"),
    ("--space nowhere.json", "", "", "--space: expected a JSON file: "),
    ("--space {}/s.json", "s.json", '{"x": {"uniform": [1, 0]}}', "x: uniform needs low <= high"),
    ("--start {}/s.json", "s.json", '[{"n": 10}]', "n: expected a value of randint(1, 9)"),
    ("--epochs_name steps", "", "", "steps: "),
    ("--results {}", "", "", "expected a new folder, got one that "),
    ("--resume {}", "", "", "expected the folder of a run"),
    ("nowhere.py", "", "", "nowhere.py: no such file"),
    ("", "metric, mode", "import os; os._exit(3)\nmetric, mode", "exited with code 3"),
    ("", "metric, mode", "import hpo; hpo.tune()\nmetric, mode", "line 9: hpo.tune is called"),
    ("", "def obj", "def prepare(c): raise OSError('no data')\ndef obj", "no data"),
]


@pytest.mark.parametrize("flags, old, new, words", BAD)
def test_bad_input_is_one_clear_line_and_leaves_nothing(tmp_path, main, flags, old, new, words):
    quick = write_quick(tmp_path, *((old, new) if old in QUICK else ()))
    if "." in old:
        (tmp_path / old).write_text(new)
    before = {*tmp_path.iterdir(), tmp_path / "__pycache__"}
    command = [] if flags.startswith(("nowhere", "--resume")) else [quick]
    command += flags.replace("{}", str(tmp_path)).split()
    if not flags.startswith("--res"):  # --results, --resume
        command += ["--results", tmp_path / "new" / "run"]
    code, _, err = main(*command)
    assert code == 2 and err.startswith("run.py: error: ") and err.count("\n") == 1
    assert words in err and before >= {*tmp_path.iterdir()}


# ---- From Python ---------------------------------------------------------------------------------
SCRIPT = """
def train(config):
    __import__('pickle').dumps(train)  # by its name
    return {"loss": (config["x"] - 0.25) ** 2, "place": __name__}

import hpo
space = {'x': hpo.uniform(0, 1)}
run = hpo.tune(train, space, metric='loss', mode='min', trials=5, workers=2, results="run")
print(run.best.id, run.best.value, len(run.trials), run.reason, run.folder, run.signal)
"""


def test_tune_from_a_script_returns_the_run(tmp_path, run_py):
    """A script without a file, as one from stdin; one that has a file is in the README."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code, out, err = run_py("-c", SCRIPT, cwd=tmp_path, env=environment)
    assert (code, err) == (0, "") and out.count("loading ") == 1  # the script has run once
    assert "stopping none" in out  # no last epoch
    best = min(load(tmp_path / "run"), key=lambda trial: trial.value)
    assert out.splitlines()[-1] == f"{best.id} {best.value} 5 trials run None"
    assert best.value == (best.config["x"] - 0.25) ** 2
    assert {row["place"] for row in rows(tmp_path / "run", "reports.csv")} == {"__main__"}
