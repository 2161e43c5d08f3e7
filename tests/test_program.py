"""Any program as an objective: what it is given, what it prints, and how it ends."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from test_trial import until_end, wait_for

import hpo.trial
from hpo import load
from hpo.objective import Program, argument, is_program
from hpo.trial import LocalBackend, Trial

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


def test_python_file_with_objective_is_called_and_others_are_run(write):
    for text, expected in {
        "def objective(config): pass": False,
        "if True:\n    from mine import f as objective": False,
        "objective = 1\na syntax error": False,
        "import argparse\nprint(argparse.objective)": True,
        "def f():\n    objective = 1": True,
        "from syne_tune import Reporter\ndef objective(config): pass": True,
        "def objective(config):\n    import syne_tune.report": True,
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
seen = json.dumps([sys.argv[1:], dict(os.environ), sys.stdin.read()])
print('[tune-metric]:', json.dumps({'y': 1, 'seen': seen}))"""


def test_program_gets_words_and_an_environment_or_a_file_and_a_folder(
    start, write, monkeypatch, tmp_path
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    path = write(SEEN, "a program.py")
    config = {"num-epochs": 3, "text": " a  'b\" $(c) * é", "empty": "", "yes": True, "none": None}
    words = [word for name, value in config.items() for word in (f"--{name}", str(value))]
    (((metrics,), end),) = until_end(start(path, {**config, "list": [1, "a b"]}), TRIAL)
    arguments, environment, stdin = json.loads(metrics["seen"])
    assert (end.error, stdin) == ("", "") and arguments == [*words, "--list", '[1, "a b"]']
    expected = {"PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": "5"}
    expected["TRIAL_SEED"] = str(hpo.trial.trial_seed(0, 3))
    expected["OMP_NUM_THREADS"] = str(hpo.trial.n_threads(2))
    assert expected.items() <= environment.items()

    flags = {"pass_json": "--config", "checkpoint_flag": "st_checkpoint_dir"}
    config["list"] = [1, {"a": None}]
    (((metrics,), _),) = until_end(start(path, config, **flags), TRIAL)
    file, folder = tmp_path / "run/logs/0003.json", tmp_path / "run/checkpoints/0003"
    words = ["--config", str(file), "--st_checkpoint_dir", str(folder)]
    assert json.loads(metrics["seen"])[0] == words and json.loads(file.read_text()) == config
    assert folder.parent.exists() and not folder.exists()  # it would be taken for a checkpoint


# ---- What it prints, and how it ends -------------------------------------------------------------
def test_reports_are_found_anywhere_and_all_is_logged_as_it_comes(start, write, tmp_path):
    lines = [
        'x [tune-metric]: {"y": 0.5, "epoch": 1, "st_worker_iter": 0} and } more',
        '50%\r[tune-metric]: {"y": NaN}[tune-metric]: {"loss": 1, "epoch": 3}',
        '[tune-metric]: {"y": 0.5', "[tune-metric]: [1]", '[tune-metric]: {"y": 1, "epoch": 0.5}',
        '[tune-metric]: {"st_worker_iter": 0}', "[tune-metric]: " + '{"a":' * 9999, "é",
    ]  # fmt: skip
    text = "\n".join(f"printf '%s\\n' '{line}'" for line in lines)
    backend = start(write(f"{text}\necho end >&2; printf half; sleep 0.5; echo"), {"n": 1})
    (((first, second, third), end),) = until_end(backend, TRIAL)
    assert first == {"y": 0.5, "epoch": 1} and third == {"loss": 1, "epoch": 3}
    assert second["epoch"] == 2 and second["y"] != second["y"]
    log = (tmp_path / "run/logs/0003.log").read_text()
    assert end.outcome == "finished" and log.rstrip().endswith("é\nend\nhalf")
    assert log.count("warning: not a report: ") == 5 and "epoch: expected an integer >= 0" in log
    backend = start(write("echo a line; sleep 99"), {"n": 1})
    wait_for(lambda: backend.log(TRIAL).endswith("a line"))


REPORT = """echo '[tune-metric]: {"y": 1}'\n"""
LOSS = """echo '[tune-metric]: {"loss": 1}'"""
EXPECTED = 'expected printed lines [tune-metric]: {"y": 0.9}, got'
ENDS = [  # what a program does, how many reports come, and its error
    (REPORT, 1, ""),
    (f"exec 1>&2; {REPORT}", 1, ""),
    (f"sleep 99 &\n{REPORT}", 1, ""),  # it leaves a process that holds its output open
    (f"(setsid sleep 99 &)\n{REPORT}printf end", 1, ""),
    (f"exec &> /dev/null; {REPORT}", 0, f"{EXPECTED} nothing"),
    (LOSS, 1, f"{EXPECTED} ['loss']"),
    (f"{REPORT}echo o; echo 'no  disk' >&2; exit 3", 1, "the process exited with code 3: no disk"),
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
    needs = "this needs --space FILE, --metric NAME and --mode max|min"
    chmod = "b.sh: is no Python file; if it is a program, use chmod +x"
    for words, error in {
        (program,): needs,
        (script, "--space", space, "--metric", "loss"): needs,
        (plain, "--space", space, *METRIC): chmod,
        (tmp_path, "--space", space, *METRIC): "is a folder; expected a Python file or a program",
        (program, "--space", bad, *METRIC): "bad.py, line 2: ZeroDivisionError",
        (program, "--space", script, *METRIC): "has no attribute 'config_space'",
        ("train/mlp_fashion_mnist.py", "--pass_json", "f"): "--pass_json: for a program, but this",
    }.items():
        code, _, err = main(*words)
        assert code == 2 and error in err and err.count("\n") == 1, err


def test_program_goes_on_from_its_checkpoint_when_the_run_is_resumed(tmp_path, start_py, main):
    space, folder = tmp_path / "space.json", tmp_path / "run"
    entries = '"epochs": 40, "sleep": {"constant": {"seconds": 0.02}}'
    space.write_text(f'{{"step": {{"uniform": [0.5, 0.9]}}, {entries}}}')
    program = Path(__file__).resolve().parent / "programs/checkpoints.py"
    words = ["run.py", program, "--space", space, *METRIC, "--trials", 1, "--results", folder]
    words += ["--pass_json", "config", "--checkpoint_flag", "st_checkpoint_dir"]
    first, journal = start_py(*words), folder / "journal.jsonl"
    wait_for(lambda: journal.exists() and journal.read_text().count('"report"') >= 3)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert main("--resume", folder)[0] == 0
    (trial,) = load(folder)
    assert trial.status == "done" and trial.attempt == 2
    assert len(trial.earlier[0]) >= 3 and trial.curve[:3] == trial.earlier[0][:3]
    lines = map(json.loads, journal.read_text().splitlines())
    assert next(e for e in lines if "report" in e and e["attempt"] == 2)["epoch"] > 3
    assert trial.curve[-1] == (40, pytest.approx(trial.config["step"] ** 40))
    epochs = [row.split(",")[1] for row in (folder / "reports.csv").read_text().splitlines()]
    assert epochs == ["epoch", *map(str, range(1, 41))]  # each once, of two attempts
