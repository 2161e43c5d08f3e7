"""Other people's optimisers behind our searchers' interface, each as its documentation recommends.

To optuna_gp and ax, failed trials are told as the worst finite loss so far, and not at all before
the first one: they ignore failures otherwise, and go on suggesting beside them. Logarithmic ranges,
integers, ordered grids and categories are declared as such to each. Each has its own initial
design, where our searchers are served the middle of the space by the tuner.

A peer is a function ({name: parameter}, seed) -> (ask, tell). Its key is what it knows a trial by.
    ask() -> (key, {name: number})                 the next trial
    tell([(key, loss, has failed)])                of ended trials; loss: None where there is none
"""

import functools
import logging
import warnings
from importlib import metadata

from hpo.space import domains


# ---- A domain as every peer knows it ----
def parameter(domain):
    """(kind, low, high, log) of a number in [low, high]. kind: float; int; category, its index.

    A grid is an integer, its index; 1 - value of reverseloguniform is loguniform.
    """
    if isinstance(domain.values, list):
        return "category" if domain.kind == "choice" else "int", 0, domain.n_values - 1, False
    low, high = domain.arguments
    if domain.kind == "reverseloguniform":
        return "float", 1 - high, 1 - low, True
    return "int" if "int" in domain.kind else "float", low, high, domain.kind.startswith("log")


def decode(domain, number):
    """Our value of a peer's number."""
    if isinstance(domain.values, list):
        return domain.values[round(float(number))]
    return domain.nearest(float(1 - number if domain.kind == "reverseloguniform" else number))


# ---- The peers ----
def optuna(parameters, seed, sampler, failed, **settings):
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def distribution(kind, low, high, log):
        if kind == "category":
            return CategoricalDistribution(list(range(high + 1)))
        return {"int": IntDistribution, "float": FloatDistribution}[kind](low, high, log=log)

    distributions = {name: distribution(*p) for name, p in parameters.items()}
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

    def dimension(name, kind, low, high, log):
        if kind == "category":
            values = [str(i) for i in range(high + 1)]
            return ChoiceParameterConfig(name, values, parameter_type="str", is_ordered=False)
        scaling = "log" if log else "linear"
        return RangeParameterConfig(name, (low, high), kind, scaling=scaling)

    client = Client(random_seed=seed)
    client.configure_experiment(parameters=[dimension(n, *p) for n, p in parameters.items()])
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
PEERS = {  # its function, and the package that it needs
    "optuna_tpe": (functools.partial(optuna, **TPE), "optuna"),
    "optuna_gp": (functools.partial(optuna, sampler="GPSampler", failed="FAIL"), "optuna"),
    "ax": (ax, "ax-platform"),
}
PEERS |= dict.fromkeys(("skopt", "smac", "hebo", "syne_tune"), (None, ""))  # only recorded


class Peer:
    """It is stateful, unlike our searchers: it is told each ended trial once, as they ended."""

    def __init__(self, name, space, seed=0, max_epochs=None):
        self.name, self.domains = name, domains(space)
        self.keys, self.worst = {}, None  # keys: {trial id: the peer's key}, until it is told
        logging.disable(logging.WARNING)  # peers tell much about their inner life
        with warnings.catch_warnings(action="ignore"):
            parameters = {name: parameter(domain) for name, domain in self.domains.items()}
            self.ask, self.tell = PEERS[name][0](parameters, seed)

    def suggest(self, trials):
        with warnings.catch_warnings(action="ignore"):
            ended = [t for t in trials if t.status != "running" and t.id in self.keys]
            ended.sort(key=lambda trial: trial.ended)
            self.tell([(self.keys.pop(t.id), self.loss(t), t.value is None) for t in ended])
            self.keys[len(trials)], numbers = self.ask()
        return {name: decode(d, numbers[name]) for name, d in self.domains.items()}, self.name

    def loss(self, trial):
        """Its value; of a failed trial the worst so far, None where there is none yet."""
        if trial.value is None:
            return self.worst
        self.worst = trial.value if self.worst is None else max(self.worst, trial.value)
        return trial.value


def version(name):
    """Package and version of a peer: optuna 5.0.0. None where it cannot be run."""
    package = PEERS[name][1]
    try:
        return f"{package} {metadata.version(package)}"
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: there is no name
        return None
