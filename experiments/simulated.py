"""Tuning on a simulated clock: the tuner's own loop, but a trial is a function and time is free.

    def objective(config, rng):          # rng: numpy Generator, one for each trial
        for epoch in range(1, 10):       # seconds until it reports, metrics
            yield 60 * rng.lognormal(0, 0.5), {"epoch": epoch, "loss": 1 / epoch}

    trials = simulate(RandomSearch(space), space, objective, n_workers=4, n_trials=60)

Deterministic: the same searcher, objective and seed give the same trials.
"""

import math

import numpy as np

from hpo.journal import Journal
from hpo.trial import End, Report
from hpo.tuner import Tuner


class SimulatedBackend:
    """A backend as hpo.trial.LocalBackend; objective(config, rng) yields (seconds, metrics)."""

    def __init__(self, objective, seed=0):
        self.objective, self.seed, self.clock = objective, seed, 0.0
        self.reports = {}  # trial id -> iterator of its reports, counted from 1
        self.coming = {}  # trial id -> (time, Report or End), in the order in which they were made

    def now(self):
        return self.clock

    def start(self, trial):
        rng = np.random.default_rng([self.seed, trial.id])
        self.reports[trial.id] = enumerate(self.objective(trial.config, rng), 1)
        self.answer(trial, True)

    def begun_at(self, trial):
        return trial.started

    def wait(self, timeout=None):
        """The events at the earliest time at which there are any, if it is within `timeout`."""
        until = self.clock + (math.inf if timeout is None else timeout)
        now = min([until, *(time for time, _ in self.coming.values())])
        self.clock = now if math.isfinite(now) else self.clock
        due = [i for i, (time, _) in self.coming.items() if time <= self.clock]
        return [self.coming.pop(i)[1] for i in due]

    def answer(self, trial, go_on):
        """The trial goes on after a report, or ends at once."""
        if not go_on:
            return self.kill(trial)
        try:
            n, (seconds, metrics) = next(self.reports[trial.id])
            event = Report(trial.id, trial.attempt, {"epoch": n, **metrics})
        except StopIteration:
            seconds, event = 0, End(trial.id, trial.attempt, "finished")
        except Exception as error:  # whatever it is, it ends this trial alone, as in a process
            reason = f"{type(error).__name__}: {error}"
            seconds, event = 0, End(trial.id, trial.attempt, "failed", reason)
        self.coming[trial.id] = self.clock + seconds, event

    def kill(self, trial):
        self.coming.pop(trial.id, None)
        self.coming[trial.id] = self.clock, End(trial.id, trial.attempt, "failed", "killed")

    def wake(self):
        """Nothing: a simulated wait takes no time."""

    def log(self, trial):
        return ""


class Milestones(Journal):
    """A run in memory that notes (loss, config) of its best trial at some times, or None."""

    def __init__(self, space, times):
        super().__init__({"space": space, "metric": "loss", "mode": "min"})
        self.times, self.best = times, []

    def append(self, event):
        self.note(event["at"])
        return super().append(event)

    def note(self, now):
        while len(self.best) < len(self.times) and now > self.times[len(self.best)]:
            valued = [(t.value, t.config) for t in self.trials if t.value is not None]
            self.best.append(min(valued, key=lambda pair: pair[0], default=None))


class SimulatedTuner(Tuner):
    """Goes on when the first trials fail: in a problem that mostly fails they may."""

    def _fail_unless_it_works(self):
        pass


def simulate(searcher, space, objective, seed=0, journal=None, **options):
    """The trials of a run; options: those of hpo.tuner.Tuner (n_workers, n_trials, rule, ...)."""
    journal = journal or Journal({"space": space, "metric": "loss", "mode": "min"})
    SimulatedTuner(journal, searcher, SimulatedBackend(objective, seed), **options).run()
    return journal.trials


def simulate_until(times, searcher, space, objective, seed=0, **options):
    """([(loss, config) of the best trial at each of some times, or None], the trials)."""
    journal = Milestones(space, times)
    simulate(searcher, space, objective, seed, journal, seconds=times[-1], **options)
    journal.note(math.inf)
    return journal.best, journal.trials
