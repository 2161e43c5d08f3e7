"""The loop: asks the searcher, starts trials, answers their reports, ends them, and writes it all down.

One loop serves every backend (processes here, a simulation in experiments/). It never polls: it waits for a report, the
end of a trial, or the next deadline.
"""

import math
import time
from copy import deepcopy
from dataclasses import replace

import numpy as np

from hpo.objective import one_line
from hpo.results import WriteError
from hpo.space import cast_config, domains, middle
from hpo.trial import Report, Trial

INTERRUPTED = "interrupted"  # how the reasons begin that `Tuner.interrupt` takes
FAILED = "the run failed"
N_FAILED = 3  # so many trials that fail at first, or one for each worker, end the run: one alone may have diverged


class RunFailed(Exception):
    """The run cannot go on; the message says why."""


class ReportsUnusable(ValueError):
    """Trials report, but never the metric to tune, or no epochs, by which a stopping rule compares them."""


class Tuner:
    """One run; `run()` returns when its budget is spent, and `trials` is what became of it.

    searcher: has suggest(trials); see hpo/searchers.py.
    rule: function (trial, trials, max_epochs) -> True to stop the trial, or None; see hpo/stopping.py.
    needs_epoch: whether reports without an epoch are an error when there is a rule; else their trials are not stopped.
    results: hpo.results.Results; backend: start, wait, answer, kill, wake, now.
    seconds: the run's time; n_trials: how many to start at most (None: as many as the time allows).
    trial_timeout: seconds after which a trial is ended. start: configurations to try before the searcher's.
    show: object told of what happens: show.ended(trial), show.tick(tuner) at least once in show.seconds.
    trials: those of earlier sessions, of which the unended ones are started again before anything else.
    """

    def __init__(
        self,
        space,
        searcher,
        backend,
        results,
        n_workers=1,
        seconds=math.inf,
        n_trials=None,
        trial_timeout=math.inf,
        rule=None,
        needs_epoch=True,
        max_epochs=None,
        start=None,
        show=None,
        trials=(),
    ):
        self.space, self.searcher, self.backend, self.results = space, searcher, backend, results
        self.n_workers, self.seconds, self.trial_timeout = n_workers, seconds, trial_timeout
        self.n_trials = math.inf if n_trials is None else n_trials
        self.rule, self.needs_epoch, self.max_epochs, self.show = rule, needs_epoch, max_epochs, show
        self.start = [middle(space)] if start is None else start
        self.trials = list(trials)
        self.copies, self.changed = [], set(range(len(self.trials)))  # see `_copies`; ids whose copy is out of date
        self.unended = [trial for trial in self.trials if is_unended(trial)]  # to be started again
        self.earlier = {trial.id for trial in self.trials} - {trial.id for trial in self.unended}  # done with
        self.began = backend.now()  # this session
        self.running = {}  # trial id -> Trial
        self.ended_by_us = {}  # trial id -> (status, reason)
        self.busy_seconds = 0.0  # in objectives, summed over the trials
        self.events = []  # Reports and Ends not handled yet
        self.without_metric = None  # a report that lacked the metric
        self.n_lacking = 0  # trials that came to their end without it
        self.metric_seen = any(trial.curve for trial in self.trials)
        self.works = any(trial.status in ("done", "stopped") for trial in self.trials)
        self.n_unentered = 0  # trials in a row that failed before the objective was entered
        self.interrupted = None  # reason, set by `interrupt`
        self.exhausted = False  # the searcher has nothing new
        self.failure = None  # exception that ends the run

    def interrupt(self, reason):
        """Ends the run as a deadline does; safe in a signal handler. reason: "interrupted ...", for the trials' rows."""
        self.interrupted = reason
        self.backend.wake()

    def run(self):
        """Returns why the run ended: "deadline", "trials", "exhausted" or the reason of an interrupt."""
        reason = None
        try:
            while not (reason := self._reason_to_end()):
                self._end_overdue()
                started = self._start_one()
                self._handle_all(self.backend.wait(0 if started else self._seconds_to_wait()))
        except Exception as error:  # the searcher's or the folder's: raised again when the trials have been ended
            self.failure = error
        self._end_running(reason or FAILED)
        if self.failure:
            raise self.failure
        return reason

    def _reason_to_end(self):
        if self.interrupted:
            return self.interrupted
        if self.backend.now() >= self.seconds:
            return "deadline"
        if self.running or self.unended:
            return None
        if self.exhausted:
            return "exhausted"
        return "trials" if len(self.trials) >= self.n_trials else None

    # ---- Starting ----
    def _start_one(self):
        """True when a trial was started, so that there may be room for another."""
        if len(self.running) >= self.n_workers:
            return False
        if self.unended:  # the same id, so the same seed; what it reported counts no more
            last, fresh = self.unended[0], {"status": "running", "curve": [], "error": "", "ended": None}
            self._start(replace(last, **fresh, attempt=last.attempt + 1, started=self._now()), None)
            del self.unended[0]
            return True
        if self.exhausted or len(self.trials) >= self.n_trials:
            return False
        seen, before = dict(self.results.n_rows), time.perf_counter()
        suggestion = self._suggest()
        if suggestion is None:
            self.exhausted = True
            return False
        config, origin = suggestion
        seconds = time.perf_counter() - before
        trial = Trial(len(self.trials), config, origin, started=self._now(), suggest_seconds=seconds)
        self._start(trial, seen)
        return True

    def _start(self, trial, seen):
        self.results.append_config(trial, seen)
        self.trials[trial.id : trial.id + 1] = [trial]  # a new one, or in the place of its last attempt
        self.changed.add(trial.id)
        self.backend.start(trial)
        self.running[trial.id] = trial

    def _suggest(self):
        if len(self.trials) < len(self.start):
            return self.start[len(self.trials)], "start"
        name = f"{type(self.searcher).__name__}.suggest"
        suggestion = call(name, self.searcher.suggest, self._copies())
        if suggestion is None:
            return None
        is_pair = isinstance(suggestion, (tuple, list)) and len(suggestion) == 2
        config, origin = suggestion if is_pair else (None, None)
        try:
            if not isinstance(config, dict) or not isinstance(origin, str):
                raise ValueError("config must be a dict, origin a text")
            complete = cast_config(self.space, config)
            if missing := [name for name in domains(self.space) if name not in config]:
                raise ValueError(f"{missing[0]} is missing")
            return complete, str(origin)
        except ValueError as error:
            text = f"{name}: expected (config, origin) or None, got {suggestion!r:.200}: {error}"
            raise RunFailed(" ".join(text.split())) from None

    def _copies(self):
        """Copies of the trials, for code of the user's that might change them; kept, as copying 10,000 takes 20 to 50 ms."""
        for i in sorted(self.changed):
            trial = self.trials[i]
            self.copies[i : i + 1] = [replace(trial, config=deepcopy(trial.config), curve=list(trial.curve))]
        self.changed.clear()
        return list(self.copies)

    # ---- What comes back ----
    def _handle_all(self, events):
        self.events += events
        while self.events:  # an event leaves the queue before it is handled: an error loses none of the others
            event = self.events.pop(0)
            trial = self.running[event.trial_id]
            if isinstance(event, Report):
                self._handle_report(trial, event.metrics, event.counted)
            else:
                self._handle_end(trial, event)
        if self.show:
            self.show.tick(self)

    def _handle_report(self, trial, metrics, counted):
        lacks_epoch = counted and self.rule is not None and self.needs_epoch
        reason = "reported no epoch, by which the stopping rule compares trials; expected report(epoch=..., ...)"
        if lacks_epoch and not self.results.n_rows["reports"]:
            raise ReportsUnusable(f"the first trial that reports has {reason}; or choose --stopping none")
        point = self.results.append_report(trial, metrics, self.backend.now())
        self.metric_seen |= point is not None
        if point is None:
            self.without_metric = self.without_metric or metrics
        elif math.isnan(point[1]):
            value = metrics[self.results.metric]
            reason = f"reported {self.results.metric}={value!r} at epoch {point[0]}; expected a finite number"
            self.ended_by_us.setdefault(trial.id, ("failed", reason))
        else:
            trial.curve.append(point)
            self.changed.add(trial.id)
            if lacks_epoch:
                self.ended_by_us.setdefault(trial.id, ("failed", reason))
            # a number of reports is no epoch by which to compare
            elif trial.id not in self.ended_by_us and not counted and self._is_to_stop(trial):
                self.ended_by_us[trial.id] = ("stopped", "")
        self.backend.answer(trial, trial.id not in self.ended_by_us)

    def _is_to_stop(self, trial):
        if self.rule is None or trial.curve[-1][0] >= (self.max_epochs or math.inf):
            return False  # after the last epoch there is nothing left to save
        trials = self._copies()
        answer = call("the stopping rule", self.rule, trials[trial.id], trials, self.max_epochs)
        if not isinstance(answer, (bool, np.bool_, type(None))):
            raise RunFailed(f"the stopping rule: expected True or False, got {' '.join(repr(answer).split()):.200}")
        return bool(answer)

    def _handle_end(self, trial, end):
        del self.running[trial.id]
        trial.ended = self._now()
        self.busy_seconds += end.busy_seconds or 0.0
        # a signal to all of the run's processes ends the trials too, some before we have come to it
        by_signal = ("timeout", self.interrupted) if self.interrupted else ("", "")
        status, reason = self.ended_by_us.get(trial.id, by_signal)
        if status in ("failed", "stopped") or (status == "timeout" and not end.finished):
            trial.status, trial.error = status, reason
        elif end.finished and trial.curve:
            trial.status = "done"
        else:
            trial.status, trial.error = "failed", end.error or f"ended without a report of {self.results.metric}"
        self.changed.add(trial.id)
        self.results.append_trial(trial)
        if self.show:
            self.show.ended(trial)
        if status != "timeout":
            self._check_first_trials(trial, end)

    def _check_first_trials(self, trial, end):
        """A run that cannot work is ended at once, not after three hours."""
        self.n_unentered = self.n_unentered + 1 if end.busy_seconds is None and not end.finished else 0
        enough = max(N_FAILED, self.n_workers)
        if self.n_unentered >= enough and len(self.trials) > self.n_workers:
            raise RunFailed(
                f"the last {self.n_unentered} trials could not even be started, or load the objective file:\n{trial.error}"
            )
        self.works = self.works or trial.status in ("done", "stopped")
        if self.works:
            return
        own = [t for t in self.trials if t.id not in self.earlier]  # the objective may have been mended since
        n = max(1, min(enough, self.n_trials - len(self.earlier), len(own) if self.exhausted else math.inf))
        self.n_lacking += end.finished and not trial.curve
        if self.without_metric and not self.metric_seen and self.n_lacking >= n:
            names = ", ".join(name for name in self.without_metric if name != "epoch")
            raise ReportsUnusable(f"metric {self.results.metric} is never reported, but {names}; choose with --metric")
        has_failed = len(own) >= n and all(t.status == "failed" for t in own[:n])
        if has_failed and not any(t.curve and t.status != "failed" for t in self.trials):
            what = "the only trial" if n == 1 else f"all of the first {n} trials"
            text = (end.traceback if trial.error == end.error else "") or trial.error
            raise RunFailed(
                f"{what} failed; mend the objective, or begin a run with a configuration that works (--start). "
                f"The error of trial {trial.id}:\n{text.rstrip()}"
            )

    # ---- Deadlines and endings ----
    def _now(self):
        return round(self.backend.now(), 3)  # as the folder has it, from which a suggestion is recomputed

    def _seconds_to_wait(self):
        if not self.running:
            return 0.0  # nothing can come: the searcher has just said that it has nothing new
        until = min([self.seconds, *(trial.started + self.trial_timeout for trial in self._not_ending())])
        wait = max(0.0, until - self.backend.now())
        if self.show:
            wait = min(wait, self.show.seconds)
        return None if math.isinf(wait) else wait

    def _not_ending(self):
        return [trial for trial in self.running.values() if trial.id not in self.ended_by_us]

    def _end_overdue(self):
        for trial in self._not_ending():
            if self.backend.now() >= trial.started + self.trial_timeout:
                self._end(trial, f"--trial_timeout {self.trial_timeout:g}")

    def _end(self, trial, reason):
        self.ended_by_us[trial.id] = ("timeout", reason)
        self.backend.kill(trial)

    def _end_running(self, reason):
        for trial in self._not_ending():
            self._end(trial, reason)
        while self.running:
            try:
                self._handle_all([] if self.events else self.backend.wait(1.0))
            except Exception as error:  # a full disk, say: the other trials still end, and the first reason is told
                self.failure = self.failure or error
        for trial in self.unended:
            if trial.status == "running":  # its session died, and this one has not come to start it again
                trial.status, trial.error, trial.ended = "timeout", reason, self._now()
                try:
                    self.results.append_trial(trial)
                except WriteError as error:
                    self.failure = self.failure or error


def call(name, function, *arguments):
    """What a function of the user's returns; RunFailed when it raises, its cause with the user's part of the traceback."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        own = error.__traceback__.tb_next  # None: it could not be called with these arguments
        raise RunFailed(f"{name} raised {one_line(error)}") from (error.with_traceback(own) if own else None)


def is_unended(trial):
    """Whether a trial of an earlier session is to be started again: it was cut off by that session's end."""
    return trial.status == "running" or (trial.status == "timeout" and trial.error.startswith((INTERRUPTED, FAILED)))
