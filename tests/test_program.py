"""Any program as an objective: what it is given, what it prints, and how it ends."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hpo.trial
from hpo import load
from hpo.objective import Program, argument, is_program
from hpo.trial import End, LocalBackend, Trial

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests/programs"
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


def until_end(backend, trial=TRIAL, n_reports=99):
    """(metrics of each report, End, log) of a trial, which is stopped at the last report."""
    reports, until = [], time.monotonic() + 20
    while time.monotonic() < until:
        for event in backend.wait(1.0):
            if isinstance(event, End):
                return reports, event, backend.log(trial)
            reports.append(event.metrics)
            backend.answer(trial, len(reports) < n_reports)
    raise AssertionError("the trial has not ended")


def test_python_file_with_objective_is_called_and_others_are_run(write):
    for text, expected in {
        "def objective(config): pass": False,
        "if True:\n    from mine import f as objective": False,
        "a syntax error": False,
        "import argparse\nprint(argparse.objective)": True,
        "def f():\n    objective = 1": True,
        "from syne_tune import Reporter\ndef objective(config): pass": True,
        "def objective(config):\n    import syne_tune.report": True,
        "from syne_tuned import Reporter\nobjective = print": False,
    }.items():
        assert is_program(str(write(text, "a.py"))) == expected, text
    assert is_program("train.sh")


# ---- What a program is given ---------------------------------------------------------------------
VALUES = {
    "a b": "--n|a b", "": "--n|", "it's $HOME \"*\"": '--n|it\'s $HOME "*"', "-text": "--n=-text",
    True: "--n|True", None: "--n|None", -3: "--n|-3", 1e-05: "--n|1e-05", -1e-05: "--n|-0.00001",
    -0.5: "--n|-0.5", -1.25e20: "--n|-125000000000000000000",
}  # fmt: skip
SEEN = "import json, os, sys\nprint('[tune-metric]:', json.dumps({'y': 1, 'seen': json.dumps("


def test_value_becomes_words_that_argparse_and_a_shell_script_read():
    for value, words in VALUES.items():
        assert argument("n", value) == words.split("|")
    assert argument("--n", [1, {"a": None}]) == ["--n", '[1, {"a": null}]']


def test_program_gets_each_value_as_a_word(start, write):
    path = write(f"{SEEN}sys.argv[1:])}}))", "a program.py")
    config = {"num-epochs": 3, "text": " a  'b\" $(c) * ", "empty": "", "yes": True, "none": None}
    ((metrics,), end, _) = until_end(start(path, {**config, "list": [1, "a b"]}))
    words = [word for name, value in config.items() for word in (f"--{name}", str(value))]
    assert end.error == "" and json.loads(metrics["seen"]) == [*words, "--list", '[1, "a b"]']


def test_program_gets_one_file_and_a_folder(start, write, tmp_path):
    path = write(f"{SEEN}sys.argv[1:])}}))", "a program.py")
    config = {"list": [1, {"a": None}], "yes": True, "text": "é"}
    backend = start(path, config, pass_json="--config", checkpoint_flag="st_checkpoint_dir")
    ((metrics,), _, _) = until_end(backend)
    file, folder = tmp_path / "run/logs/0003.json", tmp_path / "run/checkpoints/0003"
    words = ["--config", str(file), "--st_checkpoint_dir", str(folder)]
    assert json.loads(metrics["seen"]) == words
    assert json.loads(file.read_text()) == config and folder.parent.exists()
    assert not folder.exists()  # programs take it for a checkpoint when it is there


def test_environment_of_a_program(start, write, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    path = write(f"{SEEN}dict(os.environ, python=sys.executable))}}))", "program.py")
    backend = start(path, {"n": 1})
    seen = json.loads(until_end(backend)[0][0]["seen"])
    assert seen["PYTHONUNBUFFERED"] == "1" and seen["python"] == sys.executable
    assert seen["CUDA_VISIBLE_DEVICES"] == "5"
    assert seen["TRIAL_SEED"] == str(hpo.trial.trial_seed(0, 3))
    assert seen["OMP_NUM_THREADS"] == str(hpo.trial.n_threads(2))


# ---- What it prints ------------------------------------------------------------------------------
def test_reports_are_found_anywhere_in_a_line(start, write, tmp_path):
    lines = [
        'x [tune-metric]: {"y": 0.5, "epoch": 1, "st_worker_iter": 0, "list": [1]} and } more',
        '50%\r[tune-metric]: {"y": NaN}[tune-metric]: {"loss": 1, "epoch": 3}',
        '[tune-metric]: {"y": 0.5', "[tune-metric]: [1]", '[tune-metric]: {"y": 1, "epoch": 0.5}',
        '[tune-metric]: {"st_worker_iter": 0}', "[tune-metric]: " + '{"a":' * 9999, "é",
    ]  # fmt: skip
    path = write("\n".join(f"printf '%s\\n' '{line}'" for line in lines) + "\nprintf end >&2")
    (first, second, third), end, _ = until_end(start(path, {"n": 1}))
    assert first == {"y": 0.5, "epoch": 1} and third == {"loss": 1, "epoch": 3}
    assert second["epoch"] == 2 and second["y"] != second["y"]
    log = (tmp_path / "run/logs/0003.log").read_text()
    assert end.outcome == "finished" and "é\n" in log and "end" in log
    assert (
        "warning: 5 lines with [tune-metric]: are no reports" in log and log.count("warning") == 1
    )


def test_output_goes_to_the_log_as_it_comes(start, write):
    backend = start(write("printf 'half a line'; sleep 99"), {"n": 1})
    until = time.monotonic() + 10
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


@pytest.mark.parametrize("text,n_reports,error", ENDS)
def test_end_of_a_program(start, write, text, n_reports, error):
    reports, end, log = until_end(start(write(text), {"n": 1}))
    assert (len(reports), end.error) == (n_reports, error)
    assert end.outcome == ("failed" if error else "finished") and "Traceback" not in log


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
    _, end, log = until_end(backend, n_reports=1)
    assert end.outcome == "failed" and time.monotonic() - before < 5
    assert "child saved" in log and ("\nsaved" in log) == (how != "stubborn")
    assert not any(os.path.exists(f"/proc/{pid}") for pid in log.split("\n")[0].split())


def test_checkpoints_outlive_an_attempt(start):
    config = {"step": 0.5, "epochs": 6, "seconds": 0.05}
    backend = start(PROGRAMS / "checkpoints.py", config, checkpoint_flag="st_checkpoint_dir")
    reports, _, _ = until_end(backend, n_reports=3)
    assert [metrics["epoch"] for metrics in reports] == [1, 2, 3]
    backend.start(trial := Trial(3, config, "test", attempt=2))
    reports, _, _ = until_end(backend, trial)
    assert reports[0]["epoch"] > 3 and reports[-1]["loss"] == 0.5**6


# ---- On the command line -------------------------------------------------------------------------
LOOP = r"""while [ $# -gt 0 ]; do declare "${1#--}=$2"; shift 2; done
for ((e = 1; e <= epochs; e++)); do
  printf 'step [tune-metric]: {"loss": %d, "epoch": %d}\n' $((x * x + 90 / e)) $e; sleep 0.01
done"""
SPACE_PY = "from hpo import randint\nconfig_space = {'x': randint(-9, 9), 'epochs': 9}\n"
METRIC = ["--metric", "loss", "--mode", "min"]


def run_py(*words):
    """(exit code, stderr) of a run from the command line."""
    command = [sys.executable, "run.py", *map(str, words)]
    options = {"capture_output": True, "text": True, "cwd": ROOT, "timeout": 60}
    done = subprocess.run(command, check=False, **options)
    return done.returncode, done.stderr


def tune(tmp_path, path, space, metric, mode, *flags):
    """The trials of a run of a program."""
    (tmp_path / "space.json").write_text(json.dumps(space))
    words = [path, "--space", tmp_path / "space.json", "--metric", metric, "--mode", mode]
    words += ["--workers", 2, "--results", tmp_path / "run"]
    assert run_py(*words, *flags) == (0, "")
    return load(tmp_path / "run")


def test_shell_script_is_tuned_and_stopped_early(write, tmp_path):
    space = write(SPACE_PY, "space.py")
    words = [write(LOOP), "--space", space, *METRIC, "--trials", 12, "--workers", 3]
    assert run_py(*words, "--results", tmp_path / "run") == (0, "")
    trials = load(tmp_path / "run")
    assert {trial.status for trial in trials} == {"done", "stopped"}
    for trial in trials:
        assert trial.curve[0] == (1, trial.config["x"] ** 2 + 90)
        assert trial.n_epochs == 9 or trial.status == "stopped"
        assert "step [tune" in (tmp_path / f"run/logs/{trial.id:04d}.log").read_text()


def test_bad_input_of_a_program_is_told_in_a_line_with_the_remedy(write, tmp_path):
    program, script, plain = write(LOOP), write("print(1)", "a.py"), write("x", "b.sh")
    plain.chmod(0o644)
    space, bad = write(SPACE_PY, "space.py"), write("\nconfig_space = 1 / 0", "bad.py")
    needs = "this needs --space FILE, --metric NAME and --mode max|min"
    for words, error in {
        (program,): needs,
        (script, *METRIC): needs,
        (script, "--space", space, "--metric", "loss"): needs,
        (
            plain,
            "--space",
            space,
            *METRIC,
        ): "b.sh: is no Python file; if it is a program, use",
        (tmp_path, "--space", space, *METRIC): "is a folder; expected a Python file or a program",
        (program, "--space", "gone.py", *METRIC): "gone.py: FileNotFoundError",
        (program, "--space", bad, *METRIC): "bad.py, line 2: ZeroDivisionError",
        (program, "--space", script, *METRIC): "has no attribute 'config_space'",
        ("train/mlp_fashion_mnist.py", "--pass_json", "f"): "--pass_json: for a program, but this",
    }.items():
        code, err = run_py(*words)
        assert code == 2 and error in err and err.count("\n") == 1, err


def test_program_goes_on_from_its_checkpoint_when_the_run_is_resumed(tmp_path):
    space = tmp_path / "space.json"
    space.write_text('{"step": {"uniform": [0.5, 0.9]}, "epochs": 40, "seconds": 0.05}')
    words = ["run.py", PROGRAMS / "checkpoints.py", "--space", space, *METRIC, "--trials", 1]
    words += ["--checkpoint_flag", "st_checkpoint_dir", "--results", tmp_path / "run"]
    with subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT) as first:
        journal, until = tmp_path / "run/journal.jsonl", time.monotonic() + 20
        while not journal.exists() or journal.read_text().count('"report"') < 3:
            assert time.monotonic() < until
            time.sleep(0.01)
        first.send_signal(signal.SIGINT)
    assert first.returncode == 130
    assert run_py("--resume", tmp_path / "run") == (0, "")
    (trial,) = load(tmp_path / "run")
    assert trial.status == "done" and trial.attempt == 2
    assert len(trial.earlier[0]) >= 3 and trial.curve[:3] == trial.earlier[0][:3]
    lines = map(json.loads, journal.read_text().splitlines())
    assert next(e for e in lines if "report" in e and e["attempt"] == 2)["epoch"] > 3
    assert trial.curve[-1] == (40, pytest.approx(trial.config["step"] ** 40))


def test_scripts_in_the_style_of_syne_tune_are_tuned(tmp_path):
    space = {"learning-rate": {"loguniform": [1e-3, 1]}, "shift": {"uniform": [-1e-4, -1e-5]}}
    space |= {"epochs": 3}
    flags = ["--trials", 5, "--stopping", "none"]
    trials = tune(tmp_path, PROGRAMS / "plain.py", space, "accuracy", "max", *flags)
    for trial in trials:
        best = (1 - 0.5**3) / (1 + trial.config["learning-rate"] + trial.config["shift"] ** 2)
        assert trial.value == pytest.approx(-best, rel=1e-12) and trial.best_epoch == 3
    assert "accuracy" in (tmp_path / "run/reports.csv").read_text().splitlines()[0]


def test_script_that_reads_a_json_file_is_tuned(tmp_path):
    space = {"x": {"uniform": [0, 1]}, "weights": [1, 2], "scale": {"constant": {"by": 4}}}
    flags = ["--pass_json", "st_config_json_filename", "--trials", 3]
    for trial in tune(tmp_path, PROGRAMS / "json_file.py", space, "accuracy", "max", *flags):
        assert trial.value == pytest.approx(-trial.config["x"] * 3 / 4, rel=1e-9)


SYNE_TUNE = """
import argparse
from syne_tune import Reporter
from syne_tune.utils import (
    add_checkpointing_to_argparse, add_config_json_to_argparse, checkpoint_model_at_rung_level,
    load_config_json, parse_bool, resume_from_checkpointed_model,
)

def objective(config):
    state = []
    def load(folder):
        return int(open(f"{folder}/state").read())
    def save(folder, epoch):
        import os
        os.makedirs(folder, exist_ok=True)
        open(f"{folder}/state", "w").write(str(epoch))
    report = Reporter()
    first = resume_from_checkpointed_model(config, load) + 1
    for epoch in range(first, config["epochs"] + 1):
        checkpoint_model_at_rung_level(config, save, epoch)
        report(epoch=epoch, accuracy=config["x"] * epoch, first=first, yes=config["yes"])

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    if BY_JSON:
        add_config_json_to_argparse(parser)
    else:
        parser.add_argument("--x", type=float, required=True)
        parser.add_argument("--epochs", type=int, required=True)
        parser.add_argument("--yes", type=parse_bool, required=True)
    add_checkpointing_to_argparse(parser)
    args, _ = parser.parse_known_args()
    config = vars(args)
    objective(load_config_json(config) if BY_JSON else config)
"""


@pytest.mark.skipif(not importlib.util.find_spec("syne_tune"), reason="needs the package syne-tune")
@pytest.mark.parametrize("by_json", [False, True])
def test_script_with_the_real_reporter_and_helpers_is_tuned(write, tmp_path, by_json):
    path = write(SYNE_TUNE.replace("BY_JSON", str(by_json)), "a script.py")
    space = {"x": {"uniform": [-1e-4, 1e-4]}, "epochs": 9, "yes": False}
    flags = ["--checkpoint_flag", "st_checkpoint_dir", "--trials", 6]
    flags += ["--pass_json", "st_config_json_filename"] * by_json
    trials = tune(tmp_path, path, space, "accuracy", "max", *flags)
    header, row = (tmp_path / "run/reports.csv").read_text().splitlines()[:2]
    assert header == "trial,epoch,time,accuracy,first,yes" and row.endswith("False")
    assert {trial.status for trial in trials} <= {"done", "stopped"}
    for trial in trials:
        assert trial.curve[0] == (1, pytest.approx(-trial.config["x"], rel=1e-9))
    assert (tmp_path / "run/checkpoints/0000/state").read_text() == "9"
