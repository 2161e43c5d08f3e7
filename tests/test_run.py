"""The real command, as a user runs it: `python run.py ...` in a process of its own."""

import csv
import json
import os
import pathlib
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from hpo.objective import run_as_program
from hpo.results import load
from hpo.space import choice, uniform

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICK = """
import random, time
from hpo import Reporter, choice, loguniform, randint, uniform

config_space = {
    "x": uniform(-1, 1), "rate": loguniform(1e-4, 1), "n": randint(1, 9), "kind": choice(["a b", 'c"d', "e,f\\n", "é"]),
    "epochs": 3, "pause": 0.0, "nested": {"list": [1, 2.5, None]},
}
metric, mode = "loss", "min"

def objective(config):
    report = Reporter()
    for epoch in range(1, config["epochs"] + 1):
        time.sleep(config["pause"])
        report(epoch=epoch, loss=config["x"] ** 2 + 1 / epoch, kind=config["kind"], luck=random.random())
"""


def start(*arguments, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    stopping = [] if {"--stopping", "--resume"} & set(arguments) else ["--stopping", "none"]  # trials run to their end
    return subprocess.Popen([sys.executable, ROOT / "run.py", *map(str, arguments), *stopping], **{**pipes, **options})


def run(*arguments, timeout=60, **options):
    """(exit code, stdout, stderr) of one run."""
    process = start(*arguments, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def quick(tmp_path):
    path = tmp_path / "quick.py"
    path.write_text(QUICK, encoding="utf-8")
    return path


# ---- A run that works ---------------------------------------------------------------------------------------------------
def test_run_writes_its_folder_and_a_summary(quick, tmp_path):
    folder = tmp_path / "results" / "new"
    code, out, err = run(quick, "--trials", 7, "--workers", 3, "--seed", 5, "--results", folder)
    assert (code, err) == (0, "")
    trials, reports = rows(folder / "trials.csv"), rows(folder / "reports.csv")
    assert sorted(int(row["trial"]) for row in trials) == list(range(7))
    assert len(reports) == 7 * 3
    assert {row["status"] for row in trials} == {"done"}
    assert {row["origin"] for row in trials} == {"start", "initial", "model"}
    for row in trials:
        x = float(row["config_x"])
        assert float(row["value"]) == float(row["last_value"]) == x**2 + 1 / 3
        assert (row["best_epoch"], row["n_epochs"], row["config_epochs"]) == ("3", "3", "3")
        assert float(row["started"]) <= float(row["ended"])
    best = min(trials, key=lambda row: float(row["value"]))
    config = next(json.loads(line) for line in out.splitlines() if line.startswith("{"))
    assert config["x"] == float(best["config_x"]) and config["nested"] == {"list": [1, 2.5, None]}
    assert "7 done" in out and str(folder / "trials.csv") in out and "% of the time" in out
    expected = re.search(r"best by posterior mean loss=(\S+) \+- (\S+) \(trial \d+(?:, epoch \d+)?\)", out)
    assert abs(float(expected[1]) - float(best["value"])) < 0.5 and float(expected[2]) > 0
    assert len(list((folder / "logs").iterdir())) == 7
    loaded = load(folder)
    assert [trial.id for trial in loaded] == list(range(7)) and loaded[0].config["x"] == 0.0
    assert all(len(trial.curve) == 3 and trial.status == "done" for trial in loaded)


def test_printed_command_trains_the_best_configuration_again(quick, tmp_path):
    (tmp_path / "start.json").write_text(
        '[{"x": 0.125, "kind": "e,f\\n"}, {"x": 0.0625, "kind": "\u00e9"}]', encoding="utf-8"
    )
    _, out, _ = run(quick, "--trials", 2, "--start", tmp_path / "start.json", "--results", tmp_path / "run")
    command = next(line for line in out.splitlines() if "hpo.objective" in line)
    words = [
        sys.executable if word == "python" else word for word in shlex.split(command) if "=" not in word or "--" in word
    ]
    again = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT, timeout=60)
    values = [json.loads(line) for line in re.findall(r"\[tune-metric\]: (\{.*\})", again.stdout)]
    first = [row for row in rows(tmp_path / "run" / "reports.csv") if row["trial"] == "1"]
    assert [value["epoch"] for value in values] == [1, 2, 3] and {value["kind"] for value in values} == {"\u00e9"}
    for name in ("loss", "luck"):  # with the same random numbers
        assert [value[name] for value in values] == [float(row[name]) for row in first]


def test_objective_file_is_a_program_with_a_flag_for_each_name(tmp_path, capsys):
    space, seen = {"x": uniform(0, 1), "kind": choice(["a", 1]), "n_steps": 3, "place": "here"}, []

    def program(*arguments, prepare=None):
        run_as_program(lambda config: seen.append((config, random.random())), space, prepare, arguments)
        return seen[-1]

    flags = ["--x=0.5", "--kind", "a", "--n_steps", "4", "--place=a b"]
    expected = {"x": 0.5, "kind": "a", "n_steps": 4, "place": "a b"}
    first, again, other = (program(*flags, "--unknown", "3", "--trial_seed", seed) for seed in "112")
    assert first == again and first[0] == other[0] == expected and first[1] != other[1]
    (tmp_path / "config.json").write_text(json.dumps(expected | {"kind": 1}))
    assert program("--config_json", str(tmp_path / "config.json"))[0] == expected | {"kind": 1}
    prepared = program(*flags, prepare=lambda constants: {"place": f"{constants['n_steps']} {constants['place']}"})
    assert prepared[0] == expected | {"place": "4 a b"}
    for arguments, words in (
        (flags[1:3], "missing --x, --n_steps, --place; every name of config_space needs a value"),
        (["--x=2", *flags[1:]], "x: expected a value of uniform(0.0, 1.0), got '2'"),
        (["--config_json", str(tmp_path / "nowhere")], "nowhere"),
    ):
        with pytest.raises(SystemExit) as leave:
            program(*arguments)
        assert leave.value.code == 2 and words in capsys.readouterr().err


def test_same_seed_gives_the_same_trials_and_another_seed_does_not(quick, tmp_path):
    folders = {name: tmp_path / name for name in ("a", "b", "c")}
    with ThreadPoolExecutor(2) as pool:
        seeds = {"a": 1, "b": 1, "c": 2}
        list(
            pool.map(
                lambda n: run(quick, "--trials", 5, "--workers", 1, "--seed", seeds[n], "--results", folders[n]),
                folders,
            )
        )
    timeless = [
        [
            {k: v for k, v in row.items() if k not in ("started", "ended", "seconds", "suggest_seconds")}
            for row in rows(f / "trials.csv")
        ]
        for f in folders.values()
    ]
    assert timeless[0] == timeless[1] and timeless[0] != timeless[2]


def test_another_metric_epochs_name_eta_and_no_start(quick, tmp_path):
    quick.write_text(QUICK.replace('"epochs": 3', '"n_steps": 9').replace('config["epochs"]', 'config["n_steps"]'))
    (tmp_path / "start.json").write_text("[]")
    rule = ["--epochs_name", "n_steps", "--stopping", "asha", "--eta", 2, "--start", tmp_path / "start.json"]
    metric = ["--metric", "luck", "--mode", "max", "--trials", 16, "--workers", 1]
    code, out, err = run(quick, *rule, *metric, "--results", tmp_path / "run")
    assert (code, err) == (0, "") and "maximise luck over 4" in out
    found = rows(tmp_path / "run" / "trials.csv")
    assert "start" not in {row["origin"] for row in found}
    ends = {row["n_epochs"] for row in found if row["status"] == "stopped"}
    assert ends <= {"1", "2", "4", "8"} and ends & {"2", "4", "8"}
    reports = rows(tmp_path / "run" / "reports.csv")
    for row in found:
        assert row["value"] == max(report["luck"] for report in reports if report["trial"] == row["trial"])


def test_set_space_start_metric_and_mode_change_the_problem(quick, tmp_path):
    (tmp_path / "space.json").write_text(
        '{"x": {"uniform": [0, 2]}, "kind": {"choice": ["a", "b"]}, "epochs": 9, "pause": 0}'
    )
    (tmp_path / "start.json").write_text('[{"x": 1.5, "kind": "b"}, {"x": 0.25}]')
    flags = [
        "--space",
        tmp_path / "space.json",
        "--start",
        tmp_path / "start.json",
        "--set",
        "epochs=2",
        "--set",
        "kind=b",
    ]
    code, _, err = run(quick, *flags, "--mode", "max", "--trials", 3, "--results", tmp_path / "run")
    assert (code, err) == (0, "")
    found = {int(row["trial"]): row for row in rows(tmp_path / "run" / "trials.csv")}
    assert [found[i]["config_x"] for i in (0, 1)] == ["1.5", "0.25"]
    assert {row["config_epochs"] for row in found.values()} == {"2"} and {
        row["config_kind"] for row in found.values()
    } == {"b"}
    assert float(found[0]["value"]) == 1.5**2 + 1  # mode max: the best is the first epoch's


def test_own_searcher_from_a_file(quick, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from hpo.space import middle\n"
        "class Counting:\n"
        "    def __init__(self, space, seed=0, max_epochs=None):\n"
        "        self.space, self.max_epochs = space, max_epochs\n"
        "    def suggest(self, trials):\n"
        "        if len(trials) == 4:\n"
        "            return None\n"
        "        return {**middle(self.space), 'n': len(trials) + self.max_epochs}, 'counted'\n"
    )
    code, out, _ = run(quick, "--searcher", f"{tmp_path / 'mine.py'}:Counting", "--results", tmp_path / "run")
    assert code == 0 and "exhausted" in out
    found = {int(row["trial"]): (row["config_n"], row["origin"]) for row in rows(tmp_path / "run" / "trials.csv")}
    assert found == {0: ("5", "start"), 1: ("4", "counted"), 2: ("5", "counted"), 3: ("6", "counted")}


def test_asha_stops_trials_and_the_folder_tells_the_same(quick, tmp_path):
    folder = tmp_path / "run"
    code, out, err = run(
        quick, "--trials", 20, "--workers", 1, "--stopping", "asha", "--set", "epochs=9", "--results", folder
    )
    assert (code, err) == (0, "")
    found, reports = rows(folder / "trials.csv"), rows(folder / "reports.csv")
    n_stopped = sum(row["status"] == "stopped" for row in found)
    assert n_stopped > 5 and {row["status"] for row in found} == {"stopped", "done"}
    ended = next(line for line in out.splitlines() if line.startswith("ended"))
    assert f"{n_stopped} stopped" in ended and "stopping asha" in out
    assert {row["n_epochs"] for row in found if row["status"] == "stopped"} == {"1", "3"}
    assert {row["n_epochs"] for row in found if row["status"] == "done"} == {"9"}
    assert len(reports) == sum(int(row["n_epochs"]) for row in found)
    arguments = json.loads((folder / "run.json").read_text())["arguments"]
    assert (arguments["stopping"], arguments["first_rung"], arguments["eta"]) == ("asha", 1, 3)


@pytest.mark.parametrize(
    "change, n_stopped",
    [
        ([], 3),
        (['"epochs": 3', '"n_steps": 3', 'config["epochs"]', 'config["n_steps"]'], 0),  # no last epoch
        (["epoch=epoch, ", ""], 0),  # reports that are counted
    ],
    ids=["epochs", "no last epoch", "no epoch reported"],
)
def test_trials_are_stopped_by_default_where_epochs_are_known(quick, tmp_path, change, n_stopped):
    text = QUICK
    for old, new in zip(change[::2], change[1::2]):
        assert old in text
        text = text.replace(old, new)
    quick.write_text(text, encoding="utf-8")
    code, out, err = run(quick, "--trials", 20, "--stopping", "auto", "--results", tmp_path / "run")
    assert (code, err) == (0, "") and f"stopping {'none' if 'n_steps' in text else 'halving'}" in out
    n = sum(row["status"] == "stopped" for row in rows(tmp_path / "run" / "trials.csv"))
    assert n >= n_stopped and (n_stopped or not n)


def test_own_rule_from_a_file(quick, tmp_path):
    text = "def rule(trial, trials, max_epochs, first_rung):\n    return len(trial.curve) == first_rung < max_epochs"
    (tmp_path / "mine.py").write_text(text)
    rule = f"{tmp_path / 'mine.py'}:rule"
    code, _, err = run(
        quick, "--trials", 3, "--stopping", rule, "--first_rung", 2, "--results", tmp_path / "run", "--workers", 1
    )
    assert (code, err) == (0, "")
    assert [(row["status"], row["n_epochs"]) for row in rows(tmp_path / "run" / "trials.csv")] == [("stopped", "2")] * 3


def test_prepare_replaces_constants_and_the_stand_in_is_announced(quick, tmp_path):
    more = (
        "\ndef prepare(constants):\n    return {'dataset': 'synthetic' if constants['dataset'] == 'auto' else 'real'}\n"
    )
    quick.write_text(QUICK.replace('"epochs": 3', '"epochs": 3, "dataset": "auto"') + more, encoding="utf-8")
    code, out, _ = run(quick, "--trials", 1, cwd=tmp_path)
    folder = tmp_path / re.search(r"results: (\S+)", out)[1]
    assert code == 0 and folder.parent == tmp_path / "results" and folder.name.endswith("-synthetic")
    assert out.count("STAND-IN DATA") >= 2
    assert rows(folder / "trials.csv")[0]["config_dataset"] == "synthetic"


def test_constant_that_no_prepare_has_made_synthetic_is_no_stand_in(quick, tmp_path):
    quick.write_text(QUICK.replace('"epochs": 3', '"epochs": 3, "dataset": "synthetic"'), encoding="utf-8")
    code, out, _ = run(quick, "--trials", 1, "--results", tmp_path / "run")
    assert code == 0 and "STAND-IN" not in out


def test_main_job_at_toy_size(tmp_path):
    """`python run.py` on the running example: stand-in images, small networks, one epoch, the same twice."""
    sets = [
        "dataset=synthetic",
        f"dataset_path={tmp_path / 'data'}",
        "epochs=1",
        "batch_size=128",
        "n_units_1=16",
        "n_units_2=16",
    ]
    flags = [flag for value in sets for flag in ("--set", value)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # on which equal seeds may not give equal numbers

    def answer(name):
        ending = {"timeout": 120, "env": environment}
        return run(*flags, "--trials", 2, "--workers", 2, "--results", tmp_path / name, **ending)

    with ThreadPoolExecutor(2) as pool:
        for code, out, err in pool.map(answer, "ab"):
            assert code == 0 and "STAND-IN DATA" in out, err
    first, second = ({row["trial"]: row for row in rows(tmp_path / name / "trials.csv")} for name in ("a", "b"))
    for i in ("0", "1"):
        assert 0.05 < float(first[i]["value"]) == float(second[i]["value"]) < 1
        assert first[i]["config_dataset"] == "synthetic" and first[i]["n_epochs"] == "1"


# ---- Endings ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_ends_the_run_with_rows_and_summary(quick, tmp_path, number, code):
    folder = tmp_path / "run"
    heed = partial(signal.signal, number, signal.SIG_DFL)  # where nohup has run these tests, SIGHUP is ignored
    process = start(quick, "--set", "pause=0.05", "--set", "epochs=1000", "--results", folder, preexec_fn=heed)
    wait_for_trials(folder, 4)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, "")
    found = rows(folder / "trials.csv")
    assert {row["status"] for row in found} == {"timeout"} and len(found) == 4
    assert all(number.name in row["error"] and float(row["value"]) > 0 for row in found)
    assert "best loss" in out and str(folder / "reports.csv") in out


def test_signal_to_all_processes_twice_ends_the_run_in_order_too(quick, tmp_path):
    """As `timeout` sends it: to its child, then to the group."""
    folder = tmp_path / "run"
    arguments = ["--set", "pause=0.05", "--set", "epochs=1000", "--results", folder]
    process = start(quick, *arguments, start_new_session=True)
    wait_for_trials(folder, 4)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    found = rows(folder / "trials.csv")
    assert (process.returncode, err, len(found)) == (143, "", 4)
    assert {(row["status"], row["error"]) for row in found} == {("timeout", "interrupted by SIGTERM")}


def test_second_signal_after_a_second_kills_at_once(quick, tmp_path):
    """Trials that do not heed SIGTERM would have five seconds, and a searcher that thinks any time."""
    ignores = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); report = Reporter()"
    text = QUICK.replace("report = Reporter()", ignores).replace('config["pause"])', "epoch > 1 and 60)")
    quick.write_text(text, encoding="utf-8")
    process = start(quick, "--results", tmp_path / "run")
    wait_for_trials(tmp_path / "run", 4)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    before = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130 and time.monotonic() - before < 3
    assert rows(tmp_path / "run" / "trials.csv") == []  # they start again with --resume


def wait_for_trials(folder, n):
    """Until so many trials have reported."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        path = folder / "reports.csv"
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
        if len({line.partition(",")[0] for line in whole.splitlines()[1:]}) >= n:
            return
        time.sleep(0.02)
    raise AssertionError(f"{n} trials have not reported in 30 s")


def wait_for_lines(path, n, seconds=30):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if path.exists() and path.read_bytes().count(b"\n") >= n:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} has not grown to {n} lines in {seconds} s")


def test_deadline_keeps_what_running_trials_reported(quick, tmp_path):
    before = time.monotonic()
    code, out, _ = run(
        quick, "--hours", 0.0006, "--set", "pause=0.05", "--set", "epochs=1000", "--results", tmp_path / "run"
    )
    assert code == 0 and "deadline" in out and time.monotonic() - before < 12
    found = rows(tmp_path / "run" / "trials.csv")
    assert {row["status"] for row in found} == {"timeout"}
    assert all(row["error"] == "deadline" and int(row["n_epochs"]) > 0 for row in found)


def test_trial_timeout_ends_that_trial_alone(quick, tmp_path):
    code, _, _ = run(
        quick, "--trials", 2, "--workers", 1, "--trial_timeout", 0.7, "--set", "pause=0.3", "--results", tmp_path / "r"
    )
    found = rows(tmp_path / "r" / "trials.csv")
    assert code == 0 and [row["status"] for row in found] == ["timeout", "timeout"]
    assert all("trial_timeout" in row["error"] for row in found)


def test_failing_first_trials_end_the_run_with_their_traceback(quick, tmp_path):
    quick.write_text(QUICK.replace("report = Reporter()", "raise RuntimeError('no GPU today')"), encoding="utf-8")
    code, _, err = run(quick, "--workers", 2, "--results", tmp_path / "run")
    assert code == 1 and "RuntimeError: no GPU today" in err and "quick.py" in err
    assert [row["status"] for row in rows(tmp_path / "run" / "trials.csv")].count("failed") >= 3


def test_some_failing_trials_do_not_end_the_run(quick, tmp_path):
    wrong = "if config['x'] < 0: raise RuntimeError('negative')\n    if config['x'] > 0.5: report(epoch=1, loss=float('nan'))\n"
    quick.write_text(QUICK.replace("for epoch in", wrong + "    for epoch in"), encoding="utf-8")
    code, _, _ = run(quick, "--trials", 20, "--results", tmp_path / "run")
    found = rows(tmp_path / "run" / "trials.csv")
    assert code == 0 and len(found) == 20
    for row in found:
        x, expected = float(row["config_x"]), ("done", "")
        if x < 0:
            expected = ("failed", "RuntimeError: negative")
        elif x > 0.5:
            expected = ("failed", "reported loss=nan at epoch 1; expected a finite number")
        assert (row["status"], row["error"]) == expected
        assert (row["value"] == "") == (row["status"] == "failed")


@pytest.mark.parametrize("stdout", ["/dev/full", "closed"])
def test_run_goes_on_when_nobody_can_read_its_output(quick, tmp_path, stdout):
    if stdout == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "run.py", "--stopping", "none"]
        process = subprocess.Popen([*command, quick, "--trials", "3", "--results", tmp_path / "run"], cwd=ROOT)
    else:
        with open(stdout, "w") as full:
            process = start(quick, "--trials", 3, "--results", tmp_path / "run", stdout=full)
    assert process.wait(timeout=60) == 0
    if process.stderr:
        process.stderr.close()
    assert [row["status"] for row in rows(tmp_path / "run" / "trials.csv")] == ["done"] * 3


def test_text_that_the_terminal_cannot_show_does_not_end_the_run(quick, tmp_path):
    quick.write_text(
        QUICK.replace("report = Reporter()", "report = Reporter(); assert config['x'] < 0.3, 'gr\u00f6\u00dfer'"),
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code, out, _ = run(quick, "--trials", 9, "--results", tmp_path / "run", env=environment)
    assert code == 0 and "gr\\xf6\\xdfer" in out
    assert "AssertionError: gr\u00f6\u00dfer" in {row["error"] for row in rows(tmp_path / "run" / "trials.csv")}


def test_objective_file_deleted_during_the_run_ends_it(quick, tmp_path):
    process = start(quick, "--set", "pause=0.05", "--results", tmp_path / "run")
    wait_for_lines(tmp_path / "run" / "trials.csv", 6)
    quick.unlink()
    _, err = process.communicate(timeout=30)
    assert (
        process.returncode == 1 and "could not even be started, or load the objective file" in err and "quick.py" in err
    )
    assert len(rows(tmp_path / "run" / "trials.csv")) < 40


@pytest.mark.parametrize("seconds", [0.0, 0.4])  # before, or while the file is described
def test_interrupt_while_starting_up_is_quiet_and_leaves_nothing(quick, tmp_path, seconds):
    quick.write_text("import time; time.sleep(5)\n" + QUICK, encoding="utf-8")
    process = start(quick, "--results", tmp_path / "run", start_new_session=True)
    assert process.stdout.readline().startswith("loading ")
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its processes
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "body, code, words",
    [
        ("def __init__(self, *_): raise RuntimeError('boo')", 2, "mine.py, line 2: RuntimeError: boo"),
        ("pass", 2, "mine.py:Mine: expected the arguments (space, seed, max_epochs), got ()"),
        ("def __init__(self, space): pass", 2, "Mine: expected the arguments (space, seed, max_epochs), got (space)"),
        (
            "def __init__(self, *_): pass\n    def suggest(self): return None",
            2,
            "mine.py:Mine: suggest: expected the arguments (trials), got ()",
        ),
        (
            "def __init__(self, *_): pass\n    def suggest(self, trials): return {'x': 0.0}",
            1,
            "run.py: failed: Mine.suggest: expected (config, origin) or None, got {'x': 0.0}",
        ),
        (
            "def __init__(self, *_): pass\n    def suggest(self, trials): raise KeyError('lr')",
            1,
            "Mine.suggest raised KeyError: 'lr'",
        ),
        (
            "def __init__(self, *_): pass\n    def suggest(self, trials): raise SystemExit(5)",
            1,
            "Mine.suggest raised SystemExit: 5",
        ),
        ("def __init__(self, *_): pass\n    def suggest(self, trials): trials.clear()", 0, ""),
    ],
)
def test_searcher_that_misbehaves_cannot_take_the_run_with_it(quick, tmp_path, body, code, words):
    other = "" if "suggest" in body else "\n    def suggest(self, trials): return None"
    (tmp_path / "mine.py").write_text(f"class Mine:\n    {body}{other}\n")
    found, _, err = run(
        quick, "--searcher", f"{tmp_path / 'mine.py'}:Mine", "--trials", 3, "--results", tmp_path / "run"
    )
    assert found == code and words in err and str(ROOT) not in err  # no traceback of ours
    assert "raised" in words or len(err.splitlines()) == (code > 0)
    if code != 2:
        assert len(rows(tmp_path / "run" / "trials.csv")) == 1  # the start; its row is there whatever the searcher did


# ---- Bad input ----------------------------------------------------------------------------------------------------------
def objective_file(change):
    return lambda folder: (folder / "quick.py").write_text(change(QUICK), encoding="utf-8")


def full_folder(folder):
    (folder / "full").mkdir()
    (folder / "full" / "run.json").write_text("{}")


BAD = {
    "unknown flag": (["--bogus"], None, "unrecognized arguments: --bogus"),
    "abbreviated flag": (["--trial", "3"], None, "--trial"),
    "negative hours": (["--hours", "-1"], None, "--hours: expected a positive number, got '-1'"),
    "hours NaN": (["--hours", "nan"], None, "--hours: expected a positive number, got 'nan'"),
    "hours infinite": (["--hours", "inf"], None, "--hours: expected a positive number, got 'inf'"),
    "hours a word": (["--hours", "three"], None, "--hours: expected a positive number, got 'three'"),
    "no workers": (["--workers", "0"], None, "--workers: expected an integer >= 1, got '0'"),
    "negative seed": (["--seed", "-1"], None, "--seed: expected an integer >= 0, got '-1'"),
    "unknown searcher": (["--searcher", "foo"], None, "--searcher: expected random"),
    "searcher file missing": (["--searcher", "nowhere.py:Mine"], None, "nowhere.py"),
    "searcher class missing": (["--searcher", "run.py:Mine"], None, "no class Mine"),
    "searcher an object": (
        ["--searcher", "{folder}/mine.py:mine"],
        lambda folder: (folder / "mine.py").write_text("class A:\n    def suggest(self, trials): pass\n\nmine = A()"),
        "mine.py:mine: expected a class with a method suggest(trials), got <",
    ),
    "searcher file that exits": (
        ["--searcher", "{folder}/mine.py:Mine"],
        lambda folder: (folder / "mine.py").write_text("import sys\nsys.exit(0)"),
        "mine.py, line 2: SystemExit: 0",
    ),
    "no such file": (["nowhere.py"], None, "nowhere.py: no such file"),
    "no Python file": (["README.md"], None, "README.md: is no Python file; expected a .py file with config_space"),
    "no objective": ([], objective_file(lambda s: s.replace("def objective", "def other")), "no function objective"),
    "no space": ([], objective_file(lambda s: s.replace("config_space", "space")), "no config_space"),
    "syntax error": ([], objective_file(lambda s: s + "\ndef (:\n"), "quick.py, line 17: SyntaxError"),
    "import error": (
        [],
        objective_file(lambda s: "import no_such_module\n" + s),
        "line 1: ModuleNotFoundError: No module",
    ),
    "exit on import": ([], objective_file(lambda s: "import os; os._exit(3)\n" + s), "exited with code 3"),
    "reserved name": ([], objective_file(lambda s: s.replace('"n":', '"help":')), "help: is a flag of every objective"),
    "low > high": (
        [],
        objective_file(lambda s: s.replace("(-1, 1)", "(1, -1)")),
        "x: uniform needs low <= high, got low=1",
    ),
    "log from 0": (
        [],
        objective_file(lambda s: s.replace("1e-4", "0.0")),
        "rate: loguniform needs 0 < low <= high, got low=0.0",
    ),
    "empty choice": (
        [],
        objective_file(lambda s: s.replace("choice([", "choice([][:0] and [")),
        "kind: choice needs at least",
    ),
    "no JSON": (
        [],
        objective_file(lambda s: s.replace('"epochs": 3', '"epochs": {1, 2}')),
        "epochs: expected a domain such as",
    ),
    "epochs a word": (["--set", "epochs=many"], None, "epochs: expected a value of type int as 3 is, got 'many'"),
    "no epochs": (["--set", "epochs=0"], None, "epochs: expected the last epoch"),
    "tuned epochs": (
        ["--stopping", "asha"],
        objective_file(lambda s: s.replace('"epochs": 3', '"epochs": randint(1, 3)')),
        "--stopping asha: needs the last epoch",
    ),
    "epochs_name": (["--epochs_name", "steps"], None, "--epochs_name steps: no such name"),
    "set unknown": (["--set", "bogus=1"], None, "--set bogus=1: bogus: no such name in the space; it has x, rate"),
    "set outside": (["--set", "n=10"], None, "n: expected a value of randint(1, 9), got '10'"),
    "set nothing": (["--set", "n"], None, "--set n: expected NAME=VALUE"),
    "set everything": (
        ["--set", "x=0", "--set", "n=1", "--set", "kind=a b", "--set", "rate=1"],
        None,
        "--set rate=1: nothing is left to tune",
    ),
    "space of one bad domain": (
        ["--space", "{folder}/space.json"],
        lambda folder: (folder / "space.json").write_text('{"x": {"uniform": [1, -1]}}'),
        "space.json: x: uniform needs low <= high, got low=1, high=-1",
    ),
    "space of constants": (
        ["--space", "{folder}/space.json"],
        lambda folder: (folder / "space.json").write_text('{"x": 3}'),
        "space.json: config_space: nothing to tune",
    ),
    "space with a name twice": (
        ["--space", "{folder}/space.json"],
        lambda folder: (folder / "space.json").write_text('{"x": {"uniform": [0, 1]}, "y": 1, "x": 2}'),
        "space.json: 'x' comes twice in one object",
    ),
    "space nested too deeply": (
        ["--space", "{folder}/space.json"],
        lambda folder: (folder / "space.json").write_text("[" * 100_000),
        "space.json: is not JSON: ",
    ),
    "space missing": (["--space", "nowhere.json"], None, "--space nowhere.json: cannot be read"),
    "start not JSON": (["--start", "run.py"], None, "--start run.py: is not JSON"),
    "mode": (["--mode", "best"], None, "--mode"),
    "no metric": (
        [],
        objective_file(lambda s: s.replace("metric, mode =", "_, mode =")),
        "metric: expected the name of a rep",
    ),
    "mode of the file": (
        [],
        objective_file(lambda s: s.replace('"min"', '"best"')),
        'mode: expected "max" or "min", got',
    ),
    "prepare adds a name": (
        [],
        objective_file(lambda s: s + "\ndef prepare(c):\n    return {'new': 1}\n"),
        "prepare: expected a dict of some of epochs, pause, nested, got {'new': 1}",
    ),
    "prepare returns a list": (
        [],
        objective_file(lambda s: s + "\ndef prepare(c):\n    return [1]\n"),
        "prepare: expected a dict of some of epochs, pause, nested, got [1]",
    ),
    "prepare fails": ([], objective_file(lambda s: s + "\ndef prepare(c):\n    raise OSError('no data')\n"), "no data"),
    "folder holds a run": (["--results", "{folder}/full"], full_folder, "full: holds a run already"),
    "folder is a file": (["--results", "{folder}/quick.py"], None, "quick.py: is not an empty folder"),
    "folder below a file": (["--results", "{folder}/quick.py/new"], None, "cannot be written"),
    "folder in /proc": (["--results", "/proc/nowhere"], None, "/proc/nowhere"),
    "metric never reported": (["--metric", "auc"], None, "metric auc is never reported, but loss, kind"),
    "unknown rule": (
        ["--stopping", "foo"],
        None,
        "--stopping: expected auto, none, median, asha, halving or FILE.py:FUNCTION",
    ),
    "rule file missing": (["--stopping", "nowhere.py:mine"], None, "nowhere.py: no such file"),
    "rule missing": (["--stopping", "run.py:mine"], None, "run.py has no function mine"),
    "rule with too few arguments": (
        ["--stopping", "{folder}/rule.py:rule"],
        lambda folder: (folder / "rule.py").write_text("def rule(trial, first_rung): pass"),
        "rule.py:rule: expected the arguments (trial, trials, max_epochs), got (trial, *, first_rung=1)",
    ),
    "rule with too many arguments": (
        ["--stopping", "{folder}/rule.py:rule"],
        lambda folder: (folder / "rule.py").write_text("def rule(trial, trials, max_epochs, patience): pass"),
        "rule.py:rule: expected the arguments (trial, trials, max_epochs), got (trial, trials, max_epochs, patience)",
    ),
    "rule is no function": (["--stopping", "run.py:ROOT"], None, "expected a function (trial, trials, max_epochs)"),
    "first rung 0": (["--first_rung", "0"], None, "--first_rung: expected an integer >= 1, got '0'"),
    "eta 1": (["--eta", "1"], None, "--eta: expected an integer >= 2, got '1'"),
    "rule without a last epoch": (
        ["--stopping", "asha"],
        objective_file(lambda s: s.replace('"epochs": 3', '"n_steps": 3')),
        "--stopping asha: needs the last epoch",
    ),
    "rule without reported epochs": (
        ["--stopping", "asha"],
        objective_file(lambda s: s.replace("report(epoch=epoch, ", "report(")),
        "the first trial that reports has reported no epoch",
    ),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """name -> (exit code, stderr, folder, its files before, after): two at a time, as each takes most of a second."""

    def answer(name):
        arguments, arrange, _ = BAD[name]
        folder = tmp_path_factory.mktemp("bad")
        (folder / "quick.py").write_text(QUICK, encoding="utf-8")
        if arrange:
            arrange(folder)
        before = sorted(map(str, folder.rglob("*")))
        arguments = [argument.replace("{folder}", str(folder)) for argument in arguments]
        problem = [] if name in ("no such file", "no Python file") else [folder / "quick.py"]
        results = [] if "--results" in arguments else ["--results", folder / "new" / "run"]
        code, _, err = (
            run(*problem, *arguments, *results, "--workers", 2)
            if "--workers" not in arguments
            else run(*problem, *arguments)
        )
        after = sorted(str(path) for path in folder.rglob("*") if "__pycache__" not in str(path))
        return code, err, before, after

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(BAD, pool.map(answer, BAD)))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line_and_leaves_nothing(answers, name):
    code, err, before, after = answers[name]
    assert code == 2, err
    assert BAD[name][2] in err
    assert err.startswith("run.py: error: ") and len(err.splitlines()) == 1
    assert after == before


def test_help_groups_the_flags_and_loads_no_numpy():
    code = "import runpy, sys; sys.argv = ['run.py', '--help']\ntry: runpy.run_path('run.py', run_name='__main__')\n"
    code += "except SystemExit: print('numpy' in sys.modules, 'torch' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT, timeout=60
    ).stdout
    assert out.splitlines()[-1] == "False False"
    for group in ("budget:", "search:", "problem:", "results:"):
        assert group in out
    assert out.count("default") >= 10


def test_tuner_process_imports_nothing_of_the_objective_file(quick, tmp_path):
    """Such as torch, which takes seconds and memory; pytest is sooner there."""
    quick.write_text("import pytest\n" + QUICK, encoding="utf-8")
    code = (
        f"import sys; sys.argv = ['run.py', {str(quick)!r}, '--trials', '1', '--results', {str(tmp_path / 'run')!r}]\n"
    )
    code += "import run; status = run.main(); print(status, 'pytest' in sys.modules, 'quick' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "0 False False", done.stderr
    assert "warning" not in done.stderr  # pytest was preloaded
