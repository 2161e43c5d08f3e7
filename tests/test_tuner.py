"""hpo/tuner.py: the loop on a simulated clock, with a backend that plays scripts; and `tune`.

A script is the steps of one trial, (seconds after the last one, what): a dict is a report, "done" a
return, "lost" what hpo.trial.End says of it, any other text an exception.
"""

import contextlib
import math
import os

import numpy as np
import pytest

from hpo.journal import Journal, load
from hpo.searchers import RandomSearch
from hpo.space import choice, loguniform, randint, space_to_json, uniform
from hpo.trial import SERVER_DIED, End, Report
from hpo.tuner import N_LOST, RunFailed, Tuner, tune

SPACE = {"lr": loguniform(1e-4, 1), "n": randint(1, 9), "kind": choice(["a", 1, None]), "epochs": 3}
CONFIG = {"lr": 0.5, "n": 1, "kind": "a", "epochs": 3}
KILL_SECONDS = 0.125  # from a kill to the end of the process


def epochs(*losses, seconds=1.0, last="done"):
    """Script that reports the losses, one an epoch."""
    steps = [(seconds, {"epoch": i, "loss": loss}) for i, loss in enumerate(losses, 1)]
    return [*steps, (0.0, last)]


GOOD, SLOW, LONG = epochs(0.5, 0.25, 0.5), epochs(0.5, 0.25, 0.125, seconds=2), epochs(*[0.5] * 50)
NAN, CRASH, SILENT = epochs(math.nan), [(0.5, "ValueError: bad")], [(1.0, "done")]
LOST, KILLED, DIES = (epochs(0.5, last=last) for last in ("lost", "killed by SIGKILL", SERVER_DIED))
OTHER = (1.0, {"epoch": 1, "accuracy": 0.5})  # no report of the metric
COUNTED = [(1.0, {"loss": 0.5}), (1.0, {"loss": 0.25}), (0.0, "done")]  # reports without an epoch


class Backend:
    """Plays scripts: one for each of the first trials, the last for all others.

    A tuple of scripts has one for each attempt. The trials in `rude` do not wait for answers.
    """

    def __init__(self, scripts, n_workers, rude):
        self.scripts, self.n_workers, self.rude = scripts, n_workers, rude
        self.time, self.started, self.answers, self.waits, self.wakes = 0.0, [], [], [], []
        self.next, self.steps = {}, {}  # trial id -> (time, what comes then), those after that
        self.reported = {}  # trial id -> [(epoch, loss)] of its last attempt
        self.unanswered = set()  # ids of trials whose report the tuner has
        self.on_wait = lambda n: None  # of a test: is called in the n-th wait, may return events
        self.begun_at, self.now = lambda trial: trial.started, lambda: self.time
        self.log, self.wake = lambda trial: f"log of {trial.id}", lambda: self.wakes.append(1)

    def start(self, trial):
        if trial.id in self.next or len(self.next) >= self.n_workers:
            pytest.fail("more trials than workers")  # no Exception: the tuner does not catch it
        script = self.scripts[min(trial.id, len(self.scripts) - 1)]
        if isinstance(script, tuple):
            script = script[min(trial.attempt, len(script)) - 1]
        self.started.append((trial.id, trial.attempt))
        self.steps[trial.id], self.reported[trial.id] = iter(script), []
        self.step(trial.id)

    def step(self, i):
        seconds, what = next(self.steps[i], (math.inf, None))  # then it hangs
        self.next[i] = self.time + seconds, what

    def wait(self, timeout=None):
        self.waits.append((timeout, len(self.next), len(self.started)))
        until = math.inf if timeout is None else self.time + timeout
        until = min([until, *(time for time, _ in self.next.values())])
        if until == math.inf or len(self.waits) > 2000:
            pytest.fail("the tuner waits for what does not come, or polls")
        self.time = max(self.time, until)
        events, attempts = self.on_wait(len(self.waits)) or [], dict(self.started)
        due = sorted(i for i, (time, _) in self.next.items() if time <= self.time)
        return events + [self.event(i, attempts[i]) for i in due]

    def event(self, i, attempt):
        _, what = self.next.pop(i)
        if isinstance(what, dict):
            metrics = {"epoch": len(self.reported[i]) + 1, **what}
            self.unanswered.add(i)
            self.reported[i].append((metrics["epoch"], metrics.get("loss")))
            self.next[i] = math.inf, None
            if i in self.rude:
                self.step(i)
            return Report(i, attempt, metrics, "epoch" not in what)
        self.unanswered.discard(i)  # it died without waiting for the answer
        outcome = {"done": "finished", "lost": "lost", SERVER_DIED: "lost"}.get(what, "failed")
        return End(i, attempt, outcome, "" if what == "done" else what)

    def answer(self, trial, go_on):
        self.unanswered.remove(trial.id)
        self.answers.append((trial.id, go_on))
        if not go_on:
            self.kill(trial)
        elif trial.id not in self.rude:
            self.step(trial.id)

    def kill(self, trial):
        if trial.id in self.next and trial.id not in self.rude:
            self.next[trial.id] = self.time + KILL_SECONDS, "killed by SIGTERM"


def make(scripts, folder=None, journal=None, space=SPACE, n_workers=2, rude=(), **options):
    """Tuner of a run in a new folder, of a journal, or in memory."""
    run = {"space": space, "metric": "loss", "mode": "min", "arguments": {}}
    if folder:
        journal = Journal.create(folder, {**run, "space": space_to_json(space)})
    journal, backend = journal or Journal(run), Backend(scripts, n_workers, rude)
    searcher = RandomSearch(space, seed=3)
    backend.time, own_suggest, searcher.given = journal.clock, searcher.suggest, []

    def watched_suggest(trials):
        assert not backend.unanswered, "a report waits while the searcher thinks"
        searcher.given.append(snapshots(trials))
        return own_suggest(trials)

    searcher.suggest = watched_suggest
    return Tuner(journal, searcher, backend, n_workers, **options)


def snapshots(trials):
    return [(t.id, dict(t.config), t.status, list(t.curve), t.origin) for t in trials]


def letters(tuner):
    return "".join(trial.status[0] for trial in tuner.trials)


def check_ended(tuner):
    """Nothing runs, the folder says what the tuner knows, and curves are what was reported."""
    assert not tuner.backend.next and not tuner.running and "r" not in letters(tuner)
    assert tuner.journal.folder is None or load(tuner.journal.folder) == tuner.trials
    for i, reported in tuner.backend.reported.items():
        losses = [(e, tuner.journal.to_loss(loss)) for e, loss in reported]
        assert tuner.trials[i].curve == [point for point in losses if math.isfinite(point[1])]


def finish(tuner, statuses, reason="trials"):
    """The tuner after its run."""
    assert (tuner.run(), letters(tuner)) == (reason, statuses)
    check_ended(tuner)
    return tuner


def ends(statuses, scripts, **options):
    """The tuner after a run of as many trials as there are statuses."""
    reason = "deadline" if "seconds" in options else "exhausted" if "space" in options else "trials"
    options |= {"n_trials": len(statuses)} if reason == "trials" else {}
    return finish(make(scripts, **options), statuses, reason)


def fails(tuner, match):
    """The exception with which a run ends, after its trials."""
    with pytest.raises(RunFailed, match=f"(?s){match}") as raised:
        tuner.run()
    check_ended(tuner)
    return raised.value


@pytest.fixture(autouse=True)
def quick_files(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


# ---- Ends ----------------------------------------------------------------------------------------
ENDS = [  # first letters of the statuses, scripts, words of errors, options
    ("ddtt", [SLOW], {3: "deadline"}, {"seconds": 11}),
    ("d", [SLOW], {0: ""}, {"seconds": 5, "n_workers": 1, "rude": [0]}),  # done when it is killed
    ("tdt", [SLOW, GOOD, SLOW], {0: "--trial_timeout 5"}, {"trial_timeout": 5}),
    ("ttttt", [[]], {}, {"trial_timeout": 1}),  # no failures of the run
    ("ddddd", [GOOD], {}, {"space": {"n": randint(1, 5)}, "n_workers": 4}),
    ("dfff", [GOOD, CRASH, KILLED, SILENT],
     {1: "ValueError: bad", 2: "killed by SIGKILL", 3: "made no report of loss"}, {}),
    *(("dfd", [GOOD, epochs(0.5, bad, 0.1), GOOD], {1: f"loss={bad!r}; expected"}, {"rude": [1]})
      for bad in (math.nan, -math.inf, "high", None, True)),
    ("d", [[(1, {"epoch": 1, "loss": 0.5, "b": math.nan}), (0, "done")]], {}, {}),
    ("dd", [[OTHER, *GOOD]], {}, {"rule": lambda trial, *_: not trial.curve}),  # comes late
    ("dd", [GOOD], {}, {"rule": lambda *_: np.bool_(False)}),
    ("dd", [COUNTED], {}, {"rule": lambda *_: pytest.fail("asked about a count")}),
    ("ffddd", [CRASH, NAN, GOOD], {}, {}),  # one good trial keeps the run going
    ("dfffff", [LONG, CRASH], {}, {}),  # it reports well meanwhile
    ("fd", [DIES, GOOD], {0: SERVER_DIED}, {"n_workers": 1}),  # each time that it is started
    # four report at the instant at which the fifth ends: `make` asserts that none is left waiting
    ("d" * 12, [epochs(0.5)] + [epochs(0.5, 0.5)] * 4 + [GOOD], {}, {"n_workers": 5}),
]  # fmt: skip


@pytest.mark.parametrize("statuses, scripts, errors, options", ENDS)
def test_run_ends(statuses, scripts, errors, options):
    tuner = ends(statuses, scripts, **options)
    for i, words in errors.items():
        assert words in tuner.trials[i].error and bool(words) == bool(tuner.trials[i].error)
    assert all(trial.value is None for trial in tuner.trials if trial.status == "failed")


@pytest.mark.parametrize("n_workers, n_trials", [(1, 3), (4, 2), (4, 30)])
def test_workers_are_all_busy_whenever_the_tuner_waits(n_workers, n_trials):
    scripts = [epochs(*[0.5] * (i % 4 + 1), seconds=0.25 + i % 3) for i in range(n_trials)]
    tuner = ends("d" * n_trials, scripts, n_workers=n_workers)
    assert tuner.backend.started == [(i, 1) for i in range(n_trials)]
    for timeout, n, n_started in tuner.backend.waits:  # None, as there is no deadline
        assert timeout == 0 or (timeout is None and (n == n_workers or n_started == n_trials))


def test_interrupt_keeps_the_curves(tmp_path):
    """A signal may go to all processes of a run, and end a trial before the tuner does."""
    tuner = make([LONG, [*LONG[:2], (1.0, "killed by SIGINT")]], tmp_path / "run", seconds=3.01)
    tuner.backend.on_wait = lambda n: tuner.interrupt("SIGINT") if tuner.backend.time == 3 else None
    finish(tuner, "ii", "SIGINT")
    assert tuner.backend.wakes and [trial.error for trial in tuner.trials] == ["SIGINT"] * 2
    assert [trial.n_epochs for trial in tuner.trials] == [3, 2] and tuner.trials[0].value == 0.5


# ---- Several sessions ----------------------------------------------------------------------------
MIXED = [SLOW, CRASH, epochs(0.5, math.nan), epochs(0.75, 0.5, seconds=0.5), LONG, NAN, GOOD]
RULE = {"rule": lambda trial, trials, _: trial.id == 4 and len(trial.curve) == 2}


def cut(tuner, n, how):
    """Runs until the n-th wait, in which the tuner is killed or interrupted."""

    def on_wait(i):
        if i == n and how == "killed":
            raise GeneratorExit  # it is gone: nothing more is handled or written
        elif i == n:
            tuner.interrupt("interrupted by SIGTERM")

    tuner.backend.on_wait = on_wait
    with contextlib.suppress(GeneratorExit):
        assert tuner.run() == "interrupted by SIGTERM"


def resumed(tuner, scripts=MIXED, **options):
    """A tuner that goes on in the folder of one that is gone."""
    tuner.journal.close()
    journal = Journal.open(tuner.journal.folder)
    journal.begin_session({})
    return make(scripts, journal=journal, **options)


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_run_cut_at_any_wait_and_resumed_is_as_if_it_had_not_been(tmp_path, how):
    """One worker: the same trials, and the searcher has seen the same before each.

    That the suggestions of more workers are recomputed equal: tests/test_explain.py.
    """
    whole, n_again = ends("dffdsfd", MIXED, n_workers=1, **RULE), 0
    options = {"n_workers": 1, "n_trials": 7, **RULE}
    for n in range(1, len(whole.backend.waits) - 1):
        last = make(MIXED, tmp_path / str(n), **options)
        cut(last, n, how)
        last = resumed(last, **options)
        if last.again:
            n_again += 1
            cut(last, 2, how)
            last = resumed(last, **options)
        given = finish(last, "dffdsfd").searcher.given
        assert given == whole.searcher.given[len(whole.searcher.given) - len(given) :]
        assert snapshots(last.trials) == snapshots(whole.trials)
    assert n_again > 9


# ---- First trials that fail ----------------------------------------------------------------------
@pytest.mark.parametrize("n_workers, n", [(1, 3), (2, 3), (4, 4)])
@pytest.mark.parametrize("script, options, match", [
    (CRASH, {}, "--start.*Trial .: ValueError: bad\nlog of .$"),
    (SILENT, {}, "report of loss"),
    (NAN, {}, "loss=nan"),
    (COUNTED, {"needs_epoch": True, "rule": lambda *_: False}, "reports no epoch"),
])  # fmt: skip
def test_first_trials_that_all_fail_end_the_run(n_workers, n, script, options, match):
    tuner = make([script], n_workers=n_workers, n_trials=20, **options)
    fails(tuner, f"^all of the first {n} trials failed; mend.*{match}")
    assert letters(tuner)[:n] == "f" * n and len(tuner.trials) < n + n_workers


def test_fewer_first_trials_end_the_run_and_one_that_works_keeps_it_going(tmp_path):
    fails(make([CRASH], n_trials=1), "^the only trial failed; .* Trial 0:")
    run = make([CRASH], tmp_path / "run", n_workers=1)
    fails(run, "first 3 trials")
    run = resumed(run, [CRASH], n_workers=1)  # nothing has been mended
    fails(run, "first 3 trials")
    run = resumed(run, [GOOD] * 6 + [CRASH] * 2 + [GOOD], n_trials=9)
    run = resumed(finish(run, "ffffffffd"), [CRASH], n_trials=15)
    assert run.run() == "trials" and letters(run) == "ffffffffdffffff"


# ---- Stopping rule -------------------------------------------------------------------------------
def test_rule_stops_a_trial():
    asked = []

    def rule(trial, trials, max_epochs):
        assert trials[trial.id] is trial
        asked.append((trial.id, len(trial.curve), max_epochs))
        return trial.id == 1 and len(trial.curve) == 2

    tuner = ends("dsd", [GOOD], rule=rule, max_epochs=3)
    assert sorted(asked) == [(i, n, 3) for i in range(3) for n in (1, 2)]  # not at the last epoch
    assert [i for i, go_on in tuner.backend.answers if not go_on] == [1]
    assert (tuner.trials[1].error, tuner.trials[1].ended) == ("", 2 + KILL_SECONDS)


@pytest.mark.parametrize("last", ["done", "ValueError: in the clean-up", "lost"])
def test_stopped_trial_stays_stopped_and_keeps_its_worker(last):
    """Whatever it does in its ten seconds; it is told so again, and the rule is not asked."""
    asked, script = [], epochs(0.5, math.nan, 0.25, last=last)
    rule = lambda trial, *_: asked.append(trial.id) or trial.id == 0
    tuner = ends("sd", [script, GOOD], rude=[0], n_workers=1, rule=rule)
    assert tuner.backend.answers[:3] == [(0, False)] * 3 and asked == [0, 1, 1, 1]
    assert tuner.trials[1].started == tuner.trials[0].ended == 3 and tuner.trials[0].error == ""


# ---- Broken parts --------------------------------------------------------------------------------
def broken(*_):
    raise KeyError("lengthscale")


NO_SUGGESTION = r"RandomSearch\.suggest: expected \(config, origin\) or None: "
BROKEN = [  # part, the function in its place, the error
    ("suggest", broken, "RandomSearch.suggest raised KeyError: 'lengthscale'"),
    ("rule", broken, "the stopping rule raised KeyError: 'lengthscale'"),
    ("rule", lambda *_: np.array([True, False]), "the stopping rule raised ValueError: .*"),
    ("suggest", lambda *_: 5, f"{NO_SUGGESTION}cannot unpack.*"),
    ("suggest", lambda *_: ({**CONFIG, "lr": 7.0}, "a"), f"{NO_SUGGESTION}lr: .*loguniform.* 7.0"),
    ("suggest", lambda *_: ({"lr": 0.5, "kind": "a"}, "a"), f"{NO_SUGGESTION}n is missing"),
    ("suggest", lambda *_: ({**CONFIG, "epochs": 4}, "a"), f"{NO_SUGGESTION}epochs: .* 3 .* 4"),
]


@pytest.mark.parametrize("part, function, match", BROKEN)
def test_user_code_that_raises_or_returns_rubbish_ends_the_run(part, function, match):
    tuner = make([LONG])
    setattr(tuner.searcher if part == "suggest" else tuner, part, function)
    cause = fails(tuner, f"^{match}$").__cause__
    assert isinstance(cause, KeyError if function is broken else (ValueError, type(None)))
    assert set(letters(tuner)) == {"i"} and tuner.trials[0].error == "the run failed"


# ---- The machine's faults ------------------------------------------------------------------------
def test_trial_whose_process_is_lost_is_started_again(tmp_path):
    """What comes late of its first attempt is dropped, and not answered."""
    tuner = make([(LOST, GOOD)], tmp_path / "run", n_trials=2)
    late = [Report(0, 1, {"epoch": 7, "loss": 0.0}), End(0, 1, "finished"), End(9, 1, "finished")]
    tuner.backend.on_wait = lambda n: late if tuner.backend.time == 4 else []
    assert all(trial.earlier == [[(1, 0.5)]] for trial in finish(tuner, "dd").trials)
    assert tuner.backend.started == [(0, 1), (1, 1), (0, 2), (1, 2)]


def test_trial_without_a_process_is_started_again_after_ever_longer_pauses():
    tuner = ends("dd", [GOOD, (*[[(0.0, "lost")]] * N_LOST, GOOD)], n_workers=1)
    assert tuner.trials[1].attempt == N_LOST + 1
    assert tuner.backend.time == 3 + sum(2.0**i for i in range(1, N_LOST + 1)) + 3
    tuner = make([[(0.0, "lost")]], n_workers=32)  # many workers do not wait longer
    fails(tuner, "^no trial can be trained")
    assert tuner.backend.time == sum(2.0**i for i in range(1, N_LOST + 1))


# ---- tune ----------------------------------------------------------------------------------------
def quadratic(config):
    return (config["x"] - 0.3) ** 2


def test_a_resumed_run_keeps_its_own_arguments(tmp_path):
    """A searcher's class too: the journal has it as FILE.py:NAME."""
    options = {"metric": "loss", "mode": "min", "workers": 1, "searcher": RandomSearch, "seed": 7}
    options |= {"config_space": {"x": uniform(0, 1)}, "start": [{}], "results": tmp_path / "run"}
    with pytest.raises(ValueError, match="--seed: expected an integer >= 0, got 0.5"):
        tune(quadratic, **{**options, "seed": 0.5})
    first = tune(quadratic, trials=2, **options)
    again = tune(quadratic, trials=4, resume=first.folder, start=[{}])
    assert [trial.origin for trial in again.trials] == ["start", *["random"] * 3]
    assert [t.config for t in again.trials[:2]] == [t.config for t in first.trials]
    with pytest.raises(ValueError, match="OBJECTIVE: .*py:quadratic', got .*py:broken'"):
        tune(broken, resume=first.folder)
    with pytest.raises(ValueError, match="py:quadratic: no such file; .* or function"):
        tune(resume=first.folder)
