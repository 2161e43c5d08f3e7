"""What the user sees of a run: the status line, a line for each ended trial, the summary."""

import contextlib
import json
import os
import shutil
import sys

from hpo.objective import command_line
from hpo.searchers import GPSearch
from hpo.space import domains
from hpo.trial import trial_seed

PLAIN_SECONDS = 60.0  # between two status lines where the output is no terminal
LIVE_SECONDS = 0.05  # between two on a terminal, at least: thousands of reports a second must not wait for it
STAND_IN = "synthetic"  # the constant `dataset`, when what `prepare` returns says that there is no real data


class Status:
    """One line that rewrites itself on a terminal, a plain line every minute elsewhere; a line for each ended trial."""

    def __init__(self, args, backend, results, stand_in=False):
        self.args, self.backend, self.results = args, backend, results
        self.stand_in = stand_in
        self.live = sys.stdout.isatty()
        self.seconds = 1.0 if self.live else PLAIN_SECONDS  # between two ticks, at most
        self.last_tick = backend.now()
        self.count, self.best = counts([]), None  # of the ended trials, kept up to date: there may be 10,000

    def begin(self, tuner):
        self.warn()
        goal = "maximise" if self.results.mode == "max" else "minimise"
        rule = self.args.stopping if self.args.stopping != "auto" else "halving" if tuner.rule else "none"
        threads = f"{self.backend.n_threads} thread{'s' if self.backend.n_threads > 1 else ''} each"
        say(
            f"{self.args.objective}: {goal} {self.results.metric} over {len(domains(tuner.space))} hyperparameters, "
            f"searcher {self.args.searcher}, stopping {rule}, {tuner.n_workers} workers with {threads}, {self.args.hours:g} hours"
        )
        say(f"results: {self.results.folder}")
        unended = {trial.id for trial in tuner.unended}
        for trial in tuner.trials:
            if trial.id not in unended:
                self.note(trial)
        if tuner.trials:
            n_ended = len(tuner.trials) - len(tuner.unended)
            used = clock(tuner.began)
            say(f"resumed: {n_ended} trials have ended, {len(tuner.unended)} are started again, {used} used")

    def warn(self):
        if self.stand_in:
            say("*" * 100)
            say("* STAND-IN DATA: these are generated images, NOT FashionMNIST, and so is every number of this run.")
            say("*" * 100)

    def tick(self, tuner):
        now = self.backend.now()
        if now - self.last_tick >= (LIVE_SECONDS if self.live else PLAIN_SECONDS):
            self.last_tick = now
            line = self.line(tuner)
            if self.live:
                width = shutil.get_terminal_size().columns
                say(f"\r\x1b[K{line[: width - 1]}", end="")
            else:
                say(line)

    def line(self, tuner):
        now, count = self.backend.now(), self.count
        best = best_trial([self.best, *tuner.running.values()])
        found = f"best {self.value(best.value)} (trial {best.id})" if best else "no result yet"
        rate = 3600 * sum(count.values()) / now if now > 0 else 0
        n_stopped = f"{count['stopped']} stopped, " + (f"{count['timeout']} timed out, " if count["timeout"] else "")
        return (
            f"{'STAND-IN DATA | ' if self.stand_in else ''}{clock(now)} elapsed, {clock(tuner.seconds - now)} left | "
            f"{found} | {count['done']} done, {len(tuner.running)} running, {n_stopped}{count['failed']} failed | "
            f"{rate:.0f} trials/h"  # what matters least last: a narrow terminal cuts the end off
        )

    def note(self, trial):
        self.count[trial.status] += 1
        self.best = best_trial([self.best, trial])

    def ended(self, trial):
        self.note(trial)
        what = "" if trial.value is None else f"{self.value(trial.value)} at epoch {trial.best_epoch}"
        self.clear()
        parts = [
            f"{trial.status:8}",
            what,
            f"{trial.n_epochs} epochs, {trial.ended - trial.started:.0f} s",
            trial.error[:200],
        ]
        say(f"trial {trial.id:4d} " + " | ".join(part for part in parts if part))

    def summary(self, tuner, reason):
        self.clear()
        elapsed, count, best = self.backend.now(), counts(tuner.trials), best_trial(tuner.trials)
        say(f"\nended ({reason}) after {clock(elapsed)}: {len(tuner.trials)} trials, ", end="")
        say(", ".join(f"{n} {status}" for status, n in count.items() if n) or "none")
        if best:
            say(f"best {self.value(best.value)} (trial {best.id}, epoch {best.best_epoch})")
            self.say_config(best)
            is_gp = isinstance(tuner.searcher, GPSearch)
            model = tuner.searcher if is_gp else GPSearch(tuner.space, self.args.seed, tuner.max_epochs)
            if expected := model.recommend(tuner.trials):  # the lowest of many noisy values is lucky
                trial, epoch, mu, sigma = expected
                at = f", epoch {epoch}" if epoch else ""
                say(f"best by posterior mean {self.value(mu)} +- {sigma:.2g} (trial {trial.id}{at})")
                if trial is not best:
                    self.say_config(trial)
        else:
            say(f"no trial has reported {self.results.metric}")
        share = tuner.busy_seconds / (tuner.n_workers * (elapsed - tuner.began))
        say(f"the workers were training {100 * share:.1f}% of the time")
        for name in ("trials.csv", "reports.csv"):
            say(f"{self.results.folder / name}")
        self.warn()

    def say_config(self, trial):
        say(json.dumps(trial.config))
        if self.args.space:
            return  # the program below has the file's own space
        seed, n_threads = trial_seed(self.backend.seed, trial.id), self.backend.n_threads
        say("train it again with")
        say("  " + command_line(self.args.objective, trial.config, seed, n_threads))

    def value(self, loss):
        return f"{self.results.metric}={self.results.to_metric(loss):.6g}"

    def clear(self):
        if self.live:
            say("\r\x1b[K", end="")


def say(text, end="\n"):
    """Prints; when the reader or the terminal has gone, or the disk is full, the run goes on in silence."""
    try:
        print(text, end=end, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # else the interpreter's last flush would fail
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def best_trial(trials):
    """The trial with the lowest loss, or None; some of them may be None."""
    return min(
        (trial for trial in trials if trial and trial.value is not None), key=lambda trial: trial.value, default=None
    )


def counts(trials):
    """Number of trials by status."""
    return {s: sum(t.status == s for t in trials) for s in ("done", "running", "stopped", "timeout", "failed")}


def clock(seconds):
    """h:mm:ss."""
    minutes, seconds = divmod(max(0, int(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
