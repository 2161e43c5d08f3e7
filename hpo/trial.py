"""A trial, and the process that trains it.

LocalBackend runs each trial in a process of its own, so that a crash, a leak or an out-of-memory kill costs that trial
alone. On Linux the processes are forked from a server that has imported the libraries of the objective file, so that
one starts in milliseconds; elsewhere they are spawned.
"""

import contextlib
import json
import math
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import shutil
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import wait

import hpo.report
from hpo.objective import (
    SIGKILL,
    THREAD_VARIABLES,
    environment,
    exit_reason,
    kill_session,
    load_module,
    one_line,
    own_session,
    preloadable_modules,
    set_generators,
)
from hpo.report import StopTrial

GRACE_SECONDS = 10  # from the answer "stop", or the end of the objective, to SIGTERM
TERM_SECONDS = 5  # from SIGTERM to SIGKILL
PAUSES = (1, 2, 4)  # seconds before another attempt to start a process


# ---- Records -----------------------------------------------------------------------------------------------------------
@dataclass
class Trial:
    """One configuration and what became of it. Losses: lower is better. Times: seconds on the run's clock."""

    id: int
    config: dict
    origin: str
    attempt: int = 1
    status: str = "running"  # running, done, stopped (by the rule), failed, timeout (deadline or --trial_timeout)
    curve: list = field(default_factory=list)  # [(epoch, loss)] in the order of the reports
    error: str = ""  # why it failed or was ended
    started: float = 0.0
    ended: float | None = None
    suggest_seconds: float = 0.0

    @property
    def value(self):
        """The lowest loss; None before the first, and for a failed trial."""
        return min((loss for _, loss in self.curve), default=None) if self.status != "failed" else None

    @property
    def best_epoch(self):
        return None if self.value is None else min(self.curve, key=lambda point: point[1])[0]

    @property
    def last_value(self):
        return None if self.value is None else self.curve[-1][1]

    @property
    def n_epochs(self):
        return max((epoch for epoch, _ in self.curve), default=0)


@dataclass(frozen=True)
class Report:
    """Metrics by name, `epoch` among them, as a trial reported them. counted: without an epoch, so it is their number."""

    trial_id: int
    metrics: dict
    counted: bool = False


@dataclass(frozen=True)
class End:
    """A trial's process is gone. finished: the objective returned; else `error` says why, in a line."""

    trial_id: int
    finished: bool
    error: str
    traceback: str
    busy_seconds: float | None  # from entering the objective to the end of the process; None: never entered


# ---- The tuner's side ---------------------------------------------------------------------------------------------------
class LocalBackend:
    """One process per trial on this machine: start, wait, answer, kill, wake, now."""

    def __init__(self, objective, log_folder, seed=0, n_workers=1, n_gpus=0, clock=0.0):
        self.preloaded = warm_up(objective, n_workers)
        self.objective, self.log_folder, self.seed = str(objective), pathlib.Path(log_folder), seed
        self.n_threads = n_threads(n_workers)
        self.devices = visible_gpus(n_gpus)
        self.running = {}  # trial id -> _Process
        self.unstarted = []  # Ends of trials for which there was no process to be had
        self.zero = time.monotonic() - clock
        self.wake_reader, self.wake_writer = multiprocessing.Pipe(duplex=False)
        self.guard = _start_guard()

    def now(self):
        """Seconds on the run's clock, which stands still between two sessions of a run."""
        return time.monotonic() - self.zero

    def start(self, trial):
        device = None
        if self.devices:
            loads = [sum(p.device == device for p in self.running.values()) for device in self.devices]
            device = self.devices[loads.index(min(loads))]
        log_path, seed = self.log_folder / f"{trial.id:04d}.log", trial_seed(self.seed, trial.id)
        arguments = (self.objective, trial.config, seed, self.n_threads, device, str(log_path), self.preloaded)
        for seconds in (*PAUSES, 0):
            try:
                self.running[trial.id] = process = _Process(device, arguments)
                return self._tell_guard(b"+%d" % process.pid)
            except (OSError, EOFError) as error:  # no memory, too many processes or files: soon there may be room again
                reason = f"no process could be started: {error!r}"
            time.sleep(seconds)
        self.unstarted.append(End(trial.id, False, reason, "", None))

    def wait(self, timeout=None):
        """Reports and Ends that have come; waits for the first of them, at most `timeout` seconds (None: for ever)."""
        events, self.unstarted = self.unstarted, []
        steps = (process.steps[0][0] for process in self.running.values() if process.steps)
        until = min([math.inf if timeout is None else time.monotonic() + timeout, *steps])
        handles = [self.wake_reader, *(handle for process in self.running.values() for handle in process.handles())]
        seconds = 0 if events else None if until == math.inf else max(0.0, until - time.monotonic())
        ready = set(wait(handles, seconds))
        if self.wake_reader in ready:
            self.wake_reader.recv_bytes()
        for i, process in list(self.running.items()):
            is_gone = process.sentinel in ready
            if not is_gone:
                process.step()
            if is_gone or process.connection in ready:
                events += [Report(i, *report) for report in process.read()]
            if is_gone:
                del self.running[i]
                events.append(End(i, *process.close()))
                self._tell_guard(b"-%d" % process.pid)
        return events

    def answer(self, trial, go_on):
        """Answers the report of a trial: go on, or stop, for which it has GRACE_SECONDS."""
        if trial.id in self.running:  # else it has died meanwhile
            self.running[trial.id].answer(go_on)

    def kill(self, trial):
        """Ends a trial: SIGTERM to all its processes now, SIGKILL after TERM_SECONDS."""
        if trial.id in self.running:
            self.running[trial.id].terminate(after=0)

    def wake(self):
        """Makes a wait in progress return; safe in a signal handler."""
        self.wake_writer.send_bytes(b"wake")

    def kill_all_at_once(self):
        for process in self.running.values():
            kill_session(process.pid)

    def _tell_guard(self, message):
        try:
            self.guard.send_bytes(message)
        except OSError:  # somebody has killed it
            with contextlib.suppress(OSError, EOFError):  # no process to be had: the next trial tries again
                self.guard = _start_guard()
                for process in self.running.values():
                    self.guard.send_bytes(b"+%d" % process.pid)


def _start_guard():
    """Connection to a process that kills the trials' sessions when the tuner is gone, however it went."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    with environment(n_threads=1):
        process_context().Process(target=_guard, args=(reader, multiprocessing.util.get_temp_dir())).start()
    reader.close()
    multiprocessing.util.Finalize(writer, _dismiss, [writer], exitpriority=0)  # before an exiting tuner waits for it
    return writer


def _dismiss(guard):
    with contextlib.suppress(OSError):  # somebody has killed it
        guard.send_bytes(b"end")
    guard.close()


def _guard(reader, temporary):
    own_session(dies_with_parent=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    message, sessions = b"", set()
    with contextlib.suppress(EOFError):  # the tuner is gone
        while (message := reader.recv_bytes()) != b"end":
            {b"+": sessions.add, b"-": sessions.discard}[message[:1]](int(message[1:]))
    for pid in sessions:
        kill_session(pid)
    if message != b"end":
        shutil.rmtree(temporary, ignore_errors=True)  # of the fork server's socket, which an ending tuner removes


class _Process:
    """The tuner's end of one trial's process."""

    def __init__(self, device, arguments):
        self.device = device
        self.connection, theirs = multiprocessing.Pipe()
        with theirs, environment(arguments[3]):
            self.process = process_context().Process(target=_trial_process, args=(theirs, *arguments))
            self.process.start()
        self.pid, self.sentinel = self.process.pid, self.process.sentinel
        self.open = True  # our end of the connection may still bring messages
        self.entered = None  # time.monotonic() when the objective was called
        self.outcome = None  # (finished, error, traceback), told by the process
        self.steps = []  # [(time, signal)] of a termination under way
        self.signalled = math.inf  # time.monotonic() of its first signal

    def handles(self):
        return [self.sentinel, self.connection] if self.open else [self.sentinel]

    def read(self):
        """(metrics, counted) of the reports that have come."""
        reports = []
        while self.open:
            try:
                if not self.connection.poll():
                    break
                message = json.loads(self.connection.recv_bytes())
            except (EOFError, OSError):  # the process has closed its end, or died
                self.open = False
                break
            if "report" in message:
                reports.append((message["report"], message["counted"]))
            elif "entered" in message:
                self.entered = message["entered"]
                for name in message["missing"]:
                    warnings.warn(f"{name} could not be preloaded: trials start slowly", stacklevel=2)
            else:
                finished, *outcome, ended = message["end"]
                self.outcome = (
                    finished and ended < self.signalled,
                    *outcome,
                )  # else a handler of SIGTERM made it leave
                self.terminate(GRACE_SECONDS)
        return reports

    def answer(self, go_on):
        try:
            self.connection.send_bytes(b"go on" if go_on else b"stop")
        except OSError:
            pass  # it has died meanwhile; its sentinel will say so
        if not go_on:
            self.terminate(GRACE_SECONDS)

    def terminate(self, after):
        now = time.monotonic() + after
        if not self.steps or now < self.steps[0][0]:
            self.steps = [(now, signal.SIGTERM), (now + TERM_SECONDS, SIGKILL)]

    def step(self):
        while self.steps and self.steps[0][0] <= (now := time.monotonic()):
            self.signalled = min(self.signalled, now)
            kill_session(self.pid, self.steps.pop(0)[1])

    def close(self):
        """(finished, error, traceback, busy_seconds) of an ended process; kills what is left of its group."""
        ended = time.monotonic()
        self.process.join()
        kill_session(self.pid, is_gone=True)
        code = self.process.exitcode
        self.process.close()
        self.connection.close()
        busy_seconds = None if self.entered is None else ended - self.entered
        if self.outcome is None:
            self.outcome = (code == 0 and self.signalled == math.inf, exit_reason(code), "")
        return *self.outcome, busy_seconds


def n_threads(n_workers):
    """Threads of one trial: the usable cores, at most a container's share, divided among the workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such limit, or "max"
        microseconds, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(microseconds) / int(period)))
    return max(1, cores // n_workers)


def visible_gpus(n_gpus):
    """The values of CUDA_VISIBLE_DEVICES that give one GPU each."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [device.strip() for device in given.split(",") if device.strip()][:n_gpus] or [str(i) for i in range(n_gpus)]


def trial_seed(seed, trial_id):
    """Seed below 2**32 of a trial's random generators, from the run's seed and the trial's id (SplitMix64's mixing)."""
    z = (seed * 0x9E3779B97F4A7C15 + trial_id * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) % 2**32


# ---- The trial's side ---------------------------------------------------------------------------------------------------
def process_context():
    return multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


def warm_up(path, n_workers):
    """Starts the fork server, which imports the objective file's libraries while the tuner goes on; returns their names."""
    if sys.platform != "linux":
        return []
    try:
        modules = preloadable_modules(path)
    except (OSError, SyntaxError, ValueError):
        return []  # `describe` says what is wrong with the file
    with environment(n_threads(n_workers)):
        process_context().set_forkserver_preload(modules)
        multiprocessing.forkserver.ensure_running()
    return modules


def _trial_process(connection, path, config, seed, n_threads, device, log_path, preloaded):
    missing = [name for name in preloaded if name not in sys.modules]
    own_session()
    hpo.report.tuner = connection
    multiprocessing.set_start_method(None, force=True)  # the user's processes start as they would without us
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        _print_to(log_path)
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(n_threads)))
        if device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = device
        objective = load_module(path).objective
        set_generators(seed, n_threads)
        connection.send_bytes(json.dumps({"entered": time.monotonic(), "missing": missing}).encode())
        objective(config)
        outcome = True, "", ""
    except StopTrial:
        outcome = False, "raised StopTrial without being told to", ""
    except SystemExit as leave:
        finished = leave.code in (None, 0)
        outcome = finished, "" if finished else one_line(leave), ""
    except BaseException as error:  # whatever it is, it ends this trial alone, and the tuner is told
        text = _traceback(error, path)
        print(text, file=sys.stderr, flush=True)
        outcome = False, one_line(error), text
    connection.send_bytes(json.dumps({"end": [*outcome, time.monotonic()]}).encode())


def _print_to(path):
    nothing = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):  # not the tuner's, even when there can be no log
        os.dup2(nothing, target)
    # somebody may have made room; but no new folder for a run that was moved
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.dirname(path))
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for target in (1, 2):
        os.dup2(log, target)
    for name, file in (("stdout", 1), ("stderr", 2)):
        stream = os.fdopen(file, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        setattr(sys, name, stream)


def _traceback(error, path):
    """The traceback from the objective file's first frame on; all of it where there is none."""
    tb, path = error.__traceback__, str(pathlib.Path(path).resolve())
    while tb and tb.tb_frame.f_code.co_filename != path:
        tb = tb.tb_next
    return "".join(traceback.format_exception(type(error), error, tb or error.__traceback__))
