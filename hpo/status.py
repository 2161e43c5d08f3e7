"""What the user sees of a run: the status line, a line for each ended trial, the summary."""

import collections
import contextlib
import json
import math
import os
import shlex
import shutil
import sys

from hpo.journal import printable
from hpo.objective import command_line, one_line
from hpo.searchers import GPSearch
from hpo.space import domains
from hpo.trial import trial_seed

PLAIN_SECONDS = 60.0  # between two status lines where the output is no terminal
LIVE_SECONDS = 0.1  # on a terminal, at least: thousands of reports a second must not wait for it


class Status:
    """On a terminal a line that rewrites itself; elsewhere a line each minute.

    The objective's `prepare` may return a `note`, which is shown above all.
    """

    def __init__(self, journal, backend):
        self.journal, self.backend, self.note = journal, backend, journal.run["note"]
        self.arguments, self.live = journal.run["arguments"], sys.stdout.isatty()
        self.seconds = 1.0 if self.live else PLAIN_SECONDS  # between two ticks, at most
        self.last_tick = self.began = backend.now()
        self.has_warned = False
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
        """The status line, the most important first: a narrow terminal cuts the end off."""
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
        if tuner.max_epochs:
            epochs = [str(trial.n_epochs) for trial in tuner.running.values()]
            parts.append(f"now at epoch {' '.join(epochs)} of {tuner.max_epochs}")
        return " | ".join(["NOTE ABOVE", *parts] if self.note else parts)

    def ended(self, trial):
        self.best = best_of([trial], self.best)
        parts, seconds = [f"trial {trial.id:4d} {trial.status:8}"], trial.ended - trial.started
        epochs = f" at epoch {trial.best_epoch} of {trial.n_epochs}" if trial.n_epochs > 1 else ""
        value = "" if trial.value is None else f"{self.value(trial.value)}{epochs}, "
        parts += [f"{value}{seconds:.0f} s", self.shortened(trial.config)]
        parts += [trial.error[:200]] if trial.error else []
        say(" | ".join(parts))
        if trial.curve and trial.curve[0][0] == 0 and not self.has_warned:
            self.has_warned = True
            say("warning: epochs are counted from 0; count from 1, as the last one is `epochs`")

    def shortened(self, config):
        """The tuned values of a configuration."""
        values = [(name, config[name]) for name in domains(self.journal.space)]
        texts = [f"{v:.3g}" if isinstance(v, float) else str(v)[:12] for _, v in values]
        return " ".join(f"{name}={text}" for (name, _), text in zip(values, texts))[:160]

    def summary(self, tuner):
        now, trials = self.backend.now(), tuner.trials
        counts = collections.Counter(trial.status for trial in trials)
        counts = ", ".join(f"{n} {status}" for status, n in counts.items()) or "none"
        say(f"\nended ({tuner.reason}) after {clock(now)}: {len(trials)} trials, {counts}")
        if best := best_of(trials):
            at_epoch = f", epoch {best[1]}" if best[2].n_epochs > 1 else ""
            say(f"best {self.value(best[0])} (trial {best[2].id}{at_epoch})")
            self.say_choice(best[2], tuner)
        else:
            say(f"no trial has reported {self.journal.metric}")
        spans = [((t.ended or now) - max(t.started, self.began)) for t in trials]
        share = sum(max(0, span) for span in spans) / (
            tuner.n_workers * max(now - self.began, 1e-9)
        )
        say(f"the workers were busy {100 * share:.1f}% of the time")
        say(f"{self.journal.folder / 'trials.csv'}\n{self.journal.folder / 'reports.csv'}")
        if tuner.reason not in ("trials", "exhausted", "deadline"):
            self.say_how_to_go_on(trials)
        self.say_note()

    def say_how_to_go_on(self, trials):
        folder = str(self.journal.folder)
        again = [trial for trial in trials if trial.status == "interrupted"]
        if again:
            seconds = sum(trial.ended - trial.started for trial in again)
            say(f"{len(again)} trials were cut off after {seconds:.0f} s of training in all")
        command = f"python run.py --resume {shlex.quote(folder)}"
        if not os.path.isfile(self.arguments["objective"]):
            command = f"hpo.tune(FUNCTION, resume={folder!r})"
        say(f"{'they start again' if again else 'the run goes on'} with\n  {command}")

    def say_choice(self, best, tuner):
        """Says which configuration to take home, and how to train it again."""
        model = tuner.searcher
        if not isinstance(model, GPSearch):
            model = GPSearch(self.journal.space, self.arguments["seed"], tuner.max_epochs)
        try:
            expected = model.recommend(tuner.trials)
        except Exception as error:  # of a searcher of the user's; the run has ended well
            expected = say(f"warning: {type(model).__name__}.recommend raised {one_line(error)}")
        if expected and math.isfinite(expected[2]):
            trial, epoch, mu, sigma = expected
            at = f"trial {trial.id}" + (f", epoch {epoch}" if best.n_epochs > 1 else "")
            say(
                f"expected if trained again: {self.value(mu)} +- {sigma:.2g} ({at}), as the best "
                "of many noisy values is partly luck"
            )
            best = trial
        say(f"take home trial {best.id}: {json.dumps(best.config)}")
        path = self.arguments["objective"]
        if path.endswith(".py") and self.arguments["config_space"] is None:
            seed, n_threads = trial_seed(self.backend.seed, best.id), self.backend.n_threads
            say(f"train it again with\n  {command_line(path, best.config, seed, n_threads)}")

    def say_note(self):
        if self.note:
            say("*" * 100 + f"\n* {self.note}\n" + "*" * 100)

    def value(self, loss):
        return f"{self.journal.metric}={self.journal.to_metric(loss):.6g}"


def best_of(trials, best=None):
    """The lowest (loss, epoch, trial) of all attempts, or None."""
    for trial in trials:
        for curve in [] if trial.status == "failed" else [*trial.earlier, trial.curve]:
            for epoch, loss in curve:
                if best is None or loss < best[0]:
                    best = loss, epoch, trial
    return best


def say(text, end="\n"):
    """Prints a text, on a terminal over the status line. It raises no error."""
    try:
        clear_line = "\r\x1b[K" if sys.stdout.isatty() else ""
        encoding = sys.stdout.encoding or "utf-8"
        text = printable(text).encode(encoding, "backslashreplace").decode(encoding)
        print(clear_line + text, end=end, flush=True)
    except (OSError, ValueError):  # the reader has gone, or the disk is full
        # The run goes on without output. The interpreter's last flush would raise the error again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def clock(seconds):
    """h:mm:ss."""
    minutes, seconds = divmod(max(0, int(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
