"""Trials on a Dask cluster: python run.py --dask tcp://HOST:8786 --workers 32.

A task on a Dask worker is a relay. It owns a LocalBackend with one trial, and passes the trial's
reports to the tuner and the tuner's answers to the trial, all through Dask's own queues:

    tuner  <-- queue of the run: [trial id, attempt, kind, JSON, log] ---  relays
    tuner  --- queue of each attempt: "begin", "go", "stop", "kill" --->  its relay

Both sides give a sign of life every PERIOD seconds. A relay that hears nothing of the tuner for
SILENCE seconds kills its trial. A trial whose relay is silent as long is lost, and starts again.
Dask runs the task of a dead worker again elsewhere; that relay finds no "begin", and refuses.
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

from distributed import Client, Queue, Variable, get_client, get_worker

from hpo.objective import Program, one_line
from hpo.trial import End, LocalBackend, Report, Trial

PERIOD, SILENCE = 5.0, 60.0  # seconds
MAX_LOG = 2**20  # bytes of a log that come home, its last ones
GONE = "the Dask worker is gone"
WAKE = (-1, 0, "wake", "", None)  # a message of no trial


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
            self.client = Client(address, timeout=10, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"--dask {address}: no scheduler answers: {error}") from None
        self.run, self.arrived = f"hpo-{uuid.uuid4().hex}", queue.SimpleQueue()
        self.inbox, self.beat = Queue(self.run, self.client), Variable(self.run, self.client)
        self.futures, self.outboxes = {}, {}  # trial id -> task; (trial id, attempt) -> queue
        self.begun, self.heard = {}, {}  # trial id -> time
        self.is_over, self.is_deaf = threading.Event(), False
        for target in (self._listen, self._show_life):
            threading.Thread(target=target, daemon=True).start()

    def start(self, trial):
        key = trial.id, trial.attempt
        self.running[trial.id] = trial.attempt, None
        self.begun.pop(trial.id, None)
        self.heard.pop(trial.id, None)
        job = {"run": self.run, "trial": trial, "metric": self.metric, "seed": self.seed}
        job["seconds"] = PERIOD, SILENCE
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
            self._notice_silence()
            events = [event for message in messages if (event := self._event(*message))]
            if events or WAKE in messages or not left:
                return events

    def answer(self, trial, go_on):
        self._tell((trial.id, trial.attempt), "go" if go_on else "stop")

    def kill(self, trial):
        self._tell((trial.id, trial.attempt), "kill")
        if trial.id not in self.begun:  # it waits for a worker, perhaps for ever
            self._lose((trial.id, trial.attempt), "no Dask worker has begun it")

    def wake(self):
        self.arrived.put(WAKE)

    def close(self):
        for i, (attempt, _) in self.running.items():
            self._tell((i, attempt), "kill")
        self.is_over.set()
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self.inbox.close()
            self.beat.delete()
        self.client.close(timeout=PERIOD)

    def _arrived(self, seconds):
        """All messages there are; waits so long for the first."""
        messages = []
        with contextlib.suppress(queue.Empty):
            messages.append(self.arrived.get(timeout=seconds))
            while True:
                messages.append(self.arrived.get_nowait())
        return messages

    def _event(self, i, attempt, kind, text, log):
        """The Report or the End in a message, or None; its log is written."""
        if self.running.get(i, (None,))[0] != attempt:
            if kind in ("begun", "alive", "report"):  # the trial was lost, and has started again
                self._tell((i, attempt), "kill")
            return None
        self.heard[i] = time.monotonic()
        if kind == "begun":
            self.begun[i] = self.now()
        if kind == "report":
            return Report(i, attempt, **json.loads(text))
        if kind != "end":
            return None
        del self.running[i]
        self.outboxes.pop((i, attempt), None)
        if i in self.futures:
            self.futures.pop(i).release()
        if log is not None:
            os.makedirs(self.log_folder, exist_ok=True)
            self._log(Trial(i, {}, "")).write_bytes(log)
        return End(i, attempt, **json.loads(text))

    def _lose(self, key, error):
        self.arrived.put((*key, "end", json.dumps({"outcome": "lost", "error": error}), None))

    def _tell(self, key, word):
        with contextlib.suppress(Exception):  # there is no scheduler, as silence will show
            (self.outboxes.get(key) or outbox(self.run, key, self.client)).put(word, timeout=PERIOD)

    def _listen(self):
        with contextlib.suppress(Exception):  # the scheduler has gone, or this run is over
            while True:
                self.arrived.put(self.inbox.get())
        self.is_deaf = True  # for good: another scheduler does not know this run

    def _show_life(self):
        n = 0
        while not self.is_over.wait(PERIOD if n else 0):
            n += 1
            with contextlib.suppress(Exception):  # the relays will notice
                self.beat.set(n, timeout=PERIOD)

    def _notice_end(self, key, future):
        if future.status != "finished":
            error = future.exception() if future.status == "error" else future.status
            self._lose(
                key, f"a worker, with this repository on its PYTHONPATH?, failed: {error!r:.500}"
            )

    def _notice_silence(self):
        for i, (attempt, _) in self.running.items():
            is_silent = self.heard.get(i, math.inf) + SILENCE < time.monotonic()
            if is_silent or self.is_deaf or self.client.status != "running":
                self._lose((i, attempt), GONE)


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
    """Trains one trial, or describes the objective, on the worker that runs this task."""
    run, trial, client = job["run"], job["trial"], get_client()
    key = trial.id, trial.attempt
    inbox, home = outbox(run, key, client), Queue(run, client)

    def send(kind, text="", log=None):
        home.put((*key, kind, text, log), timeout=job["seconds"][1])

    if not inbox.qsize() or inbox.get(timeout=PERIOD) != "begin":
        send("end", json.dumps({"outcome": "lost", "error": GONE}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        is_shared = trial.origin != "describe" and os.path.isdir(os.path.dirname(job["logs"]))
        logs = job["logs"] if is_shared else f"{scratch}/logs"
        backend = backend_of(job)
        backend.begin(logs, 0)
        send("begun")
        end = train(backend, trial, inbox, send, Variable(run, client), *job["seconds"])
        log = pathlib.Path(logs, f"{trial.id:04d}.log")
        is_to_go_home = not is_shared and log.exists()
        text = {"outcome": end.outcome, "error": end.error, "found": end.found}
        send("end", json.dumps(text), log.read_bytes()[-MAX_LOG:] if is_to_go_home else None)


def train(backend, trial, inbox, send, beat, period, silence):
    """Passes reports and answers until the trial has ended; returns its End."""
    words, heard, worker = queue.SimpleQueue(), [time.monotonic()], get_worker()
    is_over, is_open = threading.Event(), worker.status

    def listen():
        with contextlib.suppress(Exception):  # the scheduler is gone
            while (word := inbox.get()) != "over":
                words.put(word)
                backend.wake()
            inbox.close()

    def watch():
        last = None
        while not is_over.wait(period):
            with contextlib.suppress(Exception):  # the scheduler is gone, or there is no beat yet
                send("alive")
                if (n := beat.get(timeout=period)) != last:
                    last, heard[0] = n, time.monotonic()

    for target in (listen, watch):
        threading.Thread(target=target, daemon=True).start()
    backend.start(trial)
    try:
        while True:
            for event in backend.wait(period):
                if isinstance(event, End):
                    return event
                send("report", json.dumps({"metrics": event.metrics, "counted": event.counted}))
            while not words.empty():
                word = words.get()
                if word == "kill":
                    backend.kill(trial)
                else:
                    backend.answer(trial, word == "go")
            if time.monotonic() > heard[0] + silence or worker.status != is_open:
                backend.kill(trial)
    finally:
        is_over.set()
        with contextlib.suppress(Exception):  # the scheduler is gone
            inbox.put("over", timeout=period)


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
