"""Other people's optimisers behind our searchers' interface, each as its documentation recommends.

| name | what | pending trials | failed trials |
|---|---|---|---|
| optuna_tpe | TPESampler as it comes (5.0: multivariate) | its constant liar | pruned: rank last |
| optuna_gp | GPSampler as it comes | qLogEI over RUNNING trials, by Optuna | imputed |
| skopt | Optimizer, GP with gp_hedge | lies of the minimum, as its ask(n) | imputed |
| smac | HPO facade, deterministic; a forest every 8 trials | RUNNING trials | CRASHED, imputed |
| ax | Client, method "fast": centre, Sobol, BoTorch | X_pending, by Ax | imputed |
| hebo | HEBO as it comes | none, as in HEBO | imputed |
| syne_tune | BOTorch scheduler | X_pending, by Syne Tune | imputed |

imputed: told as the worst finite loss so far, and not at all before the first one. These peers
ignore failures otherwise, and go on suggesting beside them. Logarithmic ranges, integers, ordered
grids and categories are declared as such to each. Each has its own initial design, where our
searchers are served the middle of the space by the tuner.

A peer is a function (parameters, seed) -> (ask, tell, adopt). Its key is what it knows a trial by.
    ask(pending keys) -> (key, {name: number})     the next trial
    tell([(key, loss, has failed)])                of ended trials; loss: None where there is none
    adopt({name: number}) -> key                   of a trial that it has not suggested itself
"""

import functools
import itertools
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from hpo.space import domains


# ---- A domain as every peer knows it ----
@dataclass(frozen=True)
class Parameter:
    """A number in [low, high]. kind: float; int; category, of which the number is the index."""

    name: str
    domain: object
    kind: str
    low: float
    high: float
    log: bool
    value: Callable  # from the peer's number to ours
    number: Callable  # from ours to the peer's

    def decode(self, number):
        number = float(number) if self.kind == "float" else round(float(number))
        return self.value(min(max(number, self.low), self.high))


def parameter(name, domain):
    """A grid is an integer, its index; 1 - value of reverseloguniform is loguniform."""
    if domain.kind in ("choice", "ordinal", "logordinal", "finrange", "logfinrange"):
        kind, values = "category" if domain.kind == "choice" else "int", list(domain.values)

        def index(value):  # in Syne Tune's numbers the last digits may differ
            own = value if value in values else min(values, key=lambda v: abs(v - value))
            return values.index(own)

        bounds, maps = (0, len(values) - 1, False), (values.__getitem__, index)
    elif "int" in domain.kind:
        kind, bounds, maps = "int", (*domain.arguments, domain.kind == "lograndint"), (int, int)
    else:
        kind, (low, high) = "float", map(float, domain.arguments)
        bounds, maps = (low, high, domain.kind == "loguniform"), (float, float)
        if domain.kind == "reverseloguniform":
            bounds = 1 - high, 1 - low, True
            maps = (lambda v: min(max(1 - v, low), high)), (lambda v: 1 - v)
    return Parameter(name, domain, kind, *bounds, *maps)


def declared(parameters, category, integer, real):
    """{name: what one of the functions makes of the parameter}."""
    functions = {"category": category, "int": integer, "float": real}
    return {p.name: functions[p.kind](p) for p in parameters}


def values(p):
    return list(range(p.high + 1))


# ---- The peers ----
def optuna(parameters, seed, sampler, failed, **settings):
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions = declared(
        parameters,
        lambda p: CategoricalDistribution(values(p)),
        lambda p: IntDistribution(p.low, p.high, log=p.log),
        lambda p: FloatDistribution(p.low, p.high, log=p.log),
    )
    sampler = getattr(optuna.samplers, sampler)(seed=seed, **settings)
    study = optuna.create_study(sampler=sampler)

    def ask(pending):
        trial = study.ask(distributions)
        return trial, trial.params

    def tell(ended):
        for key, loss, has_failed in ended:
            if loss is None or (has_failed and failed == "PRUNED"):
                study.tell(key, state=optuna.trial.TrialState[failed])
            else:
                study.tell(key, loss)

    def adopt(numbers):
        settings = {"distributions": distributions, "state": optuna.trial.TrialState.RUNNING}
        study.add_trial(optuna.trial.create_trial(params=numbers, **settings))
        return study.get_trials(deepcopy=False)[-1].number

    return ask, tell, adopt


# what Optuna 5 does by default, given for versions before
TPE = {"sampler": "TPESampler", "multivariate": True, "constant_liar": True}


def skopt(parameters, seed):
    from skopt import Optimizer
    from skopt.space import Categorical, Integer, Real

    scale = {True: "log-uniform", False: "uniform"}
    dimensions = declared(
        parameters,
        lambda p: Categorical(values(p)),
        lambda p: Integer(p.low, p.high, prior=scale[p.log]),
        lambda p: Real(p.low, p.high, prior=scale[p.log]),
    )
    optimizer = Optimizer(list(dimensions.values()), random_state=seed)

    def ask(pending):
        liar = optimizer
        if pending and len(optimizer.yi) >= 10:  # before, its points are random anyway
            liar = optimizer.copy(random_state=optimizer.rng.randint(2**31 - 1))
            liar.tell(pending, [min(optimizer.yi)] * len(pending))
        x = liar.ask()
        return x, dict(zip(dimensions, x))

    def tell(ended):
        told = [(x, loss) for x, loss, _ in ended if loss is not None]
        if told:
            optimizer.tell(*map(list, zip(*told)))  # one fit for all

    return ask, tell, lambda numbers: list(numbers.values())


def smac(parameters, seed):
    from ConfigSpace import Categorical, Configuration, ConfigurationSpace, Float, Integer
    from smac import HyperparameterOptimizationFacade, Scenario
    from smac.runhistory import StatusType, TrialInfo, TrialValue

    space = ConfigurationSpace(seed=seed)
    dimensions = declared(
        parameters,
        lambda p: Categorical(p.name, values(p)),
        lambda p: Integer(p.name, (p.low, p.high), log=p.log),
        lambda p: Float(p.name, (p.low, p.high), log=p.log),
    )
    space.add(*dimensions.values())
    folder = tempfile.TemporaryDirectory()
    # its initial design takes at most a quarter of n_trials
    settings = {"deterministic": True, "n_trials": 60, "seed": seed}
    scenario = Scenario(space, output_directory=folder.name, **settings)
    never_called = lambda config, seed: 0.0
    facade = HyperparameterOptimizationFacade(scenario, never_called, logging_level=False)
    facade.folder = folder  # lasts as long

    def ask(pending):
        trial = facade.ask()
        return trial, dict(trial.config)

    def tell(ended):
        for key, loss, has_failed in ended:
            status = StatusType.CRASHED if has_failed else StatusType.SUCCESS
            if loss is not None:
                facade.tell(key, TrialValue(cost=loss, status=status), save=False)

    def adopt(numbers):
        trial = TrialInfo(Configuration(space, numbers), seed=0)
        facade.runhistory.add_running_trial(trial)
        return trial

    return ask, tell, adopt


def ax(parameters, seed):
    from ax.api.client import Client
    from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

    def category(p):
        names = [str(i) for i in values(p)]
        return ChoiceParameterConfig(p.name, names, parameter_type="str", is_ordered=False)

    def number(p):
        scaling = "log" if p.log else "linear"
        return RangeParameterConfig(p.name, (p.low, p.high), p.kind, scaling=scaling)

    dimensions = declared(parameters, category, number, number)
    client = Client(random_seed=seed)
    client.configure_experiment(parameters=list(dimensions.values()))
    client.configure_optimization(objective="-loss")
    client.configure_generation_strategy("fast", initialization_random_seed=seed)

    def ask(pending):
        return client.get_next_trials(max_trials=1).popitem()

    def tell(ended):
        for key, loss, _ in ended:
            if loss is None:
                client.mark_trial_failed(key)
            else:
                client.complete_trial(key, raw_data={"loss": loss})

    def adopt(numbers):
        categories = {p.name: str(numbers[p.name]) for p in parameters if p.kind == "category"}
        return client.attach_trial(numbers | categories)

    return ask, tell, adopt


def hebo(parameters, seed):
    import pandas as pd
    import torch
    from hebo.design_space.design_space import DesignSpace
    from hebo.optimizers.hebo import HEBO
    from pymoo.config import Config

    def category(p):
        return {"name": p.name, "type": "cat", "categories": values(p)}

    def number(p):
        kind = {"float": ("num", "pow"), "int": ("int", "pow_int")}[p.kind][p.log]
        return {"name": p.name, "type": kind, "lb": p.low, "ub": p.high}

    Config.warnings["not_compiled"] = False  # printed to stdout otherwise
    np.random.seed(seed % 2**32)  # it draws from the global generators
    torch.manual_seed(seed)
    dimensions = declared(parameters, category, number, number)
    optimizer = HEBO(DesignSpace().parse(list(dimensions.values())), scramble_seed=seed)

    def ask(pending):
        row = optimizer.suggest(n_suggestions=1)
        return row, row.iloc[0].to_dict()

    def tell(ended):
        for row, loss, _ in ended:
            if loss is not None:
                optimizer.observe(row, np.array([[loss]]))

    return ask, tell, lambda numbers: pd.DataFrame([numbers])


def syne_tune(parameters, seed):
    """Its domains are ours, by name.

    0.16 pairs configurations in the order of suggestion with losses in the order of arrival, which
    differ under asynchrony. That is mended here, to compare with what is meant.
    """
    import torch
    from syne_tune import config_space
    from syne_tune.backend.trial_status import Trial
    from syne_tune.optimizer.baselines import BOTorch

    np.random.seed(seed % 2**32)  # its initial draws are from the global generators
    torch.manual_seed(seed)
    ours = {p.name: p.domain for p in parameters}
    space = {name: getattr(config_space, d.kind)(*d.arguments) for name, d in ours.items()}
    scheduler = BOTorch(space, metric="loss", do_minimize=True, random_seed=seed)
    searcher, ids = scheduler.searcher, itertools.count()

    def ask(pending):
        config = scheduler.suggest().config
        return Trial(next(ids), config, None), {
            p.name: p.number(config[p.name]) for p in parameters
        }

    def tell(ended):
        for trial, loss, _ in ended:
            if loss is None:
                scheduler.on_trial_error(trial)
            else:
                scheduler.on_trial_complete(trial, {"loss": loss})
            searcher.trial_observations = dict(sorted(searcher.trial_observations.items()))

    def adopt(numbers):
        trial = Trial(next(ids), {p.name: p.decode(numbers[p.name]) for p in parameters}, None)
        searcher.trial_configs[trial.trial_id] = trial.config
        searcher.pending_trials.add(trial.trial_id)
        return trial

    return ask, tell, adopt


# ---- As a searcher of ours ----
PEERS = {  # its function, the packages that it needs
    "optuna_tpe": (functools.partial(optuna, failed="PRUNED", **TPE), "optuna"),
    "optuna_gp": (
        functools.partial(optuna, failed="FAIL", sampler="GPSampler"),
        "optuna torch scipy",
    ),
    "skopt": (skopt, "scikit-optimize"),
    "smac": (smac, "smac"),
    "ax": (ax, "ax-platform"),
    "hebo": (hebo, "HEBO"),
    "syne_tune": (syne_tune, "syne-tune botorch"),
}


class Peer:
    """It is stateful, unlike our searchers: it is told each ended trial once, as they ended."""

    def __init__(self, name, space, seed=0, max_epochs=None):
        self.name, self.parameters = name, [parameter(n, d) for n, d in domains(space).items()]
        self.keys, self.told, self.worst = {}, set(), None  # keys: {trial id: the peer's key}
        logging.disable(logging.WARNING)  # peers tell much about their inner life
        with warnings.catch_warnings(action="ignore"):
            self.ask, self.tell, self.adopt = PEERS[name][0](self.parameters, seed)

    def suggest(self, trials):
        with warnings.catch_warnings(action="ignore"):
            for trial in trials:
                if trial.id not in self.keys:
                    numbers = {p.name: p.number(trial.config[p.name]) for p in self.parameters}
                    self.keys[trial.id] = self.adopt(numbers)
            ended = [t for t in trials if t.status != "running" and t.id not in self.told]
            ended.sort(key=lambda trial: trial.ended)
            self.told.update(trial.id for trial in ended)
            self.tell([(self.keys[t.id], self.loss(t), t.value is None) for t in ended])
            pending = [self.keys[trial.id] for trial in trials if trial.status == "running"]
            self.keys[len(trials)], numbers = self.ask(pending)
        return {p.name: p.decode(numbers[p.name]) for p in self.parameters}, self.name

    def loss(self, trial):
        """Its value; of a failed trial the worst so far, None where there is none yet."""
        if trial.value is None:
            return self.worst
        self.worst = trial.value if self.worst is None else max(self.worst, trial.value)
        return trial.value


def version(name):
    """Package and version of a peer: optuna 5.0.0. None where something of it is missing."""
    try:
        found = [f"{package} {metadata.version(package)}" for package in PEERS[name][1].split()]
    except metadata.PackageNotFoundError:
        return None
    return found[0]


def missing(name):
    """What to install for a peer, in a line; None when it is there."""
    return None if version(name) else f"{name} is left out: pip install {PEERS[name][1]}"
