"""LocalBackend: every way in which a trial can end, and that it harms nobody else."""

import contextlib
import os
import signal
import time

import pytest

import hpo.trial
from hpo.journal import Journal, load
from hpo.space import space_from_json
from hpo.trial import LINUX, End, LocalBackend, Trial, n_threads
from hpo.tuner import Tuner

on_linux = pytest.mark.skipif(not LINUX, reason="holds on Linux alone")
OBJECTIVE = """
import ctypes, multiprocessing, multiprocessing.pool, os, pathlib, random, signal, subprocess
import sys, threading, time
import numpy as np
import hpo.report
from hpo import Reporter, uniform

config_space = {"x": uniform(0, 1), "code": ""}
metric, mode = "y", "max"

def often(i):
    for _ in range(20):
        Reporter()(y=i, text="x" * 20_000)

def objective(config):
    tuner = hpo.report.tuner
    names = {**globals(), "report": Reporter(), "tuner": tuner, "raw": tuner.sendall}
    exec(config["code"], names)
    return names.get("returned")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objective")
    (folder / "objective.py").write_text(OBJECTIVE)
    return folder


@pytest.fixture(scope="module")
def backend(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hpo.trial, "STOP_SECONDS", 0.6)
        with contextlib.closing(new_backend(folder, str(folder / "objective.py"))) as backend:
            yield backend


def new_backend(folder, objective, space=None, metric=None, mode=None):
    backend = LocalBackend(objective, n_workers=2)
    backend.describe(space=space, metric=metric, mode=mode)
    backend.begin(folder / "logs", 0)
    return backend


def start(backend, code, i=0):
    trial = Trial(i, {"x": 0.5, "code": code}, "test")
    backend.start(trial)
    return trial


def until_end(backend, *trials, n_reports=999, seconds=60):
    """[(metrics of each report, End)] of trials, which are stopped at the last report."""
    found, until = {trial.id: [] for trial in trials}, time.monotonic() + seconds
    while not all(events and isinstance(events[-1], End) for events in found.values()):
        assert time.monotonic() < until, found
        for event in backend.wait(1.0):
            found[event.trial_id].append(event)
            if not isinstance(event, End):
                go_on = len(found[event.trial_id]) < n_reports
                backend.answer(Trial(event.trial_id, {}, "test"), go_on)
    return [([report.metrics for report in events[:-1]], events[-1]) for events in found.values()]


def run(backend, *codes, first=0, **options):
    trials = [start(backend, code, i) for i, code in enumerate(codes, first)]
    return until_end(backend, *trials, **options)


def new_tuner(backend, codes):
    """A Tuner of trials that run the codes."""
    space = space_from_json({"x": {"uniform": [0, 1]}, "code": {"choice": codes}})
    journal = Journal({"space": space, "metric": "y", "mode": "max"})
    starts = [{"x": 0.5, "code": code} for code in codes]
    return Tuner(journal, None, backend, 2, n_trials=len(codes), start=starts)


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def are_gone(pids):
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


# ---- How a trial ends ----------------------------------------------------------------------------
REPORT = b'{"report": {"epoch": 1, "y": 1.0}, "counted": false}\n'
FORKED = "RuntimeError: report: called in a process that the trial forked"
ENDS = [  # what it does, its reports, and how its error begins
    ("report(y=1.0)", [1.0], ""),
    ("returned = np.float32(2)", [2.0], ""),
    ("returned = {'y': 3, 'epoch': 7}", [3.0], ""),
    ("multiprocessing.set_start_method('spawn'); returned = 1.0", [1.0], ""),
    ("report(y=1.0); returned = 2.0; sys.exit(0)", [1.0], ""),
    ("threading.Thread(target=time.sleep, args=[99]).start(); returned = 1.0", [1.0], ""),
    ("threading.Timer(0.7, often, [2.0]).start(); returned = 1.0", [1.0], ""),
    ("", [], "ValueError: expected a report of y, got nothing"),
    ("returned = [1.0]", [], "TypeError: y: expected a number"),
    ("report(y=1.0); raise ValueError('a\\nb é')", [1.0], "ValueError: a b é"),
    ("sys.exit('no data')", [], "no data"),
    ("os._exit(3)", [], "the process exited with code 3"),
    (f"raw({REPORT!r}); time.sleep(0.2); os._exit(3)", [1.0], "the process exited with code 3"),
    ("ctypes.string_at(0)", [], "the process was killed by SIGSEGV"),
    ("os.kill(os.getpid(), 9)", [], "the process was killed by SIGKILL (out of memory?)"),
    ("os.close(1); os.close(2); 1 / 0", [], "ZeroDivisionError: division by zero"),
    ("os.dup2(os.open('/dev/full', 1), 2); 1 / 0", [], "ZeroDivisionError: division by zero"),
    ("raise OSError('x' * 10**6)", [], "OSError: xxxxx"),
    ("with multiprocessing.Pool(2) as pool: pool.map(often, range(4))", [], FORKED),
    ("os.fork()\nfor _ in range(3): report(y=1.0); time.sleep(0.05)", [1.0] * 3, ""),
    ("if os.fork(): os.wait(); report(y=1.0)", [1.0], ""),  # and the child returns
    ("with multiprocessing.pool.ThreadPool(2) as pool: pool.map(often, range(2))",
     [0] * 20 + [1] * 20, ""),
    ("report(a=1.0); returned = 2.0", [None], "ValueError: expected a report of y, got ['a']"),
]  # fmt: skip


def test_backend_tells_how_a_trial_ended(backend):
    ends = run(backend, *(code for code, *_ in ENDS))
    for (code, values, error), (reports, end) in zip(ENDS, ends):
        assert sorted(metrics.get("y") for metrics in reports) == values, code
        assert end.outcome == ("failed" if error else "finished"), (code, end)
        assert end.error[: len(error) or None] == error and len(end.error) <= 2000, (code, end)
    logs = {code: backend.log(Trial(i, {}, "test")) for i, (code, *_) in enumerate(ENDS)}
    (log,) = (log for code, log in logs.items() if "raise ValueError" in code)
    assert "objective.py" in log and "hpo/trial.py" not in log and log.endswith("a\nb é")
    assert all(FORKED in log for code, log in logs.items() if code.startswith("os.fork"))


OFTEN = "for _ in range(3):\n  try: report(y=1.0)\n  except"
STOPPED = [  # what a trial does, and its end after "stop"
    ("try: report(y=1.0)\nfinally: os._exit(7)", "failed", "the process exited with code 7"),
    (f"{OFTEN} Exception: pass", "failed", "hpo.report.StopTrial"),
    (f"{OFTEN} BaseException: pass", "finished", ""),
    (f"{OFTEN} BaseException: time.sleep(99)", "failed", "the process was killed by SIGKILL (out"),
]


def test_stopped_trial_can_clean_up_and_reports_no_more(backend):
    found = run(backend, *(code for code, *_ in STOPPED), n_reports=1)
    for (reports, end), (code, outcome, error) in zip(found, STOPPED):
        assert len(reports) == 1 and end.outcome == outcome and end.error.startswith(error), code


def test_killed_trial_ends_at_once_and_has_failed(backend, monkeypatch):
    monkeypatch.setattr(hpo.trial, "TERM_SECONDS", 0.4)
    for handler in ("SIG_DFL", "SIG_IGN", "default_int_handler"):
        code = f"signal.signal(15, signal.{handler}); report(y=1.0); time.sleep(99)"
        trial = start(backend, code)
        assert backend.wait(20)
        backend.kill(trial)
        assert until_end(backend, trial, seconds=5) == [([], End(0, 1, "failed", "killed"))]


# ---- A trial harms nobody else -------------------------------------------------------------------
RUBBISH = [
    "b'x' * 10**7", r"bytes(99) + b'\n'", r"b'\xff\n'", r"b'[' * 10**5 + b'\n'", f"{REPORT} * 2",
    r"""b'{"end": ["finished"]}\n'""", r"""b'{"report": {"y": 1.0}, "counted": false}\n'""",
    f"{REPORT}.replace(b'1.0', b'[1.0]')", f"{REPORT}.replace(b'1.0', b'[' * 985 + b']' * 985)",
]  # fmt: skip


def test_rubbish_on_its_connection_fails_a_trial_alone_and_at_once(backend):
    codes = ["for y in range(300): report(y=y)", "raw(b'half a line'); report(y=1.0)"]
    codes += [f"raw({data}); time.sleep(99)" for data in RUBBISH]
    (reports, end), *ends = run(backend, *codes, "tuner.close(); time.sleep(99)")
    assert end.outcome == "finished" and len(reports) == 300
    assert ends.pop()[1].error == "closed its connection to the tuner"
    assert {end.error[:35] for _, end in ends} == {"sent the tuner what is not a report"}


FLAKY = """
import os
fork = os.fork
os.fork = lambda: os.stat("no process to be had") if os.path.exists(MARK) else fork()
"""


@on_linux
def test_fork_that_fails_for_a_while_costs_no_trial(tmp_path, monkeypatch):
    refuse, path = str(tmp_path / "refuse"), tmp_path / "objectives/objective.py"
    path.parent.mkdir()
    path.write_text(f"import flaky\n{OBJECTIVE}")  # the fork server imports it
    (tmp_path / "flaky.py").write_text(f"MARK = {refuse!r}\n{FLAKY}")
    monkeypatch.syspath_prepend(tmp_path)
    mark = f"pathlib.Path({refuse!r})"
    codes = [
        f"report(y=1.0); {mark}.touch(); time.sleep(0.6); {mark}.unlink(); report(y=2.0)",
        f"while not {mark}.exists(): time.sleep(0.01)\nreturned = 2.0",
        "returned = 2.0",
    ]
    with contextlib.closing(new_backend(tmp_path, str(path))) as backend:
        tuner = new_tuner(backend, codes)
        assert tuner.run() == "trials"
    found = [(t.status, t.value, t.attempt > 1) for t in tuner.trials]
    assert found == [("done", -2.0, False)] * 2 + [("done", -2.0, True)]


@on_linux
def test_trials_of_a_killed_fork_server_run_again(backend, folder):
    mark = f"pathlib.Path({str(folder / 'killed')!r})"
    kill = f"if not {mark}.exists(): time.sleep(0.3); {mark}.touch(); os.kill(os.getppid(), 9)"
    codes = [f"report(y=1.0)\n{kill}", f"report(y=1.0)\nwhile not {mark}.exists(): pass"]
    tuner = new_tuner(backend, [f"{code}\ntime.sleep(0.1); report(y=2.0)" for code in codes])
    assert tuner.run() == "trials"
    assert [(t.status, t.attempt, t.value) for t in tuner.trials] == [("done", 2, -2.0)] * 2
    assert [t.earlier for t in tuner.trials] == [[[(1, -1.0)]]] * 2


# ---- What a trial leaves behind ------------------------------------------------------------------
DESCENDANTS = """
child = subprocess.Popen(["sleep", "99"]).pid
session = subprocess.Popen(["sleep", "99"], start_new_session=True).pid
double_fork = "setsid sleep 99 > /dev/null 2>&1 & echo $!"
orphan = int(subprocess.check_output(["sh", "-c", double_fork]))
"""


@on_linux
def test_descendants_end_with_their_trial_and_not_before(backend):
    trial = start(backend, f"{DESCENDANTS}report(y=1.0, a=child, b=session, c=orphan)", 1)
    (report,) = backend.wait(20)
    pids = [report.metrics[name] for name in "abc"]
    run(backend, "returned = 1.0", first=2)
    assert not any(are_gone([pid]) for pid in pids)
    backend.answer(trial, True)
    until_end(backend, trial)
    assert are_gone(pids)


FORKING = """
import os, time, hpo
class Forking(hpo.RandomSearch):
    def suggest(self, trials):
        os.fork() or (time.sleep(20), os._exit(0))
        return super().suggest(trials)
"""


@on_linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_tuner(folder, tmp_path, start_py, number):
    """Though a fork of it, such as a worker of the searcher's pool, holds its connections open."""
    pids, results = tmp_path / "pids", tmp_path / "run"
    (tmp_path / "forking.py").write_text(FORKING)
    code = f"{DESCENDANTS}with open({str(pids)!r}, 'a') as f:\n"
    code += "  print(os.getpid(), child, session, orphan, file=f)\n"
    code += "report(y=1.0); ctypes.PyDLL(None).sleep(99)"  # holds Python's lock: no thread can act
    flags = ["--set", f"code={code}", "--searcher", f"{tmp_path}/forking.py:Forking"]
    flags += ["--workers", "2", "--stopping", "none", "--results", results]
    tuner = start_py("run.py", folder / "objective.py", *flags)
    journal = results / "journal.jsonl"
    wait_for(lambda: journal.exists() and journal.read_text().count('"report"') == 2)
    before = time.monotonic()
    tuner.send_signal(number)
    assert tuner.wait(20) == (-9 if number == signal.SIGKILL else 143)
    assert time.monotonic() - before < 4  # it does not wait for the forks
    wait_for(lambda: are_gone(pids.read_text().split()), seconds=8)
    assert [trial.value for trial in load(results)] == [-1.0, -1.0]


EARLY = """
import os, time, hpo
setsid = os.setsid
os.setsid = lambda: (print("server", flush=True), time.sleep(0.5), setsid())
hpo.tune(lambda config: 1.0, {"x": hpo.uniform(0, 1)}, metric="y", mode="max", results="RUN")
"""


@on_linux
def test_fork_server_ends_if_the_tuner_dies_while_it_begins(tmp_path, start_py):
    """It has inherited the tuner's end of their connection, so the connection never ends."""
    tuner = start_py("-c", EARLY.replace("RUN", str(tmp_path / "run")))
    assert any("server" in line for line in iter(tuner.stdout.readline, ""))
    tuner.kill()
    assert tuner.communicate(timeout=20)[0] == ""  # nobody holds the pipes any more


# ---- Where a trial runs --------------------------------------------------------------------------
def test_output_of_a_trial_goes_to_its_log(backend, folder, tmp_path):
    code = "print('out é'); print('err', file=sys.stderr); os.system('echo child'); returned = 1.0"
    log = folder / "logs/0099.log"
    run(backend, code, first=99)
    assert log.read_text("utf-8").splitlines() == ["out é", "err", "child"]
    log.unlink()
    log.symlink_to(tmp_path / "stolen")
    assert "OSError" in run(backend, code, first=99)[0][1].error
    assert not (tmp_path / "stolen").exists()


def test_environment_of_a_trial(backend, monkeypatch):
    monkeypatch.setattr(backend, "gpus", ["5", "7"])
    code = """report(y=random.random(), numpy=np.random.rand(), modules=" ".join(sys.modules),
        gpu=os.environ["CUDA_VISIBLE_DEVICES"], threads=os.environ["OMP_NUM_THREADS"])"""
    seen = [metrics for ((metrics,), _) in run(backend, *[code] * 4, first=3)]
    assert [metrics["gpu"] for metrics in seen] == ["5", "7", "5", "7"]
    assert len({metrics["y"] for metrics in seen}) == len({m["numpy"] for m in seen}) == 4
    assert run(backend, code, first=3)[0][0] == seen[:1]  # with the same seed
    assert seen[0]["threads"] == str(n_threads(2))
    loaded = {name for name in seen[0]["modules"].split() if name.startswith("hpo.")}
    assert loaded == {"hpo.objective", "hpo.report", "hpo.space", "hpo.trial"}


def test_functions_and_files_are_objectives_as_they_were_when_the_run_began(tmp_path, monkeypatch):
    path, local, space = tmp_path / "importable.py", 1.0, {"x": {"uniform": [0, 1]}}
    monkeypatch.syspath_prepend(tmp_path)
    cases = [(("importable", "objective"), 2.0), (str(path), 2.0)]
    cases += [(lambda config: local + config["x"], 1.5)] * LINUX
    for objective, y in cases:
        path.write_text("def objective(config):\n    return 2.0\n")
        with contextlib.closing(new_backend(tmp_path, objective, space, "y", "max")) as backend:
            path.write_text("a syntax error")
            found = run(backend, "")
        assert found == [([{"y": y, "epoch": 1}], End(0, 1, "finished"))], objective


def test_trials_start_by_spawn_where_there_is_no_fork(folder, tmp_path, run_py):
    """As on macOS, whose name each process of this run takes for its own."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.platform = 'darwin'\n")
    code = "report(y=1.0, start=multiprocessing.get_start_method())"
    flags = ["--set", f"code={code}", "--trials", 2, "--workers", 2, "--results", tmp_path / "run"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = run_py("run.py", folder / "objective.py", *flags, env=environment)
    assert done[0] == 0 and [t.status for t in load(tmp_path / "run")] == ["done"] * 2, done
    assert (tmp_path / "run/reports.csv").read_text().count("spawn") == 2
