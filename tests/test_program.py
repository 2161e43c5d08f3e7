"""Any program as an objective: what it is given, what it prints, and how it ends."""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

import hpo.trial
from hpo import load
from hpo.objective import Program, argument, is_program
from hpo.trial import End, LocalBackend, Trial

PROGRAMS = Path(__file__).resolve().parent / "programs"
TRIAL = Trial(3, {}, "test")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="Linux and macOS")


@pytest.fixture
def start(tmp_path):
    """Starts a program with a configuration as a trial; returns its backend."""
    with contextlib.ExitStack() as stack:

        def start(path, config, **options):
            program = Program(str(path), "y", **options)
            backend = stack.enter_context(contextlib.closing(LocalBackend(program, n_workers=2)))
            space = {**config, "tuned": {"uniform": [0, 1]}}
            backend.describe(space=space, metric="y", mode="max")
            backend.begin(tmp_path / "run/logs", 0)
            backend.start(Trial(3, config, "test"))
            return backend

        (tmp_path / "run").mkdir()
        yield start


@pytest.fixture
def write(tmp_path):
    """Writes an executable file and returns its path."""

    def write(text, name="program.sh"):
        path = tmp_path / name
        path.write_text(text if name.endswith(".py") else f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
        return path

    return write


def until_end(backend, *trials, n_reports=99):
    """(metrics of each report, End) of each trial, which is stopped at the last report."""
    found, until = {trial.id: [] for trial in trials}, time.monotonic() + 60
    while not all(events and isinstance(events[-1], End) for events in found.values()):
        assert time.monotonic() < until, "the trials have not ended"
        for event in backend.wait(1.0):
            found[event.trial_id].append(event)
            if not isinstance(event, End):
                go_on = len(found[event.trial_id]) < n_reports
                backend.answer(Trial(event.trial_id, {}, "test"), go_on)
    return [([report.metrics for report in events[:-1]], events[-1]) for events in found.values()]


def test_python_file_with_objective_is_called_and_others_are_run(write):
    for text, expected in {
        "def objective(config): pass": False,
        "a syntax error": False,
        "import argparse\nprint(argparse.objective)": True,
        "def f():\n    objective = 1": True,
        "from syne_tune import Reporter\ndef objective(config): pass": True,
        "from syne_tuned import Reporter\nobjective = print": False,
    }.items():
        assert is_program(str(write(text, "a.py"))) == expected, text
    assert is_program("train.sh")


# ---- What a program is given ---------------------------------------------------------------------
def test_value_becomes_words_that_argparse_and_a_shell_script_read():
    for value, words in {
        "a b": ["--n", "a b"], "": ["--n", ""], "-a": ["--n=-a"], True: ["--n", "True"],
        -3: ["--n", "-3"], 1e-05: ["--n", "1e-05"], -1e-05: ["--n", "-0.00001"],
        -0.5: ["--n", "-0.5"], -1.25e20: ["--n", "-125000000000000000000"],
    }.items():  # fmt: skip
        assert argument("n", value) == argument("--n", value) == words


SEEN = """import json, os, sys
seen = json.dumps([sys.argv[1:], dict(os.environ, python=sys.executable)])
print('[tune-metric]:', json.dumps({'y': 1, 'seen': seen}))"""


def test_program_gets_each_value_as_a_word_and_an_environment(start, write, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    config = {"num-epochs": 3, "text": " a  'b\" $(c) * ", "empty": "", "yes": True, "none": None}
    words = [word for name, value in config.items() for word in (f"--{name}", str(value))]
    backend = start(write(SEEN, "a program.py"), {**config, "list": [1, "a b"]})
    (((metrics,), end),) = until_end(backend, TRIAL)
    arguments, environment = json.loads(metrics["seen"])
    assert end.error == "" and arguments == [*words, "--list", '[1, "a b"]']
    expected = {"PYTHONUNBUFFERED": "1", "python": sys.executable, "CUDA_VISIBLE_DEVICES": "5"}
    expected["TRIAL_SEED"] = str(hpo.trial.trial_seed(0, 3))
    expected["OMP_NUM_THREADS"] = str(hpo.trial.n_threads(2))
    assert expected.items() <= environment.items()


def test_program_gets_one_file_and_a_folder(start, write, tmp_path):
    config = {"list": [1, {"a": None}], "yes": True, "text": "é"}
    flags = {"pass_json": "--config", "checkpoint_flag": "st_checkpoint_dir"}
    file, folder = tmp_path / "run/logs/0003.json", tmp_path / "run/checkpoints/0003"
    file.parent.mkdir(parents=True)
    file.symlink_to(tmp_path / "stolen")  # whoever made the folder may have left a link
    backend = start(write(SEEN, "a program.py"), config, **flags)
    (((metrics,), _),) = until_end(backend, TRIAL)
    assert not (tmp_path / "stolen").exists()
    words = ["--config", str(file), "--st_checkpoint_dir", str(folder)]
    assert json.loads(metrics["seen"])[0] == words
    assert json.loads(file.read_text()) == config and folder.parent.exists()
    assert not folder.exists()  # programs take it for a checkpoint when it is there


# ---- What it prints ------------------------------------------------------------------------------
def test_reports_are_found_anywhere_in_a_line(start, write, tmp_path):
    lines = [
        'x [tune-metric]: {"y": 0.5, "epoch": 1, "st_worker_iter": 0, "list": [1]} and } more',
        '50%\r[tune-metric]: {"y": NaN}[tune-metric]: {"loss": 1, "epoch": 3}',
        '[tune-metric]: {"y": 0.5', "[tune-metric]: [1]", '[tune-metric]: {"y": 1, "epoch": 0.5}',
        '[tune-metric]: {"st_worker_iter": 0}', "[tune-metric]: " + '{"a":' * 9999, "é",
    ]  # fmt: skip
    path = write("\n".join(f"printf '%s\\n' '{line}'" for line in lines) + "\nprintf end >&2")
    (((first, second, third), end),) = until_end(start(path, {"n": 1}), TRIAL)
    assert first == {"y": 0.5, "epoch": 1} and third == {"loss": 1, "epoch": 3}
    assert second["epoch"] == 2 and second["y"] != second["y"]
    log = (tmp_path / "run/logs/0003.log").read_text()
    assert end.outcome == "finished" and "é\n" in log and "end" in log
    assert log.count("warning") == log.count("warning: 5 lines with [tune-metric]: are no") == 1


def test_output_goes_to_the_log_as_it_comes(start, write):
    backend, until = start(write("printf 'half a line'; sleep 99"), {"n": 1}), time.monotonic() + 20
    while backend.log(TRIAL) != "half a line":
        assert time.monotonic() < until
        time.sleep(0.01)


# ---- How it ends ---------------------------------------------------------------------------------
REPORT = """echo '[tune-metric]: {"y": 1}'\n"""
LOSS = """echo '[tune-metric]: {"loss": 1}'"""
EXPECTED = 'expected printed lines [tune-metric]: {"y": 0.9}, got'
ENDS = [  # what a program does, how many reports come, and its error
    (f"{REPORT}{REPORT.strip()} >&2", 1, ""),  # as `set -x` prints what it does
    (f"exec 2>&1; {REPORT}", 1, ""),
    (f"sleep 99 &\n{REPORT}", 1, ""),  # it leaves a process that holds its output open
    (f"(setsid sleep 99 &)\n{REPORT}", 1, ""),
    (f"exec &> /dev/null; {REPORT}", 0, f"{EXPECTED} no report; the last it printed: nothing"),
    ("echo a; echo b; echo c; echo d", 0, f"{EXPECTED} no report; the last it printed: b | c | d"),
    (LOSS, 1, f'{EXPECTED} loss; the last it printed: [tune-metric]: {{"loss": 1}}'),
    (f"{REPORT}echo first >&2; echo 'no  disk' >&2; sleep 0.1; echo out; exit 3", 1, "no disk"),
    ("exit 3", 0, "the process exited with code 3"),
    ("echo why >&2; kill -SEGV $$", 0, "the process was killed by SIGSEGV: why"),
    ("kill -9 $$", 0, "the process was killed by SIGKILL (out of memory?)"),
    ("kill $PPID; sleep 99", 0, "ended by SIGTERM"),
]  # fmt: skip


def test_end_of_a_program(start, write):
    """All side by side: the program does what its configuration says."""
    backend = start(write('eval "$2"'), {"code": "true"})
    until_end(backend, TRIAL)
    trials = [Trial(i, {"code": text}, "test") for i, (text, *_) in enumerate(ENDS, 10)]
    for trial in trials:
        backend.start(trial)
    for (text, n, error), trial, (reports, end) in zip(ENDS, trials, until_end(backend, *trials)):
        assert (len(reports), end.error) == (n, error), text
        assert end.outcome == ("failed" if error else "finished"), text
        assert "Traceback" not in backend.log(trial), text


GROUP = """(trap 'echo child saved; exit' TERM; while true; do sleep 0.02; done) &
trap 'wait; echo saved; exit' TERM; sleep 0.3; echo $! $$
"""


@pytest.mark.parametrize("how", ["stop", "kill", "stubborn"])
def test_stop_and_kill_end_the_whole_group(start, write, monkeypatch, how):
    monkeypatch.setattr(hpo.trial, "STOP_SECONDS", 1)
    monkeypatch.setattr(hpo.trial, "TERM_SECONDS", 1)
    text = GROUP if how != "stubborn" else GROUP.replace("wait; echo saved; exit", "")
    backend = start(write(f"{text}{REPORT}while true; do sleep 0.05; done"), {"n": 1})
    if how == "kill":
        assert backend.wait(20)[0].metrics["y"] == 1
        backend.kill(TRIAL)
    before = time.monotonic()
    ((_, end),) = until_end(backend, TRIAL, n_reports=1)
    log = backend.log(TRIAL)
    assert end.outcome == "failed" and time.monotonic() - before < 5
    assert "child saved" in log and ("\nsaved" in log) == (how != "stubborn")
    assert not any(os.path.exists(f"/proc/{pid}") for pid in log.split("\n")[0].split())


# ---- On the command line -------------------------------------------------------------------------
SPACE_PY = "from hpo import randint\nconfig_space = {'x': randint(-9, 9), 'epochs': 9}\n"
METRIC = ["--metric", "loss", "--mode", "min"]


def test_bad_input_of_a_program_is_told_in_a_line_with_the_remedy(write, tmp_path, main):
    program, script, plain = write("true"), write("print(1)", "a.py"), write("x", "b.sh")
    plain.chmod(0o644)
    space, bad = write(SPACE_PY, "space.py"), write("\nconfig_space = 1 / 0", "bad.py")
    for words, error in {
        (program,): "this needs --space FILE, --metric NAME and --mode max|min",
        (plain, "--space", space, *METRIC): "b.sh: is no Python file; if it is a program, use",
        (tmp_path, "--space", space, *METRIC): "is a folder; expected a Python file or a program",
        (program, "--space", bad, *METRIC): "bad.py, line 2: ZeroDivisionError",
        (program, "--space", script, *METRIC): "has no attribute 'config_space'",
        ("train/mlp_fashion_mnist.py", "--pass_json", "f"): "--pass_json: is for programs; this",
    }.items():
        code, _, err = main(*words)
        assert code == 2 and error in err and err.count("\n") == 1, err


def test_program_goes_on_from_its_checkpoint_when_the_run_is_resumed(tmp_path, start_py, main):
    space, folder = tmp_path / "space.json", tmp_path / "run"
    space.write_text('{"step": {"uniform": [0.5, 0.9]}, "epochs": 40, "seconds": 0.02}')
    words = ["run.py", PROGRAMS / "checkpoints.py", "--space", space, *METRIC, "--trials", 1]
    words += ["--checkpoint_flag", "st_checkpoint_dir", "--results", folder]
    first, until = start_py(*words), time.monotonic() + 60
    journal = folder / "journal.jsonl"
    while not journal.exists() or journal.read_text().count('"report"') < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert main("--resume", folder)[0] == 0
    (trial,) = load(folder)
    assert trial.status == "done" and trial.attempt == 2
    assert len(trial.earlier[0]) >= 3 and trial.curve[:3] == trial.earlier[0][:3]
    text = journal.read_text()
    assert '"attempt": 2, "epoch": 40,' in text and '"attempt": 2, "epoch": 1,' not in text
    assert trial.curve[-1] == (40, pytest.approx(trial.config["step"] ** 40))
    epochs = [row.split(",")[1] for row in (folder / "reports.csv").read_text().splitlines()]
    assert epochs == ["epoch", *map(str, range(1, 41))]  # each once, of two attempts


def test_program_that_reads_a_json_file_is_tuned(tmp_path, main):
    space, flag = tmp_path / "space.json", "st_config_json_filename"
    space.write_text('{"x": {"uniform": [0, 1]}, "scale": {"constant": {"by": [3, 4]}}}')
    words = [PROGRAMS / "json_file.py", "--space", space, "--metric", "accuracy", "--mode", "max"]
    code, _, err = main(*words, "--pass_json", flag, "--trials", 1, "--results", tmp_path / "run")
    (trial,) = load(tmp_path / "run")
    assert (code, err) == (0, "") and trial.value == pytest.approx(-trial.config["x"] * 3 / 4)
