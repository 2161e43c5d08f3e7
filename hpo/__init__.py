"""Small hyperparameter optimiser. Names load their module at first use, so a Reporter costs no numpy."""

from importlib import import_module

_HOMES = {
    "objective": ["run_as_program"],
    "report": ["Reporter", "StopTrial"],
    "results": ["load"],
    "searchers": ["SEARCHERS", "GPSearch", "RandomSearch"],
    "space": [
        "choice",
        "finrange",
        "logfinrange",
        "loguniform",
        "logordinal",
        "lograndint",
        "ordinal",
        "randint",
        "reverseloguniform",
        "uniform",
    ],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'hpo' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"hpo.{_HOME[name]}"), name)
