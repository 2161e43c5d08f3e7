"""hpo/tuner.py on a simulated clock: an in-memory backend plays scripts, the folder is a real one.

A script is a list of steps of one trial, (seconds after the last one, what): a dict is a report, "done" a return, any
other text an exception. A report waits for its answer, and the trial for nothing when its script is "rude".
"""

import collections
import itertools
import json
import math
import os
import shutil
import traceback
import warnings
from dataclasses import asdict

import numpy as np
import pytest

from experiments.simulated import simulate
from hpo.results import Results, ResultsError, WriteError, load
from hpo.searchers import RandomSearch
from hpo.space import choice, loguniform, middle, randint
from hpo.trial import End, Report, Trial
from hpo.tuner import ReportsUnusable, RunFailed, Tuner, is_unended

SPACE = {"lr": loguniform(1e-4, 1), "n": randint(1, 9), "kind": choice(["a", 1, None]), "epochs": 3}
KILL_SECONDS = 0.125  # from a kill to the end of the process
MAX_WAITS = 2_000  # more means that the tuner polls, or waits for what does not come


def epochs(*values, seconds=1.0, last="done"):
    """Script that reports the values, one an epoch."""
    return [(seconds, {"epoch": i, "loss": value}) for i, value in enumerate(values, 1)] + [(0.0, last)]


GOOD = epochs(0.5, 0.25, 0.375)
CRASH = [(0.5, "ValueError: too bad")]


class Backend:
    """Plays scripts: a list for every trial, or one for each of the first trials and then the last for ever."""

    def __init__(self, scripts, n_workers, rude=()):
        self.scripts = scripts if isinstance(scripts[0], list) else [scripts]
        self.n_workers, self.rude = n_workers, set(rude)
        self.time = 0.0
        self.next = {}  # trial id -> (time, what comes then)
        self.left = {}  # trial id -> steps after that
        self.waiting = set()  # reports given to the tuner and not answered
        self.started, self.killed, self.answers, self.waits = [], [], [], []
        self.calls = []  # (time, function) of the test's own
        self.woken = False

    def now(self):
        return self.time

    def start(self, trial):
        assert trial.id not in self.started and trial.started == round(self.time, 3)
        self.started.append(trial.id)
        self.left[trial.id] = list(self.scripts[min(trial.id, len(self.scripts) - 1)])
        self._step(trial.id)
        assert len(self.next) <= self.n_workers

    def _step(self, i):
        if self.left[i]:
            seconds, what = self.left[i].pop(0)
            self.next[i] = (self.time + seconds, what)
        else:
            self.next[i] = (math.inf, None)  # hangs

    def wait(self, timeout=None):
        self.waits.append((timeout, len(self.next)))
        if len(self.waits) > MAX_WAITS:
            pytest.fail("the tuner does not come to an end")
        if self.woken:
            self.woken = False
            return []
        soonest = min([time for time, _ in [*self.next.values(), *self.calls]], default=math.inf)
        until = math.inf if timeout is None else self.time + timeout
        if min(soonest, until) == math.inf:
            pytest.fail("the tuner waits for ever")
        self.time = max(self.time, min(soonest, until))
        for call in [call for call in self.calls if call[0] <= self.time]:
            self.calls.remove(call)
            call[1]()
        return [self._event(i) for i, (time, _) in sorted(self.next.items()) if time <= self.time]

    def _event(self, i):
        _, what = self.next[i]
        if isinstance(what, dict):
            self.waiting.add(i)
            self.next[i] = (math.inf, None)
            if i in self.rude:
                self._step(i)
            return Report(i, dict(what))
        del self.next[i]
        self.waiting.discard(i)  # it died without waiting for the answer
        error = "" if what == "done" else what
        return End(i, what == "done", error, error and f"Traceback of {i}\n{error}", 1.5)

    def answer(self, trial, go_on):
        assert trial.id in self.waiting, "an answer to no question"
        self.waiting.remove(trial.id)
        self.answers.append((trial.id, go_on))
        if trial.id not in self.rude:
            if go_on:
                self._step(trial.id)
            else:
                self.next[trial.id] = (self.time + KILL_SECONDS, "StopTrial")

    def kill(self, trial):
        if trial.id not in self.next:  # its end is already on the way to the tuner, as the local backend has it
            return
        assert trial.id not in self.killed
        self.killed.append(trial.id)
        if trial.id not in self.rude:
            self.next[trial.id] = (self.time + KILL_SECONDS, "killed by SIGTERM")

    def wake(self):
        self.woken = True


class Searcher(RandomSearch):
    """Random search that notes what it was given, and asks that every report be answered before."""

    def __init__(self, backend, space=SPACE):
        super().__init__(space, seed=3)
        self.backend, self.given = backend, []

    def suggest(self, trials):
        assert not self.backend.waiting, "a report waits while the searcher thinks"
        assert [trial.id for trial in trials] == list(range(len(trials)))
        self.given.append([snapshot(trial) for trial in trials])
        return super().suggest(trials)


def snapshot(trial):
    return trial.id, dict(trial.config), trial.status, list(trial.curve), trial.origin


@pytest.fixture
def make(tmp_path):
    """Tuner of a run in tmp_path; the keywords are the Tuner's, and searcher(backend)."""
    made = []

    def make_one(
        scripts, space=SPACE, n_workers=2, rude=(), searcher=None, mode="min", results=None, folder="run", **settings
    ):
        backend = Backend(scripts, n_workers, rude)
        if results is None:
            results = Results.create(tmp_path / folder, space, "loss", mode, {})
        backend.time, settings["trials"] = results.clock, results.trials
        made.append(results)
        searcher = searcher(backend) if searcher else Searcher(backend, space)
        return Tuner(space, searcher, backend, results, n_workers=n_workers, **settings)

    yield make_one
    for results in made:
        results.close()


def statuses(tuner):
    return [trial.status for trial in tuner.trials]


def check_ended(tuner, how="killed"):
    """Nothing runs, and the folder says of each trial what the tuner knows. how: the earlier sessions have ended."""
    assert not tuner.backend.next and not tuner.running and "running" not in statuses(tuner)
    loaded = load(tuner.results.folder)
    assert len(loaded) == len(tuner.trials)
    for trial, back in zip(tuner.trials, loaded):
        assert asdict(back) == {**asdict(trial), "suggest_seconds": pytest.approx(trial.suggest_seconds, abs=1e-6)}
    n_cut = sum(trial.attempt - 1 for trial in tuner.trials) if how == "interrupted" else 0  # these have rows too
    assert tuner.results.n_rows["trials"] == len(tuner.trials) + n_cut


# ---- Budgets ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n_workers, n_trials", [(1, 1), (1, 3), (2, 5), (4, 2), (4, 30)])
def test_run_ends_after_its_trials(make, n_workers, n_trials):
    tuner = make(GOOD, n_workers=n_workers, n_trials=n_trials)
    assert tuner.run() == "trials"
    check_ended(tuner)
    assert statuses(tuner) == ["done"] * n_trials and tuner.backend.started == list(range(n_trials))
    assert all(trial.curve == [(1, 0.5), (2, 0.25), (3, 0.375)] and trial.error == "" for trial in tuner.trials)
    assert tuner.backend.time == 3 * math.ceil(n_trials / n_workers) and tuner.backend.killed == []
    assert tuner.busy_seconds == 1.5 * n_trials


def test_workers_are_all_busy_whenever_the_tuner_waits(make):
    """And never more than all, which the backend asserts at each start."""
    scripts = [epochs(*[0.5] * (i % 4 + 1), seconds=0.25 + i % 3) for i in range(40)]
    tuner = make(scripts, n_workers=4, n_trials=40)
    tuner.run()
    check_ended(tuner)
    assert {n for timeout, n in tuner.backend.waits[:-20] if timeout != 0} == {4}


def test_waits_are_as_many_as_events(make):
    tuner = make(GOOD, n_workers=1, n_trials=3)
    tuner.run()
    assert len([timeout for timeout, _ in tuner.backend.waits if timeout != 0]) <= 3 * 4
    assert tuner.backend.waits[-1][0] is None  # no deadline: it waits for an event alone


def test_deadline_ends_the_run_and_keeps_the_curves(make):
    tuner = make(epochs(0.5, 0.125, 0.25, 0.25), seconds=10.5, mode="max")
    assert tuner.run() == "deadline"
    check_ended(tuner)
    assert statuses(tuner) == ["done"] * 4 + ["timeout"] * 2
    assert tuner.trials[5].curve == [(1, -0.5), (2, -0.125)] and tuner.trials[5].value == -0.5
    assert tuner.trials[5].ended == 10.5 + KILL_SECONDS and "deadline" in tuner.trials[5].error
    assert tuner.backend.killed == [4, 5]


def test_deadline_before_the_first_report_is_a_timeout_without_value(make):
    tuner = make(epochs(0.5, seconds=100), seconds=10, n_workers=3)
    assert tuner.run() == "deadline"
    check_ended(tuner)
    assert statuses(tuner) == ["timeout"] * 3 and all(trial.value is None for trial in tuner.trials)


def test_trial_that_finishes_while_it_is_killed_is_done(make):
    tuner = make(epochs(0.5, 0.25, seconds=6), seconds=10, n_workers=1, rude=[0])
    assert tuner.run() == "deadline"
    check_ended(tuner)
    assert statuses(tuner) == ["done"] and tuner.trials[0].curve == [(1, 0.5), (2, 0.25)]
    assert tuner.backend.answers == [(0, True), (0, False)]


def test_trial_timeout_ends_a_trial_and_not_the_run(make):
    scripts = [epochs(0.5, 0.25, 0.125, seconds=2.0), GOOD, epochs(0.5, seconds=9.0), GOOD]
    tuner = make(scripts, n_trials=5, trial_timeout=5.0)
    assert tuner.run() == "trials"
    check_ended(tuner)
    assert statuses(tuner) == ["timeout", "done", "timeout", "done", "done"]
    assert tuner.trials[0].curve == [(1, 0.5), (2, 0.25)] and tuner.trials[0].ended == 5 + KILL_SECONDS
    assert tuner.trials[2].ended == tuner.trials[2].started + 5 + KILL_SECONDS
    assert "trial_timeout 5" in tuner.trials[0].error and tuner.backend.killed == [0, 2]


def test_trial_timeout_that_hits_every_trial_is_no_failure_of_the_run(make):
    tuner = make(epochs(0.5, seconds=9), n_trials=5, trial_timeout=1.0)
    assert tuner.run() == "trials" and statuses(tuner) == ["timeout"] * 5
    check_ended(tuner)


@pytest.mark.parametrize("n_workers", [1, 4])
def test_exhausted_space_ends_the_run(make, n_workers):
    """With one worker nothing is running when the searcher says so, and so nothing is to be waited for."""
    tuner = make(GOOD, space={"n": randint(1, 3), "b": choice([True, 1])}, n_workers=n_workers, seconds=1000.0)
    assert tuner.run() == "exhausted" and tuner.backend.time < 100
    check_ended(tuner)
    configs = {(trial.config["n"], type(trial.config["b"])) for trial in tuner.trials}
    assert statuses(tuner) == ["done"] * 6 and len(configs) == 6


def test_interrupt_ends_the_run(make):
    tuner = make(epochs(*[0.5] * 50))
    tuner.backend.calls.append((4.5, lambda: tuner.interrupt("interrupted by SIGINT")))
    assert tuner.run() == "interrupted by SIGINT"
    check_ended(tuner)
    assert statuses(tuner) == ["timeout"] * 2 and tuner.trials[0].error == "interrupted by SIGINT"
    assert tuner.trials[0].n_epochs == 4 and tuner.backend.time == 4.5 + KILL_SECONDS


def test_trials_that_the_same_signal_ends_are_cut_off_and_have_not_failed(make):
    """A signal to all processes of a run, as `timeout` and a closing terminal send it, reaches the trials too."""
    tuner = make([(1.0, {"epoch": 1, "loss": 0.5}), (3.5, "the process was killed by SIGTERM")])
    tuner.backend.calls.append((4.5, lambda: tuner.interrupt("interrupted by SIGTERM")))
    assert tuner.run() == "interrupted by SIGTERM"
    check_ended(tuner)
    assert {(trial.status, trial.error) for trial in tuner.trials} == {("timeout", "interrupted by SIGTERM")}
    assert all(is_unended(trial) for trial in tuner.trials)


def test_interrupt_before_the_run_starts_nothing(make):
    tuner = make(GOOD)
    tuner.interrupt("early")
    assert tuner.run() == "early" and tuner.trials == [] and load(tuner.results.folder) == []


# ---- Configurations -----------------------------------------------------------------------------------------------------
def test_middle_is_tried_first(make):
    tuner = make(GOOD, n_trials=3)
    tuner.run()
    assert tuner.trials[0].config == middle(SPACE) and tuner.trials[0].origin == "start"
    assert [trial.origin for trial in tuner.trials[1:]] == ["random"] * 2
    assert [len(given) for given in tuner.searcher.given] == [1, 2]


@pytest.mark.parametrize("n_start, n_trials", [(0, 2), (2, 4), (3, 2)])
def test_start_configurations_come_first_in_their_order(make, n_start, n_trials):
    start = [{"lr": 0.5, "n": n, "kind": None, "epochs": 3} for n in range(1, n_start + 1)]
    tuner = make(GOOD, n_trials=n_trials, start=start)
    tuner.run()
    check_ended(tuner)
    n = min(n_start, n_trials)
    assert [trial.config for trial in tuner.trials[:n]] == start[:n]
    assert [trial.origin for trial in tuner.trials] == ["start"] * n + ["random"] * (n_trials - n)


def test_suggestions_of_the_searcher_are_cast(make):
    numpy = pytest.importorskip("numpy")

    class Numpy(Searcher):
        def suggest(self, trials):
            return {"n": numpy.int64(3), "lr": numpy.float32(0.5), "kind": 1.0, "epochs": 3}, numpy.str_("model")

    tuner = make(GOOD, searcher=Numpy, n_trials=2, start=[])
    tuner.run()
    check_ended(tuner)
    config = tuner.trials[0].config
    assert list(config.items()) == [("lr", 0.5), ("n", 3), ("kind", 1), ("epochs", 3)]
    assert [type(value) for value in config.values()] == [float, int, int, int]


MIXED = [
    epochs(0.5, 0.25, 0.125, seconds=2.0),
    CRASH,
    epochs(0.5, math.nan),
    epochs(0.75, 0.5, 0.25, seconds=0.5),
    epochs(0.9, 0.9, 0.9),
    epochs(0.5, last="killed by SIGSEGV"),
    GOOD,
]


def mixed_run(make, **settings):
    tuner = make(
        MIXED,
        n_workers=3,
        n_trials=14,
        rule=lambda trial, trials, _: trial.id == 4 and len(trial.curve) == 2,
        **settings,
    )
    assert tuner.run() == "trials"
    check_ended(tuner)
    return tuner


def test_every_suggestion_can_be_recomputed_from_the_folder(make, tmp_path):
    """The rows that `seen` counts are what the searcher was given, no more and no less."""
    tuner = mixed_run(make)
    run, part = tuner.results.folder, tmp_path / "part"
    lines = {name: (run / name).read_text().splitlines(True) for name in ("configs.jsonl", "trials.csv", "reports.csv")}
    shutil.copytree(run, part)
    suggested = [json.loads(line) for line in lines["configs.jsonl"]]
    given = [[], *tuner.searcher.given]  # the first is the start configuration, for which nobody was asked
    assert len(suggested) == len(given) == 14
    for i, line in enumerate(suggested):
        (part / "configs.jsonl").write_text("".join(lines["configs.jsonl"][:i]))
        for name in ("trials", "reports"):
            (part / f"{name}.csv").write_text("".join(lines[f"{name}.csv"][: line["seen"][name] + 1]))
        trials = load(part)
        assert [snapshot(trial) for trial in trials] == given[i]
        if i > 0:
            assert RandomSearch(SPACE, seed=3).suggest(trials) == (line["config"], line["origin"])


def test_same_run_twice_writes_the_same_rows(make, tmp_path):
    def written():
        tuner = mixed_run(make)
        text = (tuner.results.folder / "reports.csv").read_text(), (tuner.results.folder / "configs.jsonl").read_text()
        tuner.results.close()
        shutil.rmtree(tmp_path / "run")
        return text

    assert written() == written()


# ---- Several sessions ---------------------------------------------------------------------------------------------------
class Killed(BaseException):
    """The tuner's process is gone: nothing more is handled or written."""


def cut(tuner, n, how):
    """Runs until the n-th wait, in which the tuner is killed or interrupted; whether it came to that."""
    backend, wait = tuner.backend, tuner.backend.wait

    def cutting(timeout=None):
        if len(backend.waits) == n - 1:
            if how == "killed":
                raise Killed
            tuner.interrupt("interrupted by SIGTERM")
        return wait(timeout)

    backend.wait = cutting
    try:
        return tuner.run() not in ("trials", "exhausted")
    except Killed:
        return True


def resumed(make, tuner, scripts=None, **settings):
    """A tuner that goes on in the folder of one that is gone."""
    tuner.results.close()
    results = Results.open(tuner.results.folder)
    results.begin_session({})
    return make(scripts or MIXED, results=results, n_trials=9, **settings)


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_run_cut_at_any_wait_and_resumed_is_as_if_it_had_not_been(make, tmp_path, monkeypatch, how):
    """One worker: the same trials, and the searcher has seen the same before each."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    rule = {"rule": lambda trial, trials, _: trial.id == 4 and len(trial.curve) == 2}
    whole = make(MIXED, n_workers=1, n_trials=9, folder="whole", **rule)
    whole.run()
    n_again = 0
    for n in range(1, len(whole.backend.waits) + 1):
        first = make(MIXED, n_workers=1, n_trials=9, folder=f"run{n}", **rule)
        assert cut(first, n, how)
        second = resumed(make, first, n_workers=1, **rule)
        unended = len(second.unended)
        if cut(second, 2, how):
            second = resumed(make, second, n_workers=1, **rule)
        assert second.run() == "trials"
        check_ended(second, how)
        assert list(map(snapshot, second.trials)) == list(map(snapshot, whole.trials))
        given = second.searcher.given
        assert given == whole.searcher.given[len(whole.searcher.given) - len(given) :]
        n_again += unended
        tables = [(tmp_path / f"run{n}" / f"{name}.csv").read_text().splitlines() for name in ("trials", "reports")]
        assert [len(table) - 1 for table in tables] == [second.results.n_rows[name] for name in ("trials", "reports")]
    assert n_again > 9


@pytest.mark.parametrize("how", ["killed", "interrupted"])
@pytest.mark.parametrize("n_workers", [1, 3, 5])
def test_unended_trials_are_started_again_before_anything_else(make, how, n_workers):
    first = make(MIXED, n_workers=3, n_trials=9)
    cut(first, 12, how)
    before = [(trial.id, trial.config, trial.attempt) for trial in load(first.results.folder)]
    unended = [trial.id for trial in first.trials if trial.status in ("running", "timeout")]
    assert len(unended) == 3
    second = resumed(make, first, n_workers=n_workers)
    began = second.backend.time
    assert [trial.id for trial in second.unended] == unended and began == second.results.clock
    assert second.run() == "trials"
    check_ended(second, how)
    assert second.backend.started == unended + list(range(len(before), 9))
    for i, config, attempt in before:
        assert second.trials[i].config == config and second.trials[i].attempt == attempt + (i in unended)
    assert all(second.trials[i].started >= began for i in unended)
    lines = (second.results.folder / "configs.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines[len(before) :]]
    assert [line["seen"] is None for line in lines] == [True] * 3 + [False] * (9 - len(before))


def test_deadline_before_all_are_started_again_gives_each_a_row(make):
    first = make(MIXED, n_workers=3, n_trials=9)
    cut(first, 12, "killed")
    seen = {trial.id: trial.curve for trial in load(first.results.folder) if trial.status == "running"}
    second = resumed(make, first, seconds=0.0)
    assert second.run() == "deadline"
    check_ended(second)
    ended = [second.trials[i] for i in seen]
    assert {(trial.status, trial.error, trial.attempt) for trial in ended} == {("timeout", "deadline", 1)}
    assert [trial.curve for trial in ended] == list(seen.values()) and any(seen.values())


def test_only_what_the_end_of_a_session_has_cut_is_unended():
    cases = [("running", "", True), ("timeout", "interrupted by SIGINT", True), ("timeout", "the run failed", True)]
    cases += [("timeout", "deadline", False), ("timeout", "--trial_timeout 5", False), ("stopped", "", False)]
    cases += [("failed", "interrupted by a bad disk", False), ("done", "", False)]
    for status, error, expected in cases:
        assert is_unended(Trial(0, {}, "random", status=status, error=error)) == expected


# ---- What a crash leaves, and what it cannot ----
FILES = ["configs.jsonl", "reports.csv", "trials.csv"]
UNEVEN = [epochs(0.5, 0.25, 0.375, 0.125, 0.3, seconds=0.4 + 0.0371 * i)[:-1] + [(0.017, "done")] for i in range(9)]


def two_sessions(make):
    """Folder of a run that was killed, resumed with more workers, and killed again."""
    first = make(UNEVEN, n_workers=3, n_trials=12)
    assert cut(first, 30, "killed")
    first.results.close()
    results = Results.open(first.results.folder)
    results.begin_session({})
    second = make(UNEVEN[::-1], n_workers=4, n_trials=9, results=results)
    assert cut(second, 40, "killed")
    results.close()
    return results.folder


def part_of(whole, part, lines):
    """A folder with these lines of the files, the others as they are in `whole`."""
    part.mkdir(exist_ok=True)
    for name in ("run.json", *FILES):
        (part / name).write_bytes(b"".join(lines[name]) if name in lines else (whole / name).read_bytes())
    return part


def test_what_a_kill_or_a_power_cut_leaves_is_accepted(make, tmp_path, monkeypatch):
    """After each write and sync, any part of what had not been synced may be gone, in each file by itself."""
    written, synced, states = dict.fromkeys(FILES, 0), dict.fromkeys(FILES, 0), []

    def note(file, done):
        status = os.fstat(file)
        for name in FILES:
            path = tmp_path / "run" / name
            if path.exists() and path.stat().st_ino == status.st_ino:
                done[name] = status.st_size
                if (tmp_path / "run" / "run.json").exists():
                    states.append((dict(synced), dict(written)))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data, write=os.write: (write(file, data), note(file, written))[0])
        patch.setattr(os, "fsync", lambda file, fsync=os.fsync: (fsync(file), note(file, synced))[0])
        folder = two_sessions(make)
    whole = {name: (folder / name).read_bytes() for name in FILES}
    left = set()
    for done, more in states:
        ends = [{done[name], (done[name] + more[name]) // 2, more[name]} for name in FILES]
        left |= set(itertools.product(*ends))
    assert len(left) > 100
    (tmp_path / "part").mkdir()
    shutil.copy(folder / "run.json", tmp_path / "part")
    for sizes in left:
        for name, n in zip(FILES, sizes):
            (tmp_path / "part" / name).write_bytes(whole[name][:n])
        with warnings.catch_warnings(action="ignore"):  # torn last lines
            load(tmp_path / "part")


def test_rows_taken_away_are_named(make, tmp_path):
    """All but those at the end that a crash could have taken: the README says which."""
    folder = two_sessions(make)
    lines = {name: (folder / name).read_bytes().splitlines(True) for name in FILES}
    cells = {name: [line.decode().split(",") for line in lines[name]] for name in FILES[1:]}
    starts = [json.loads(line) for line in lines["configs.jsonl"]]
    seen = starts[-1]["seen"]
    ended = {(int(row[0]), int(row[1])) for row in cells["trials.csv"][1:]}
    n_reports = collections.Counter((int(row[0]), int(row[1])) for row in cells["reports.csv"][1:])
    counts = collections.Counter()
    for name in FILES:
        for i in range(name != "configs.jsonl", len(lines[name])):
            for j in (i + 1, i + 2, len(lines[name])):  # a row, two, or all the rest
                taken = range(i, min(j, len(lines[name])))
                if name == "configs.jsonl":
                    left = [start for k, start in enumerate(starts) if k not in taken]
                    attempts = {i: [s["attempt"] for s in left if s["trial"] == i] for i in range(len(starts))}
                    ids = [start["trial"] for start in left if start["attempt"] == 1]
                    noticed = any(a != list(range(1, len(a) + 1)) for a in attempts.values())
                    noticed |= ids != list(range(len(ids)))
                    noticed |= any(n_reports[starts[k]["trial"], starts[k]["attempt"]] for k in taken)
                else:
                    noticed = i <= seen[name[:-4]]
                for k in taken if name == "reports.csv" else ():
                    row = cells[name][k]  # of an ended trial: the best report, its fourth, or the last
                    noticed |= (int(row[0]), int(row[1])) in ended and row[2] in ("4", "5")
                part = part_of(folder, tmp_path / "part", {name: lines[name][:i] + lines[name][j:]})
                counts[name, noticed] += 1
                if noticed:
                    with pytest.raises(ResultsError, match=r"(configs\.jsonl|\.csv), line \d+.*restore the file"):
                        load(part)
                else:
                    load(part)
    assert all(counts[name, True] > 10 for name in FILES)
    assert counts["reports.csv", False] and counts["trials.csv", False]


def test_rows_put_in_or_moved_are_named(make, tmp_path):
    folder = two_sessions(make)
    lines = {name: (folder / name).read_bytes().splitlines(True) for name in FILES}
    seen = json.loads(lines["configs.jsonl"][-1])["seen"]
    for name, rows in lines.items():
        for i in range(1, seen.get(name[:-4], len(rows)) - 5):
            for changed in (rows[: i + 1] + rows[i:], rows[:i] + rows[i + 1 : i + 6] + [rows[i]] + rows[i + 6 :]):
                with pytest.raises(ResultsError, match=r"(configs\.jsonl|\.csv), line \d+"):
                    load(part_of(folder, tmp_path / "part", {name: changed}))


# ---- Failed trials ------------------------------------------------------------------------------------------------------
def test_failures_are_rows_and_the_run_goes_on(make):
    tuner = mixed_run(make)
    assert statuses(tuner) == ["done", "failed", "failed", "done", "stopped", "failed"] + ["done"] * 8
    errors = [trial.error for trial in tuner.trials]
    assert errors[1] == "ValueError: too bad" and errors[5] == "killed by SIGSEGV"
    assert all(word in errors[2] for word in ("loss", "nan", "epoch 2"))
    assert all(tuner.trials[i].value is None for i in (1, 2, 5)) and tuner.trials[5].curve == [(1, 0.5)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "high", None, True])
def test_metric_that_is_no_finite_number_fails_its_trial(make, value):
    tuner = make([GOOD, epochs(0.5, value, 0.25), GOOD], n_trials=4)
    assert tuner.run() == "trials"
    check_ended(tuner)
    assert statuses(tuner) == ["done", "failed", "done", "done"]
    assert tuner.trials[1].curve == [(1, 0.5)] and repr(value) in tuner.trials[1].error
    assert (1, False) in tuner.backend.answers


def test_nan_in_another_metric_fails_nothing(make):
    tuner = make([(1.0, {"epoch": 1, "loss": 0.5, "other": math.nan}), (0, "done")], n_trials=2)
    assert tuner.run() == "trials" and statuses(tuner) == ["done"] * 2
    check_ended(tuner)


def test_trial_without_a_report_is_failed(make):
    tuner = make([GOOD, [(1.0, "done")], GOOD], n_trials=3)
    tuner.run()
    check_ended(tuner)
    assert statuses(tuner) == ["done", "failed", "done"] and "report of loss" in tuner.trials[1].error


@pytest.mark.parametrize("n_workers", [1, 2, 4])
@pytest.mark.parametrize(
    "script, words",
    [
        (CRASH, ["Traceback of", "ValueError: too bad"]),
        ([(1.0, "done")], ["report of loss"]),
        (epochs(math.nan), ["loss", "nan"]),
        (epochs(0.5, last="killed by SIGKILL"), ["killed by SIGKILL"]),
    ],
    ids=["raises", "silent", "nan", "killed"],
)
def test_first_trials_that_all_fail_end_the_run(make, n_workers, script, words):
    tuner = make(script, n_workers=n_workers, n_trials=20)
    with pytest.raises(RunFailed) as error:
        tuner.run()
    n = max(3, n_workers)
    assert all(word in str(error.value) for word in [*words, f"all of the first {n} trials failed; ", "--start"])
    check_ended(tuner)
    assert statuses(tuner)[:n] == ["failed"] * n and len(tuner.trials) < n + n_workers


def test_first_trials_that_fail_in_different_ways_end_the_run(make):
    tuner = make([epochs(math.nan, seconds=2.0), CRASH, [(1.0, "done")], CRASH], n_workers=3, n_trials=20)
    with pytest.raises(RunFailed, match="first 3 trials"):
        tuner.run()
    check_ended(tuner)


def test_trials_that_failed_before_the_objective_was_mended_do_not_end_the_next_session(make):
    first = make(CRASH, n_workers=1, n_trials=9)
    with pytest.raises(RunFailed):
        first.run()
    second = resumed(make, first, [GOOD] * 3 + [CRASH] + [GOOD], n_workers=1)
    assert second.run() == "trials" and statuses(second) == ["failed"] * 4 + ["done"] * 5
    third = make(CRASH, n_workers=1, n_trials=9, folder="other")
    with pytest.raises(RunFailed):
        third.run()
    with pytest.raises(RunFailed, match="all of the first 3 trials failed"):  # nothing has been mended
        resumed(make, third, CRASH, n_workers=1).run()


@pytest.mark.parametrize("n_workers", [1, 2, 4])
@pytest.mark.parametrize("n_bad", [1, 2])
def test_start_configuration_that_fails_is_not_the_end_of_the_run(make, n_workers, n_bad):
    tuner = make([epochs(math.nan)] * n_bad + [GOOD], n_workers=n_workers, n_trials=6)
    assert tuner.run() == "trials" and statuses(tuner) == ["failed"] * n_bad + ["done"] * (6 - n_bad)
    check_ended(tuner)


def test_only_trial_that_fails_is_the_end_of_the_run(make):
    tuner = make(CRASH, n_workers=1, n_trials=1)
    with pytest.raises(RunFailed, match=r"^the only trial failed; .*\. The error of trial 0:\nTraceback of 0\n.*bad$"):
        tuner.run()
    check_ended(tuner)


def test_fewer_trials_than_workers_that_all_fail_end_the_run(make):
    tuner = make(CRASH, n_workers=4, n_trials=2)
    with pytest.raises(RunFailed, match="first 2 trials"):
        tuner.run()
    check_ended(tuner)


def test_space_smaller_than_the_workers_that_all_fails_ends_the_run(make):
    tuner = make(CRASH, space={"n": randint(1, 2)}, n_workers=4)
    with pytest.raises(RunFailed):
        tuner.run()
    check_ended(tuner)


@pytest.mark.parametrize("scripts", [[GOOD, CRASH], [CRASH, GOOD, CRASH], [CRASH, CRASH, GOOD, CRASH]])
def test_one_good_trial_among_the_first_keeps_the_run_going(make, scripts):
    tuner = make(scripts, n_workers=3, n_trials=12)
    assert tuner.run() == "trials" and statuses(tuner).count("failed") > 8
    check_ended(tuner)


def test_trial_that_reports_well_keeps_the_run_going(make):
    """Small configurations crash at once while a large one trains: the objective works."""
    tuner = make([epochs(*[0.5] * 20), CRASH], n_workers=2, n_trials=6)
    assert tuner.run() == "trials"
    check_ended(tuner)
    assert statuses(tuner) == ["done"] + ["failed"] * 5


def test_last_of_the_first_trials_that_fails_late_keeps_the_run_going(make):
    """By then others have trained well: the objective works."""
    tuner = make([CRASH, [(50.0, "killed by SIGKILL")], GOOD], n_workers=2, n_trials=30)
    assert tuner.run() == "trials"
    check_ended(tuner)
    assert statuses(tuner) == ["failed"] * 2 + ["done"] * 28


def test_metric_that_is_never_reported_ends_the_run(make):
    script = [(1.0, {"epoch": 1, "accuracy": 0.5, "time": 2}), (1.0, "done")]
    tuner = make([script] * 3 + [epochs(0.5, seconds=50)], n_workers=2)
    with pytest.raises(ReportsUnusable, match=r"loss .*accuracy, time; .*--metric"):
        tuner.run()
    check_ended(tuner)
    assert statuses(tuner) == ["failed"] * 3 + ["timeout"] and tuner.backend.killed == [3]


def test_one_trial_that_ends_without_the_metric_costs_that_trial_alone(make):
    """It may have left early, before a metric that comes with the last epoch."""
    script = [(1.0, {"epoch": 1, "accuracy": 0.5, "time": 2}), (1.0, "done")]
    tuner = make([script, epochs(0.5, seconds=50)], n_workers=2, n_trials=4)
    assert tuner.run() == "trials" and statuses(tuner) == ["failed"] + ["done"] * 3
    check_ended(tuner)


def test_metric_reported_as_nan_is_not_missing(make):
    script = [(1.0, {"epoch": 1, "accuracy": 0.5}), (1.0, {"epoch": 2, "loss": math.nan}), (0.0, "done")]
    tuner = make([script, epochs(0.5, seconds=9.0)], rude=[0], n_workers=2, n_trials=3)
    assert tuner.run() == "trials" and statuses(tuner) == ["failed", "done", "done"]
    check_ended(tuner)


def test_metric_may_be_missing_from_some_reports(make):
    script = [(1.0, {"epoch": 1, "accuracy": 0.5}), (1.0, {"epoch": 2, "loss": 0.5}), (0.0, "done")]
    tuner = make(script, n_trials=4)
    assert tuner.run() == "trials" and statuses(tuner) == ["done"] * 4
    check_ended(tuner)


def test_metric_missing_once_fails_one_trial(make):
    other = [(1.0, {"epoch": 1, "accuracy": 0.5}), (0.0, "done")]
    tuner = make([GOOD, GOOD, other, GOOD], n_trials=5)
    assert tuner.run() == "trials" and statuses(tuner) == ["done", "done", "failed", "done", "done"]
    check_ended(tuner)


# ---- Stopping rule ------------------------------------------------------------------------------------------------------
def test_rule_stops_a_trial(make):
    asked = []

    def rule(trial, trials, max_epochs):
        asked.append((trial.id, list(trial.curve), len(trials), max_epochs))
        return trial.id == 1 and len(trial.curve) == 2

    tuner = make(GOOD, n_trials=3, rule=rule, max_epochs=3)
    assert tuner.run() == "trials"
    check_ended(tuner)
    assert statuses(tuner) == ["done", "stopped", "done"]
    assert tuner.trials[1].curve == [(1, 0.5), (2, 0.25)] and tuner.trials[1].error == ""
    assert tuner.trials[1].value == 0.25 and tuner.trials[1].ended == 2 + KILL_SECONDS
    assert asked[:2] == [(0, [(1, 0.5)], 2, 3), (1, [(1, 0.5)], 2, 3)]
    assert [answer for answer in tuner.backend.answers if not answer[1]] == [(1, False)] and tuner.backend.killed == []


def test_stopped_trial_stays_stopped(make):
    """Whatever it does in its ten seconds: it reports NaN, returns, crashes."""
    for last in ("done", "ValueError: in the clean-up"):
        tuner = make(
            [epochs(0.5, math.nan, 0.25, last=last), GOOD], rude=[0], n_trials=3, rule=lambda trial, *_: trial.id == 0
        )
        assert tuner.run() == "trials"
        assert statuses(tuner) == ["stopped", "done", "done"] and tuner.trials[0].error == ""
        assert [go_on for i, go_on in tuner.backend.answers if i == 0] == [False] * 3
        tuner.results.close()
        shutil.rmtree(tuner.results.folder)


def test_stopped_trial_is_told_so_again_and_the_rule_is_not_asked(make):
    asked = []
    tuner = make(GOOD, rude=[0], n_workers=1, n_trials=1, rule=lambda trial, *_: asked.append(len(trial.curve)) or True)
    tuner.run()
    check_ended(tuner)
    assert asked == [1] and tuner.backend.answers == [(0, False)] * 3 and statuses(tuner) == ["stopped"]


def test_stopped_trial_keeps_its_worker_until_it_has_ended(make):
    tuner = make([epochs(*[0.5] * 9)], rude=[0], n_workers=1, n_trials=2, rule=lambda trial, *_: trial.id == 0)
    tuner.run()
    check_ended(tuner)
    assert tuner.trials[0].status == "stopped" and tuner.trials[1].started == tuner.trials[0].ended == 9


def test_waiting_reports_are_all_answered_before_the_next_suggestion(make):
    """Four report at the same instant as the fifth ends; the searcher itself asserts that none waits."""
    tuner = make([epochs(0.5)] + [epochs(0.5, 0.5)] * 4 + [GOOD], n_workers=5, n_trials=12)
    assert tuner.run() == "trials" and len(tuner.searcher.given) == 11
    check_ended(tuner)


def test_rule_that_raises_ends_the_run_and_its_trials(make):
    def rule(trial, trials, max_epochs):
        if trial.n_epochs == 2:
            raise ZeroDivisionError("in the rule")

    tuner = make(epochs(*[0.5] * 50), n_workers=3, rule=rule)
    with pytest.raises(RunFailed, match="the stopping rule raised ZeroDivisionError: in the rule"):
        tuner.run()
    check_ended(tuner)


@pytest.mark.parametrize(
    "answer",
    ["no", 1, 0.5, np.zeros((99, 9)), (False for _ in "x")],
    ids=["text", "integer", "float", "array", "generator"],
)
def test_rule_that_answers_neither_true_nor_false_ends_the_run(make, answer):
    tuner = make(GOOD, rule=lambda *_: answer)
    with pytest.raises(RunFailed, match="^the stopping rule: expected True or False, got [^\n]*$") as error:
        tuner.run()
    assert error.value.__cause__ is None
    check_ended(tuner)


@pytest.mark.parametrize("answer", [False, None, np.bool_(False)])
def test_rule_may_answer_no_in_three_ways(make, answer):
    tuner = make(GOOD, n_trials=2, rule=lambda *_: answer)
    assert tuner.run() == "trials" and statuses(tuner) == ["done", "done"]


def test_rule_is_not_asked_at_the_last_epoch(make):
    asked = []
    tuner = make(GOOD, n_trials=2, rule=lambda trial, *_: asked.append(trial.n_epochs), max_epochs=3)
    assert tuner.run() == "trials" and statuses(tuner) == ["done", "done"] and sorted(asked) == [1, 1, 2, 2]
    check_ended(tuner)


def test_rule_cannot_change_the_trials_of_the_run(make):
    tuner = make(GOOD, n_trials=3, rule=lambda trial, trials, _: trials.clear())
    assert tuner.run() == "trials" and len(tuner.trials) == 3
    check_ended(tuner)


def test_reports_that_carry_no_epoch_are_refused_when_there_is_a_rule(make, monkeypatch):
    event = Backend._event

    def counted_event(self, i):
        found = event(self, i)
        return Report(i, found.metrics, counted=i >= first_counted) if isinstance(found, Report) else found

    monkeypatch.setattr(Backend, "_event", counted_event)
    first_counted = 0
    tuner = make(GOOD, n_trials=3, rule=lambda *_: False)
    with pytest.raises(ReportsUnusable, match="reported no epoch"):
        tuner.run()
    shutil.rmtree(tuner.results.folder)
    first_counted = 1  # after good reports it costs the trial, not the run
    tuner = make(GOOD, n_workers=1, n_trials=3, rule=lambda *_: False)
    assert tuner.run() == "trials" and statuses(tuner) == ["done", "failed", "failed"]
    assert "expected report(epoch=..." in tuner.trials[1].error
    check_ended(tuner)
    shutil.rmtree(tuner.results.folder)
    first_counted = 0
    assert make(GOOD, n_trials=3).run() == "trials"  # without a rule they are welcome


# ---- Broken parts -------------------------------------------------------------------------------------------------------
def test_searcher_that_raises_ends_the_run(make):
    class Broken(Searcher):
        def suggest(self, trials):
            if len(trials) == 3:
                raise KeyError("lengthscale")
            return super().suggest(trials)

    tuner = make(epochs(*[0.5] * 9), n_workers=4, searcher=Broken)
    with pytest.raises(RunFailed, match=r"Broken\.suggest raised KeyError: 'lengthscale'") as error:
        tuner.run()
    assert isinstance(error.value.__cause__, KeyError)
    (frame,) = traceback.extract_tb(error.value.__cause__.__traceback__)  # of the user's code alone
    assert frame.name == "suggest"
    check_ended(tuner)
    assert statuses(tuner) == ["timeout"] * 3 and tuner.backend.killed == [0, 1, 2]


GOOD_CONFIG = {"lr": 0.5, "n": 1, "kind": "a", "epochs": 3}


@pytest.mark.parametrize(
    "rubbish, words",
    [
        (5, ["5"]),
        ("ab", ["'ab'"]),
        ((), ["()"]),
        (({"lr": 0.5},), ["0.5"]),
        (({"lr": 0.5}, "model", 3), ["model"]),
        (({"lr": 7.0, "n": 1, "kind": "a", "epochs": 3}, "model"), ["lr", "7.0", "loguniform"]),
        (({"lr": math.nan, "n": 1, "kind": "a", "epochs": 3}, "model"), ["lr", "nan"]),
        (({"lr": 0.5, "n": 1, "kind": "a", "epochs": 4}, "model"), ["epochs", "3", "4"]),
        (({"lr": 0.5, "n": 1, "kind": ["a"], "epochs": 3}, "model"), ["kind"]),
        (({"lr": 0.5, "n": 1, "kind": "a", "epochs": 3, "typo": 1}, "model"), ["typo"]),
        (({"lr": 0.5, "n": 1, "kind": "a", "epochs": {1}}, "model"), ["epochs"]),
        (([0.5, 1, "a", 3], "model"), ["dict"]),
        ((None, "model"), ["None"]),
        ((GOOD_CONFIG, None), ["None", "origin a text"]),
        ((GOOD_CONFIG, 3), ["3", "origin a text"]),
        (("model", GOOD_CONFIG), ["config must be a dict"]),
        ((np.zeros((9, 99)), "model"), ["array", "config must be a dict"]),
        (({**GOOD_CONFIG, "lr": np.zeros((9, 99))}, "model"), ["lr: expected a number"]),
        ((GOOD_CONFIG for _ in "x"), ["generator"]),
    ],
)
def test_searcher_that_returns_rubbish_ends_the_run(make, rubbish, words):
    class Rubbish(Searcher):
        def suggest(self, trials):
            return rubbish

    tuner = make(GOOD, searcher=Rubbish)
    with pytest.raises(RunFailed, match=r"Rubbish\.suggest: expected \(config, origin\) or None, got ") as error:
        tuner.run()
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value) and error.value.__cause__ is None and "unpack" not in str(error.value)
    check_ended(tuner)
    assert statuses(tuner) == ["timeout"]


def test_backend_that_cannot_start_ends_the_run(make):
    tuner = make(epochs(*[0.5] * 9), n_workers=3)
    start = tuner.backend.start

    def fail_once(trial):
        if trial.id == 2:
            raise OSError("no more processes")
        start(trial)

    tuner.backend.start = fail_once
    with pytest.raises((OSError, RunFailed), match="no more processes"):
        tuner.run()
    assert not tuner.backend.next and tuner.backend.killed == [0, 1]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("lasting", [True, False], ids=["for_ever", "once"])
def test_folder_that_fails_ends_the_trials_then_the_run(make, monkeypatch, name, lasting):
    tuner = make([GOOD, GOOD, epochs(*[0.5] * 50)], n_workers=3, n_trials=20)
    files, n_left = tuner.results.files, {"configs.jsonl": 3, "reports.csv": 6, "trials.csv": 1}
    faults = []

    def write(file, data, write=os.write):
        if file == files[name]:
            n_left[name] -= 1
            if n_left[name] < 0 and (lasting or not faults):
                faults.append(data)
                return write(file, data[: len(data) // 2])
        return write(file, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(WriteError, match=name):
        tuner.run()
    monkeypatch.undo()
    assert not tuner.backend.next and not tuner.running and not tuner.backend.waiting, "trials were left behind"
    assert faults and "running" not in statuses(tuner)
    loaded = load(tuner.results.folder)  # the files are whole
    assert len(loaded) == len(tuner.backend.started)
    n_rows = sum(trial.status != "running" for trial in loaded)
    assert n_rows == len(loaded) - (name == "trials.csv") * (len(loaded) - 1 if lasting else 1)


def test_deleted_folder_ends_the_trials_then_the_run(make):
    tuner = make(epochs(*[0.5] * 50))
    tuner.backend.calls.append((4.5, lambda: shutil.rmtree(tuner.results.folder)))
    with pytest.raises(WriteError, match="deleted"):
        tuner.run()
    assert not tuner.backend.next and tuner.backend.time < 6


def test_events_that_come_after_a_failure_are_handled(make):
    """Three trials end at the instant at which the first one's row fails: the others have their rows all the same."""
    tuner = make(GOOD, n_workers=3, n_trials=3)
    append, failed = tuner.results.append_trial, []

    def fail_once(trial):
        if not failed:
            failed.append(trial.id)
            raise WriteError("full")
        append(trial)

    tuner.results.append_trial = fail_once
    with pytest.raises(WriteError, match="full"):
        tuner.run()
    assert not tuner.backend.next and statuses(tuner) == ["done"] * 3
    assert [trial.status for trial in load(tuner.results.folder)] == ["running", "done", "done"]


def test_first_of_two_failures_is_told(make):
    class Broken(Searcher):
        def suggest(self, trials):
            raise ValueError("first")

    tuner = make(GOOD, searcher=Broken)

    def fail(trial):
        raise WriteError("second")

    tuner.results.append_trial = fail
    with pytest.raises(RunFailed, match="first"):
        tuner.run()
    assert not tuner.backend.next


# ---- What is shown ------------------------------------------------------------------------------------------------------
class Show:
    seconds = 5.0

    def __init__(self):
        self.ticks, self.ended_ids = [], []

    def tick(self, tuner):
        self.ticks.append(tuner.backend.now())

    def ended(self, trial):
        assert trial.status != "running" and trial.ended is not None
        self.ended_ids.append(trial.id)


def test_show_ticks_and_hears_of_every_end(make):
    show = Show()
    tuner = make([epochs(0.5, 0.5, seconds=30), GOOD, CRASH, epochs(0.5, seconds=20)], n_trials=4, show=show)
    tuner.run()
    check_ended(tuner)
    assert sorted(show.ended_ids) == [0, 1, 2, 3]
    assert max(b - a for a, b in zip(show.ticks, show.ticks[1:])) <= show.seconds
    assert show.ticks[-1] == tuner.backend.time == 60


def test_show_that_raises_ends_the_trials(make):
    class Broken(Show):
        def tick(self, tuner):
            if tuner.backend.now() > 3:
                raise OSError("terminal is gone")

    tuner = make(epochs(*[0.5] * 50), show=Broken())
    with pytest.raises(OSError, match="terminal is gone"):
        tuner.run()
    check_ended(tuner)


def meddle(trials):
    for trial in trials:
        trial.config["lr"], trial.status, trial.origin = 0.5, "failed", "meddled"
        trial.config["kind"].append("x")
        trial.curve.clear()
    trials.clear()


def test_searcher_and_rule_that_change_the_trials_change_no_record():
    space = {"lr": loguniform(1e-4, 1), "kind": choice([["a"], ["b"]])}

    class Meddler(RandomSearch):
        def suggest(self, trials):
            suggestion = super().suggest(trials)
            meddle(trials)
            return suggestion

    def rule(trial, trials, max_epochs):
        assert any(trial is other for other in trials)
        return trial.config["lr"] > 0.1

    def meddling_rule(trial, trials, max_epochs):
        answer = rule(trial, trials, max_epochs)
        meddle(trials)
        return answer

    def objective(config, rng):
        for _ in range(3):
            yield rng.random(), {"loss": config["lr"]}

    def trials_of(searcher, rule):
        found = simulate(searcher(space), space, objective, n_trials=20, n_workers=3, rule=rule)
        return [(t.config, t.status, t.curve, t.origin) for t in found]

    assert trials_of(Meddler, rule) == trials_of(RandomSearch, rule)
    assert {status for _, status, *_ in trials_of(RandomSearch, rule)} == {"stopped", "done"}


def test_trials_that_a_searcher_and_a_rule_see_are_up_to_date(make):
    """Although the copies are kept: compared with the record, at each question, in two sessions."""

    def watched(tuner):
        def compare(trials):
            assert trials == tuner.trials and all(a is not b for a, b in zip(trials, tuner.trials))

        def rule(trial, trials, max_epochs):
            compare(trials)
            assert trial.curve and trial is trials[trial.id]

        suggest, tuner.rule = tuner.searcher.suggest, rule
        tuner.searcher.suggest = lambda trials: compare(trials) or suggest(trials)
        return tuner

    first = watched(make(MIXED, n_workers=3, n_trials=14))
    assert cut(first, 15, "killed")
    second = watched(resumed(make, first, n_workers=2))
    assert second.run() == "trials"
    check_ended(second)


def test_only_what_has_changed_is_copied_again(make):
    """Copying 10,000 trials for each suggestion would take 50 ms."""
    tuner = make(GOOD, n_trials=1)
    tuner.trials = [Trial(i, middle(SPACE), "random", status="done", curve=[(1, 0.5)]) for i in range(5)]
    tuner.changed = set(range(5))
    first = tuner._copies()
    tuner.trials[3].curve.append((2, 0.4))
    tuner.changed.add(3)
    second = tuner._copies()
    assert [a is b for a, b in zip(first, second, strict=True)] == [True, True, True, False, True]
    assert second == tuner.trials and not any(a is b for a, b in zip(second, tuner.trials, strict=True))
