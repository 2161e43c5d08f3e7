"""What the user sees of a run: the status line, a line for each ended trial, the summary."""

import collections
import contextlib
import json
import os
import shutil
import sys

from hpo.journal import STATUSES, printable
from hpo.objective import command_line
from hpo.searchers import GPSearch
from hpo.space import domains
from hpo.trial import trial_seed


class Status:
    """On a terminal a line that rewrites itself; elsewhere a line each minute."""

    def __init__(self, journal, backend):
        self.journal, self.backend, self.arguments = journal, backend, journal.run["arguments"]
        self.is_live = getattr(sys.stdout, "isatty", bool)()
        self.seconds = 0.5 if self.is_live else 60.0  # between two status lines
        self.last_tick = backend.now()
        note = journal.run["note"]  # of the objective's `prepare`; shown before and after the run
        self.note = f"**** {note}\n" if note else ""

    def begin(self, tuner):
        journal, stopping = self.journal, self.arguments["stopping"]
        rule = ("halving" if stopping == "auto" else stopping) if tuner.rule else "none"
        say(
            f"{self.note}{journal.mode}imise {journal.metric} over {len(domains(journal.space))} "
            f"hyperparameters, searcher {self.arguments['searcher']}, stopping {rule}, "
            f"{tuner.n_workers} workers with {self.backend.n_threads} thread(s) each, "
            f"{self.arguments['hours']:g} hours\nresults: {journal.folder}"
        )
        if tuner.trials:
            say(f"resumed after {clock(journal.clock)}: {counts(tuner.trials)}")

    def tick(self, tuner):
        now = self.backend.now()
        if now - self.last_tick >= self.seconds:
            self.last_tick = now
            width = shutil.get_terminal_size().columns - 1 if self.is_live else None
            say(self.line(tuner, now)[:width], end="" if self.is_live else "\n")

    def line(self, tuner, now):
        """The status line, the most important first: a narrow terminal cuts the end off."""
        best, n_ended = best_of(tuner.trials), len(tuner.trials) - len(tuner.running)
        parts = [
            f"{clock(now)} elapsed, {clock(tuner.seconds - now)} left",
            f"best {self._value(best[0])} (trial {best[2].id})" if best else "no result yet",
            f"{counts(tuner.trials)} | {3600 * n_ended / max(now, 1):.0f} trials/h",
            f"at epoch {' '.join(str(trial.n_epochs) for trial in tuner.running.values())}",
        ]
        return " | ".join(parts)

    def ended(self, trial):
        parts = [f"trial {trial.id:4d} {trial.status:8}", f"{trial.ended - trial.started:.0f} s"]
        if trial.value is not None:
            of = f" at epoch {trial.best_epoch} of {trial.n_epochs}" if trial.n_epochs > 1 else ""
            parts[1] = f"{self._value(trial.value)}{of}, {parts[1]}"
        tuned = [(name, trial.config[name]) for name in domains(self.journal.space)]
        texts = [f"{n}={v:.3g}" if isinstance(v, float) else f"{n}={v}" for n, v in tuned]
        parts += [" ".join(texts)[:160]] + [trial.error[:200]] * bool(trial.error)
        say(" | ".join(parts))

    def summary(self, tuner):
        trials, folder = tuner.trials, self.journal.folder
        ended = f"ended ({tuner.reason}) after {clock(self.backend.now())}"
        say(f"\n{self.note}{ended}: {len(trials)} trials, {counts(trials)}")
        if best := best_of(trials):
            say(f"best {self._value(best[0])} ({place(best[2], best[1])})")
            self._say_choice(best[2], tuner)
        else:
            say(f"no trial has reported {self.journal.metric}")
        say(f"{folder / 'trials.csv'}\n{folder / 'reports.csv'}")
        if tuner.reason not in ("trials", "exhausted", "deadline"):
            say(f"the run goes on with --resume {folder}")

    def _say_choice(self, best, tuner):
        """Says which configuration to take home, and how to train it again."""
        expected, path, seed = None, self.arguments["objective"], self.arguments["seed"]
        if isinstance(tuner.searcher, GPSearch):
            with contextlib.suppress(Exception):  # of the user's own version; the run ended well
                expected = tuner.searcher.recommend(tuner.trials)
        if expected:
            best, epoch, mu, sigma = expected
            say(
                f"expected if trained again: {self._value(mu)} +- {sigma:.2g} "
                f"({place(best, epoch)}), as the best of many noisy values is partly luck"
            )
        say(f"take home trial {best.id}: {json.dumps(best.config)}")
        if path.endswith(".py") and self.arguments["config_space"] is None:
            seed, n_threads = trial_seed(seed, best.id), self.backend.n_threads
            say(f"train it again with\n  {command_line(path, best.config, seed, n_threads)}")

    def _value(self, loss):
        return f"{self.journal.metric}={self.journal.to_metric(loss):.6g}"


def place(trial, epoch):
    return f"trial {trial.id}" + (f", epoch {epoch}" if trial.n_epochs > 1 else "")


def counts(trials):
    """How many trials have each status, such as "1 running, 3 done"."""
    n = collections.Counter(trial.status for trial in trials)
    return ", ".join(f"{n[s]} {s}" for s in ("running", *STATUSES) if n[s]) or "none"


def best_of(trials):
    """The lowest (loss, epoch, trial) of all attempts of the trials, or None."""
    valid = [trial for trial in trials if trial.status != "failed"]
    points = ((loss, epoch, t) for t in valid for c in (*t.earlier, t.curve) for epoch, loss in c)
    return min(points, key=lambda point: point[0], default=None)


def clock(seconds):
    """h:mm:ss."""
    minutes, seconds = divmod(max(0, int(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def say(text, end="\n", file=None):
    """Prints a text to stdout or a file, on a terminal over the status line. Raises no error."""
    file = file or sys.stdout
    try:
        clear_line = "\r\x1b[K" if getattr(file, "isatty", bool)() else ""
        encoding = getattr(file, "encoding", None) or "utf-8"
        text = printable(text).encode(encoding, "backslashreplace").decode(encoding)
        print(clear_line + text, end=end, file=file, flush=True)
    except (OSError, ValueError):  # the reader has gone, or the disk is full
        # The run goes on without output. The interpreter's last flush would raise the error again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
