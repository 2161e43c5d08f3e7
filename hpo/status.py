"""What the user sees of a run: the status line, a line for each ended trial, the summary."""

import collections
import contextlib
import json
import os
import shutil
import sys

from hpo.journal import printable
from hpo.objective import command_line
from hpo.searchers import GPSearch
from hpo.space import domains
from hpo.trial import trial_seed

PLAIN_SECONDS = 60.0  # between two status lines where the output is no terminal
LIVE_SECONDS = 0.1  # on a terminal, at least: thousands of reports a second must not wait for it


class Status:
    """One line that rewrites itself on a terminal, or a plain one every minute elsewhere.

    journal: its run has the arguments of hpo.tuner.tune, and the `note` that the objective's
    `prepare` wants to be shown.
    """

    def __init__(self, journal, backend):
        self.journal, self.backend, self.note = journal, backend, journal.run["note"]
        self.arguments, self.live = journal.run["arguments"], sys.stdout.isatty()
        self.seconds = 1.0 if self.live else PLAIN_SECONDS  # between two ticks, at most
        self.last_tick = self.began = backend.now()
        self.best = best_of(journal.trials)  # of the ended trials: there may be 10,000

    def begin(self, tuner):
        self.say_note()
        journal, arguments, n_threads = self.journal, self.arguments, self.backend.n_threads
        rule = "halving" if arguments["stopping"] == "auto" else arguments["stopping"]
        say(
            f"{journal.mode}imise {journal.metric} over {len(domains(journal.space))} "
            f"hyperparameters, searcher {arguments['searcher']}, stopping "
            f"{rule if tuner.rule else 'none'}, {tuner.n_workers} workers with {n_threads} "
            f"thread{'s' if n_threads > 1 else ''} each, {arguments['hours']:g} hours"
        )
        say(f"results: {journal.folder}")
        if tuner.trials:
            n_ended, n_again = len(tuner.trials) - len(tuner.again), len(tuner.again)
            used = f"{clock(journal.clock)} used"
            say(f"resumed: {n_ended} trials have ended, {n_again} are started again, {used}")
            if journal.clock >= tuner.seconds:
                say("the time of the run is over; --hours with a larger number gives it more")

    def tick(self, tuner):
        now = self.backend.now()
        if now - self.last_tick >= (LIVE_SECONDS if self.live else PLAIN_SECONDS):
            self.last_tick, line = now, self.line(tuner, now)
            if self.live:
                say(line[: shutil.get_terminal_size().columns - 1], end="")
            else:
                say(line)

    def line(self, tuner, now):
        """What matters least comes last: a narrow terminal cuts it off."""
        n = collections.Counter(trial.status for trial in tuner.trials)
        best = best_of(tuner.running.values(), self.best)
        timeouts = f", {n['timeout']} timed out" if n["timeout"] else ""
        counts = f"{n['done']} done, {n['running']} running, {n['stopped']} stopped{timeouts}"
        rate = 3600 * (len(tuner.trials) - n["running"]) / now if now > 0 else 0
        parts = [
            f"{clock(now)} elapsed, {clock(tuner.seconds - now)} left",
            f"best {self.value(best[0])} (trial {best[2].id})" if best else "no result yet",
            f"{counts}, {n['failed']} failed",
            f"{rate:.0f} trials/h",
        ]
        return " | ".join(["NOTE ABOVE", *parts] if self.note else parts)

    def ended(self, trial):
        self.best = best_of([trial], self.best)
        parts = [f"trial {trial.id:4d} {trial.status:8}"]
        if trial.value is not None:
            parts.append(f"{self.value(trial.value)} at epoch {trial.best_epoch}")
        parts.append(f"{trial.n_epochs} epochs, {trial.ended - trial.started:.0f} s")
        parts += [trial.error[:200]] if trial.error else []
        say(" | ".join(parts))

    def summary(self, tuner):
        now, trials = self.backend.now(), tuner.trials
        counts = collections.Counter(trial.status for trial in trials)
        counts = ", ".join(f"{n} {status}" for status, n in counts.items()) or "none"
        say(f"\nended ({tuner.reason}) after {clock(now)}: {len(trials)} trials, {counts}")
        if best := best_of(trials):
            say(f"best {self.value(best[0])} (trial {best[2].id}, epoch {best[1]})")
            self.say_config(best[2])
            model = tuner.searcher
            if not isinstance(model, GPSearch):
                model = GPSearch(self.journal.space, self.arguments["seed"], tuner.max_epochs)
            if expected := model.recommend(trials):  # the best of many noisy values is lucky
                trial, epoch, mu, sigma = expected
                at = f"trial {trial.id}" + (f", epoch {epoch}" if epoch else "")
                say(f"best by posterior mean {self.value(mu)} +- {sigma:.2g} ({at})")
                if trial is not best[2]:
                    self.say_config(trial)
        else:
            say(f"no trial has reported {self.journal.metric}")
        spans = [((t.ended or now) - max(t.started, self.began)) for t in trials]
        share = sum(max(0, span) for span in spans) / (tuner.n_workers * (now - self.began))
        say(f"the workers were busy {100 * share:.1f}% of the time")
        say(f"{self.journal.folder / 'trials.csv'}\n{self.journal.folder / 'reports.csv'}")
        self.say_note()

    def say_config(self, trial):
        say(json.dumps(trial.config))
        path = self.arguments["objective"]
        if path.endswith(".py") and self.arguments["config_space"] is None:
            seed, n_threads = trial_seed(self.backend.seed, trial.id), self.backend.n_threads
            say(f"train it again with\n  {command_line(path, trial.config, seed, n_threads)}")

    def say_note(self):
        if self.note:
            say("*" * 100 + f"\n* {self.note}\n" + "*" * 100)

    def value(self, loss):
        return f"{self.journal.metric}={self.journal.to_metric(loss):.6g}"


def best_of(trials, best=None):
    """The lowest (loss, epoch, trial), interrupted attempts included; None where there is none."""
    for trial in trials:
        for curve in [*trial.earlier, [] if trial.status == "failed" else trial.curve]:
            for epoch, loss in curve:
                if best is None or loss < best[0]:
                    best = loss, epoch, trial
    return best


def say(text, end="\n"):
    """Prints, on a terminal over the status line. When nobody reads it, the run goes on."""
    try:
        clear_line = "\r\x1b[K" if sys.stdout.isatty() else ""
        print(clear_line + printable(text), end=end, flush=True)
    except (OSError, ValueError):  # the reader has gone, or the disk is full
        with contextlib.suppress(OSError, ValueError):  # else the interpreter's last flush fails
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def clock(seconds):
    """h:mm:ss."""
    minutes, seconds = divmod(max(0, int(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
