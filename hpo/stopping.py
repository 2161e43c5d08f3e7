"""Early stopping: which trials to end before their last epoch, judged by their learning curves alone.

A rule is a function, here or in a file of your own (`--stopping my_rule.py:my_rule`), that the tuner asks after every
report but that of the last epoch:

    rule(trial, trials, max_epochs) -> True to stop the trial

trial: the one that has just reported; trials: every trial so far, sorted by id, `trial` among them. A rule should read
only their id, config, status and curve [(epoch, loss)], lower is better, so that a decision can be recomputed. No
state is kept: a trial that has been stopped stays in `trials` with the curve that it has. Keyword arguments named
first_rung and eta are filled in from the command line.

The rules here compare a trial with the RECENT last ones that were started, so that a decision takes as long after
10,000 trials as after 1,000, a millisecond or less.
"""

import inspect
import math
import statistics
from functools import partial

RECENT = 1000


def others_than(trial, trials):
    return [other for other in trials[-RECENT:] if other.id != trial.id]


def median(trial, trials, max_epochs, first_rung=1, min_trials=5):
    """The median stopping rule (Golovin et al. 2017, Google Vizier, section 3.1.2).

    Stops a trial whose best loss so far is worse than the median of the other trials' running averages up to the same
    epoch. Decides nothing before epoch first_rung, nor with fewer than min_trials others that have come as far.
    """
    epoch = trial.curve[-1][0]
    if not first_rung <= epoch < max_epochs:
        return False
    others = [other for other in others_than(trial, trials) if other.n_epochs >= epoch]
    losses = [[loss for e, loss in other.curve if e <= epoch] for other in others]
    averages = [statistics.fmean(part) for part in losses if part]
    best = min(loss for _, loss in trial.curve)
    return len(averages) >= min_trials and best > statistics.median(averages)


def asha(trial, trials, max_epochs, first_rung=1, eta=3):
    """Asynchronous successive halving (Li et al. 2018, arXiv 1810.05934) in its stopping variant, as in Syne Tune.

    At epochs first_rung * (1, eta, eta^2, ...) a trial goes on when its best loss so far is among the best 1/eta of the
    trials that have come there before it, itself included: not above their (1/eta)-quantile, so ties go on. Fewer than
    eta of them decide nothing.
    """
    rung = last_rung(trial.curve[-1][0], first_rung, eta)
    is_first_there = all(epoch < rung for epoch, _ in trial.curve[:-1])  # else an earlier report has decided
    return is_first_there and halving(trial, trials, max_epochs, first_rung, eta)


def halving(trial, trials, max_epochs, first_rung=1, eta=3):
    """Successive halving that does not forget: asha's question, asked anew at every report.

    The first to come to a rung go on, as there is nobody to compare them with, and asha trains them to the end. Here a trial
    goes on for as long as, of all that have come to its last rung up to now, it was among the best 1/eta there.
    """
    epoch = trial.curve[-1][0]
    if not first_rung <= epoch < max_epochs:
        return False
    rung = last_rung(epoch, first_rung, eta)
    own = loss_at_rung(trial, rung, first_rung, eta)
    if own is None:
        return False  # its epochs go backwards, past a rung at which it does not count
    found = [loss_at_rung(other, rung, first_rung, eta) for other in others_than(trial, trials)]
    losses = [loss for loss in found if loss is not None]
    n_better = sum(loss < own for loss in losses)
    return len(losses) + 1 >= eta and n_better > len(losses) / eta


def last_rung(epoch, first_rung, eta):
    """The highest of first_rung * (1, eta, eta^2, ...) that is not above an epoch."""
    rung = first_rung
    while rung * eta <= epoch:
        rung *= eta
    return rung


def loss_at_rung(trial, rung, first_rung, eta):
    """The best loss of a trial up to the report with which it came to a rung; None when it does not count there.

    A report that passes several rungs counts at the highest of them. A failed trial counts as the worst at the rung that
    it was on its way to, and as what it had reported at those before.
    """
    best = math.inf
    for epoch, loss in trial.curve:
        if loss < best:  # noqa: PLR1730  min() takes five times as long, and this loop is the cost of a decision
            best = loss
        if epoch >= rung:
            return best if epoch < rung * eta else None
    was_next = rung == first_rung or trial.n_epochs >= rung / eta
    return math.inf if trial.status == "failed" and was_next else None


RULES = {"none": None, "median": median, "asha": asha, "halving": halving}


def with_options(rule, **options):
    """The rule with those of the options that it has a keyword argument for."""
    parameters = inspect.signature(rule).parameters
    return partial(rule, **{name: value for name, value in options.items() if name in parameters})
