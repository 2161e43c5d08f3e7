"""python run.py --resume: nothing that was written is lost, and the run goes on as if nothing had happened."""

import csv
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hpo.results import load, load_before, load_run
from hpo.searchers import SEARCHERS

ROOT = pathlib.Path(__file__).resolve().parent.parent
OBJECTIVE = """
import time
from hpo import Reporter, choice, loguniform, randint, uniform

config_space = {
    "x": uniform(-1, 1), "rate": loguniform(1e-4, 1), "n": randint(1, 9),
    "kind": choice(["a b", 'c"d', "e,f\\n\\\\n", "\\u00e9\\u2028", "=1+1"]), "epochs": 3, "pause": 0.0, "place": "here",
}
metric, mode = "score", "max"

def objective(config):
    report = Reporter()
    if config["kind"] == "=1+1":
        raise ValueError('a "bad", x\\n\\u00e9')
    for epoch in range(1, config["epochs"] + 1):
        time.sleep(config["pause"])
        report(epoch=epoch, score=-config["x"] ** 2 - config["n"] / epoch, kind=config["kind"])
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


def starts(folder):
    return [json.loads(line) for line in (folder / "configs.jsonl").read_text().splitlines()]


def interrupt_after(n_reports, number, folder, *arguments):
    """Runs until there are so many rows of reports, then sends the signal; returns when the tuner has ended."""
    process, path, until = start(*arguments), folder / "reports.csv", time.monotonic() + 60
    try:
        while not path.exists() or path.read_bytes().count(b"\n") <= n_reports:
            assert process.poll() is None and time.monotonic() < until, f"{path} has not {n_reports} rows"
            time.sleep(0.005)
        process.send_signal(number)
        return process.communicate(timeout=30)
    finally:
        process.kill()


@pytest.fixture
def objective(tmp_path):
    path = tmp_path / "objective.py"
    path.write_text(OBJECTIVE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run of three trials, its objective file beside it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "objective.py").write_text(OBJECTIVE, encoding="utf-8")
    (folder / "space.json").write_text('{"x": {"uniform": [-1, 1]}, "epochs": 3}')
    (folder / "start.json").write_text('[{"x": 0.5}, {"x": 0.25}]')
    arguments = ("--trials", 3, "--workers", 1, "--set", "epochs=2", "--start", folder / "start.json", "--seed", 4)
    code, _, err = run(folder / "objective.py", *arguments, "--results", folder / "run")
    assert (code, err) == (0, "")
    return folder


# ---- As if nothing had happened -----------------------------------------------------------------------------------------
def without_times(trials):
    return [(t.id, t.config, t.origin, t.status, t.curve, t.error) for t in trials]


def last_rows(folder, name):
    """The rows of the last attempts, without times and attempts, sorted by trial."""
    last = {line["trial"]: str(line["attempt"]) for line in starts(folder)}
    found = [row for row in rows(folder / name) if row["attempt"] == last[int(row["trial"])]]
    times = ("attempt", "started", "ended", "seconds", "suggest_seconds", "time")
    found = [{name: cell for name, cell in row.items() if name not in times} for row in found]
    return sorted(found, key=lambda row: int(row["trial"]))


@pytest.mark.parametrize("searcher", ["random", "gp"])
def test_interrupted_and_resumed_run_gives_the_same_trials(objective, tmp_path, searcher):
    """One worker, killed at three instants by three signals: the CSVs but for times are those of an uninterrupted run."""
    arguments = (objective, "--trials", 12, "--workers", 1, "--seed", 5, "--searcher", searcher, "--set", "pause=0.02")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    uninterrupted = start(*arguments, "--results", whole)
    interrupt_after(4, signal.SIGKILL, parts, *arguments, "--results", parts)
    interrupt_after(13, signal.SIGTERM, parts, "--resume", parts)
    interrupt_after(25, signal.SIGINT, parts, "--resume", parts)
    code, _, err = run("--resume", parts)
    assert (code, err) == (0, "")
    uninterrupted.communicate(timeout=60)
    assert uninterrupted.returncode == 0
    assert 12 < len(starts(parts)) <= 12 + 3  # a signal may find a trial that has just ended
    assert without_times(load(parts)) == without_times(load(whole))
    assert {trial.status for trial in load(whole)} == {"done", "failed"}  # a failure's text comes back too
    for name in ("trials.csv", "reports.csv"):
        assert last_rows(parts, name) == last_rows(whole, name)


def test_folder_named_as_a_searcher_is_not_taken_for_its_file(objective, tmp_path, monkeypatch):
    there = tmp_path / "there"
    for name in ("gp", "random", "auto", "none", "there"):
        (tmp_path / name).mkdir()
    command = [sys.executable, str(ROOT / "run.py")]
    arguments = ["--trials", "2", "--workers", "1", "--searcher", "random", "--results", str(there / "run")]
    subprocess.run([*command, str(objective), *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    resume = [*command, "--resume", str(there / "run"), "--trials", "3"]
    subprocess.run(resume, cwd=there, check=True, capture_output=True, timeout=60)
    done = subprocess.run(
        [*resume, "--searcher", "gp"], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "has 'random', got 'gp'" in done.stderr


def test_every_suggestion_of_a_resumed_run_can_be_recomputed(objective, tmp_path):
    """Four workers, so that what the searcher saw depends on times; rows of earlier attempts do not count."""
    folder = tmp_path / "run"
    arguments = (objective, "--trials", 28, "--seed", 7, "--searcher", "gp", "--set", "pause=0.03")
    interrupt_after(20, signal.SIGKILL, folder, *arguments, "--results", folder)
    interrupt_after(45, signal.SIGINT, folder, "--resume", folder)
    assert run("--resume", folder, "--workers", 2)[0] == 0
    searcher, again = SEARCHERS["gp"](load_run(folder)["space"], 7, 3), 0
    for line in starts(folder):
        if line["seen"] is None:
            again += 1
            assert line["attempt"] > 1
        elif line["origin"] != "start":
            assert searcher.suggest(load_before(folder, line["trial"])) == (line["config"], line["origin"])
    assert 1 <= again <= 8 and sorted({line["trial"] for line in starts(folder)}) == list(range(28))
    assert "model" in {line["origin"] for line in starts(folder)}
    assert {trial.status for trial in load(folder)} <= {"done", "failed"}


def test_time_goes_on_without_the_pause_between(objective, tmp_path):
    folder = tmp_path / "run"
    interrupt_after(8, signal.SIGINT, folder, objective, "--set", "pause=0.1", "--hours", 0.0006, "--results", folder)
    used = max(trial.ended for trial in load(folder))
    time.sleep(2.2)  # longer than what is left of the run
    before = time.monotonic()
    code, out, _ = run("--resume", folder)
    assert code == 0 and "ended (deadline)" in out and time.monotonic() - before < 20
    trials = load(folder)
    again = [line for line in starts(folder) if line["attempt"] == 2]
    assert 1 <= len(again) <= 4 and all(used <= line["time"] < used + 2.2 for line in again)
    assert {trial.error for trial in trials if trial.status == "timeout"} == {"deadline"}
    assert all(2.16 <= trial.ended for trial in trials if trial.status == "timeout")


def test_finished_run_says_so_and_a_larger_budget_extends_it(finished, tmp_path):
    folder = shutil.copytree(finished / "run", tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for arguments in ([], ["--trials", 2], ["--hours", 5], ["--workers", 2, "--trial_timeout", 9]):
        code, out, err = run("--resume", folder, *arguments)
        assert (code, err) == (0, "") and "has finished: 3 trials" in out and "--trials" in out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    code, out, _ = run("--resume", folder, "--trials", 5)
    assert code == 0 and [trial.id for trial in load(folder)] == list(range(5))
    assert run("--resume", folder)[1].startswith(f"{folder}: the run has finished: 5 trials")  # the budget is kept
    code, out, _ = run("--resume", folder, "--hours", 1e-5)
    assert code == 0 and "--hours to go on" not in out


def test_run_ended_by_its_deadline_has_finished(objective, tmp_path):
    folder = tmp_path / "run"
    assert run(objective, "--set", "pause=0.4", "--hours", 0.0003, "--results", folder)[0] == 0
    n = len(starts(folder))
    code, out, _ = run("--resume", folder)
    assert code == 0 and "has finished" in out and "raise --hours" in out and len(starts(folder)) == n
    code, out, _ = run("--resume", folder, "--hours", 0.0009)
    assert code == 0 and len(starts(folder)) > n
    assert all(line["attempt"] == 1 for line in starts(folder))  # what the deadline has cut is not started again


def test_run_killed_after_its_deadline_ends_its_trials(objective, tmp_path):
    folder = tmp_path / "run"
    interrupt_after(4, signal.SIGKILL, folder, objective, "--set", "pause=0.1", "--results", folder)
    assert "running" in {trial.status for trial in load(folder)}
    code, out, _ = run("--resume", folder, "--hours", 1e-5)
    assert code == 0 and "deadline" in out
    assert "running" not in {trial.status for trial in load(folder)}
    assert any(trial.curve for trial in load(folder) if trial.error == "deadline")
    assert "has finished" in run("--resume", folder)[1]


def test_interrupted_before_all_are_started_again(objective, tmp_path):
    folder = tmp_path / "run"
    arguments = ("--set", "pause=0.2", "--workers", 6, "--trials", 6, "--results", folder)
    interrupt_after(6, signal.SIGKILL, folder, objective, *arguments)
    n_lines = (folder / "reports.csv").read_bytes().count(b"\n")  # more than 7 by now, where the machine is slow
    interrupt_after(n_lines, signal.SIGTERM, folder, "--resume", folder, "--workers", 1)
    found = rows(folder / "trials.csv")
    assert len({(row["trial"], row["attempt"]) for row in found}) == len(found) == 6  # each has a row now
    code, _, _ = run("--resume", folder, "--workers", 6)
    assert code == 0 and {trial.status for trial in load(folder)} <= {"done", "failed"}
    found = rows(folder / "trials.csv")
    assert len({(row["trial"], row["attempt"]) for row in found}) == len(found)


def test_what_the_run_began_with_comes_from_its_folder(objective, tmp_path):
    """The start configurations, what prepare returned, and the space file are not read again."""
    folder, start_file, space_file = tmp_path / "run", tmp_path / "start.json", tmp_path / "space.json"
    objective.write_text(
        OBJECTIVE + "\ndef prepare(constants):\n    return {'place': f'{constants[\"place\"]} and there'}\n"
    )
    start_file.write_text(json.dumps([{"x": i / 10} for i in range(5)]))
    space_file.write_text(
        json.dumps(
            {"x": {"uniform": [-1, 1]}, "n": {"randint": [1, 3]}, "kind": "a", "epochs": 3, "pause": 0.2, "place": "p"}
        )
    )
    arguments = ("--start", start_file, "--space", space_file, "--workers", 1, "--trials", 6, "--results", folder)
    interrupt_after(1, signal.SIGINT, folder, objective, *arguments)
    start_file.unlink()
    space_file.unlink()
    code, _, err = run("--resume", folder, "--workers", 3, cwd=ROOT)
    assert (code, err) == (0, "")
    trials = load(folder)
    assert [trial.config["x"] for trial in trials[:5]] == [i / 10 for i in range(5)]
    assert [trial.origin for trial in trials] == ["start"] * 5 + ["model"]
    assert {trial.config["place"] for trial in trials} == {"p and there"}


def torn(finished, tmp_path):
    folder = shutil.copytree(finished / "run", tmp_path / "run")
    for name in ("configs.jsonl", "trials.csv", "reports.csv"):
        with open(folder / name, "a") as file:
            file.write("3,1,2" if name != "configs.jsonl" else '{"trial": 3, ')
    return folder


def test_torn_lines_are_cut_with_a_warning(finished, tmp_path):
    folder, whole = torn(finished, tmp_path), load(finished / "run")
    code, _, err = run("--resume", folder, "--trials", 4)
    assert code == 0 and err.count("warning") == err.count("is torn, and left out") == 3 and len(err.splitlines()) == 3
    assert load(folder)[:3] == whole and [trial.id for trial in load(folder) if trial.ended] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "arguments, code",
    [([], 0), (["--seed", 5], 2), (["--set", "n=3"], 2), (["--trials", 0], 2), (["train/mlp_fashion_mnist.py"], 2)],
)
def test_resume_that_does_not_go_on_changes_nothing(finished, tmp_path, arguments, code):
    folder = torn(finished, tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found, _, err = run("--resume", folder, "--trials", 3, *arguments)
    assert found == code and err.splitlines()[-1].startswith("run.py: error" if code else "run.py: warning")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# ---- Two runs on one folder ---------------------------------------------------------------------------------------------
def test_second_run_is_refused_at_once_and_let_in_after_a_kill(objective, tmp_path):
    folder = tmp_path / "run"
    first, until = (
        start(objective, "--set", "pause=0.2", "--set", "epochs=1000", "--results", folder),
        time.monotonic() + 60,
    )
    while not (folder / "reports.csv").exists() or not (folder / "reports.csv").read_bytes():
        assert first.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    for arguments in (["--resume", folder], [objective, "--results", folder]):
        before = time.monotonic()
        code, _, err = run(*arguments)
        assert code == 2 and "Traceback" not in err and time.monotonic() - before < 5
        assert "another run is using it" in err if "--resume" in arguments else "holds a run already" in err
    assert first.poll() is None
    first.kill()
    first.communicate()
    resumed = start("--resume", folder)
    until = time.monotonic() + 30
    while sum(line["attempt"] == 2 for line in starts(folder)) < 4 and time.monotonic() < until:
        time.sleep(0.02)
    assert [line["attempt"] for line in starts(folder)][-4:] == [2] * 4
    resumed.send_signal(signal.SIGINT)
    assert resumed.wait(timeout=30) == 130
    resumed.communicate()


# ---- What may not change ------------------------------------------------------------------------------------------------
DIFFERENT = {
    "seed": (["--seed", 5], "--seed: DIR has 4, got 5"),
    "searcher": (["--searcher", "random"], "--searcher: DIR has 'gp', got 'random'"),
    "metric": (["--metric", "loss"], "--metric: DIR has 'score', got 'loss'"),
    "mode": (["--mode", "min"], "--mode: DIR has 'max', got 'min'"),
    "constant": (["--set", "epochs=27"], "epochs: DIR has 2, --set epochs=27 makes it 27"),
    "fixed": (["--set", "n=3"], "n: DIR has randint(1, 9), --set n=3 makes it 3"),
    "unknown": (["--set", "m=3"], "m: no such name"),
    "space": (["--space", "HERE/space.json"], "rate: DIR has loguniform(0.0001, 1.0), --space HERE/space.json has nothing"),
    "objective": (["train/mlp_fashion_mnist.py"], "OBJECTIVE: DIR has 'HERE/objective.py', got 'train/mlp_fashion_mnist.py'"),
    "start": (["--start", "HERE/other.json"], "--start: DIR has [{"),
    "results": (["--results", "HERE/elsewhere"], "--results: DIR has 'DIR', got 'HERE/elsewhere'"),
}  # fmt: skip
SAME = [
    ["--seed", 4, "--searcher", "gp", "--metric", "score", "--mode", "max"],
    ["HERE/../HERE_NAME/objective.py", "--set", "epochs=2", "--epochs_name", "epochs"],
    ["--start", "HERE/start.json", "--set", "place=here"],
]


@pytest.fixture(scope="module")
def answers(finished):
    (finished / "other.json").write_text('[{"x": 0.75}]')

    def answer(arguments):
        words = [str(word).replace("HERE_NAME", finished.name).replace("HERE", str(finished)) for word in arguments]
        shutil.copytree(finished / "run", folder := finished / str(abs(hash(tuple(words)))))
        return folder, run("--resume", folder, *words)

    cases = [arguments for arguments, _ in DIFFERENT.values()] + SAME
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(map(str, cases), pool.map(answer, cases)))


@pytest.mark.parametrize("name", DIFFERENT)
def test_difference_is_named(answers, finished, name):
    arguments, words = DIFFERENT[name]
    folder, (code, out, err) = answers[str(arguments)]
    words = (
        words.replace("'DIR'", repr(str(finished / "run"))).replace("DIR", str(folder)).replace("HERE", str(finished))
    )
    assert code == 2 and out == "" and words in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", SAME, ids=str)
def test_same_value_given_again_is_no_difference(answers, arguments):
    _, (code, out, err) = answers[str(arguments)]
    assert (code, err) == (0, "") and "has finished" in out


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("uniform(-1, 1)", "uniform(-2, 1)", "x: DIR has uniform(-1.0, 1.0), FILE now has uniform(-2.0, 1.0)"),
        ('"here"', '"there"', "place: DIR has 'here', FILE now has 'there'"),
        ('"place"', '"where"', "place: DIR has 'here', FILE now has nothing"),
        ('"max"', '"min"', "mode: DIR has 'max', FILE now 'min'"),
        ('"score", ', '"loss", ', "metric: DIR has 'score', FILE now 'loss'"),
        ("import time", "import nonsense", "FILE, line 2: ModuleNotFoundError"),
        ("config_space", "space", "FILE: has no config_space"),
        (None, None, "FILE: no such file; resume from the folder in which the run began"),
    ],
)
def test_objective_file_that_has_changed_is_named(finished, tmp_path, old, new, words):
    for name in ("objective.py", "run"):
        (shutil.copytree if name == "run" else shutil.copy)(finished / name, tmp_path / name)
    run_json = tmp_path / "run" / "run.json"
    run_json.write_text(run_json.read_text().replace(str(finished), str(tmp_path)))
    before = run_json.read_bytes()
    path = tmp_path / "objective.py"
    path.write_text(OBJECTIVE.replace(old, new)) if old else path.unlink()
    code, _, err = run("--resume", tmp_path / "run", "--trials", 9)
    words = words.replace("DIR", str(tmp_path / "run")).replace("FILE", str(path))
    assert code == 2 and words in err and len(err.splitlines()) == 1
    assert run_json.read_bytes() == before and len(starts(tmp_path / "run")) == 3


def test_run_goes_on_from_anywhere_with_the_files_that_it_began_with(tmp_path):
    """And not with others of the same names that lie where it is resumed."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    searcher = "from hpo.searchers import RandomSearch\nclass Mine(RandomSearch):\n    def suggest(self, trials):\n"
    searcher += '        return super().suggest(trials)[0], "ORIGIN"\n'
    for folder, objective, origin in (
        (here, OBJECTIVE, "mine"),
        (elsewhere, OBJECTIVE.replace("-config", "+config"), "another's"),
    ):
        folder.mkdir()
        (folder / "objective.py").write_text(objective.replace('== "=1+1"', '== ""'), encoding="utf-8")  # none fails
        (folder / "mine.py").write_text(searcher.replace("ORIGIN", origin), encoding="utf-8")
    named = ["objective.py", "--searcher", "mine.py:Mine", "--workers", 1]
    assert run(*named, "--trials", 2, "--results", "run", cwd=here)[0] == 0
    code, _, err = run("--resume", here / "run", "--trials", 4, cwd=elsewhere)
    assert (code, err) == (0, "") and len(load(here / "run")) == 4
    for trial in load(here / "run"):
        assert trial.origin == ("mine" if trial.id else "start")
        assert trial.value == trial.config["x"] ** 2 + trial.config["n"] / 3  # losses: minus the score
    same = ["../here/objective.py", "--searcher", "../here/mine.py:Mine"]
    assert run(*same, "--resume", here / "run", cwd=elsewhere)[0] == 0
    code, _, err = run(*named[:3], "--resume", here / "run", cwd=elsewhere)
    assert code == 2 and "OBJECTIVE: " in err and "a resumed run keeps its own" in err


def test_folder_that_was_moved_goes_on_with_the_objective_given(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "moved")
    (tmp_path / "objective.py").write_text(OBJECTIVE, encoding="utf-8")
    run_json = tmp_path / "moved" / "run.json"
    run_json.write_text(run_json.read_text().replace(str(finished), "/nowhere"))
    code, _, err = run(tmp_path / "objective.py", "--resume", tmp_path / "moved", "--trials", 4)
    assert (code, err) == (0, "") and len(load(tmp_path / "moved")) == 4


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda folder: shutil.rmtree(folder), r"run\.json: cannot be read"),
        (lambda folder: (folder / "run.json").write_text("{"), r"run\.json: not the record of a run"),
        (lambda folder: (folder / "trials.csv").unlink(), r"trials\.csv"),
        (
            lambda folder: cut_lines(folder / "trials.csv", 1, 2),
            r"trials\.csv, line 2: rows before it have been taken away",
        ),
        (
            lambda folder: cut_lines(folder / "reports.csv", 3, 4),
            r"reports\.csv, line 5: rows before it have been taken away",
        ),
        (
            lambda folder: cut_lines(folder / "reports.csv", 3, 99),
            r"trials\.csv, line 3, column value: expected '', as",
        ),
        (lambda folder: cut_lines(folder / "configs.jsonl", 1, 2), r"configs\.jsonl, line 2, column trial: expected 1"),
        (lambda folder: (folder / "trials.csv").write_text("a,b\n"), r"trials\.csv, line 1, column trial: expected"),
        (lambda folder: edit(folder, '"hours": 3.0', '"hours": "x"'), r"run\.json: arguments: .*--hours: expected"),
        (lambda folder: edit(folder, '"seed": 4', '"sead": 4'), r"run\.json: arguments: .*--sead"),
        (lambda folder: edit(folder, "objective.py", "nothing.py"), r"nothing\.py: no such file"),
    ],
    ids=range(11),
)
def test_damaged_folder_is_one_clear_line(finished, tmp_path, change, words):
    folder = shutil.copytree(finished / "run", tmp_path / "run")
    change(folder)
    code, _, err = run("--resume", folder, "--trials", 9)
    assert code == 2 and re.search(words, err) and len(err.splitlines()) == 1


def cut_lines(path, first, last):
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(b"".join(lines[:first] + lines[last:]))


def edit(folder, old, new):
    text = (folder / "run.json").read_text()
    assert old in text
    (folder / "run.json").write_text(text.replace(old, new))
