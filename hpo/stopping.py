"""Early stopping: rules that end a trial before its last epoch because its learning curve is poor.

    rule(trial, trials, max_epochs) -> True to stop the trial

A rule is a function, here or in your own file (`--stopping my_rule.py:my_rule`), called after each
report before the last epoch. `trial` has just reported; `trials` are all so far, sorted by id. A
rule may read their id, config, status and curve [(epoch, loss)]; a lower loss is better. It keeps
no state. The command line sets the arguments first_rung and eta, if the rule has them.
"""

import inspect
import math
import statistics
from functools import partial

RECENT = 1000  # a rule compares with the last 1,000 trials alone, so that long runs stay fast


def median(trial, trials, max_epochs, first_rung=1, min_trials=5):
    """The median stopping rule (Golovin et al. 2017, Google Vizier, section 3.1.2).

    Stops a trial whose best loss is worse than the median of the others' mean losses up to the same
    epoch. Needs min_trials others that have come as far; stops nothing before first_rung.
    """
    epoch = trial.curve[-1][0]
    if not first_rung <= epoch < max_epochs:
        return False
    others = [t for t in trials[-RECENT:] if t.id != trial.id and t.n_epochs >= epoch]
    losses = [[loss for e, loss in other.curve if e <= epoch] for other in others]
    means = [statistics.fmean(part) for part in losses if part]
    best = min(loss for _, loss in trial.curve)
    return len(means) >= min_trials and best > statistics.median(means)


def asha(trial, trials, max_epochs, first_rung=1, eta=3):
    """Asynchronous successive halving (Li et al. 2018, arXiv 1810.05934), its stopping variant.

    It decides at the rungs, the epochs first_rung * (1, eta, eta^2, ...). A trial continues if its
    best loss is at most the (1/eta)-quantile of all trials that have reached the rung, its own
    included: of two, the worse one ends. One trial in max_epochs / first_rung is never stopped.
    """
    rung = last_rung(trial.curve[-1][0], first_rung, eta)
    is_first_there = all(epoch < rung for epoch, _ in trial.curve[:-1])
    return is_first_there and halving(trial, trials, max_epochs, first_rung, eta)


def halving(trial, trials, max_epochs, first_rung=1, eta=3):
    """As asha, but judges again after every report, at the last rung that the trial has passed.

    In asha the first trials at a rung go on to the next one, even poor ones, because there is
    nothing to compare them with. One trial in max_epochs / first_rung is free of the rule, so that
    the searcher learns how good slow learners are in the end.
    """
    epoch = trial.curve[-1][0]
    rung = last_rung(epoch, first_rung, eta)
    own = loss_at_rung(trial, rung, first_rung, eta)
    is_free = (trial.id + 1) % math.ceil(max_epochs / first_rung) == 0
    if own is None or is_free or not first_rung <= epoch < max_epochs:
        return False
    found = [loss_at_rung(t, rung, first_rung, eta) for t in trials[-RECENT:] if t.id != trial.id]
    losses = [loss for loss in found if loss is not None]
    return sum(loss < own for loss in losses) > len(losses) / eta


def last_rung(epoch, first_rung, eta):
    """The highest rung up to the epoch, but at least first_rung."""
    rung = first_rung
    while rung * eta <= epoch:
        rung *= eta
    return rung


def loss_at_rung(trial, rung, first_rung, eta):
    """The best loss up to the report at the rung; inf if the trial failed before it, else None."""
    if (rung, eta) in trial.at_rung:  # kept: a curve only grows, and may have 10,000 epochs
        return trial.at_rung[rung, eta]
    best = math.inf
    for epoch, loss in trial.curve:
        best = min(best, loss)
        if epoch >= rung:  # a report that passes several rungs is compared at the highest
            trial.at_rung[rung, eta] = best if epoch < rung * eta else None
            return trial.at_rung[rung, eta]
    # A trial that failed on its way to this rung is the worst there.
    was_next = rung == first_rung or trial.n_epochs >= rung / eta
    return math.inf if trial.status == "failed" and was_next else None


RULES = {"auto": halving, "none": None, "median": median, "asha": asha, "halving": halving}


def find_rule(name):
    """The rule of a name, None for "none"; ValueError for an unknown name."""
    if name not in RULES:
        raise ValueError(f"expected {', '.join(RULES)} or FILE.py:FUNCTION, got {name!r}")
    return RULES[name]


def with_options(rule, **options):
    """The rule with those options that it takes and has not set already; None stays None."""
    if rule is None:
        return None
    names = inspect.signature(rule).parameters.keys() - getattr(rule, "keywords", {})
    return partial(rule, **{name: options[name] for name in options.keys() & names})
