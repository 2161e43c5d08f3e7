"""What the user sees of a run: the status line, a line for each ended trial, the summary."""

import collections
import contextlib
import json
import math
import os
import shlex
import shutil
import sys

from hpo.journal import STATUSES, printable
from hpo.objective import ROOT, command_line, one_line
from hpo.searchers import GPSearch
from hpo.space import domains
from hpo.trial import trial_seed

LIVE_SECONDS = 0.5  # between two status lines on a terminal
PLAIN_SECONDS = 60.0  # elsewhere


class Status:
    """On a terminal a line that rewrites itself; elsewhere a line each minute.

    The objective's `prepare` may return a `note`. It is shown before and after the run.
    """

    def __init__(self, journal, backend):
        self.journal, self.backend, self.arguments = journal, backend, journal.run["arguments"]
        self.note = f"**** {journal.run['note']}\n" if journal.run["note"] else ""
        self.is_live = getattr(sys.stdout, "isatty", bool)()
        self.seconds = LIVE_SECONDS if self.is_live else PLAIN_SECONDS
        self.last_tick = self.began = backend.now()
        self.best = best_of(journal.trials)  # of the ended trials: there may be 10,000

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
            if journal.clock >= tuner.seconds:
                say("the time of the run is over; --hours with a larger number gives it more")

    def tick(self, tuner):
        now = self.backend.now()
        if now - self.last_tick >= self.seconds:
            self.last_tick = now
            width = shutil.get_terminal_size().columns - 1 if self.is_live else None
            say(self.line(tuner, now)[:width], end="" if self.is_live else "\n")

    def line(self, tuner, now):
        """The status line, the most important first: a narrow terminal cuts the end off."""
        best = best_of(tuner.running.values(), self.best)
        parts = ["NOTE ABOVE"] if self.note else []
        parts += [
            f"{clock(now)} elapsed, {clock(tuner.seconds - now)} left",
            f"best {self._value(best[0])} (trial {best[2].id})" if best else "no result yet",
            counts(tuner.trials),
            f"{3600 * (len(tuner.trials) - len(tuner.running)) / max(now, 1):.0f} trials/h",
        ]
        if tuner.max_epochs:
            epochs = [str(trial.n_epochs) for trial in tuner.running.values()]
            parts.append(f"now at epoch {' '.join(epochs)} of {tuner.max_epochs}")
        return " | ".join(parts)

    def ended(self, trial):
        self.best = best_of([trial], self.best)
        result = f"{trial.ended - trial.started:.0f} s"
        if trial.value is not None:
            at = f" at epoch {trial.best_epoch} of {trial.n_epochs}" if trial.n_epochs > 1 else ""
            result = f"{self._value(trial.value)}{at}, {result}"
        tuned = {name: trial.config[name] for name in domains(self.journal.space)}
        texts = {n: f"{v:.3g}" if isinstance(v, float) else str(v)[:12] for n, v in tuned.items()}
        config = " ".join(f"{name}={text}" for name, text in texts.items())[:160]
        error = [trial.error[:200]] if trial.error else []
        say(" | ".join([f"trial {trial.id:4d} {trial.status:8}", result, config, *error]))
        if trial.id == 0 and trial.curve and trial.curve[0][0] == 0:
            say("warning: epochs are counted from 0; count from 1, as the last one is `epochs`")

    def summary(self, tuner):
        now, trials, folder = self.backend.now(), tuner.trials, self.journal.folder
        say(f"\nended ({tuner.reason}) after {clock(now)}: {len(trials)} trials, {counts(trials)}")
        if best := best_of(trials):
            say(f"best {self._value(best[0])} ({place(best[2], best[1])})")
            self._say_choice(best[2], tuner)
        else:
            say(f"no trial has reported {self.journal.metric}")
        spans = [(trial.ended or now) - max(trial.started, self.began) for trial in trials]
        busy = sum(max(0, span) for span in spans)
        share = busy / (tuner.n_workers * max(now - self.began, 1e-9))
        say(f"the workers were busy {100 * share:.1f}% of the time")
        say(f"{folder / 'trials.csv'}\n{folder / 'reports.csv'}")
        if tuner.reason not in ("trials", "exhausted", "deadline"):
            command = shlex.join(["python", str(ROOT / "run.py"), "--resume", str(folder)])
            if not os.path.isfile(self.arguments["objective"]):
                command = f"hpo.tune(FUNCTION, resume={str(folder)!r})"
            cut_off = [t.ended - t.started for t in trials if t.status == "interrupted"]
            again = f", and {len(cut_off)} trials that took {sum(cut_off):.0f} s start again"
            say(f"the run goes on{again if cut_off else ''} with\n  {command}")
        if self.note:
            say(self.note, end="")

    def _say_choice(self, best, tuner):
        """Says which configuration to take home, and how to train it again."""
        searcher, seed = tuner.searcher, self.arguments["seed"]
        if not isinstance(searcher, GPSearch):
            searcher = GPSearch(self.journal.space, seed, tuner.max_epochs)
        try:
            expected = searcher.recommend(tuner.trials)
        except Exception as error:  # of the user's own searcher; the run has ended well
            expected = None
            say(f"warning: {type(searcher).__name__}.recommend raised {one_line(error)}")
        if expected and math.isfinite(expected[2]):
            best, epoch, mu, sigma = expected
            say(
                f"expected if trained again: {self._value(mu)} +- {sigma:.2g} "
                f"({place(best, epoch)}), as the best of many noisy values is partly luck"
            )
        say(f"take home trial {best.id}: {json.dumps(best.config)}")
        path = self.arguments["objective"]
        if path.endswith(".py") and self.arguments["config_space"] is None:
            seed = trial_seed(seed, best.id)
            command = command_line(path, best.config, seed, self.backend.n_threads)
            say(f"train it again with\n  {command}")

    def _value(self, loss):
        return f"{self.journal.metric}={self.journal.to_metric(loss):.6g}"


def place(trial, epoch):
    is_shown = epoch is not None and trial.n_epochs > 1
    return f"trial {trial.id}, epoch {epoch}" if is_shown else f"trial {trial.id}"


def counts(trials):
    """How many trials have each status, such as "1 running, 3 done"."""
    n = collections.Counter(trial.status for trial in trials)
    return ", ".join(f"{n[s]} {s}" for s in ("running", *STATUSES) if n[s]) or "none"


def best_of(trials, best=None):
    """The lowest (loss, epoch, trial) of `best` and of all attempts of the trials, or None."""
    for trial in trials:
        for curve in [] if trial.status == "failed" else [*trial.earlier, trial.curve]:
            for epoch, loss in curve:
                if best is None or loss < best[0]:
                    best = loss, epoch, trial
    return best


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
