"""What the arguments of run.py name: a space, configurations, a searcher, a stopping rule. Bad ones raise ValueError."""

import inspect
import json
import pathlib

from hpo.objective import import_error, load_module
from hpo.searchers import SEARCHERS
from hpo.space import Domain, cast_config, domains, set_value, space_from_json
from hpo.stopping import RULES, with_options


def adjust(space, replacement, assignments):
    """The space of the run: the file's, or that of --space, a path, with every --set, a list of NAME=VALUE, applied."""
    if replacement:
        space = read_json("--space", replacement, space_from_json)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        try:
            if not equals:
                raise ValueError("expected NAME=VALUE")
            space = set_value(space, name.strip(), text)
            if not domains(space):
                raise ValueError("nothing is left to tune; to train one configuration, use python -m hpo.objective")
        except ValueError as error:
            raise ValueError(f"--set {assignment}: {error}") from None
    return space


def read_json(flag, path, convert):
    """convert(what a JSON file holds); ValueError names the flag and the file."""
    try:
        return convert(json.loads(pathlib.Path(path).read_text(), object_pairs_hook=without_repeats))
    except OSError as error:
        reason = f"cannot be read: {error.strerror}; expected a JSON file"
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = f"is not JSON: {error}"
    except ValueError as error:
        reason = error
    raise ValueError(f"{flag} {path}: {reason}")


def without_repeats(pairs):
    """The dict of a JSON object's (name, value) pairs; ValueError where a name comes twice, as one would be lost."""
    names = [name for name, _ in pairs]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{repeated[0]!r} comes twice in one object; expected each name once")
    return dict(pairs)


def read_start(path, space):
    return read_json("--start", path, lambda configs: cast_start(configs, space))


def cast_start(configs, space):
    configs = configs if configs is None or isinstance(configs, list) else [configs]
    return configs and [cast_config(space, config) for config in configs]


def last_epoch(space, name):
    epochs = space.get(name)
    if isinstance(epochs, Domain) and name == "epochs":
        return None  # it is tuned, so no trial's last epoch is that of another
    if name in space and (type(epochs) is not int or epochs < 1):
        raise ValueError(f"{name}: expected the last epoch, a constant integer >= 1, got {epochs!r}")
    if name not in space and name != "epochs":
        raise ValueError(f"--epochs_name {name}: no such name in the space; it has {', '.join(space)}")
    return epochs


def find_searcher(name):
    """The searcher class of a name, or of FILE.py:CLASS."""
    if name in SEARCHERS:
        return SEARCHERS[name]
    found = from_file("--searcher", name, SEARCHERS, "CLASS")
    if not isinstance(found, type) or not callable(getattr(found, "suggest", None)):
        raise ValueError(f"--searcher {name}: expected a class with a method suggest(trials), got {found!r:.100}")
    return found


def find_rule(name, first_rung=1, eta=3):
    """The stopping rule of a name, or of FILE.py:FUNCTION, with its options; None for "none"."""
    known = {"auto": RULES["halving"], **RULES}
    rule = known[name] if name in known else from_file("--stopping", name, known, "FUNCTION")
    if rule is not None and (isinstance(rule, type) or not callable(rule)):
        raise ValueError(
            f"--stopping {name}: expected a function (trial, trials, max_epochs) -> bool, got {rule!r:.100}"
        )
    if rule:
        rule = with_options(rule, first_rung=first_rung, eta=eta)
        check_arguments(f"--stopping {name}", rule, "trial", "trials", "max_epochs")
    return rule


def check_arguments(what, function, *names):
    """None; ValueError when a function of the user's cannot be called with these positional arguments."""
    got = inspect.signature(function)
    try:
        got.bind(*names)
    except TypeError:
        raise ValueError(f"{what}: expected the arguments ({', '.join(names)}), got {got}") from None


def from_file(flag, name, known, kind):
    """What a Python file defines under a name, of FILE.py:NAME."""
    path, colon, attribute = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise ValueError(f"{flag}: expected {', '.join(known)} or FILE.py:{kind}, got {name!r}")
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{flag} {name}: {path}: no such file")
    try:
        module = load_module(path)
    except (Exception, SystemExit) as error:  # whatever the user's file raises becomes one line
        raise ValueError(f"{flag}: {import_error(error, path)}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"{flag} {name}: {path} has no {kind.lower()} {attribute}")
    return getattr(module, attribute)
