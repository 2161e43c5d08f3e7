"""The loop of a run, and `tune`, which sets it up.

The loop asks the searcher, starts trials, answers their reports and ends them. It is the same for
every backend: processes on this machine, a Dask cluster, a simulation in experiments/. It does not
poll. It waits for a report, the end of a trial, or the next deadline.
"""

import contextlib
import datetime
import importlib
import json
import math
import os
import pathlib
import signal
import sys
import threading
import time
import types
from dataclasses import dataclass, field

import numpy as np

import hpo.objective
from hpo.journal import SIGN, Journal, check_new, load, load_run
from hpo.objective import Program, import_error, is_program, load_module, one_line
from hpo.searchers import find_searcher
from hpo.space import (
    Domain,
    cast_config,
    domains,
    middle,
    nearest_config,
    space_from_json,
    space_to_json,
)
from hpo.status import Status, best_of, say
from hpo.stopping import find_rule, with_options
from hpo.trial import ENDING, LINUX, SERVER_DIED, LocalBackend, Report

N_FAILED = 3  # the run ends when its first max(N_FAILED, n_workers) trials have all failed
N_ATTEMPTS = 3  # a trial whose fork server dies in this attempt has failed
N_LOST = 6  # the run ends after so many pauses without a report between them
N_START = 5  # configurations of --start DIR


class RunFailed(Exception):
    """The run cannot go on; the message says why."""


# ---- The loop ------------------------------------------------------------------------------------
class Tuner:
    """One session of a run; `run()` returns when its budget is spent.

    journal: the run so far. Its interrupted trials are started again first.
    searcher: has suggest(trials), see hpo/searchers.py. backend: see hpo.trial.LocalBackend.
    seconds: the run's time. n_trials: at most so many are started. trial_timeout: seconds, each.
    rule: function (trial, trials, max_epochs) -> True to stop it, or None; see hpo/stopping.py.
    needs_epoch: whether a report without an epoch fails its trial; else no rule judges it.
    start: configurations to try before the searcher's. None: the middle of the space.
    show: None, or an object with tick(tuner), called in each turn, and ended(trial).
    """

    def __init__(
        self, journal, searcher, backend, n_workers=1, seconds=math.inf, *, n_trials=math.inf,
        trial_timeout=math.inf, rule=None, needs_epoch=False, max_epochs=None, start=None, show=None
    ):  # fmt: skip
        self.journal, self.searcher, self.backend, self.show = journal, searcher, backend, show
        self.n_workers, self.seconds, self.n_trials = n_workers, seconds, n_trials
        self.trial_timeout, self.max_epochs = trial_timeout, max_epochs
        self.rule, self.needs_epoch = rule, needs_epoch and rule is not None
        self.start = [middle(journal.space)] if start is None else start
        self.trials = journal.trials  # the searcher and the rule may read it, but not change it
        # To be started again, with the same id and so the same seed.
        self.again = [trial for trial in self.trials if trial.status == "interrupted"]
        self.running = {}  # trial id -> Trial
        self.ending = {}  # trial id -> (status, error) of a trial that has been told to end
        self.n_lost = 0  # pauses since the last report
        self.not_before = 0.0  # end of the pause: no trial starts before it
        self.failures = []  # the failed trials of this session
        self.reason = None  # why the run ends
        self.exhausted = False  # the searcher has no new configuration

    def interrupt(self, reason):
        """Ends the run in order; safe in a signal handler."""
        self.reason = self.reason or reason
        self.backend.wake()

    def run(self):
        """Returns why the run ended: deadline, trials, exhausted, or the reason of an interrupt."""
        failure, events = None, []
        while not self._has_ended() or self.running:
            try:
                deadline = self._end_overdue()
                started = self.reason is None and self._start_one()
                seconds = 0 if started or events else self._seconds_to_wait(deadline)
                events += self.backend.wait(seconds)
                while events:  # if one raises an error, the next turn handles the others
                    self._handle(events.pop(0))
                if self.show:
                    self.show.tick(self)
            except Exception as error:  # of the searcher, say. The running trials are ended first.
                failure = failure or error
                self.reason = self.reason or "the run failed"
        if failure:
            raise failure
        if self.reason in ("trials", "exhausted") and self.failures:
            self._fail_unless_it_works()
        return self.reason

    def _has_ended(self):
        is_idle = not self.running and not self.again
        if self.backend.now() >= self.seconds:
            self.reason = self.reason or "deadline"
        elif is_idle and (self.exhausted or len(self.trials) >= self.n_trials):
            self.reason = self.reason or ("exhausted" if self.exhausted else "trials")
        return self.reason is not None

    def _append(self, event):
        return self.journal.append({**event, "at": round(self.backend.now(), 3)})

    # ---- Starting ----
    def _start_one(self):
        """Starts a trial if one can start now; returns whether it did."""
        if len(self.running) >= self.n_workers or self.backend.now() < self.not_before:
            return False
        if not (event := self._next_start()):
            return False
        trial = self._append(event)
        self.running[trial.id] = trial
        self.backend.start(trial)
        return True

    def _next_start(self):
        """The event that starts the next trial, or None."""
        if self.again:
            trial = self.again.pop(0)
            event = {"start": trial.id, "attempt": trial.attempt + 1}
            return event | {"config": trial.config, "origin": trial.origin}
        i, before = len(self.trials), time.perf_counter()
        if self.exhausted or i >= self.n_trials:
            return None
        if i < len(self.start):
            suggestion = self.start[i], "start"
        else:
            known = self.journal.learned + self.trials
            suggestion = suggest(self.searcher, self.journal.space, known)
        if suggestion is None:
            self.exhausted = True
            return None
        event = {"start": i, "attempt": 1, "config": suggestion[0], "origin": suggestion[1]}
        return event | {"suggest_seconds": round(time.perf_counter() - before, 6)}

    # ---- What comes back ----
    def _handle(self, event):
        trial = self.running.get(event.trial_id)
        if trial is None or trial.attempt != event.attempt:
            return  # a late message of an earlier attempt
        if isinstance(event, Report):
            self._handle_report(trial, event)
        else:
            self._handle_end(trial, event)

    def _handle_report(self, trial, report):
        metric, metrics = self.journal.metric, dict(report.metrics)
        event = {"report": trial.id, "attempt": trial.attempt, "epoch": metrics.pop("epoch")}
        self._append({**event, "metrics": metrics})
        self.n_lost = 0
        has_value = math.isfinite(self.journal.to_loss(metrics.get(metric)))
        if metric in metrics and not has_value:
            error = f"reported {metric}={metrics[metric]!r}; expected a finite number"
            self.ending.setdefault(trial.id, ("failed", error))
        elif report.counted and self.needs_epoch:
            error = "reports no epoch: the rule needs report(epoch=...); or use --stopping none"
            self.ending.setdefault(trial.id, ("failed", error))
        elif has_value and trial.id not in self.ending and self._is_to_stop(trial, report):
            self.ending[trial.id] = ("stopped", "")
        if report.counted and self.rule and trial.id == 0 and len(trial.curve) == 2:
            say("warning: reports give no epoch, so no trial is stopped early; report(epoch=...)")
        self.backend.answer(trial, trial.id not in self.ending)

    def _is_to_stop(self, trial, report):
        is_last = report.metrics["epoch"] >= (self.max_epochs or math.inf)
        if self.rule is None or is_last or report.counted:
            return False
        return bool(call("the stopping rule", self.rule, trial, self.trials, self.max_epochs))

    def _handle_end(self, trial, end):
        del self.running[trial.id]
        status, error = self._final_status(trial, end)
        self._append({"end": trial.id, "attempt": trial.attempt, "status": status, "error": error})
        if self.show:
            self.show.ended(trial)
        if status == "interrupted" and not self.reason:
            self.again.append(trial)
            self._pause(error)
        elif status == "failed":
            self.failures.append(trial)
            if len(self.failures) >= max(N_FAILED, self.n_workers):
                self._fail_unless_it_works()

    def _final_status(self, trial, end):
        """(status, error) of a trial whose process has ended."""
        status, error = self.ending.pop(trial.id, ("", ""))
        if end.outcome == "finished" and trial.curve and status not in ("failed", "stopped"):
            return "done", ""  # it may have been told to end, but finished first
        if status:
            return status, error
        if self.reason:  # the signal that ends the run may have killed it too
            return "interrupted", self.reason
        is_guilty = end.error == SERVER_DIED and trial.attempt >= N_ATTEMPTS
        if end.outcome == "lost" and not is_guilty:  # the machine is to blame
            return "interrupted", end.error
        return "failed", end.error or f"ended without a report of {self.journal.metric}"

    def _pause(self, error):
        """No trial starts for a while: processes were lost. Each pause is twice as long."""
        if self.backend.now() >= self.not_before:
            self.not_before = self.backend.now() + 2.0**self.n_lost
            self.n_lost += 1
            if self.n_lost > N_LOST:
                raise RunFailed(f"no trial can be trained: {error}")

    def _fail_unless_it_works(self):
        """Raises RunFailed if no trial has worked: a broken objective ends the run early."""
        for trial in self.trials:
            status, _ = self.ending.get(trial.id, (trial.status, ""))
            if trial.curve and status != "failed":
                return
        n, last = len(self.failures), self.failures[-1]
        which = f"all of the first {n} trials" if len(self.trials) > 1 else "the only trial"
        log = self.backend.log(last)
        error = f"\n{log}" if last.error in log else f" {last.error}\n{log}".rstrip()
        raise RunFailed(
            f"{which} failed; mend the objective and begin a new run, or start with a "
            f"configuration that works (--start). Trial {last.id}:{error}"
        )

    # ---- Deadlines ----
    def _end_overdue(self):
        """Ends the trials whose time is over, all when the run ends; returns the next deadline."""
        next_deadline = math.inf if self.reason else self.seconds
        for trial in [trial for trial in self.running.values() if trial.id not in self.ending]:
            deadline = self.backend.begun_at(trial) + self.trial_timeout
            if self.reason:
                status = "timeout" if self.reason == "deadline" else "interrupted"
                self._end(trial, status, self.reason)
            elif self.backend.now() >= deadline:
                self._end(trial, "timeout", f"--trial_timeout {self.trial_timeout:g}")
            else:
                next_deadline = min(next_deadline, deadline)
        return next_deadline

    def _end(self, trial, status, error):
        self.ending[trial.id] = status, error
        self.backend.kill(trial)

    def _seconds_to_wait(self, until):
        """Until a time, the end of a pause, or the next line of `show`; None: without end."""
        now = self.backend.now()
        if self.not_before > now:
            until = min(until, self.not_before)
        elif not self.running:
            return 0.0  # nothing runs and nothing can start, so no event can come
        seconds = min(max(0.0, until - now), self.show.seconds if self.show else math.inf)
        return None if math.isinf(seconds) else seconds


def suggest(searcher, space, trials):
    """(complete configuration, origin) that a searcher suggests, or None; or RunFailed."""
    name = f"{type(searcher).__name__}.suggest"
    suggestion = call(name, searcher.suggest, trials)
    if suggestion is None:
        return None
    try:
        config, origin = suggestion
        if not isinstance(config, dict) or not isinstance(origin, str):
            raise ValueError("config must be a dict, origin a text")
        return cast_whole(space, config), str(origin)
    except (TypeError, ValueError) as error:
        text = f"{name}: expected (config, origin) or None, got {suggestion!r:.200}: {error}"
        raise RunFailed(" ".join(text.split())) from None


def cast_whole(space, config):
    """As cast_config, but ValueError when a tuned value is missing."""
    if missing := [name for name in domains(space) if name not in config]:
        raise ValueError(f"{missing[0]} is missing")
    return cast_config(space, config)


def call(name, function, *arguments):
    """What a function of the user's returns; RunFailed, with its traceback, when it raises."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        own = error.__traceback__.tb_next  # None if it does not take these arguments
        cause = error.with_traceback(own) if own else None
        raise RunFailed(f"{name} raised {one_line(error)}") from cause


# ---- A run ---------------------------------------------------------------------------------------
DEFAULTS = {
    "objective": None, "config_space": None, "metric": None, "mode": None, "assignments": [],
    "epochs_name": "epochs", "hours": 3.0, "trials": None, "workers": 4, "trial_timeout": None,
    "trials_per_gpu": None, "searcher": "gp", "stopping": "auto", "first_rung": 1, "eta": 3,
    "seed": 0, "start": None, "learn_from": [], "pass_json": None, "checkpoint_flag": None,
    "dask": None,
}  # fmt: skip
# The arguments that may change when a run is resumed.
BUDGET = ("hours", "trials", "workers", "trial_timeout", "trials_per_gpu", "dask")
LEAST = {"hours": 1e-9, "trials": 1, "workers": 1, "trial_timeout": 1e-9, "trials_per_gpu": 1}
LEAST |= {"first_rung": 1, "eta": 2, "seed": 0}  # a float stands for any positive number
OBJECTS = ("objective", "searcher", "stopping")  # arguments that may be functions or classes
PATH = (str, os.PathLike)


@dataclass(frozen=True)
class Run:
    """What `tune` returns. reason: why the run ended. signal: the signal that ended it, or None."""

    folder: pathlib.Path
    trials: list = field(repr=False)
    reason: str
    signal: int | None = None

    @property
    def best(self):
        """The trial with the lowest loss of all epochs and attempts, or None."""
        found = best_of(self.trials)
        return found and found[2]

    def to_frame(self):
        """trials.csv as a DataFrame, the best trial first; this alone needs pandas."""
        frame = importlib.import_module("pandas").read_csv(self.folder / "trials.csv")
        order = {"ascending": load_run(self.folder)["mode"] == "min", "kind": "stable"}
        return frame.sort_values("trial").sort_values("value", **order, ignore_index=True)

    def _repr_html_(self):
        """The ten best trials, as a notebook shows them; None, that is the repr, without pandas."""
        with contextlib.suppress(ImportError):
            columns = "^(trial|status|value|n_epochs|seconds)$|^config_"
            return self.to_frame().head(10).filter(regex=columns).to_html()


def tune(
    objective=None, config_space=None, *, metric=None, mode=None, assignments=None,
    epochs_name=None, hours=None, trials=None, workers=None, trial_timeout=None,
    trials_per_gpu=None, searcher=None, stopping=None, first_rung=None, eta=None, seed=None,
    start=None, learn_from=None, pass_json=None, checkpoint_flag=None, dask=None, results=None,
    resume=None,
):  # fmt: skip
    """Tunes an objective and prints its progress; returns a Run. The command line calls this.

    The arguments are the flags of `python run.py --help`; config_space is --space, assignments are
    --set. None stands for the default, in a resumed run for what the run had; only the BUDGET may
    differ from that. objective may be a function. It needs config_space, metric and mode.
    assignments may be a dict, searcher a class, stopping a function, and start a list of
    configurations. To resume, give a function, and a class or rule of a notebook, again.
    Raises ValueError for bad input, before anything is written; RunFailed; WriteError.
    """
    given = {n: v for n, v in locals().items() if v is not None and n not in ("results", "resume")}
    objects = {n: v for n, v in given.items() if n in OBJECTS and not isinstance(v, PATH)}
    given = as_json(given)
    if hpo.objective.is_loading:  # each process that loads the file would start another one
        where = 'put the call under `if __name__ == "__main__":`'
        raise ValueError(f"hpo.tune is called while this file is loaded; {where}")
    if results is not None:
        if resume is not None:
            raise ValueError("--results: a resumed run keeps its folder; leave it out")
        check_new(results)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(ending_signals())
        journal, own = None, DEFAULTS
        stack.callback(lambda: journal and journal.close())  # last, when the trials have ended
        if resume is not None:
            journal = Journal.open(resume)
            own = DEFAULTS | journal.run["arguments"]
            if "start" in given:  # the run has it in this form
                given["start"] = first_configs(journal.space, given["start"])
            check_same(resume, own, given)
        arguments = own | given
        check_numbers(arguments)
        options = arguments | objects
        searcher_class = find("searcher", options["searcher"])
        rule = find("stopping", options["stopping"])
        backend = make_backend(options)
        stack.callback(backend.close)
        say(f"loading {arguments['objective']}")
        found = backend.describe(
            metric=arguments["metric"], mode=arguments["mode"],
            space=space_to_json(journal.space) if journal else arguments["config_space"],
            assignments=[] if journal else arguments["assignments"],
            prepared=journal.run["prepared"] if journal else None,
        )  # fmt: skip
        space = space_from_json(found["space"])
        max_epochs = last_epoch(space, arguments["epochs_name"])
        rule = usable_rule(rule, max_epochs, arguments)
        searcher = make_searcher(searcher_class, space, max_epochs, arguments)
        start = arguments["start"] = first_configs(space, arguments["start"])
        if journal:
            journal.begin_session({name: arguments[name] for name in (*BUDGET, "objective")})
        else:
            journal = new_journal(results, found, space, arguments)
        n_workers = arguments["workers"]
        if arguments["trials_per_gpu"] and backend.gpus and not arguments["dask"]:
            n_workers = min(n_workers, arguments["trials_per_gpu"] * len(backend.gpus))
        backend.begin(journal.folder / "logs", journal.clock)
        tuner = signals.tuner = Tuner(
            journal, searcher, backend, n_workers, arguments["hours"] * 3600,
            n_trials=arguments["trials"] or math.inf,
            trial_timeout=arguments["trial_timeout"] or math.inf, rule=rule,
            needs_epoch=arguments["stopping"] != "auto", max_epochs=max_epochs, start=start,
            show=Status(journal, backend),
        )  # fmt: skip
        tuner.show.begin(tuner)
        try:
            reason = tuner.run()
        except Exception:  # not KeyboardInterrupt: a second Ctrl-C ends it at once
            tuner.show.summary(tuner)
            raise
        tuner.show.summary(tuner)
        return Run(journal.folder, journal.trials, reason, signals.first)


def new_journal(results, found, space, arguments):
    """The journal of a new run. found: what hpo.objective.describe returned."""
    if arguments["workers"] > 4 * (os.cpu_count() or 1) and not arguments["dask"]:
        say(f"warning: {arguments['workers']} workers share the {os.cpu_count()} cores")
    for name, value in space.items():
        if isinstance(value, list):
            say(f"warning: {name} is the constant {value!r:.60}; to tune it, use choice(...)")
    metric, mode = found["metric"], found["mode"]
    learned = learn(arguments["learn_from"], space, metric, mode)
    run = {**found, "arguments": arguments | {"metric": metric, "mode": mode}, "learned": learned}
    folder = results or f"results/{datetime.datetime.now():%Y-%m-%d_%H-%M-%S_%f}"
    return Journal.create(folder, run)


# ---- Its arguments -------------------------------------------------------------------------------
def as_json(given):
    """Arguments in the form that the journal keeps: paths are absolute, functions FILE.py:NAME."""
    kept = dict(given)
    for name in OBJECTS:
        value = given.get(name)
        if isinstance(value, PATH) and (name == "objective" or ".py:" in str(value)):
            kept[name] = os.path.abspath(value)
    if "learn_from" in given:
        folders = given["learn_from"]
        folders = [folders] if isinstance(folders, PATH) else folders
        kept["learn_from"] = [os.path.abspath(folder) for folder in folders]
    if isinstance(values := given.get("assignments"), dict):
        texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in values.items()}
        kept["assignments"] = [f"{name}={text}" for name, text in texts.items()]
    if "config_space" in given:
        kept["config_space"] = space_to_json(given["config_space"])  # or a ValueError
    return json.loads(json.dumps(kept, default=plain))


def plain(value):
    """What stands in JSON for a path, a number of numpy's, a class or a function."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    module = getattr(value, "__module__", "")
    path = getattr(sys.modules.get(module), "__file__", module)
    return f"{path}:{getattr(value, '__qualname__', type(value).__qualname__)}"


def check_same(folder, own, given):
    """ValueError when an argument of a run that goes on is not what it was."""
    for name, value in given.items():
        path = own[name].rpartition(":")[0] if ".py:" in str(own[name]) else own[name]
        was_moved = name == "objective" and not os.path.exists(path)
        if name not in BUDGET and value != own[name] and not was_moved:
            flags = {"config_space": "--space", "assignments": "--set", "objective": "OBJECTIVE"}
            raise ValueError(
                f"{flags.get(name, f'--{name}')}: {folder} has {own[name]!r:.200}, got "
                f"{value!r:.200}; a resumed run keeps its own"
            )


def check_numbers(arguments):
    """ValueError when an argument is no number, or is too small."""
    for name, least in LEAST.items():
        value, is_integer = arguments[name], isinstance(least, int)
        kinds = int if is_integer else (int, float)
        if value is not None and (not isinstance(value, kinds) or not least <= value < 1e18):
            what = f"an integer >= {least}" if is_integer else "a positive number"
            raise ValueError(f"--{name}: expected {what}, got {value!r}")


def find(option, value):
    """The searcher class or the rule that `value` names, or is."""
    found, (path, _, name) = value, str(value).rpartition(":")
    try:
        if path.endswith(".py"):
            found = getattr(load_module(path), name)
        elif isinstance(value, str):
            return find_searcher(value) if option == "searcher" else find_rule(value)
    except (Exception, SystemExit) as error:  # whatever the user's file raises becomes one line
        reason = import_error(error, path) if path.endswith(".py") else error
        raise ValueError(f"--{option}: {reason}") from error
    if not callable(found) or (option == "searcher" and not hasattr(found, "suggest")):
        what = "a class with suggest(trials)" if option == "searcher" else "a function"
        raise ValueError(f"--{option}: expected {what}, got {value!r:.200}")
    return found


def make_backend(options):
    """The backend: processes on this machine, or the Dask cluster of --dask."""
    objective, seed = find_objective(options), options["seed"]
    if not options["dask"]:
        return LocalBackend(objective, seed, options["workers"])
    try:
        from hpo.dask_backend import DaskBackend
    except ImportError as error:
        raise ValueError(f"--dask: needs `pip install distributed`: {error}") from None
    return DaskBackend(options["dask"], objective, seed)


def find_objective(options):
    """The objective in one of the forms of hpo/objective.py; ValueError when it is none."""
    objective = options["objective"]
    flags = {name: options[name] for name in ("pass_json", "checkpoint_flag") if options[name]}
    if callable(objective):
        module, name = objective.__module__, getattr(objective, "__qualname__", "")
        if module != "__main__" and getattr(sys.modules.get(module), name, None) is objective:
            objective = module, name
        elif not LINUX:
            raise ValueError(
                f"{name}: expected a function in a file, got one of the running program; write it "
                "to a file (%%writefile my_objective.py in a notebook), and name the file"
            )
    elif not isinstance(objective, str):
        raise ValueError(f"objective: expected a function or a path, got {objective!r:.200}")
    elif not os.path.isfile(objective):
        reason = "is a folder" if os.path.exists(objective) else "no such file"
        if ".py:" in objective:
            reason = "is a function; resume its run with hpo.tune(FUNCTION, resume=DIR)"
        raise ValueError(f"{objective}: {reason}; expected a Python file or a program")
    elif is_program(objective):
        if not objective.endswith(".py") and not os.access(objective, os.X_OK):
            raise ValueError(f"{objective}: is no Python file; if it is a program, use chmod +x")
        if not all(options[name] for name in ("config_space", "metric", "mode")):
            raise ValueError(
                f"{objective}: is run as a program: it lacks a function objective(config) or has "
                "Syne Tune's Reporter; this needs --space FILE, --metric NAME and --mode max|min"
            )
        return Program(objective, options["metric"], **flags)
    if flags:
        raise ValueError(f"--{', --'.join(flags)}: for a program, but this objective is a function")
    return objective


def last_epoch(space, name):
    """The value of the constant that is the last epoch; None if there is none or it is tuned."""
    epochs = space.get(name)
    if name == "epochs" and (epochs is None or isinstance(epochs, Domain)):
        return None
    if type(epochs) is not int or epochs < 1:
        flag = name if name == "epochs" else f"--epochs_name {name}"
        raise ValueError(f"{flag}: expected a constant integer >= 1 of the space, got {epochs!r}")
    return epochs


def usable_rule(rule, max_epochs, arguments):
    """The stopping rule with its options, or None. "auto" is None if the last epoch is unknown."""
    if rule and not max_epochs and arguments["stopping"] != "auto":
        raise ValueError(
            f"--stopping {arguments['stopping']}: expected a constant `epochs` in the space, the "
            "last epoch; name it with --epochs_name, or use --stopping none"
        )
    rule = rule if max_epochs else None
    return with_options(rule, first_rung=arguments["first_rung"], eta=arguments["eta"])


def make_searcher(searcher_class, space, max_epochs, arguments):
    try:
        return searcher_class(space, arguments["seed"], max_epochs)
    except Exception as error:  # whatever the user's class raises becomes one line
        raise ValueError(f"--searcher {arguments['searcher']}: {one_line(error)}") from error


def first_configs(space, start):
    """The complete configurations to try first; None for the middle of the space.

    start: None, a list of configurations, or the folder of a run.
    """
    try:
        if isinstance(start, str):
            return best_configs(space, start) or None
        if not isinstance(start, (list, type(None))):
            raise ValueError(f"expected a list of configurations, got {start!r:.200}")
        return start and [cast_config(space, config) for config in start]
    except ValueError as error:
        raise ValueError(f"--start: {error}") from None


def best_configs(space, folder):
    """The N_START best distinct configurations of a run, each moved to the nearest one here."""
    trials = [trial for trial in load(folder) if trial.value is not None]
    found, changes = [], {}  # the changes are the keys of a dict: in order, each once
    for trial in sorted(trials, key=lambda trial: trial.value):
        config, changed = nearest_config(space, trial.config)
        if len(found) < N_START and config not in found:
            found.append(config)
            changes |= dict.fromkeys(changed)
    say("; ".join([f"--start: the {len(found)} best trials of {folder}", *changes])[:500])
    return found


def learn(folders, space, metric, mode):
    """The trials of earlier runs that fit this space, in the form that the journal keeps."""
    learned = []
    for folder in folders:
        run, trials, n_before, misfit = load_run(folder), load(folder), len(learned), ""
        if (run["metric"], run["mode"]) != (metric, mode):
            theirs, ours = f"{run['mode']}imises {run['metric']}", f"{mode}imises {metric}"
            raise ValueError(f"--learn_from {folder}: {theirs}; this run {ours}")
        for trial in trials:
            try:
                config = cast_whole(space, trial.config)
            except ValueError as error:
                misfit = f"; others do not fit: {error}"
                continue
            if trial.curve or trial.status == "failed":
                status = "interrupted" if trial.status == "running" else trial.status
                curve = [(epoch, SIGN[mode] * loss) for epoch, loss in trial.curve]
                learned.append({"config": config, "status": status, "curve": curve})
        n = len(learned) - n_before
        say(f"--learn_from: {n} of {len(trials)} trials of {folder}{misfit}"[:500])
    return learned


@contextlib.contextmanager
def ending_signals():
    """Within it, Ctrl-C, SIGTERM and a closed terminal end the run in order.

    Yields an object: `first` is the number of the first signal, the caller sets `tuner`. A second
    signal, at least a second later, raises KeyboardInterrupt(number). So does the first one if
    there is no tuner yet. Python handles signals in the main thread alone.
    """
    signals, before = types.SimpleNamespace(tuner=None, first=None, time=0.0), {}

    def on_signal(number, frame):
        is_first = signals.first is None
        if is_first:
            signals.first, signals.time = number, time.monotonic()
        if is_first and signals.tuner:
            signals.tuner.interrupt(f"interrupted by {signal.Signals(number).name}")
        # `timeout`, or a terminal that closes, sends two at almost the same time.
        elif is_first or time.monotonic() >= signals.time + 1:
            raise KeyboardInterrupt(number)

    is_main = threading.current_thread() is threading.main_thread()
    for number in ENDING if is_main else ():
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            before[number] = signal.signal(number, on_signal)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
