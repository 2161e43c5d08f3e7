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

from hpo.objective import one_line
from hpo.status import say
from hpo.trial import End, LocalBackend, Report, Trial

PERIOD = 5.0  # seconds from one look at a task to the next; the scheduler's time to answer
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
        path = getattr(objective, "path", objective)  # of a Program, or of a file
        self.source = pathlib.Path(path).read_bytes() if isinstance(path, str) else None
        self.n_threads = 1  # unless a worker has OMP_NUM_THREADS in its environment
        try:
            get_address_host_port(address)  # a ValueError, where a Client would try for long
            self.client = Client(address, timeout=10, set_as_default=False)
            if not self.client.nthreads():
                say("waiting for the first Dask worker")
        except (OSError, ValueError) as error:
            raise ValueError(f"--dask {address}: no scheduler answers: {error}") from None
        self.run, self.arrived = f"hpo-{uuid.uuid4().hex}", queue.SimpleQueue()
        # trial id -> (attempt, time at which it is given up); its task, its queue, when it began
        self.running, self.futures, self.queues, self.begun = {}, {}, {}, {}

    def start(self, trial):
        key = trial.id, trial.attempt
        self.running[trial.id] = trial.attempt, math.inf
        self.begun.pop(trial.id, None)
        job = {"run": self.run, "trial": trial, "metric": self.metric, "seed": self.seed}
        job |= {"objective": self.objective, "logs": os.path.abspath(self.log_folder)}
        job |= {"source": self.source, "queue": f"{self.run}-{trial.id}-{trial.attempt}"}
        try:
            # Each time, as another scheduler may have taken the place of the first one.
            self.client.subscribe_topic(self.run, lambda event: self.arrived.put(tuple(event[1])))
            self.queues[trial.id] = Queue(job["queue"], self.client)
            self.queues[trial.id].put("begin", timeout=PERIOD)
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
            now, messages = time.monotonic(), []
            for i, (attempt, given_up_at) in self.running.items():
                if given_up_at <= now:
                    self._lose((i, attempt), GONE)
            with contextlib.suppress(queue.Empty):
                messages.append(self.arrived.get(timeout=min(max(0.0, until - now), PERIOD)))
                while True:
                    messages.append(self.arrived.get_nowait())
            events = [event for message in messages if (event := self._event(*message))]
            if events or WAKE in messages or until <= now:
                return events

    def wake(self):
        self.arrived.put(WAKE)

    def close(self):
        self.client.close(timeout=PERIOD)

    def _tell(self, word, trial, seconds):
        """Sends a word. After so many seconds the trial is given up: its worker may be gone."""
        has_worker = word != "kill" or trial.id in self.begun
        given_up_at = time.monotonic() + (max(seconds, SILENCE) if has_worker else 0)
        self.running[trial.id] = trial.attempt, given_up_at
        with contextlib.suppress(Exception):  # there is no scheduler: Dask cancels the task
            self.queues[trial.id].put(word, timeout=PERIOD)

    def _event(self, i, attempt, kind, content):
        """The Report or the End in a message, or None; the log of an End is written."""
        if i not in self.running or self.running[i][0] != attempt:
            return None
        if kind == "begun":
            self.begun[i] = self.now()
            return None
        if kind == "report":
            return Report(i, attempt, **json.loads(content))
        end, log = content
        del self.running[i]
        if i in self.futures:
            self.futures.pop(i).release()
            self.queues.pop(i).close()
        if log is not None:
            os.makedirs(self.log_folder, exist_ok=True)
            file = self._log(Trial(i, {}, ""))
            file.unlink(missing_ok=True)  # it may be a link
            file.write_bytes(log)
        return end

    def _lose(self, key, error):
        self.arrived.put((*key, "end", (End(*key, "lost", error), None)))

    def _notice_end(self, key, future):
        """Passes the result of a task on, or that there is none."""
        try:
            self.arrived.put((*key, "end", future.result(timeout=SILENCE)))
        except BaseException as error:  # of the worker, of Dask, or a CancelledError
            reason = "a worker, with this repository on its PYTHONPATH?, failed"
            self._lose(key, f"{reason}: {error!r:.500}")


# ---- The worker's side ---------------------------------------------------------------------------
own = threading.local()  # run and backend of a worker's thread, which serves many trials


def relay(job):
    """(End, log) of one trial, or of a description, on the worker that runs this task."""
    trial, words = job["trial"], Queue(job["queue"], get_client())
    if not words.qsize() or words.get(timeout=PERIOD) != "begin":
        return End(trial.id, trial.attempt, "lost", GONE), None
    with tempfile.TemporaryDirectory() as scratch:
        is_shared, backend = os.path.isdir(os.path.dirname(job["logs"])), backend_of(job)
        backend.begin(job["logs"] if is_shared else f"{scratch}/logs", 0)
        end = train(backend, trial, words, job["run"])
        log = pathlib.Path(scratch, "logs", f"{trial.id:04d}.log")
        return end, log.read_bytes()[-MAX_LOG:] if log.exists() else None


def train(backend, trial, words, topic):
    """Passes reports and answers until the trial has ended; returns its End."""
    worker, is_asked = get_worker(), False
    send = lambda *message: worker.log_event(topic, [trial.id, trial.attempt, *message])
    task, status = worker.get_current_task(), worker.status
    send("begun", "")
    backend.start(trial)
    while True:
        for event in backend.wait(0 if is_asked else PERIOD):
            if isinstance(event, End):
                return event
            send("report", json.dumps({"metrics": event.metrics, "counted": event.counted}))
            is_asked = True
        word, known = "", worker.state.tasks.get(task)  # "cancelled" if Dask gave it up
        try:
            if not known or known.state != "executing" or worker.status != status:
                word = "kill"
            elif is_asked or words.qsize():
                word = words.get(timeout=PERIOD)
        except Exception as error:  # or the scheduler is gone
            word = "" if isinstance(error, TimeoutError) else "kill"
        is_asked = is_asked and not word
        if word == "kill":
            backend.kill(trial)
        elif word:
            backend.answer(trial, word == "go")


def backend_of(job):
    """The LocalBackend of this thread, whose fork server serves all its trials of a run."""
    if getattr(own, "run", None) != job["run"]:
        if hasattr(own, "backend"):
            own.backend.close()
        current_process()._config["daemon"] = False  # a daemonic worker may not start processes
        own.run, own.backend = job["run"], LocalBackend(objective_of(job), job["seed"])
        own.backend.n_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        atexit.register(own.backend.close)
    own.backend.metric = job["metric"]
    return own.backend


def objective_of(job):
    """The objective, whose file is here too or is made anew."""
    objective, path = job["objective"], getattr(job["objective"], "path", job["objective"])
    if job["source"] is None or os.path.exists(path):
        return objective
    copy = pathlib.Path(tempfile.mkdtemp(), os.path.basename(path))
    copy.write_bytes(job["source"])
    copy.chmod(0o755)
    return str(copy) if path is objective else dataclasses.replace(objective, path=str(copy))
