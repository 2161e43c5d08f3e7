"""Other people's optimisers behind our searchers' interface, each as its documentation recommends.

optuna_tpe: TPESampler with its constant liar; failed trials are pruned. optuna_gp: GPSampler. ax:
Client, method "fast". To the last two, failed trials are told as the worst finite loss so far, and
not at all before the first one: they ignore failures otherwise, and go on suggesting beside them.
Logarithmic ranges, integers, ordered grids and categories are declared as such to each. Each has
its own initial design, where our searchers are served the middle of the space by the tuner.

A peer is a function (parameters, seed) -> (ask, tell). Its key is what it knows a trial by.
    ask() -> (key, {name: number})                 the next trial
    tell([(key, loss, has failed)])                of ended trials; loss: None where there is none
"""

import functools
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from hpo.space import domains


# ---- A domain as every peer knows it ----
@dataclass(frozen=True)
class Parameter:
    """A number in [low, high]. kind: float; int; category, of which the number is the index."""

    name: str
    kind: str
    low: float
    high: float
    log: bool
    value: Callable  # from the peer's number to ours

    def decode(self, number):
        number = float(number) if self.kind == "float" else round(float(number))
        return self.value(min(max(number, self.low), self.high))


def parameter(name, domain):
    """A grid is an integer, its index; 1 - value of reverseloguniform is loguniform."""
    if isinstance(domain.values, list):
        kind = "category" if domain.kind == "choice" else "int"
        return Parameter(name, kind, 0, domain.n_values - 1, False, domain.values.__getitem__)
    low, high = domain.arguments
    if "int" in domain.kind:
        return Parameter(name, "int", low, high, domain.kind == "lograndint", int)
    if domain.kind == "reverseloguniform":
        flip = lambda number: min(max(1 - number, low), high)
        return Parameter(name, "float", 1 - high, 1 - low, True, flip)
    return Parameter(name, "float", low, high, domain.kind == "loguniform", float)


# ---- The peers ----
def optuna(parameters, seed, sampler, failed, **settings):
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def distribution(p):
        if p.kind == "category":
            return CategoricalDistribution(list(range(p.high + 1)))
        kind = IntDistribution if p.kind == "int" else FloatDistribution
        return kind(p.low, p.high, log=p.log)

    distributions = {p.name: distribution(p) for p in parameters}
    study = optuna.create_study(sampler=getattr(optuna.samplers, sampler)(seed=seed, **settings))

    def ask():
        trial = study.ask(distributions)
        return trial, trial.params

    def tell(ended):
        for key, loss, has_failed in ended:
            if loss is None or (has_failed and failed == "PRUNED"):
                study.tell(key, state=optuna.trial.TrialState[failed])
            else:
                study.tell(key, loss)

    return ask, tell


def ax(parameters, seed):
    from ax.api.client import Client
    from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

    def dimension(p):
        if p.kind == "category":
            names = [str(i) for i in range(p.high + 1)]
            return ChoiceParameterConfig(p.name, names, parameter_type="str", is_ordered=False)
        scaling = "log" if p.log else "linear"
        return RangeParameterConfig(p.name, (p.low, p.high), p.kind, scaling=scaling)

    client = Client(random_seed=seed)
    client.configure_experiment(parameters=[dimension(p) for p in parameters])
    client.configure_optimization(objective="-loss")
    client.configure_generation_strategy("fast", initialization_random_seed=seed)

    def ask():
        return client.get_next_trials(max_trials=1).popitem()

    def tell(ended):
        for key, loss, _ in ended:
            if loss is None:
                client.mark_trial_failed(key)
            else:
                client.complete_trial(key, raw_data={"loss": loss})

    return ask, tell


# ---- As a searcher of ours ----
# what Optuna 5 does by default, given for versions before
TPE = {"sampler": "TPESampler", "failed": "PRUNED", "multivariate": True, "constant_liar": True}
PEERS = {  # its function, the packages that it needs
    "optuna_tpe": (functools.partial(optuna, **TPE), "optuna"),
    "optuna_gp": (functools.partial(optuna, sampler="GPSampler", failed="FAIL"), "optuna scipy"),
    "ax": (ax, "ax-platform"),
}
PEERS |= dict.fromkeys(("skopt", "smac", "hebo", "syne_tune"), (None, ""))  # only recorded


class Peer:
    """It is stateful, unlike our searchers: it is told each ended trial once, as they ended."""

    def __init__(self, name, space, seed=0, max_epochs=None):
        self.name, self.parameters = name, [parameter(n, d) for n, d in domains(space).items()]
        self.keys, self.told, self.worst = {}, set(), None  # keys: {trial id: the peer's key}
        logging.disable(logging.WARNING)  # peers tell much about their inner life
        with warnings.catch_warnings(action="ignore"):
            self.ask, self.tell = PEERS[name][0](self.parameters, seed)

    def suggest(self, trials):
        with warnings.catch_warnings(action="ignore"):
            ended = [t for t in trials if t.status != "running" and t.id not in self.told]
            ended.sort(key=lambda trial: trial.ended)
            self.told.update(trial.id for trial in ended)
            self.tell([(self.keys[t.id], self.loss(t), t.value is None) for t in ended])
            self.keys[len(trials)], numbers = self.ask()
        return {p.name: p.decode(numbers[p.name]) for p in self.parameters}, self.name

    def loss(self, trial):
        """Its value; of a failed trial the worst so far, None where there is none yet."""
        if trial.value is None:
            return self.worst
        self.worst = trial.value if self.worst is None else max(self.worst, trial.value)
        return trial.value


def version(name):
    """Package and version of a peer: optuna 5.0.0. None where it cannot be run."""
    try:
        found = [f"{package} {metadata.version(package)}" for package in PEERS[name][1].split()]
    except metadata.PackageNotFoundError:
        return None
    return found[0] if found else None
