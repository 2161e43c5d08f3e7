"""Other people's optimisers behind our searchers' interface, each as its own documentation recommends.

| name | what | pending trials | failed trials |
|---|---|---|---|
| optuna_tpe | TPESampler as it comes (5.0: multivariate) | its constant liar | pruned: rank behind all others |
| optuna_gp | GPSampler as it comes | qLogEI over RUNNING trials, by Optuna | imputed |
| skopt | Optimizer, GP with gp_hedge | lies of the minimum, told to a copy, as its ask(n) does | imputed |
| smac | HPO facade, deterministic; trains its forest every 8 suggestions | RUNNING trials | CRASHED, imputed cost |
| ax | Client, method "fast", centre and Sobol, then BoTorch | X_pending, by Ax | imputed |
| hebo | HEBO as it comes | none, as in HEBO | imputed |
| syne_tune | BOTorch scheduler | X_pending, by Syne Tune | imputed |

imputed: told as the worst finite loss so far (GPSearch models failures apart); these peers would otherwise ignore it and go on
suggesting beside it. (Before the first finite loss there is nothing to tell.) Logarithmic ranges, integers, ordered
grids and categories are declared as such to each. Each peer has its own initial design, where our
searchers are served the middle of the space by the tuner.

A peer is stateful, unlike our searchers: it is told each ended trial once, in the order in which they ended.
"""

import importlib.util
import logging
import tempfile
import warnings
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from hpo.space import Choice, Float, Grid, Integer, domains


# ---- A domain as every peer knows it ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Parameter:
    """kind: float or int in [low, high], on a log scale or not; or category 0..high. value: from the peer's to ours."""

    name: str
    kind: str
    low: Any
    high: Any
    log: bool
    value: Any
    number: Any  # from ours to the peer's

    def decode(self, number):
        if self.kind == "float":
            return self.value(min(max(float(number), self.low), self.high))
        return self.value(min(max(round(float(number)), self.low), self.high))


def parameter(name, domain):
    """A grid is an integer, its index; 1 - value of reverseloguniform is loguniform."""
    if isinstance(domain, (Choice, Grid)):
        kind, values = "category" if isinstance(domain, Choice) else "int", list(domain.values)
        return Parameter(name, kind, 0, len(values) - 1, False, values.__getitem__, values.index)
    if isinstance(domain, Integer):
        return Parameter(name, "int", domain.low, domain.high, domain.log, int, int)
    if domain.kind == "reverseloguniform":

        def value(number):
            return min(max(1 - number, domain.low), domain.high)

        return Parameter(name, "float", 1 - domain.high, 1 - domain.low, True, value, lambda v: 1 - v)
    assert isinstance(domain, Float), domain
    return Parameter(name, "float", domain.low, domain.high, domain.kind == "loguniform", float, float)


class Peer:
    """Adapter: subclasses have `build`, `ask(trial_id, trials) -> {name: number}`, `tell(trial, loss)`, and
    `adopt(trial, numbers)` for a trial that was not the peer's own suggestion.

    loss: the trial's value; the worst finite one so far where it failed; None where there is none yet.
    asked: {trial id: what the peer knows the trial by}.
    """

    package = None
    modules = ()  # to import

    def __init__(self, space, seed=0, max_epochs=None):
        self.space, self.seed = space, seed
        self.parameters = [parameter(name, domain) for name, domain in domains(space).items()]
        self.asked, self.told, self.worst = {}, set(), None
        with quiet():
            self.build()

    def suggest(self, trials):
        ended = [trial for trial in trials if trial.status != "running" and trial.id not in self.told]
        with quiet():
            for trial in trials:
                if trial.id not in self.asked:
                    self.adopt(trial, {p.name: p.number(trial.config[p.name]) for p in self.parameters})
            self.tell_all([(trial, self.loss(trial)) for trial in sorted(ended, key=lambda trial: trial.ended)])
            self.told.update(trial.id for trial in ended)
            return self.decode(self.ask(len(trials), trials)), type(self).__name__

    def loss(self, trial):
        if trial.value is not None:
            self.worst = trial.value if self.worst is None else max(self.worst, trial.value)
        return self.worst if trial.value is None else trial.value

    def tell_all(self, pairs):
        for trial, loss in pairs:
            self.tell(trial, loss)

    def decode(self, numbers):
        return {parameter.name: parameter.decode(numbers[parameter.name]) for parameter in self.parameters}


class quiet(warnings.catch_warnings):
    """Context in which nothing is printed about the inner life of a peer."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)

    def __exit__(self, *error):
        logging.disable(logging.NOTSET)
        super().__exit__(*error)


# ---- Optuna ----------------------------------------------------------------------------------------------------------
class OptunaTPE(Peer):
    package, modules = "optuna", ("optuna",)

    def sampler(self, optuna):
        # multivariate and constant_liar are its defaults for one objective, given here for versions before 5
        return optuna.samplers.TPESampler(seed=self.seed, multivariate=True, constant_liar=True)

    def build(self):
        import optuna
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        self.optuna, self.states = optuna, optuna.trial.TrialState
        self.study = optuna.create_study(sampler=self.sampler(optuna))
        self.distributions = {}
        for p in self.parameters:
            if p.kind == "category":
                self.distributions[p.name] = CategoricalDistribution(list(range(p.high + 1)))
            else:
                make = IntDistribution if p.kind == "int" else FloatDistribution
                self.distributions[p.name] = make(p.low, p.high, log=p.log)

    def ask(self, trial_id, trials):
        self.asked[trial_id] = self.study.ask(self.distributions)
        return self.asked[trial_id].params

    def adopt(self, trial, numbers):
        settings = {"params": numbers, "distributions": self.distributions, "state": self.states.RUNNING}
        self.study.add_trial(self.optuna.trial.create_trial(**settings))
        self.asked[trial.id] = self.study.get_trials(deepcopy=False)[-1].number

    def tell(self, trial, loss):
        if trial.value is None:
            self.study.tell(self.asked[trial.id], state=self.states.PRUNED)
        else:
            self.study.tell(self.asked[trial.id], loss)


class OptunaGP(OptunaTPE):
    modules = "optuna", "torch", "scipy"

    def sampler(self, optuna):
        return optuna.samplers.GPSampler(seed=self.seed)

    def tell(self, trial, loss):
        failed = {"state": self.states.FAIL} if loss is None else {"values": loss}
        self.study.tell(self.asked[trial.id], **failed)


# ---- scikit-optimize -------------------------------------------------------------------------------------------------
class ScikitOptimize(Peer):
    package, modules = "scikit-optimize", ("skopt",)

    def build(self):
        from skopt import Optimizer
        from skopt.space import Categorical, Integer, Real

        dimensions = []
        for p in self.parameters:
            if p.kind == "category":
                dimensions.append(Categorical(list(range(p.high + 1))))
            else:
                make = Integer if p.kind == "int" else Real
                dimensions.append(make(p.low, p.high, prior="log-uniform" if p.log else "uniform"))
        self.optimizer = Optimizer(dimensions, random_state=self.seed)

    def ask(self, trial_id, trials):
        pending = [self.asked[trial.id] for trial in trials if trial.status == "running"]
        optimizer = self.optimizer
        if pending and len(optimizer.yi) >= 10:  # before, its points are random anyway
            optimizer = optimizer.copy(random_state=optimizer.rng.randint(2**31 - 1))
            optimizer.tell(pending, [min(optimizer.yi)] * len(pending))
        self.asked[trial_id] = optimizer.ask()
        return dict(zip((p.name for p in self.parameters), self.asked[trial_id]))

    def adopt(self, trial, numbers):
        self.asked[trial.id] = list(numbers.values())

    def tell_all(self, pairs):
        pairs = [(self.asked[trial.id], loss) for trial, loss in pairs if loss is not None]
        if pairs:
            self.optimizer.tell(*map(list, zip(*pairs)))  # one fit for all


# ---- SMAC ------------------------------------------------------------------------------------------------------------
class SMAC(Peer):
    package, modules = "smac", ("smac",)
    n_trials = 60  # its initial design takes at most a quarter of them

    def build(self):
        from ConfigSpace import Categorical, ConfigurationSpace, Float, Integer
        from smac import HyperparameterOptimizationFacade, Scenario
        from smac.runhistory import StatusType, TrialValue

        self.configspace = space = ConfigurationSpace(seed=self.seed)
        for p in self.parameters:
            if p.kind == "category":
                space.add(Categorical(p.name, list(range(p.high + 1))))
            else:
                make = Integer if p.kind == "int" else Float
                space.add(make(p.name, (p.low, p.high), log=p.log))
        self.StatusType, self.TrialValue = StatusType, TrialValue
        self.folder = tempfile.TemporaryDirectory()
        settings = {"deterministic": True, "n_trials": self.n_trials, "seed": self.seed}
        scenario = Scenario(space, output_directory=self.folder.name, **settings)
        self.smac = HyperparameterOptimizationFacade(scenario, lambda config, seed: 0.0, logging_level=False)

    def ask(self, trial_id, trials):
        self.asked[trial_id] = self.smac.ask()
        return dict(self.asked[trial_id].config)

    def adopt(self, trial, numbers):
        from ConfigSpace import Configuration
        from smac.runhistory import TrialInfo

        self.asked[trial.id] = TrialInfo(Configuration(self.configspace, numbers), seed=0)
        self.smac.runhistory.add_running_trial(self.asked[trial.id])

    def tell(self, trial, loss):
        status = self.StatusType.CRASHED if trial.value is None else self.StatusType.SUCCESS
        if loss is not None:
            self.smac.tell(self.asked[trial.id], self.TrialValue(cost=loss, status=status), save=False)


# ---- Ax --------------------------------------------------------------------------------------------------------------
class Ax(Peer):
    package, modules = "ax-platform", ("ax",)

    def build(self):
        from ax.api.client import Client
        from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

        parameters = []
        for p in self.parameters:
            if p.kind == "category":
                values = [str(i) for i in range(p.high + 1)]
                parameters.append(ChoiceParameterConfig(p.name, values, parameter_type="str", is_ordered=False))
            else:
                scaling = "log" if p.log else "linear"
                parameters.append(RangeParameterConfig(p.name, (p.low, p.high), p.kind, scaling=scaling))
        self.client = Client(random_seed=self.seed)
        self.client.configure_experiment(parameters=parameters)
        self.client.configure_optimization(objective="-loss")
        self.client.configure_generation_strategy(method="fast", initialization_random_seed=self.seed)

    def ask(self, trial_id, trials):
        ((self.asked[trial_id], numbers),) = self.client.get_next_trials(max_trials=1).items()
        return numbers

    def adopt(self, trial, numbers):
        categories = {p.name for p in self.parameters if p.kind == "category"}
        numbers = {name: str(number) if name in categories else number for name, number in numbers.items()}
        self.asked[trial.id] = self.client.attach_trial(numbers)

    def tell(self, trial, loss):
        if loss is None:
            self.client.mark_trial_failed(self.asked[trial.id])
        else:
            self.client.complete_trial(self.asked[trial.id], raw_data={"loss": loss})


# ---- HEBO ------------------------------------------------------------------------------------------------------------
class HEBO(Peer):
    package, modules = "HEBO", ("hebo",)

    def build(self):
        import torch
        from hebo.design_space.design_space import DesignSpace
        from hebo.optimizers.hebo import HEBO
        from pymoo.config import Config

        Config.warnings["not_compiled"] = False  # printed to stdout otherwise
        np.random.seed(self.seed % 2**32)  # HEBO draws from the global generators
        torch.manual_seed(self.seed)
        description = []
        for p in self.parameters:
            if p.kind == "category":
                description.append({"name": p.name, "type": "cat", "categories": list(range(p.high + 1))})
            else:
                kind = {"float": "pow" if p.log else "num", "int": "pow_int" if p.log else "int"}[p.kind]
                description.append({"name": p.name, "type": kind, "lb": p.low, "ub": p.high})
        self.optimizer = HEBO(DesignSpace().parse(description), scramble_seed=self.seed)

    def ask(self, trial_id, trials):
        self.asked[trial_id] = self.optimizer.suggest(n_suggestions=1)
        return self.asked[trial_id].iloc[0].to_dict()

    def adopt(self, trial, numbers):
        import pandas as pd

        self.asked[trial.id] = pd.DataFrame([numbers])

    def tell(self, trial, loss):
        if loss is not None:
            self.optimizer.observe(self.asked[trial.id], np.array([[loss]]))


# ---- Syne Tune -------------------------------------------------------------------------------------------------------
class SyneTune(Peer):
    """Its domains are ours, by name. 0.16 pairs configurations in the order of suggestion with losses in the order
    of arrival, which under asynchrony are different orders: mended here, to compare with what is meant."""

    package, modules = "syne-tune", ("syne_tune", "botorch")

    def build(self):
        import torch
        from syne_tune import config_space
        from syne_tune.backend.trial_status import Trial
        from syne_tune.optimizer.baselines import BOTorch

        np.random.seed(self.seed % 2**32)  # its initial draws are from the global generators
        torch.manual_seed(self.seed)
        space = {name: getattr(config_space, d.kind)(*d.arguments) for name, d in domains(self.space).items()}
        self.Trial = Trial
        self.scheduler = BOTorch(space, metric="loss", do_minimize=True, random_seed=self.seed)

    def ask(self, trial_id, trials):
        self.asked[trial_id] = self.scheduler.suggest().config
        return self.asked[trial_id]

    def adopt(self, trial, numbers):
        searcher = self.scheduler.searcher
        searcher.trial_configs[trial.id] = self.asked[trial.id] = trial.config
        searcher.pending_trials.add(trial.id)

    def decode(self, config):
        return {name: nearest(domain, config[name]) for name, domain in domains(self.space).items()}

    def tell(self, trial, loss):
        theirs = self.Trial(trial.id, self.asked[trial.id], None)
        if loss is None:
            self.scheduler.on_trial_error(theirs)
        else:
            self.scheduler.on_trial_complete(theirs, {"loss": loss})
        searcher = self.scheduler.searcher
        searcher.trial_observations = dict(sorted(searcher.trial_observations.items()))


def nearest(domain, value):
    """The domain's value nearest to a number that may differ in the last digits."""
    if isinstance(domain, Grid) and all(isinstance(v, (int, float)) for v in domain.values):
        return min(domain.values, key=lambda v: abs(v - value))
    return domain.cast(min(max(value, domain.low), domain.high) if isinstance(domain, Float) else value)


PEERS = {
    "optuna_tpe": OptunaTPE,
    "optuna_gp": OptunaGP,
    "skopt": ScikitOptimize,
    "smac": SMAC,
    "ax": Ax,
    "hebo": HEBO,
    "syne_tune": SyneTune,
}


def missing(name):
    """What to install for a peer, in a line; None when it is there."""
    peer = PEERS[name]
    for module in peer.modules:
        if importlib.util.find_spec(module) is None:
            more = " ".join(peer.modules[1:])
            return f"{name} is left out: no module {module}; pip install {peer.package} {more}".strip()
    return None


def version(name):
    """Package and version of a peer: optuna 5.0.0."""
    return f"{PEERS[name].package} {metadata.version(PEERS[name].package)}"
