"""Trials on a Dask cluster: python run.py --dask tcp://HOST:8786 --workers 32.

A task on a Dask worker is a relay. It owns a LocalBackend with one trial. It passes the trial's
reports to the tuner and the tuner's answers to the trial, by Dask's own means:

    tuner  <-- events: (trial id, attempt, kind, JSON) -------------------------  relays
    tuner  <-- the task's result: the trial's End, and its log -----------------  relay
    tuner  --- a queue for each attempt: "begin", "go", "stop", "kill" ----------->  its relay

The scheduler notices when the tuner is gone, and cancels its tasks. Dask does not stop a task that
runs, but the relay sees that its task is cancelled, and kills its trial. The scheduler also notices
when a worker is gone, and runs its task again elsewhere. That relay finds no "begin" in the queue
and refuses, and the tuner starts the trial again.
"""

import atexit
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import pickle
import queue
import tempfile
import threading
import time
import uuid
from multiprocessing import current_process

from distributed import Client, Queue, get_client, get_worker
from distributed.comm.addressing import get_address_host_port

from hpo.objective import Program, one_line
from hpo.status import say
from hpo.trial import End, LocalBackend, Report, Trial

PERIOD = 5.0  # seconds between two looks at a task, and for an answer of the scheduler
SILENCE = 60.0  # seconds after which a trial that was told to end is given up
MAX_LOG = 2**20  # bytes of a log that come home, its last ones
GONE = "the Dask worker is gone"
WAKE = (-1, 0, "wake", None)  # a message of no trial


# ---- The tuner's side ----------------------------------------------------------------------------
class DaskBackend(LocalBackend):
    """As LocalBackend, but its trials run on the workers of the scheduler at an address.

    ValueError where no scheduler answers, or where the objective is not in a file.
    """

    def __init__(self, address, objective, seed=0):
        if callable(objective):
            raise ValueError("--dask: expected an objective in a file, got one of this program")
        super().__init__(objective, seed)
        self.n_threads = 1  # unless a worker has OMP_NUM_THREADS in its environment
        try:
            get_address_host_port(address)  # a ValueError, where a Client would try for long
            self.client = Client(address, timeout=10, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"--dask {address}: no scheduler answers: {error}") from None
        self.run, self.arrived = f"hpo-{uuid.uuid4().hex}", queue.SimpleQueue()
        self.client.subscribe_topic(self.run, lambda event: self.arrived.put(tuple(event[1])))
        self.futures, self.outboxes = {}, {}  # trial id -> task; (trial id, attempt) -> queue
        self.begun = {}  # trial id -> time
        self.is_deaf = False  # for good: another scheduler does not know this run

    def describe(self, **options):
        if not self.client.nthreads():
            say("waiting for the first Dask worker")
        return super().describe(**options)

    def start(self, trial):
        key = trial.id, trial.attempt
        self.running[trial.id] = trial.attempt, None
        self.begun.pop(trial.id, None)
        job = {"run": self.run, "trial": trial, "metric": self.metric, "seed": self.seed}
        job |= {"objective": packed(self.objective), "logs": os.path.abspath(self.log_folder)}
        try:
            self.outboxes[key] = outbox(self.run, key, self.client)
            self.outboxes[key].put("begin", timeout=PERIOD)
            # A lambda is sent whole, and the job as bytes, so that the scheduler needs no hpo.
            data = pickle.dumps(functools.partial(relay, job))
            task = lambda data: __import__("pickle").loads(data)()
            future = self.futures[trial.id] = self.client.submit(task, data, pure=False)
            future.add_done_callback(lambda future: self._notice_end(key, future))
        except Exception as error:  # whatever Dask raises where there is no scheduler any more
            self._lose(key, one_line(error))

    def begun_at(self, trial):
        return self.begun.get(trial.id, self.now())

    def wait(self, timeout=None):
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            left = max(0.0, until - time.monotonic())
            messages = self._arrived(min(left, PERIOD))
            if self.is_deaf or self.client.status != "running":
                self.is_deaf = True
                for i, (attempt, _) in self.running.items():
                    self._lose((i, attempt), GONE)
            events = [event for message in messages if (event := self._event(*message))]
            if events or WAKE in messages or not left:
                return events

    def answer(self, trial, go_on):
        self._tell((trial.id, trial.attempt), "go" if go_on else "stop")
        if not go_on:
            self._lose_within(SILENCE, trial)

    def kill(self, trial):
        self._tell((trial.id, trial.attempt), "kill")
        self._lose_within(SILENCE if trial.id in self.begun else 0, trial)

    def wake(self):
        self.arrived.put(WAKE)

    def close(self):
        for i, (attempt, _) in self.running.items():
            self._tell((i, attempt), "kill")
        self.client.close(timeout=PERIOD)

    def _arrived(self, seconds):
        """All messages there are; waits so long for the first."""
        messages = []
        with contextlib.suppress(queue.Empty):
            messages.append(self.arrived.get(timeout=seconds))
            while True:
                messages.append(self.arrived.get_nowait())
        return messages

    def _event(self, i, attempt, kind, content):
        """The Report or the End in a message, or None; the log of an End is written."""
        if self.running.get(i, (None,))[0] != attempt:
            if kind in ("begun", "report"):  # the trial was lost, and has started again
                self._tell((i, attempt), "kill")
        elif kind == "begun":
            self.begun[i] = self.now()
        elif kind == "report":
            return Report(i, attempt, **json.loads(content))
        elif kind == "end":
            end, log = content
            del self.running[i]
            self.outboxes.pop((i, attempt), None)
            if i in self.futures:
                self.futures.pop(i).release()
            if log is not None:
                os.makedirs(self.log_folder, exist_ok=True)
                self._log(Trial(i, {}, "")).write_bytes(log)
            return end
        return None

    def _lose(self, key, error):
        self.arrived.put((*key, "end", (End(*key, "lost", error), None)))

    def _lose_within(self, seconds, trial):
        """Its End comes by then: it may wait for a worker, and there may be none any more."""
        arguments = (trial.id, trial.attempt), "no Dask worker answers"
        timer = threading.Timer(seconds, self._lose, arguments)
        timer.daemon = True
        timer.start()

    def _tell(self, key, word):
        with contextlib.suppress(Exception):  # there is no scheduler, as `wait` will notice
            (self.outboxes.get(key) or outbox(self.run, key, self.client)).put(word, timeout=PERIOD)

    def _notice_end(self, key, future):
        """Passes the result of a task on, or that there is none."""
        try:
            self.arrived.put((*key, "end", future.result(timeout=SILENCE)))
        except BaseException as error:  # of the worker, of Dask, or a CancelledError
            is_current = self.running.get(key[0], (None,))[0] == key[1]  # and not released
            self.is_deaf |= is_current and future.status == "cancelled"  # by another scheduler
            reason = "a worker, with this repository on its PYTHONPATH?, failed"
            self._lose(key, GONE if self.is_deaf else f"{reason}: {error!r:.500}")


def packed(objective):
    """An objective and the bytes of its file, for workers that do not have it."""
    path = objective.path if isinstance(objective, Program) else objective
    return objective, pathlib.Path(path).read_bytes() if isinstance(path, str) else None


def outbox(run, key, client):
    """The queue on which the tuner speaks to the relay of (trial id, attempt)."""
    return Queue(f"{run}-{key[0]}-{key[1]}", client)


# ---- The worker's side ---------------------------------------------------------------------------
own = threading.local()  # run and backend of a worker's thread, which serves trial after trial


def relay(job):
    """(End, log) of one trial, or of a description, on the worker that runs this task."""
    trial, worker = job["trial"], get_worker()
    key = trial.id, trial.attempt
    inbox = outbox(job["run"], key, get_client())
    if not inbox.qsize() or inbox.get(timeout=PERIOD) != "begin":
        return End(*key, "lost", GONE), None
    with tempfile.TemporaryDirectory() as scratch:
        is_shared = trial.origin != "describe" and os.path.isdir(os.path.dirname(job["logs"]))
        logs = job["logs"] if is_shared else f"{scratch}/logs"
        backend = backend_of(job)
        backend.begin(logs, 0)
        send = lambda kind, text="": worker.log_event(job["run"], [*key, kind, text])
        send("begun")
        end = train(backend, trial, inbox, send, worker)
        log = pathlib.Path(logs, f"{trial.id:04d}.log")
        is_to_go_home = not is_shared and log.exists()
        return end, log.read_bytes()[-MAX_LOG:] if is_to_go_home else None


def train(backend, trial, inbox, send, worker):
    """Passes reports and answers until the trial has ended; returns its End."""
    words, is_open, task = queue.SimpleQueue(), worker.status, worker.get_current_task()

    def listen():
        word = None
        while word not in ("kill", "over"):
            try:
                word = inbox.get()
            except Exception:  # the scheduler is gone
                word = "kill"
            words.put(word)
            backend.wake()
        with contextlib.suppress(Exception):  # as above
            inbox.close()

    threading.Thread(target=listen, daemon=True).start()
    backend.start(trial)
    try:
        while True:
            for event in backend.wait(PERIOD):
                if isinstance(event, End):
                    return event
                send("report", json.dumps({"metrics": event.metrics, "counted": event.counted}))
            while not words.empty():
                word = words.get()
                if word in ("go", "stop"):
                    backend.answer(trial, word == "go")
                elif word == "kill":
                    backend.kill(trial)
            known = worker.state.tasks.get(task)  # its state would be "cancelled"
            if not known or known.state != "executing" or worker.status != is_open:
                backend.kill(trial)
    finally:
        with contextlib.suppress(Exception):  # the scheduler is gone
            inbox.put("over", timeout=PERIOD)


def backend_of(job):
    """The LocalBackend of this thread, whose fork server serves all its trials of a run."""
    if getattr(own, "run", None) != job["run"]:
        if hasattr(own, "backend"):
            own.backend.close()
        current_process()._config["daemon"] = False  # a daemonic worker may not start processes
        own.run, own.backend = job["run"], LocalBackend(unpacked(*job["objective"]), job["seed"])
        own.backend.n_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        atexit.register(own.backend.close)
    own.backend.metric = job["metric"]
    return own.backend


def unpacked(objective, source):
    """The objective whose file is here, or is made anew from its bytes."""
    is_program = isinstance(objective, Program)
    path = objective.path if is_program else objective
    if source is None or os.path.exists(path):
        return objective
    copy = pathlib.Path(tempfile.mkdtemp(), os.path.basename(path))
    copy.write_bytes(source)
    copy.chmod(0o755)
    return dataclasses.replace(objective, path=str(copy)) if is_program else str(copy)
