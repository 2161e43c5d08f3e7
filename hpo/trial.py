"""A trial, and the process that trains it.

`LocalBackend` runs each trial in a process of its own, so that a crash, a leak or an out-of-memory
kill harms only that trial. One more process, the fork server, imports the objective's libraries
once. It starts the trials (by fork on Linux, in milliseconds; elsewhere by spawn) and kills them
all when the tuner has died, whatever killed it.

    tuner  -- starts, answers, kills -->  fork server  -- answers -->  trial
    tuner  <----- reports, ends --------  fork server  <-- reports --  trial

A trial sends a line of JSON and waits for the answer. The fork server never waits for the rest of a
line. So a trial that sends half a line, or something else, harms only itself.
"""

import contextlib
import ctypes
import hashlib
import importlib
import json
import math
import multiprocessing
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import pathlib
import signal
import socket
import sys
import time
import traceback
import types
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import NamedTuple

import hpo.objective
import hpo.report
from hpo.objective import ROOT, exit_reason, one_line

STOP_SECONDS = 10  # from "stop", or from the end of the objective, to SIGKILL
TERM_SECONDS = 5  # from SIGTERM to SIGKILL
MAX_LINE = 2**23  # bytes of a trial's message, or of a description
SERVER_DIED = "the fork server died"
LINUX, POSIX = sys.platform == "linux", os.name == "posix"
prctl = ctypes.CDLL(None).prctl if LINUX else lambda *_: None
ENDING = [getattr(signal, s) for s in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, s)]
THREADS = [f"{x}_NUM_THREADS" for x in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")]


# ---- Records -------------------------------------------------------------------------------------
@dataclass
class Trial:
    """One configuration and what became of it. Losses: lower is better. Times: the run's seconds.

    status: running, done, stopped (by the rule), failed, timeout (deadline or --trial_timeout), or
    interrupted (by Ctrl-C, a crash or a failure of the run; it is started again on resume).
    """

    id: int
    config: dict
    origin: str
    attempt: int = 1
    status: str = "running"
    curve: list = field(default_factory=list)  # [(epoch, loss)] in the order of the reports
    error: str = ""  # why it failed or was ended
    started: float = 0.0
    ended: float | None = None
    suggest_seconds: float = 0.0
    earlier: list = field(default_factory=list)  # the curves of interrupted attempts
    at_rung: dict = field(default_factory=dict, repr=False, compare=False)  # kept by hpo.stopping

    @property
    def value(self):
        """The lowest loss; None before the first report, and for a failed trial."""
        losses = [] if self.status == "failed" else [loss for _, loss in self.curve]
        return min(losses, default=None)

    @property
    def best_epoch(self):
        return None if self.value is None else min(self.curve, key=lambda point: point[1])[0]

    @property
    def last_value(self):
        return None if self.value is None else self.curve[-1][1]

    @property
    def n_epochs(self):
        return max((epoch for epoch, _ in self.curve), default=0)


class Report(NamedTuple):
    """Metrics of a trial, `epoch` among them. counted: the trial gave no epoch of its own."""

    trial_id: int
    attempt: int
    metrics: dict
    counted: bool = False


class End(NamedTuple):
    """A trial's process has ended. outcome: finished (the objective returned), failed, or lost (no
    process could be started, or the fork server died and took the trial with it)."""

    trial_id: int
    attempt: int
    outcome: str
    error: str = ""  # one line: why it has not finished
    found: str = ""  # JSON of what `describe` found


# ---- The tuner's side ----------------------------------------------------------------------------
class LocalBackend:
    """Runs trials on this machine. Call `describe`, then `begin`, then `start` for each trial.

    objective: see hpo/objective.py. A function runs in forks of this process; everything else runs
    in processes that do not inherit its memory.
    """

    def __init__(self, objective, seed=0, n_workers=1):
        self.objective, self.seed, self.n_threads = objective, seed, n_threads(n_workers)
        self.metric, self.gpus, self.log_folder, self.zero = "", [], "", time.monotonic()
        self.running = {}  # trial id -> (attempt, GPU)
        self.reader, self.writer = multiprocessing.Pipe(duplex=False)  # its own events
        self.server = None  # the connection to the fork server

    def describe(self, **options):
        """What hpo.objective.describe(objective, **options) returns in a process of its own."""
        for attempt in (1, 2, 3):  # its process may be lost, on a cluster with its machine
            self.start(Trial(-1, options, "describe", attempt))
            end = self.wait()[0]
            if end.outcome != "lost":
                break
        else:
            raise OSError(end.error)
        if not end.found:
            error = end.error.removeprefix("ValueError: ") or "loading it ends Python"
            name = str(getattr(self.objective, "path", self.objective))  # of a Program, or a file
            raise ValueError(error if error.startswith(("--", name)) else f"{name}: {error}")
        found = json.loads(end.found)
        self.metric, self.gpus = found["metric"], found["gpus"]
        return found

    def begin(self, log_folder, clock):
        """Sets the folder of the logs, and the run's clock to `clock` seconds."""
        self.log_folder, self.zero = log_folder, time.monotonic() - clock

    def now(self):
        """Seconds on the run's clock, which stands still between two sessions of a run."""
        return time.monotonic() - self.zero

    def start(self, trial):
        used = [gpu for _, gpu in self.running.values()]
        gpu = min(self.gpus, key=used.count, default=None)
        self.running[trial.id] = trial.attempt, gpu
        job = {"origin": trial.origin, "config": trial.config, "log": self._log(trial).absolute()}
        job |= {"seed": trial_seed(self.seed, trial.id), "metric": self.metric, "gpu": gpu}
        job["stop_seconds"] = STOP_SECONDS
        try:
            if self.server is None:
                self._begin_server()
        except (OSError, EOFError) as error:
            self.writer.send(End(trial.id, trial.attempt, "lost", one_line(error)))
        self._tell("start", trial, job)

    def begun_at(self, trial):
        """Seconds on the run's clock at which the trial got a process."""
        return trial.started

    def wait(self, timeout=None):
        """Waits at most `timeout` seconds for an event; returns a list of Reports and Ends."""
        events = []
        for connection in wait([c for c in (self.reader, self.server) if c], timeout):
            try:
                while connection.poll():
                    events.append(connection.recv())
            except (OSError, EOFError):
                self.close()
                for i, (attempt, _) in self.running.items():
                    events.append(End(i, attempt, "lost", SERVER_DIED))
        for event in events:
            if isinstance(event, End):
                self.running.pop(event.trial_id, None)
        return [event for event in events if event]  # None is from `wake`

    def answer(self, trial, go_on):
        """Answers a trial's report: go on, or stop within STOP_SECONDS."""
        self._tell("go" if go_on else "stop", trial, math.inf if go_on else STOP_SECONDS)

    def kill(self, trial):
        """Ends a trial and all that it has started: SIGTERM, after TERM_SECONDS SIGKILL."""
        self._tell("kill", trial, TERM_SECONDS)

    def log(self, trial):
        """The last 4,000 characters that a trial has printed."""
        log = self._log(trial)
        return log.read_text(errors="replace")[-4000:].rstrip() if log.exists() else ""

    def wake(self):
        """Makes a wait in progress return; safe in a signal handler."""
        self.writer.send(None)

    def close(self):
        """Ends the fork server, and with it all trials."""
        if self.server:
            self._tell("close")  # a fork of this process may keep the connection open
            self.server = None
            self.process.join(TERM_SECONDS)
            self.process.kill()  # it may hang in the import of a library
            self.process.join()

    def _log(self, trial):
        return pathlib.Path(self.log_folder, f"{trial.id:04d}.log")

    def _tell(self, word, trial=None, value=None):
        with contextlib.suppress(OSError):  # the server has died; `wait` will notice
            if self.server:
                self.server.send((word, trial and (trial.id, trial.attempt), value))

    def _begin_server(self):
        """Begins a fork server. It ignores signals, and does not import our main module."""
        ours, theirs = multiprocessing.Pipe()
        # A forked server closes our end. Else it could wait for us to read when we are dead.
        multiprocessing.util.register_after_fork(ours, type(ours).close)
        is_forked, main = callable(self.objective), sys.modules["__main__"]
        context = multiprocessing.get_context("fork" if is_forked else "spawn")
        self.process = context.Process(target=_serve, args=(theirs, self.objective, self.n_threads))
        if not is_forked:  # a fork needs it: the user's function may pickle what is defined there
            sys.modules["__main__"] = types.ModuleType("__main__")
        if POSIX:
            # `start` unblocks signals once it has started the tracker, so the tracker comes first.
            multiprocessing.resource_tracker.ensure_running()
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # the server inherits it
        try:
            with theirs:
                self.process.start()
            self.server = ours
        finally:  # a signal that has waited may raise KeyboardInterrupt here
            sys.modules["__main__"] = main
            if POSIX:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def n_threads(n_workers):
    """Threads of one trial: the usable cores, divided by the number of workers."""
    cores = len(os.sched_getaffinity(0)) if LINUX else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # not in a container, or its limit is "max"
        microseconds, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(microseconds) / int(period)))
    return max(1, cores // n_workers)


def trial_seed(seed, trial_id):
    """Seed, below 2**32, of a trial's random generators."""
    return int.from_bytes(hashlib.sha256(f"{seed} {trial_id}".encode()).digest()[:4], "big")


# ---- The fork server -----------------------------------------------------------------------------
def _serve(connection, objective, n_threads):
    """Starts, answers and kills trials when the tuner asks; kills them all when the tuner dies."""
    if POSIX:
        os.setsid()  # so that a signal to the tuner's group does not reach it
    prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: the orphans of ended trials become its children
    _die_with_parent()  # it may hang in the import of a library
    # Ready when the tuner dies. `connection` may not be: a fork of the tuner can keep it open.
    tuner_exit = [os.pidfd_open(os.getppid())] if LINUX else []
    os.environ.update(dict.fromkeys(THREADS, str(n_threads)))  # before numpy is imported
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    os.environ["PYTHONPATH"] = path.rstrip(os.pathsep)
    source, libraries = hpo.objective.source_of(objective)
    for name in ["hpo.space", *libraries]:
        with contextlib.suppress(Exception, SystemExit):  # `describe` will say what is wrong
            importlib.import_module(name)
    prctl(1, 0)  # from now on it survives the tuner, and kills the trials first
    children, word, ready = {}, "", set()  # (trial id, attempt) -> _Child; the tuner's last word
    with contextlib.suppress(EOFError, OSError):  # the tuner has died
        while word != "close" and not ready & set(tuner_exit):
            handles = [h for child in children.values() for h in (child.socket, child.sentinel)]
            seconds = min([3600, *(c.kill_at - time.monotonic() for c in children.values())])
            ready = set(wait([connection, *tuner_exit, *handles], seconds))
            for key, child in list(children.items()):
                if ready & {child.socket, child.sentinel} and (report := child.read()):
                    connection.send(Report(*key, *report))
                if child.sentinel in ready:
                    del children[key]
                    connection.send(End(*key, *child.end(children.values())))
                elif child.kill_at <= time.monotonic():
                    child.kill_at = math.inf
                    child.process.kill()
            if connection in ready:
                word, key, value = connection.recv()
                if word == "start":
                    try:
                        children[key] = _Child(connection, value, objective, source)
                    except OSError as error:
                        connection.send(End(*key, "lost", f"no process: {one_line(error)}"))
                elif key in children:
                    children[key].obey(word, value)
    for child in children.values():
        child.end(children.values())


def _die_with_parent():
    """From now on the kernel kills this process when its parent dies."""
    prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL (which Windows does not have by name)
    if LINUX and os.getppid() != multiprocessing.parent_process().pid:
        os._exit(1)  # the parent has died before that


class _Child:
    """A trial's process as the fork server sees it. OSError when it cannot be started."""

    def __init__(self, connection, job, objective, source):
        self.stop_seconds = job["stop_seconds"]
        self.unread = b""  # the part of a line that has arrived
        self.end_told = None  # [outcome, error, found], told by the process or known here
        self.kill_at = math.inf  # time.monotonic() at which it is killed
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        context = multiprocessing.get_context("fork" if LINUX else "spawn")
        arguments = connection, theirs, job, objective, source
        self.process = context.Process(target=_do_job, args=arguments)
        with theirs:
            self.process.start()
        # multiprocessing's sentinel would wait for the children of the process, too.
        self.sentinel = os.pidfd_open(self.process.pid) if LINUX else self.process.sentinel

    def obey(self, word, seconds):
        """Sends "go" or "stop" to the process, or terminates it. It is killed after `seconds`."""
        self.kill_at = min(self.kill_at, time.monotonic() + seconds)
        if word == "kill":
            self.end_told = self.end_told or ["failed", "killed"]  # whatever its exit code will be
            self.process.terminate()
        else:
            with contextlib.suppress(OSError):  # it has died in the meantime
                self.socket.send(word.encode())

    def read(self):
        """(metrics, counted) of the report that has arrived, or None. Does not wait."""
        try:
            data = self.socket.recv(2**20)
        except OSError:  # nothing has arrived
            return None
        self.unread += data
        if not data and not wait([self.sentinel], 1):  # it has closed it, and still lives
            self.end_told = self.end_told or ["failed", "closed its connection to the tuner"]
            self.kill_at = time.monotonic()
        if not self.unread.endswith(b"\n") and len(self.unread) <= MAX_LINE:
            return None
        line, self.unread, message = self.unread, b"", None
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(line)
        match message:
            case {"report": {"epoch": int()} as metrics, "counted": bool(counted)} if all(
                isinstance(value, (int, float, str, type(None))) for value in metrics.values()
            ):
                return metrics, counted
            case {"end": [str(), str(), str()] as end}:
                self.end_told = self.end_told or end
                self.kill_at = min(self.kill_at, time.monotonic() + self.stop_seconds)
            case _:  # two lines, for instance: it has not waited for the answer
                self.end_told = "failed", f"sent the tuner what is not a report: {line[:80]!r}"
                self.kill_at = time.monotonic()

    def end(self, others):
        """[outcome, error, found] of the process. Kills it, and all that ended trials have left."""
        self.process.kill()
        if POSIX:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.socket.close()
        if LINUX:
            os.close(self.sentinel)
        with contextlib.suppress(OSError):  # not Linux
            path = pathlib.Path(f"/proc/self/task/{os.getpid()}/children")
            keep = {child.process.pid for child in others}
            while orphans := set(map(int, path.read_text().split())) - keep:
                for pid in orphans:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
        code = self.process.exitcode
        return self.end_told or ["failed" if code else "finished", exit_reason(code)]


# ---- The trial's side ----------------------------------------------------------------------------
def _do_job(connection, tuner, job, objective, source):
    """The main function of a trial's process: trains a configuration or describes the objective."""
    connection.close()  # or the tuner would not notice that the fork server has died
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    if POSIX:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: its orphans are not those of another trial
    _die_with_parent()  # the fork server
    multiprocessing.set_start_method(None, force=True)  # the user's code finds the default
    hpo.report.process_id = os.getpid()
    end, failure, is_trial = ["finished", "", ""], None, job["origin"] != "describe"
    try:
        if is_trial:
            _train(tuner, job, objective, source)
        else:
            end[2] = json.dumps(hpo.objective.describe(objective, source, **job["config"]))
    except BaseException as error:  # it ends only this process
        if not isinstance(error, SystemExit) or error.code not in (None, 0):
            end, failure = ["failed", one_line(error), ""], error
    if os.getpid() == hpo.report.process_id:  # else a fork by the user's code has returned here
        with hpo.report.lock:
            tuner.sendall(json.dumps({"end": end}).encode() + b"\n")
            hpo.report.stopped = True  # its threads report no more
    is_text = isinstance(failure, SystemExit) and isinstance(failure.code, str)
    if is_trial and failure and not is_text and not isinstance(failure, hpo.report.StopTrial):
        shown = failure.with_traceback(failure.__traceback__.tb_next.tb_next)  # without this file
        with contextlib.suppress(OSError, ValueError):  # the log is closed, or its disk full
            traceback.print_exception(shown)


def _train(tuner, job, objective, source):
    """Trains a configuration. What this process prints goes to the trial's log."""
    log, metric = job["log"], job["metric"]
    log.parent.mkdir(exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    os.dup2(os.open(log, flags, 0o666), 1)
    os.dup2(1, 2)
    options = {"buffering": 1, "encoding": "utf-8", "errors": "backslashreplace"}
    sys.stdout = sys.stderr = os.fdopen(1, "w", closefd=False, **options)
    os.environ["TRIAL_SEED"] = str(job["seed"])
    os.environ["TRIAL_CHECKPOINTS"] = str(log.parents[1] / "checkpoints" / log.stem)
    if job["gpu"] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = job["gpu"]
    function = hpo.objective.load_module(objective, source).objective
    hpo.report.names, hpo.report.stopped = set(), False  # of a trial that calls hpo.tune
    hpo.report.tuner = tuner  # after loading: what the file reports while it loads is printed
    hpo.objective.set_generators(job["seed"])
    returned = function(job["config"])
    if not hpo.report.names and returned is not None:
        hpo.report.Reporter()(**(returned if isinstance(returned, dict) else {metric: returned}))
    if metric not in hpo.report.names:
        got = sorted(hpo.report.names - {"epoch"}) or "nothing"
        raise ValueError(f"expected a report of {metric}, got {got}; or choose --metric")
