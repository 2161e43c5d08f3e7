"""Tuning on a simulated clock: the tuner's own loop, but a trial is a function and an hour takes no time.

    def objective(config, rng):          # rng: numpy Generator, one for each trial
        for epoch in range(1, 10):
            yield 60 * rng.lognormal(0, 0.5), {"epoch": epoch, "loss": 1 / epoch}   # seconds until it reports, metrics

    trials = simulate(RandomSearch(space), space, objective, n_workers=4, n_trials=60)

Deterministic: the same searcher, objective and seed give the same trials. Thousands of trials per second.
"""

import heapq
import itertools

import numpy as np

from hpo.trial import End, Report
from hpo.tuner import Tuner


class SimulatedBackend:
    """hpo.trial.LocalBackend's interface; `objective(config, rng)` gives (seconds, metrics) pairs, one per report."""

    def __init__(self, objective, seed=0):
        self.objective, self.seed = objective, seed
        self.clock = 0.0
        self.queue = []  # heap of (time, order of arrival, trial id, Report or End)
        self.arrivals = itertools.count()
        self.running = {}  # trial id -> [time of start, iterator of what is still to be reported, number of reports]

    def now(self):
        return self.clock

    def start(self, trial):
        rng = np.random.default_rng([self.seed, trial.id])
        self.running[trial.id] = [self.clock, iter(self.objective(trial.config, rng)), 0]
        self._advance(trial.id)

    def wait(self, timeout=None):
        """The events at the earliest time at which there are any, if that is within `timeout` seconds."""
        until = self.clock + (np.inf if timeout is None else timeout)
        if not self.queue or self.queue[0][0] > until:
            self.clock = until if np.isfinite(until) else self.clock
            return []
        self.clock, events = self.queue[0][0], []
        while self.queue and self.queue[0][0] <= self.clock:
            _, _, i, event = heapq.heappop(self.queue)
            events.append(event)
            if isinstance(event, End):
                del self.running[i]
        return events

    def answer(self, trial, go_on):
        """The trial goes on after a report, or ends at once."""
        if trial.id in self.running:
            self._advance(trial.id) if go_on else self.kill(trial)

    def kill(self, trial):
        if trial.id in self.running:
            self.queue = [entry for entry in self.queue if entry[2] != trial.id]
            heapq.heapify(self.queue)
            self._end(trial.id, False, "killed")

    def wake(self):
        """Nothing: a simulated wait takes no time."""

    def _advance(self, i):
        run = self.running[i]
        try:
            seconds, metrics = next(run[1])
        except StopIteration:
            self._end(i, True, "")
        except Exception as error:  # whatever it is, it ends this trial alone, as in a process of its own
            self._end(i, False, f"{type(error).__name__}: {error}")
        else:
            run[2] += 1
            self._push(self.clock + seconds, i, Report(i, {"epoch": run[2], **metrics}))

    def _end(self, i, finished, error):
        self._push(self.clock, i, End(i, finished, error, "", self.clock - self.running[i][0]))

    def _push(self, when, i, event):
        heapq.heappush(self.queue, (when, next(self.arrivals), i, event))


class MemoryResults:
    """What the tuner needs of hpo.results.Results, kept nowhere."""

    def __init__(self, metric="loss", mode="min"):
        self.metric, self.sign = metric, -1.0 if mode == "max" else 1.0
        self.n_rows = {"trials": 0, "reports": 0}

    def append_config(self, trial, seen):
        pass

    def append_report(self, trial, metrics, now):
        self.n_rows["reports"] += 1
        return (metrics["epoch"], self.to_loss(metrics[self.metric])) if self.metric in metrics else None

    def append_trial(self, trial):
        self.n_rows["trials"] += 1

    def to_loss(self, value):
        return self.sign * value if np.isfinite(value) else np.nan


class SimulatedTuner(Tuner):
    """Goes on when the first trials fail: in a problem that mostly fails they may."""

    def _check_first_trials(self, trial, end):
        pass


def simulate(searcher, space, objective, seed=0, metric="loss", mode="min", **settings):
    """The trials of a run; settings: those of hpo.tuner.Tuner (n_workers, n_trials, seconds, rule, start, ...)."""
    tuner = SimulatedTuner(space, searcher, SimulatedBackend(objective, seed), MemoryResults(metric, mode), **settings)
    tuner.run()
    return tuner.trials
