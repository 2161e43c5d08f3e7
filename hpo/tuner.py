"""The loop of a run, and `tune`, which sets it up.

The loop asks the searcher, starts trials, answers their reports and ends them. It is the same for
every backend: processes on this machine, a Dask cluster, a simulation in experiments/. It does not
poll: it waits for a report, the end of a trial, or the next deadline.
"""

import contextlib
import importlib
import json
import math
import os
import pathlib
import signal
import sys
import time
import types
from dataclasses import dataclass, field
from datetime import datetime

import hpo.objective
from hpo.journal import SIGN, Journal, check_new, load, load_run
from hpo.objective import Program, import_error, is_program, load_module, one_line
from hpo.searchers import find_searcher
from hpo.space import (
    Domain,
    cast_config,
    middle,
    nearest_config,
    space_from_json,
    space_to_json,
)
from hpo.status import Status, best_of, say
from hpo.stopping import find_rule, with_options
from hpo.trial import ENDING, LINUX, SERVER_DIED, LocalBackend, Report, Trial

N_FAILED = 3  # the run ends when its first max(N_FAILED, n_workers) trials have all failed
N_ATTEMPTS = 3  # a trial whose fork server dies in this attempt has failed
N_LOST = 5  # after so many pauses without a report, the next lost trial ends the run


class RunFailed(Exception):
    """The run cannot go on; the message says why."""


# ---- The loop ------------------------------------------------------------------------------------
class Tuner:
    """One session of a run; `run()` returns when its budget is spent.

    journal: the run so far. Its interrupted trials are started again first.
    seconds: the run's time. n_trials: the most trials to start. trial_timeout: seconds for each.
    rule: of hpo/stopping.py, or None. It judges only reports with an epoch. needs_epoch: a report
    without one fails its trial, because the user asked for the rule. start: configurations to try
    before the searcher's; None is the middle of the space. show: a Status, or None.
    """

    def __init__(
        self, journal, searcher, backend, n_workers=1, seconds=math.inf, *, n_trials=math.inf,
        trial_timeout=math.inf, rule=None, needs_epoch=False, max_epochs=None, start=None, show=None
    ):  # fmt: skip
        self.journal, self.searcher, self.backend, self.show = journal, searcher, backend, show
        self.n_workers, self.seconds, self.n_trials = n_workers, seconds, n_trials
        self.trial_timeout, self.max_epochs = trial_timeout, max_epochs
        self.rule, self.needs_epoch = rule, needs_epoch
        self.start = [middle(journal.space)] if start is None else start
        self.trials = journal.trials  # the searcher and the rule may read it, but not change it
        # To be started again, with the same id and so the same seed.
        self.again = [trial for trial in self.trials if trial.status == "interrupted"]
        self.running = {}  # trial id -> Trial
        self.ending = {}  # trial id -> (status, error) of a trial that has been told to end
        self.failures = []  # the failed trials of this session
        self.n_lost = 0  # pauses since the last report, because trials were lost
        self.not_before = 0.0  # end of the last pause: no trial starts before it
        self.exhausted = False  # the searcher has no new configuration
        self.reason = None  # why the run ends

    def interrupt(self, reason):
        """Ends the run in order; safe in a signal handler."""
        self.reason = self.reason or reason
        self.backend.wake()

    def run(self):
        """Returns why the run ended: deadline, trials, exhausted, or the reason of an interrupt."""
        failure, events = None, []
        while self.running or not self.reason:
            try:
                seconds = self._end_overdue()
                started = self.reason is None and self._start_one()
                events += self.backend.wait(0 if started or events else seconds)
                while events:  # if one raises an error, the next turn handles the others
                    self._handle(events.pop(0))
                if self.show:
                    self.show.tick(self)
            except Exception as error:  # of the searcher, say. The running trials are ended first.
                failure = failure or error
                self.reason = self.reason or "the run failed"
        if self.show:
            self.show.summary(self)
        if failure:
            raise failure
        if self.reason in ("trials", "exhausted"):
            self._fail_unless_it_works()
        return self.reason

    def _append(self, event):
        return self.journal.append({**event, "at": round(self.backend.now(), 3)})

    def _end_overdue(self):
        """Ends what is over time. Returns the most seconds to wait for an event, or None."""
        now = self.backend.now()
        if now >= self.seconds:
            self.reason = self.reason or "deadline"
        due = [math.inf if self.reason else self.seconds]
        for trial in [t for t in self.running.values() if t.id not in self.ending]:
            deadline = self.backend.begun_at(trial) + self.trial_timeout
            if self.reason or now >= deadline:
                status = "timeout" if self.reason in (None, "deadline") else "interrupted"
                error = self.reason or f"--trial_timeout {self.trial_timeout:g}"
                self.ending[trial.id] = status, error
                self.backend.kill(trial)
            else:
                due.append(deadline)
        if self.not_before > now:
            due.append(self.not_before)
        elif not self.running:
            return 0.0  # nothing runs, so no event can come
        if self.show:
            due.append(now + self.show.seconds)
        return None if math.isinf(min(due)) else min(due) - now

    def _start_one(self):
        """Starts a trial if one can start now; returns whether it did."""
        if len(self.running) >= self.n_workers or self.backend.now() < self.not_before:
            return False
        i, attempt, before = len(self.trials), 1, time.perf_counter()
        if self.again:
            trial = self.again.pop(0)
            i, attempt, config, origin = trial.id, trial.attempt + 1, trial.config, trial.origin
        elif self.exhausted or i >= self.n_trials:
            if not self.running:
                self.reason = self.reason or ("exhausted" if self.exhausted else "trials")
            return False
        else:
            suggestion = (self.start[i], "start") if i < len(self.start) else self._suggest()
            if suggestion is None:
                self.exhausted = True
                return False
            config, origin = suggestion
        event = {"start": i, "attempt": attempt, "config": config, "origin": origin}
        event["suggest_seconds"] = round(time.perf_counter() - before, 6)
        trial = self.running[i] = self._append(event)
        self.backend.start(trial)
        return True

    def _suggest(self):
        return suggest(self.searcher, self.journal.space, self.journal.learned + self.trials)

    # ---- What comes back ----
    def _handle(self, event):
        trial = self.running.get(event.trial_id)
        if trial and trial.attempt == event.attempt:  # else it comes late, of an earlier attempt
            handle = self._handle_report if isinstance(event, Report) else self._handle_end
            handle(trial, event)

    def _handle_report(self, trial, report):
        metric, metrics = self.journal.metric, dict(report.metrics)
        event = {"report": trial.id, "attempt": trial.attempt, "epoch": metrics.pop("epoch")}
        self._append({**event, "metrics": metrics})
        self.n_lost = 0
        is_last = self.max_epochs and event["epoch"] >= self.max_epochs
        is_exempt = is_last or report.counted or trial.id in self.ending
        if metric in metrics and not math.isfinite(self.journal.to_loss(metrics[metric])):
            error = f"reported {metric}={metrics[metric]!r}; expected a finite number"
            self.ending.setdefault(trial.id, ("failed", error))
        elif self.rule and metric in metrics and not is_exempt:
            verdict = lambda *known: bool(self.rule(*known))  # an array may raise an error here
            if call("the stopping rule", verdict, trial, self.trials, self.max_epochs):
                self.ending[trial.id] = "stopped", ""
        elif self.rule and self.needs_epoch and report.counted:
            error = "reports no epoch: the rule needs report(epoch=...); or use --stopping none"
            self.ending.setdefault(trial.id, ("failed", error))
        elif self.rule and report.counted and trial.id == 0 and len(trial.curve) == 2:
            say("warning: reports give no epoch, so no trial is stopped early; report(epoch=...)")
        self.backend.answer(trial, trial.id not in self.ending)

    def _handle_end(self, trial, end):
        del self.running[trial.id]
        status, error = self.ending.pop(trial.id, (None, ""))
        kills_servers = end.error == SERVER_DIED and trial.attempt >= N_ATTEMPTS
        if end.outcome == "finished" and trial.curve and status not in ("failed", "stopped"):
            status, error = "done", ""  # it may have been told to end, but finished first
        elif not status and self.reason:  # the signal that ends the run may have killed it too
            status, error = "interrupted", self.reason
        elif not status and end.outcome == "lost" and not kills_servers:  # the machine is to blame
            status, error = "interrupted", end.error
        elif not status:
            status, error = "failed", end.error or f"made no report of {self.journal.metric}"
        self._append({"end": trial.id, "attempt": trial.attempt, "status": status, "error": error})
        if self.show:
            self.show.ended(trial)
        if status == "failed":
            self.failures.append(trial)
            self._fail_unless_it_works()
        elif status == "interrupted" and not self.reason:  # it starts again after a pause
            self.again.append(trial)
            if self.backend.now() >= self.not_before:  # else it was lost with others
                self.n_lost += 1
                self.not_before = self.backend.now() + 2.0**self.n_lost
            if self.n_lost > N_LOST:
                raise RunFailed(f"no trial can be trained: {error}")

    def _fail_unless_it_works(self):
        """Raises RunFailed if the first trials have all failed: the objective may be broken."""
        n_least = 1 if self.reason in ("trials", "exhausted") else max(N_FAILED, self.n_workers)
        is_failing = {i for i, (status, _) in self.ending.items() if status == "failed"}
        if len(self.failures) < n_least:
            return
        if all(trial.value is None or trial.id in is_failing for trial in self.trials):
            n, last = len(self.failures), self.failures[-1]
            which = f"all of the first {n} trials" if n > 1 else "the only trial"
            what = f"{which} failed; mend the objective, or try another --start"
            raise RunFailed(f"{what}. Trial {last.id}: {last.error}\n{self.backend.log(last)}")


def suggest(searcher, space, trials):
    """(complete configuration, origin) that a searcher suggests, or None. Raises RunFailed."""
    name = f"{type(searcher).__name__}.suggest"
    suggestion = call(name, searcher.suggest, trials)
    if suggestion is None:
        return None
    try:
        config, origin = suggestion
        return cast_config(space, config, is_complete=True), str(origin)
    except (TypeError, ValueError) as error:
        raise RunFailed(f"{name}: expected (config, origin) or None: {error}") from None


def call(name, function, *arguments):
    """What a function of the user's returns. An error that it raises becomes a RunFailed."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise RunFailed(f"{name} raised {one_line(error)}") from error


# ---- A run ---------------------------------------------------------------------------------------
DEFAULTS = {
    "objective": None, "config_space": None, "metric": None, "mode": None, "assignments": [],
    "epochs_name": "epochs", "hours": 3.0, "trials": None, "workers": 4, "trial_timeout": None,
    "trials_per_gpu": None, "searcher": "gp", "stopping": "auto", "first_rung": 1, "eta": 3,
    "seed": 0, "start": None, "learn_from": [], "pass_json": None, "checkpoint_flag": None,
    "dask": None, "results": None,
}  # fmt: skip
# The arguments that may change when a run is resumed.
BUDGET = ("hours", "trials", "workers", "trial_timeout", "trials_per_gpu", "dask")
LEAST = {"hours": 1e-9, "trials": 1, "workers": 1, "trial_timeout": 1e-9, "trials_per_gpu": 1}
LEAST |= {"first_rung": 1, "eta": 2, "seed": 0}  # a float stands for any positive number


@dataclass(frozen=True)
class Run:
    """What `tune` returns. best: the trial with the lowest loss of all epochs and attempts."""

    folder: pathlib.Path
    trials: list = field(repr=False)
    best: Trial | None
    reason: str  # why the run ended
    signal: int | None  # its number, if a signal ended the run

    def to_frame(self):
        """trials.csv as a DataFrame, the best trial first; this alone needs pandas."""
        frame = importlib.import_module("pandas").read_csv(self.folder / "trials.csv")
        order = {"ascending": load_run(self.folder)["mode"] == "min", "kind": "stable"}
        return frame.sort_values("value", **order, ignore_index=True)

    def _repr_html_(self):
        """The ten best trials as HTML. Without pandas None, and the notebook shows the repr."""
        with contextlib.suppress(ImportError):
            columns = "^(trial|status|value|n_epochs|seconds)$|^config_"
            return self.to_frame().head(10).filter(regex=columns).to_html()


def tune(
    objective=None, config_space=None, *, metric=None, mode=None, assignments=None, hours=None,
    epochs_name=None, trials=None, workers=None, trial_timeout=None, trials_per_gpu=None,
    searcher=None, stopping=None, first_rung=None, eta=None, seed=None, start=None, dask=None,
    learn_from=None, pass_json=None, checkpoint_flag=None, results=None, resume=None,
):  # fmt: skip
    """Tunes an objective and prints its progress; returns a Run. The command line calls this.

    The arguments are the flags of `python run.py --help`; config_space is --space, assignments are
    --set. None stands for the default, in a resumed run for what the run had; only the BUDGET may
    differ from that. objective may be a function, which needs config_space, metric and mode;
    searcher may be a class, stopping a function, and start a list of configurations. To resume,
    give a function again, and a class or rule that is in no file.
    Raises ValueError for bad input, before anything is written; RunFailed; WriteError.
    """
    given = {n: v for n, v in locals().items() if v is not None and n != "resume"}
    functions = {name: value for name, value in given.items() if callable(value)}
    given = as_json(given)
    if hpo.objective.is_loading:  # each process that loads the file would start another one
        raise ValueError("hpo.tune is called while this file is loaded: use `if __name__ == ...`")
    if results is not None and resume is None:
        check_new(results)
    with contextlib.ExitStack() as stack:
        signals = ending_signals(stack)
        journal = None if resume is None else Journal.open(resume)
        stack.callback(lambda: journal and journal.close())  # last, when the trials have ended
        arguments = resumed(journal, given) if journal else DEFAULTS | given
        check_numbers(arguments)
        options = arguments | functions
        searcher_class, rule = (find(name, options[name]) for name in ("searcher", "stopping"))
        backend = make_backend(options)
        stack.callback(backend.close)
        say(f"loading {arguments['objective']}")
        found = backend.describe(
            space=arguments["config_space"], metric=arguments["metric"], mode=arguments["mode"],
            assignments=arguments["assignments"], prepared=journal and journal.run["prepared"],
        )  # fmt: skip
        space = space_from_json(found["space"])
        parts = of_space(space, arguments, searcher_class, rule)
        arguments |= {"metric": found["metric"], "mode": found["mode"], "start": parts["start"]}
        if journal:
            journal.begin_session({name: arguments[name] for name in (*BUDGET, "objective")})
        else:
            warn(space, arguments)
            folder = arguments.pop("results") or f"results/{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"
            run = {**found, "arguments": arguments, "learned": learn(space, arguments)}
            journal = Journal.create(folder, run)
        n_workers = arguments["workers"]
        if arguments["trials_per_gpu"] and backend.gpus and not arguments["dask"]:
            n_workers = min(n_workers, arguments["trials_per_gpu"] * len(backend.gpus))
        backend.begin(journal.folder / "logs", journal.clock)
        tuner = signals.tuner = Tuner(
            journal, backend=backend, n_workers=n_workers, seconds=arguments["hours"] * 3600,
            n_trials=arguments["trials"] or math.inf, show=Status(journal, backend),
            trial_timeout=arguments["trial_timeout"] or math.inf, **parts,
        )  # fmt: skip
        tuner.show.begin(tuner)
        reason, best = tuner.run(), best_of(journal.trials)
        return Run(journal.folder, journal.trials, best and best[2], reason, signals.first)


def ending_signals(stack):
    """Until the stack is closed, Ctrl-C, SIGTERM and a closed terminal end the run in order.

    Returns an object: `first` is the number of the first signal, and the caller sets `tuner`. A
    second signal, or one before `tuner` is set, raises KeyboardInterrupt(number).
    """
    signals = types.SimpleNamespace(tuner=None, first=None, time=0.0)

    def on_signal(number, frame):
        now, is_first = time.monotonic(), signals.first is None
        if is_first:
            signals.first, signals.time = number, now
        if is_first and signals.tuner:
            signals.tuner.interrupt(f"interrupted by {signal.Signals(number).name}")
        elif is_first or now >= signals.time + 1:  # `timeout`, or a closing terminal, sends two
            raise KeyboardInterrupt(number)

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            with contextlib.suppress(ValueError):  # not in the main thread
                stack.callback(signal.signal, number, signal.signal(number, on_signal))
    return signals


def of_space(space, arguments, searcher_class, rule):
    """The arguments of a Tuner that depend on the space, as a dict. Raises ValueError."""
    max_epochs = last_epoch(space, arguments["epochs_name"])
    is_asked_for = arguments["stopping"] != "auto"
    if rule and not max_epochs and is_asked_for:
        what = "needs the last epoch, a constant `epochs` in the space; or give --epochs_name"
        raise ValueError(f"--stopping {arguments['stopping']}: {what}")
    options = {name: arguments[name] for name in ("first_rung", "eta")}
    try:
        searcher = searcher_class(space, arguments["seed"], max_epochs)
    except Exception as error:  # whatever the user's class raises becomes one line
        raise ValueError(f"--searcher {arguments['searcher']}: {one_line(error)}") from error
    return {
        "searcher": searcher,
        "rule": with_options(rule if max_epochs else None, **options), "needs_epoch": is_asked_for,
        "max_epochs": max_epochs, "start": first_configs(space, arguments["start"]),
    }  # fmt: skip


def warn(space, arguments):
    """Prints what a user may have meant otherwise."""
    if arguments["workers"] > 4 * (os.cpu_count() or 1) and not arguments["dask"]:
        say(f"warning: {arguments['workers']} workers share the {os.cpu_count()} cores")
    for name, value in space.items():
        if isinstance(value, list):
            say(f"warning: {name} is the constant {value!r:.60}; to tune it, use choice(...)")


# ---- Its arguments -------------------------------------------------------------------------------
def as_json(given):
    """Arguments as the journal keeps them: paths are absolute, functions FILE.py:NAME."""
    kept = dict(given)
    for name, value in given.items():
        if name == "config_space":
            kept[name] = space_to_json(value)  # or a ValueError
        elif callable(value):
            path = getattr(sys.modules.get(value.__module__), "__file__", value.__module__)
            kept[name] = f"{path}:{getattr(value, '__qualname__', type(value).__qualname__)}"
        elif isinstance(value, (str, os.PathLike)) and (
            name == "objective" or (name in ("searcher", "stopping") and ".py:" in str(value))
        ):
            kept[name] = os.path.abspath(value)
        elif name == "learn_from" and isinstance(value, (str, os.PathLike)):
            kept[name] = [value]
        elif name == "assignments" and isinstance(value, dict):
            texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in value.items()}
            kept[name] = [f"{n}={text}" for n, text in texts.items()]
    plain = lambda value: value.item() if hasattr(value, "item") else str(value)
    return json.loads(json.dumps(kept, default=plain))  # numbers of numpy's, and paths


def resumed(journal, given):
    """The arguments of a resumed run; ValueError if one differs that is not in BUDGET."""
    own = DEFAULTS | journal.run["arguments"] | {"results": str(journal.folder)}
    if "start" in given:  # the run has it in this form
        given["start"] = first_configs(journal.space, given["start"])
    for name, value in given.items():
        was_moved = name == "objective" and not os.path.exists(own[name].split(":")[0])
        if name not in BUDGET and value != own[name] and not was_moved:
            flags = {"config_space": "--space", "assignments": "--set", "objective": "OBJECTIVE"}
            flag, texts = flags.get(name, f"--{name}"), f"{own[name]!r:.200}, got {value!r:.200}"
            raise ValueError(f"{flag}: {journal.folder} has {texts}; a resumed run keeps its own")
    return own | given | {"config_space": space_to_json(journal.space), "assignments": []}


def check_numbers(arguments):
    """ValueError when an argument is no number, or is too small."""
    for name, least in LEAST.items():
        value, kind = arguments[name], type(least)
        if value is not None and not (isinstance(value, (int, kind)) and least <= value < 1e18):
            what = f"an integer >= {least}" if kind is int else "a positive number"
            raise ValueError(f"--{name}: expected {what}, got {value!r}")


def find(option, value):
    """The searcher class or the rule that `value` names, or is."""
    if callable(value):
        return value
    path, _, name = str(value).rpartition(":")
    try:
        if not path.endswith(".py"):
            return find_searcher(value) if option == "searcher" else find_rule(value)
        found = getattr(load_module(path), name)
    except (Exception, SystemExit) as error:  # whatever the user's file raises becomes one line
        reason = import_error(error, path) if path.endswith(".py") else error
        raise ValueError(f"--{option}: {reason}") from error
    if not callable(found) or (option == "searcher" and not hasattr(found, "suggest")):
        what = "a class with suggest(trials)" if option == "searcher" else "a function"
        raise ValueError(f"--{option} {value}: expected {what}")
    return found


def make_backend(options):
    """The backend: processes on this machine, or the Dask cluster of --dask."""
    objective = options["objective"]
    if callable(objective):
        module, name = objective.__module__, getattr(objective, "__qualname__", "")
        if module != "__main__" and getattr(sys.modules.get(module), name, None) is objective:
            objective = module, name
        elif not LINUX:
            what = "write it to a file (%%writefile FILE.py in a notebook), and name the file"
            raise ValueError(f"{name}: a function of the running program needs Linux; {what}")
    elif not os.path.isfile(str(objective)):
        reason = "is a folder" if os.path.isdir(str(objective)) else "no such file"
        raise ValueError(f"{objective}: {reason}; expected a Python file or a program, or function")
    elif is_program(objective):
        if not objective.endswith(".py") and not os.access(objective, os.X_OK):
            raise ValueError(f"{objective}: is no Python file; if it is a program, use chmod +x")
        if not all(options[name] for name in ("config_space", "metric", "mode")):
            needs = "this needs --space FILE, --metric NAME and --mode max|min"
            raise ValueError(f"{objective}: is a program, without objective(config); {needs}")
        flags = options["pass_json"], options["checkpoint_flag"]
        objective = Program(objective, options["metric"], *flags)
    elif not_used := [name for name in ("pass_json", "checkpoint_flag") if options[name]]:
        raise ValueError(f"--{not_used[0]}: is for programs; this objective is a function")
    if not options["dask"]:
        return LocalBackend(objective, options["seed"], options["workers"])
    try:
        from hpo.dask_backend import DaskBackend
    except ImportError as error:
        raise ValueError(f"--dask: needs `pip install distributed`: {error}") from None
    return DaskBackend(options["dask"], objective, options["seed"])


def last_epoch(space, name):
    """The value of the constant that is the last epoch; None if there is no constant `epochs`."""
    epochs = space.get(name)
    if name == "epochs" and (epochs is None or isinstance(epochs, Domain)):
        return None
    if type(epochs) is not int or epochs < 1:
        flag = name if name == "epochs" else f"--epochs_name {name}"
        raise ValueError(f"{flag}: expected a constant integer >= 1, got {epochs!r}")
    return epochs


def first_configs(space, start):
    """The complete configurations to try first; None stands for the middle of the space.

    start: None, a list of configurations, or a folder: then the five best of its run, each moved to
    the nearest configuration of this space; None if no trial has worked there.
    """
    if start is None:
        return None
    try:
        if isinstance(start, str):
            trials = sorted((t for t in load(start) if t.value is not None), key=lambda t: t.value)
            found, changes = {}, {}  # configurations by their JSON; changes as keys, each once
            for config, changed in (nearest_config(space, trial.config) for trial in trials):
                if len(found) < 5:
                    found[json.dumps(config)] = config
                    changes |= dict.fromkeys(changed)
            if not found:
                return None
            say("; ".join([f"--start: the {len(found)} best of {start}", *changes])[:500])
            start = [*found.values()]
        if not isinstance(start, list):
            raise ValueError(f"expected a list of configurations, got {start!r:.99}")
        return [cast_config(space, config) for config in start]
    except (TypeError, ValueError) as error:
        raise ValueError(f"--start: {error}") from None


def learn(space, arguments):
    """The trials of --learn_from that fit the space, in the form that the journal keeps."""
    metric, mode, learned = arguments["metric"], arguments["mode"], []
    for folder in arguments["learn_from"]:
        run, trials, n_before, misfit = load_run(folder), load(folder), len(learned), ""
        if (run["metric"], run["mode"]) != (metric, mode):
            theirs = f"{run['mode']}imises {run['metric']}"
            raise ValueError(f"--learn_from {folder}: {theirs}; this run {mode}imises {metric}")
        for trial in trials:
            try:
                config = cast_config(space, trial.config, is_complete=True)
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
