"""LocalBackend: every way in which a trial's process can end, and that nothing of it stays behind."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from hpo import trial as trial_module
from hpo.objective import preloadable_modules
from hpo.trial import End, LocalBackend, Report, Trial, n_threads, trial_seed, visible_gpus

FAULTS = """
import ctypes, json, os, pathlib, random, signal, subprocess, sys, threading, time
from hpo import Reporter, StopTrial, uniform

config_space = {"x": uniform(0, 1)}
metric, mode = "y", "max"

class Odd(Exception):
    def __str__(self):
        return "a, b\\n\\"c\\" \\u00e9"

def objective(config):
    report = Reporter()
    fault = config["fault"]
    if fault == "return": report(y=1.0)
    elif fault == "silent": pass
    elif fault == "raise": report(y=1.0); raise Odd()
    elif fault == "sys.exit(0)": report(y=1.0); sys.exit(0)
    elif fault == "sys.exit(3)": sys.exit(3)
    elif fault == "sys.exit(text)": sys.exit("no data")
    elif fault == "os._exit(3)": os._exit(3)
    elif fault == "segfault": ctypes.string_at(0)
    elif fault == "kill": report(y=1.0); os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "abort": os.abort()
    elif fault == "child":
        child = subprocess.Popen(["sleep", "600"])
        report(y=1.0, pid=child.pid, was_alive=int(child.poll() is None))
    elif fault == "sleep": report(y=1.0); time.sleep(600)
    elif fault == "ignore SIGTERM": signal.signal(signal.SIGTERM, signal.SIG_IGN); report(y=1.0); time.sleep(600)
    elif fault == "exit on SIGTERM":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); report(y=1.0); time.sleep(600)
    elif fault == "swallow StopTrial":
        for _ in range(3):
            try: report(y=1.0)
            except BaseException: pass
    elif fault == "except Exception":
        for _ in range(3):
            try: report(y=1.0)
            except Exception: pass
    elif fault == "clean up":
        try: report(y=1.0)
        finally: pathlib.Path(config["file"]).write_text("cleaned")
    elif fault == "print": print("to stdout"); print("to stderr", file=sys.stderr); os.system("echo from a child"); report(y=1.0)
    elif fault == "seed":
        import numpy
        report(y=1.0, random=random.random(), numpy=numpy.random.rand(), threads=os.environ["OMP_NUM_THREADS"],
               gpu=os.environ.get("CUDA_VISIBLE_DEVICES", "-"))
    elif fault == "start method":
        import multiprocessing
        report(y=1.0, method=multiprocessing.get_start_method())
    elif fault == "import": report(y=1.0, modules=" ".join(sys.modules))
"""


@pytest.fixture
def backend(tmp_path):
    path = tmp_path / "faults.py"
    path.write_text(FAULTS)
    (tmp_path / "logs").mkdir()
    backend = LocalBackend(path, tmp_path / "logs", n_workers=2)
    yield backend
    backend.kill_all_at_once()


def events_of(backend, fault, answer=True, id=0, seconds=30, **config):
    """Runs one trial to its end; returns (list of reported metrics, End)."""
    trial, reports = Trial(id, {"fault": fault, **config}, "test"), []
    backend.start(trial)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for event in backend.wait(until - time.monotonic()):
            if isinstance(event, End):
                return reports, event
            assert isinstance(event, Report)
            reports.append(event.metrics)
            backend.answer(trial, answer)
    raise AssertionError(f"{fault}: no end within {seconds} s")


@pytest.mark.parametrize(
    "fault, n_reports, finished, reason",
    [
        ("return", 1, True, ""),
        ("silent", 0, True, ""),
        ("raise", 1, False, 'faults.Odd: a, b "c" é'),
        ("sys.exit(0)", 1, True, ""),
        ("sys.exit(3)", 0, False, "SystemExit: 3"),
        ("sys.exit(text)", 0, False, "SystemExit: no data"),
        ("os._exit(3)", 0, False, "the process exited with code 3"),
        ("segfault", 0, False, "the process was killed by SIGSEGV"),
        ("kill", 1, False, "the process was killed by SIGKILL (out of memory?)"),
        ("abort", 0, False, "the process was killed by SIGABRT"),
    ],
)
def test_backend_tells_how_a_trial_ended(backend, fault, n_reports, finished, reason):
    reports, end = events_of(backend, fault)
    assert len(reports) == n_reports
    assert (end.finished, end.error) == (finished, reason)
    assert not backend.running
    assert end.busy_seconds >= 0


@pytest.mark.parametrize("n_refusals", [2, 3])
def test_start_waits_for_a_process_to_be_had(backend, monkeypatch, n_refusals):
    """As after a moment at the limit of processes; a start that is refused for good costs one trial."""
    process, refusals = trial_module._Process, [OSError(11, "Resource temporarily unavailable")] * n_refusals

    def refused_at_first(*arguments):
        if refusals:
            raise refusals.pop()
        return process(*arguments)

    monkeypatch.setattr(trial_module, "_Process", refused_at_first)
    monkeypatch.setattr(trial_module, "PAUSES", (0.01, 0.01))
    reports, end = events_of(backend, "return")
    assert (len(reports), end.finished) == ((1, True) if n_refusals == 2 else (0, False))
    assert ("no process could be started" in end.error) == (n_refusals == 3)


def test_backend_traceback_starts_in_the_objective_file(backend):
    _, end = events_of(backend, "raise")
    assert "faults.py" in end.traceback and "hpo/trial.py" not in end.traceback
    assert end.traceback in (backend.log_folder / "0000.log").read_text(encoding="utf-8")


def test_stopped_trial_raises_and_can_clean_up(backend, tmp_path):
    reports, end = events_of(backend, "clean up", answer=False, file=str(tmp_path / "mark"))
    assert len(reports) == 1 and not end.finished
    assert (tmp_path / "mark").read_text() == "cleaned"


def test_stopped_trial_cannot_swallow_the_stop_as_an_exception(backend):
    reports, end = events_of(backend, "except Exception", answer=False)
    assert len(reports) == 1 and not end.finished


def test_stopped_trial_reports_no_more_even_when_it_swallows_everything(backend):
    reports, end = events_of(backend, "swallow StopTrial", answer=False)
    assert len(reports) == 1 and end.finished


def killed(backend, fault):
    """The End of a trial that is killed once it has reported."""
    trial = Trial(0, {"fault": fault}, "test")
    backend.start(trial)
    wait_for(backend, Report)
    backend.answer(trial, True)
    time.sleep(0.1)
    backend.kill(trial)
    (end,) = wait_for(backend, End)
    return end


def test_kill_ends_a_sleeping_trial_at_once(backend):
    before = time.monotonic()
    end = killed(backend, "sleep")
    assert time.monotonic() - before < 4 and end.error == "the process was killed by SIGTERM"


def test_killed_trial_that_leaves_in_order_has_not_finished(backend):
    assert not killed(backend, "exit on SIGTERM").finished


def test_kill_ends_a_trial_that_ignores_sigterm(backend, monkeypatch):
    monkeypatch.setattr("hpo.trial.TERM_SECONDS", 0.3)
    assert killed(backend, "ignore SIGTERM").error.startswith("the process was killed by SIGKILL")


def wait_for(backend, kind, seconds=30):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = [event for event in backend.wait(until - time.monotonic()) if isinstance(event, kind)]
        if found:
            return found
    raise AssertionError(f"no {kind.__name__} within {seconds} s")


def test_end_of_a_trial_kills_the_processes_that_it_started(backend):
    (report,), end = events_of(backend, "child")
    assert end.finished and report["was_alive"]
    until = time.monotonic() + 5
    while is_alive(report["pid"]) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_alive(report["pid"])


def test_output_of_a_trial_goes_to_its_log(backend):
    events_of(backend, "print", id=7)
    text = (backend.log_folder / "0007.log").read_text(encoding="utf-8")
    assert {"to stdout", "to stderr", "from a child"} <= set(text.split("\n"))


def test_deleted_folder_of_logs_costs_no_trial(backend):
    backend.log_folder.rmdir()
    _, end = events_of(backend, "print", id=7)
    assert end.finished and "to stdout" in (backend.log_folder / "0007.log").read_text()


def test_a_run_that_was_moved_away_gets_no_new_folder(backend, tmp_path):
    gone = LocalBackend(tmp_path / "faults.py", tmp_path / "gone" / "logs", n_workers=1)
    *_, end = events_of(gone, "print", id=7)
    assert not end.finished and "gone" in end.error and not (tmp_path / "gone").exists()


def test_seed_of_a_trial_depends_on_the_runs_seed_and_the_trials_id_only(backend):
    ((first,), _), ((again,), _) = events_of(backend, "seed", id=3), events_of(backend, "seed", id=3)
    ((other,), _) = events_of(backend, "seed", id=4)
    assert first == again
    assert first["random"] != other["random"] and first["numpy"] != other["numpy"]


def test_trial_runs_with_its_share_of_the_cores_and_one_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "faults.py").write_text(FAULTS)
    backend = LocalBackend(tmp_path / "faults.py", tmp_path, n_workers=1, n_gpus=2)
    ((report,), _) = events_of(backend, "seed")
    assert report["threads"] == str(n_threads(1)) and report["gpu"] == "0"


def test_gpus_are_those_that_the_user_made_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(0) == [] and visible_gpus(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    assert visible_gpus(2) == ["5", "7"]


def test_trial_process_loads_no_searcher_nor_tuner(backend):
    ((report,), _) = events_of(backend, "import")
    assert not {"hpo.searchers", "hpo.tuner", "hpo.results", "torch"} & set(report["modules"].split())


def test_processes_of_a_trial_start_as_they_would_without_us(backend):
    ((report,), _) = events_of(backend, "start method")
    code = "import multiprocessing; print(multiprocessing.get_start_method())"
    expected = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert report["method"] == expected


def test_trial_seeds_are_distinct_32_bit_numbers():
    seeds = {trial_seed(seed, i) for seed in range(50) for i in range(200)}
    assert len(seeds) == 50 * 200
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_wake_makes_a_wait_return(backend):
    backend.wake()
    before = time.monotonic()
    assert backend.wait(20) == []
    assert time.monotonic() - before < 10


def test_wait_without_events_returns_after_its_timeout(backend):
    before = time.monotonic()
    assert backend.wait(0.05) == []
    assert time.monotonic() - before >= 0.05


def test_clock_goes_on_from_where_a_run_was_left(tmp_path):
    (tmp_path / "faults.py").write_text(FAULTS)
    backend = LocalBackend(tmp_path / "faults.py", tmp_path, clock=100.0)
    assert 100.0 <= backend.now() < 130.0


HANG_WITH_THE_LOCK = """
import ctypes, os, subprocess
from hpo import Reporter, uniform
config_space = {"x": uniform(0, 1)}
metric, mode = "y", "max"
def objective(config):
    child = subprocess.Popen(["sleep", "600"])
    open(MARK, "a").write(f"{child.pid}\\n{os.getpid()}\\n")
    report = Reporter()
    report(y=1.0)
    ctypes.PyDLL(None).sleep(600)  # holds the interpreter's lock: no Python thread can act
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_tuner(tmp_path, number):
    mark, path = tmp_path / "pids", tmp_path / "children.py"
    path.write_text(HANG_WITH_THE_LOCK.replace("MARK", repr(str(mark))))
    command = [sys.executable, "run.py", str(path), "--workers", "2", "--results", str(tmp_path / "run")]
    (temporary := tmp_path / "t").mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    tuner = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    until = time.monotonic() + 30
    while time.monotonic() < until and (not mark.exists() or len(mark.read_text().split()) < 4):
        time.sleep(0.02)
    children = [int(pid) for pid in mark.read_text().split()]
    assert len(children) == 4
    tuner.send_signal(number)
    tuner.wait(timeout=20)
    until = time.monotonic() + 10
    while (any(is_alive(pid) for pid in children) or [*temporary.iterdir()]) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(is_alive(pid) for pid in children)
    assert [*temporary.iterdir()] == []  # of the fork server's socket
    assert len((tmp_path / "run" / "configs.jsonl").read_text().splitlines()) == 2
    assert all(json.loads(line) for line in (tmp_path / "run" / "configs.jsonl").read_text().splitlines())


def is_alive(pid):
    """Whether a process runs: a zombie, dead but not yet waited for by a slow init, does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_environment_of_the_tuner_is_as_before(backend):
    before = dict(os.environ)
    events_of(backend, "return")
    assert dict(os.environ) == before


PRELOADED = {
    "import numpy\nfrom filelock import FileLock": ["filelock", "numpy"],
    "import json, numpy.linalg": ["json", "numpy.linalg"],
    "import json\nimport mine": ["json"],
    "import filelock": [],  # there is a filelock.py beside the objective file
    "import json, os\nos.environ['A'] = '1'\nimport numpy": ["json", "os"],  # which may read it
    "import sys\nsys.path.insert(0, 'there')\nimport numpy": ["sys"],  # another one, perhaps
    "import os\ndef f():\n    return os.environ['A']\nimport numpy": ["numpy", "os"],  # runs later
    "import os\nHERE = os.path.dirname(__file__)\nimport numpy": ["numpy", "os"],  # sets nothing
    "import os\nA = os.environ.get('A', os.path.join('a', 'b'))\nimport numpy": ["numpy", "os"],
    "import os\nos.environ.setdefault('A', os.environ.get('B'))\nimport numpy": ["os"],
    "import json\nfrom os import environ\nenviron['A'] = '1'\nimport numpy": ["json"],
}


@pytest.mark.parametrize("source", PRELOADED)
def test_preloaded_is_what_the_objective_file_itself_would_import(source, tmp_path):
    names = ["mine.py"] if "FileLock" in source else ["mine.py", "filelock.py"]
    for name in names:
        (tmp_path / name).write_text("", encoding="utf-8")
    path = tmp_path / "objective.py"
    path.write_text(source, encoding="utf-8")
    assert preloadable_modules(path) == ["hpo.trial", *PRELOADED[source]]
