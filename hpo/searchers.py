"""Searchers: which configuration to try next. The file to read and to change.

A searcher is a class with two methods; `suggest` is a function of its arguments alone, so that every suggestion of a
run can be recomputed from the run's folder:

    __init__(self, space, seed=0, max_epochs=None)
    suggest(self, trials) -> (config, origin), or None when a finite space has nothing new

trials: every trial so far (`hpo.trial.Trial`), sorted by id: id, config, status, curve [(epoch, loss)], lower is better.
The next trial's id is len(trials). origin: a word for the results, such as "random" or "model".
"""

import itertools

import numpy as np

from hpo.space import check_space, config_key, constants, domains, n_configs, sample


class RandomSearch:
    """Independent draws from the space, no configuration twice while there is another."""

    def __init__(self, space, seed=0, max_epochs=None):
        check_space(space)
        self.space, self.seed = space, seed

    def suggest(self, trials):
        rng = np.random.default_rng([self.seed, len(trials)])  # one stream for each suggestion
        if n_configs(self.space) == np.inf:
            return sample(self.space, rng), "random"  # a float twice has probability 0
        seen = {config_key(trial.config) for trial in trials}
        for _ in range(100):
            config = sample(self.space, rng)
            if config_key(config) not in seen:
                return config, "random"
        config = unseen_config(self.space, seen, rng)
        return None if config is None else (config, "random")


def unseen_config(space, seen, rng):
    """A configuration of a finite space that is not among `seen` (a set of config_key), or None: by listing them all.

    Reached when nearly everything is seen, so the list is about as long as the run.
    """
    names, values = zip(*((name, domain.values) for name, domain in domains(space).items()))
    order = {**space, **constants(space)}
    configs = ({**order, **dict(zip(names, combination))} for combination in itertools.product(*values))
    left = [config for config in configs if config_key(config) not in seen]
    return left[rng.integers(len(left))] if left else None


SEARCHERS = {"random": RandomSearch}
