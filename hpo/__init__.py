"""A small hyperparameter optimiser. Names load their module at first use."""

from importlib import import_module

_DOMAINS = "choice finrange logfinrange loguniform logordinal lograndint ordinal randint"
_HOMES = {
    "journal": "load",
    "objective": "run_as_program",
    "report": "Reporter StopTrial",
    "searchers": "SEARCHERS GPSearch RandomSearch",
    "space": f"{_DOMAINS} reverseloguniform uniform",
    "tuner": "tune",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'hpo' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"hpo.{_HOME[name]}"), name)
