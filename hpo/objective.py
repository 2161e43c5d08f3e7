"""The objective: loading it, describing it, running it as a program.

An objective file defines config_space, metric, mode ("max" or "min"), objective(config), and maybe
prepare(constants) -> dict. Only processes of their own load it: the tuner's process stays free of
torch, and of whatever else the file does. An objective is named by the path of such a file, or by
the pair (module, name) of an importable function; or it is a function itself.

    python -m hpo.objective train/mlp_fashion_mnist.py --learning_rate=0.001 ...   trains once
"""

import argparse
import ast
import importlib
import importlib.util
import json
import os
import pathlib
import platform
import random
import shlex
import sys
import traceback
import types

ROOT = pathlib.Path(__file__).resolve().parent.parent


# ---- Loading -------------------------------------------------------------------------------------
def load_module(objective, source=None):
    """What has the attribute `objective`: the module of an objective, with all that it defines.

    source: what its file held when the run began, so that editing the file does not change a run.
    """
    if callable(objective):
        return types.SimpleNamespace(objective=objective)
    spec = _spec(objective)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    source = pathlib.Path(spec.origin).read_bytes() if source is None else source
    is_pair = isinstance(objective, tuple)
    if not is_pair:
        sys.path[:0] = [os.path.dirname(spec.origin), str(ROOT)]
    exec(compile(source, spec.origin, "exec"), module.__dict__)  # noqa: S102 (it is the user's)
    return types.SimpleNamespace(objective=getattr(module, objective[1])) if is_pair else module


def _spec(objective):
    if isinstance(objective, tuple):
        return importlib.util.find_spec(objective[0])
    path = pathlib.Path(objective).resolve()
    name = path.stem if path.stem not in sys.modules else f"objective_{path.stem}"
    return importlib.util.spec_from_file_location(name, path)


def source_of(objective):
    """(source, libraries): the text of the objective's file, and the modules that it imports.

    These are imported once for all trials, but never the file itself nor its neighbours: they may
    touch CUDA, which does not survive a fork. There are no such modules where the file mentions
    the environment or sys.path, as it may want to set these before it imports.
    """
    try:
        path = pathlib.Path(_spec(objective).origin)
        source, names = path.read_bytes(), []
        for node in ast.parse(source).body:
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module)
    except (OSError, SyntaxError, ValueError, TypeError, AttributeError, ImportError):
        return None, []  # `describe` says what is wrong
    if any(word in source for word in (b"environ", b"putenv", b"sys.path")):
        return source, []
    near = {file.stem for folder in (path.parent, ROOT) for file in folder.iterdir()}
    return source, [name for name in names if name.partition(".")[0] not in near]


def set_generators(seed, n_threads=None):
    """Seeds the global random generators, and sets the threads, of the libraries in use."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
        torch.set_num_threads(n_threads or torch.get_num_threads())


# ---- Describing ----------------------------------------------------------------------------------
def describe(objective, source, *, space, metric, mode, assignments=(), prepared=None):
    """A JSON-ready dict with space, metric, mode, prepared, note and gpus of an objective.

    space: JSON of a space that replaces the file's own, or None. assignments: those of --set.
    metric, mode: replace the file's, or None. prepared: what the file's `prepare` returned when the
    run began, and then it does not run again; or None. ValueError says what is wrong.
    """
    from hpo.space import constants, set_value, space_from_json, space_to_json

    try:
        module = load_module(objective, source)
    except BaseException as error:  # whatever the user's code raises becomes one line
        raise ValueError(import_error(error, objective)) from error
    metric, mode = metric or getattr(module, "metric", None), mode or getattr(module, "mode", None)
    if not callable(getattr(module, "objective", None)):
        raise ValueError("expected a function objective(config)")
    if space is None and not hasattr(module, "config_space"):
        raise ValueError("expected config_space, a dict of names and domains")
    if not isinstance(metric, str) or not metric:
        raise ValueError(f"metric: expected a name, got {metric!r}; or give --metric")
    if mode not in ("max", "min"):
        raise ValueError(f'mode: expected "max" or "min", got {mode!r}; see --mode')
    space = module.config_space if space is None else space_from_json(space)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        try:
            if not equals:
                raise ValueError("expected NAME=VALUE")
            space = set_value(space, name.strip(), text)
        except ValueError as error:
            raise ValueError(f"--set {assignment}: {error}") from None
    space_to_json(space)  # raises now rather than after `prepare`, which may take long
    if prepared is None:
        prepared = _prepare(module, constants(space))
    note, used = prepared.pop("note", ""), {"numpy", "torch", "torchvision"} & set(sys.modules)
    versions = {name: sys.modules[name].__version__ for name in sorted(used)}
    return {
        "space": space_to_json({**space, **prepared}), "metric": metric, "mode": mode,
        "prepared": prepared, "note": note, "gpus": visible_gpus(),
        "versions": {**versions, "python": platform.python_version()},
    }  # fmt: skip


def _prepare(module, given):
    try:
        prepared = module.prepare(dict(given)) or {} if hasattr(module, "prepare") else {}
    except BaseException as error:  # as above
        known = isinstance(error, (ValueError, OSError))
        raise ValueError(str(error) if known else f"prepare: {one_line(error)}") from error
    if not isinstance(prepared, dict) or set(prepared) - {*given, "note"}:
        names = ", ".join([*given, "note"])
        raise ValueError(f"prepare: expected a dict of some of {names}, got {prepared!r:.200}")
    return prepared


def visible_gpus():
    """The values of CUDA_VISIBLE_DEVICES that give one GPU each: as torch sees them, if in use."""
    torch, devices = sys.modules.get("torch"), pathlib.Path("/dev").glob("nvidia[0-9]*")
    n_gpus = torch.cuda.device_count() if torch else len(list(devices))
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(n_gpus)) if given is None else given.split(",")[:n_gpus]
    return [name.strip() for name in names if name.strip() not in ("", "-1")]


def import_error(error, path):
    """One line that says where and why a file cannot be imported."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}, line {error.lineno}: SyntaxError: {error.msg}"
    file = str(pathlib.Path(path).resolve()) if isinstance(path, str) else ""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [number for frame, number in frames if frame.f_code.co_filename == file]
    where = f"{path}, line {lines[-1]}" if lines else path
    return f"{where}: {error if isinstance(error, ValueError) else one_line(error)}"


def one_line(error):
    """Type and message of an exception in one line of at most 2,000 characters."""
    return " ".join("".join(traceback.format_exception_only(error)).split())[:2000]


# ---- As a program --------------------------------------------------------------------------------
def run_as_program(objective, config_space, prepare=None, arguments=None):
    """Calls objective(config) with the configuration on the command line; its reports are printed.

    Every name of the space is a required flag, or all come from --config_json FILE. Unknown flags
    are ignored: tuners add some of their own. --trial_seed N repeats the random numbers of a trial.
    """
    from hpo.space import Domain, cast_value, constants, set_value

    parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config_json", metavar="FILE", help="a JSON file with all the values")
    parser.add_argument("--trial_seed", type=int, metavar="N", help="seed of the random generators")
    for name, entry in config_space.items():
        text = f"{entry}".replace("%", "%%")
        parser.add_argument(f"--{name}", dest=name, metavar="VALUE", help=text)
    given = vars(parser.parse_known_args(arguments)[0])
    try:
        if "config_json" in given:
            given |= json.loads(pathlib.Path(given["config_json"]).read_text())
        if missing := [f"--{name}" for name in config_space if name not in given]:
            raise ValueError(f"missing {', '.join(missing)}; every name of config_space is needed")
        config = {name: given[name] for name in config_space}
        for name, entry in config_space.items():
            if isinstance(config[name], str):
                config |= {name: set_value({name: entry}, name, config[name])[name]}
            elif isinstance(entry, Domain):
                config[name] = cast_value(name, entry, config[name])
        if prepare:
            config |= prepare({name: config[name] for name in constants(config_space)}) or {}
    except (ValueError, OSError) as error:
        parser.error(str(error))
    config.pop("note", None)  # of `prepare`, for the tuner to show
    if "trial_seed" in given:
        set_generators(given["trial_seed"])
    objective(config)


def command_line(path, config, trial_seed, n_threads):
    """The shell command that trains a configuration again with the same seed and threads."""
    words = ["python", "-m", "hpo.objective", str(path), f"--trial_seed={trial_seed}"]
    for name, value in config.items():
        words.append(f"--{name}={value if isinstance(value, str) else json.dumps(value)}")
    elsewhere = "" if pathlib.Path.cwd() == ROOT else f"PYTHONPATH={shlex.quote(str(ROOT))} "
    return f"{elsewhere}OMP_NUM_THREADS={n_threads} {shlex.join(words)}"


if __name__ == "__main__":
    if len(sys.argv) < 2 or not sys.argv[1].endswith(".py") or not os.path.isfile(sys.argv[1]):
        sys.exit("usage: python -m hpo.objective OBJECTIVE.py --NAME=VALUE ...")
    loaded = load_module(sys.argv[1])
    prepare = getattr(loaded, "prepare", None)
    run_as_program(loaded.objective, loaded.config_space, prepare, sys.argv[2:])
