"""Configuration space: a plain dict, name -> domain or constant.

    config_space = {"learning_rate": loguniform(1e-6, 1), "n_units": randint(4, 1024), "epochs": 81}

A domain maps a point x of the unit cube to a value (`decode`) and a value to a point (`encode`).
Sampling is decoding a uniform random point, so there is one definition of every distribution.
Both bounds of a range belong to it. decode(encode(config)) == config for every decoded config:
integers and listed values are encoded at the middle of their cells, floats are rounded.
"""

import json
import math
import re
from contextlib import suppress
from functools import partial

import numpy as np

RESERVED = ("help", "config_json", "trial_seed")  # flags of every objective
LISTED = ("choice", "ordinal", "logordinal", "constant")  # made from one argument
# Type -> (largest bound, the same in words). Up to these bounds high - low is finite, and a log
# scale still tells neighbouring integers apart.
NUMBERS = {float: (2.0**1022, "finite numbers"), int: (2**44, "integers of at most 2**44")}

# Scales on which numbers are uniform: map, inverse, limits of the bounds, the limits in words
LINEAR = np.positive, np.positive, -math.inf, math.inf, "low <= high"  # np.positive(v) is v
LOG = np.log, np.exp, math.ulp(0), math.inf, "0 < low <= high"
REVERSE = lambda v: -np.log1p(-v), lambda t: -np.expm1(-t), 0, 1 - 2**-53, "0 <= low <= high < 1"


# ---- Domains ----
class Domain:
    """A set of values and its map to the unit cube, made by the constructor named `kind`.

    Each value has a number: a real or an integer is its own, a listed value has its position.
    Numbers go from low to high on a scale, and each has the cell [number - half, number + half].
    """

    def __init__(self, kind, arguments, values, scale, low, high):
        self.kind, self.arguments = kind, arguments
        self.n_dims = len(values) if kind == "choice" else 1
        self.values = values  # a list or a range; None for real numbers
        self.n_values = math.inf if values is None else len(values)
        listed = values if isinstance(values, list) else []
        self.positions = {config_key(value): i for i, value in enumerate(listed)}
        if len(self.positions) < len(listed):
            raise ValueError(f"{kind} needs distinct values, got {values}")
        self.low, self.high, self.half = low, high, 0 if values is None else 0.5
        self.to_scale, self.from_scale = scale[:2]
        self.start = self.to_scale(low - self.half)
        self.width = self.to_scale(high + self.half) - self.start

    def points(self, numbers):
        """Points (..., n_dims) in [0, 1] of numbers (...,): the middles of their cells."""
        t = (self.to_scale(numbers - self.half) + self.to_scale(numbers + self.half)) / 2
        return ((t - self.start) / (self.width or 1))[..., None]

    def numbers(self, X):
        """The inverse: numbers (...,) at points X (..., n_dims)."""
        x = np.minimum(np.maximum(X[..., 0], 0), 1)  # np.clip is slow for one x
        numbers = self.from_scale(self.start + x * self.width)
        rounded = np.floor(numbers + 0.5) if self.half else numbers
        return np.minimum(np.maximum(rounded, self.low), self.high)

    def encode(self, value):
        """The point (n_dims,) of a value."""
        return self.points(np.array(self.positions[config_key(value)] if self.positions else value))

    def decode(self, x):
        """The value at a point (n_dims,)."""
        number = self.numbers(np.asarray(x))
        if self.values is not None:
            return self.values[int(number) - self.low]
        # the maps err by less than 12 digits: of the number on a log scale, else of the larger end
        size = number if self.to_scale is np.log else max(-self.low, self.high)
        rounded = round(float(number), 12 - math.ceil(math.log10(size or 1))) + 0.0  # not -0.0
        return min(max(rounded, self.low), self.high)

    def cast(self, value):
        """The domain's own value equal to `value`, with its exact type."""
        own, value = self.nearest(value), _plain(value)
        are_numbers = {type(own), type(value)} <= {*NUMBERS}
        if not (are_numbers and own == value) and config_key(own) != config_key(value):
            raise ValueError(f"expected a value of {self!r}, got {value!r}")
        return own

    def nearest(self, value):
        """Its own value that equals `value`, or is nearest to a number; else the middle one."""
        value, numbers = _plain(value), [self.low, self.high]
        if self.positions:
            if (key := config_key(value)) in self.positions:
                return self.values[self.positions[key]]
            numbers = [own for own in self.values if type(own) in NUMBERS]
        if type(value) not in NUMBERS or not numbers:
            return self.decode(np.full(self.n_dims, 0.5))
        value = min(max(min(numbers), value), max(numbers))
        if self.positions:
            return min(numbers, key=lambda own: abs(own - value))
        return type(self.low)(round(value) if self.half else value)

    def to_json(self):
        return {self.kind: self.arguments[0] if self.kind in LISTED else list(self.arguments)}

    def __reduce__(self):
        return _from_json, (self.kind, self.to_json())

    def __repr__(self):
        return f"{self.kind}({', '.join(map(repr, self.arguments))})"

    def __eq__(self, other):
        return repr(self) == repr(other)


class Choice(Domain):
    """Values without order, one coordinate each (one-hot); the largest coordinate wins."""

    def points(self, numbers):
        return (numbers[..., None] == np.arange(self.n_dims)).astype(float)

    def numbers(self, X):
        return X.argmax(-1)


# ---- Constructors: the ten domains ----
def _range(kind, number, scale, low, high):
    (least, most, need), (size, words) = scale[2:], NUMBERS[number]
    low, high = bounds = _plain(low), _plain(high)
    own = tuple(number(b) for b in bounds if type(b) in NUMBERS and abs(b) <= size)
    if own != bounds or not least <= low <= high <= most:
        need = need if own == bounds else words
        raise ValueError(f"{kind} needs {need}, got low={low!r}, high={high!r}")
    if number is float and low == high:  # one value, as in a list
        return Domain(kind, own, [own[0]], LINEAR, 0, 0)
    values = range(own[0], own[1] + 1) if number is int else None
    return Domain(kind, own, values, scale, *own)


def _spaced(kind, scale, low, high, size):
    between, size = _range(kind, float, scale, low, high), _plain(size)
    if type(size) is not int or size < 2:
        raise ValueError(f"{kind} needs an integer size >= 2, got size={size!r}")
    values = [between.low, *map(between.decode, np.linspace([0], [1], size)[1:-1]), between.high]
    return Domain(kind, (*between.arguments, size), values, LINEAR, 0, size - 1)


def _listed(kind, domain, scale, values):
    if not isinstance(values, (list, tuple, range, np.ndarray)) or not len(values):
        raise ValueError(f"{kind} needs a list of at least one value, got {values!r}")
    values = [_plain(value) for value in values]
    _check_json(kind, values)
    if scale is LOG:  # the outer cells reach half a mean distance beyond the ends, as in Syne Tune
        if {*map(type, values)} - {*NUMBERS} or any(a >= b for a, b in zip([0, *values], values)):
            raise ValueError(f"{kind} needs increasing positive numbers, got {values}")
        t = [math.log(value) for value in values]
        step = (t[-1] - t[0]) / max(len(t) - 1, 1)
        t = np.array([t[0] - step, *t, t[-1] + step])
        n, edges = np.arange(len(values) + 1) - 0.5, (t[1:] + t[:-1]) / 2
        scale = partial(np.interp, xp=n, fp=edges), partial(np.interp, xp=edges, fp=n)
    return domain(kind, (values,), values, scale, 0, len(values) - 1)


# (low, high): reals, uniform on the scale; REVERSE is for values such as momentum
uniform = partial(_range, "uniform", float, LINEAR)
loguniform = partial(_range, "loguniform", float, LOG)
reverseloguniform = partial(_range, "reverseloguniform", float, REVERSE)
# (low, high): integers, v as likely as [v - 1/2, v + 1/2] is wide on the scale
randint = partial(_range, "randint", int, LINEAR)
lograndint = partial(_range, "lograndint", int, LOG)
finrange = partial(_spaced, "finrange", LINEAR)  # (low, high, size): equally spaced and likely
logfinrange = partial(_spaced, "logfinrange", LOG)
# (values): JSON values, in order but for a choice; LOG: v as likely as it is nearest
choice = partial(_listed, "choice", Choice, LINEAR)
ordinal = partial(_listed, "ordinal", Domain, LINEAR)
logordinal = partial(_listed, "logordinal", Domain, LOG)
RANGES = uniform, loguniform, reverseloguniform, randint, lograndint, finrange, logfinrange
FORMS = {make.args[0]: make for make in (*RANGES, choice, ordinal, logordinal)}
FORMS["constant"] = lambda value: value


# ---- The space as a whole ----
def check_space(space):
    """Raises a ValueError that names an entry which is neither a domain nor JSON."""
    if not isinstance(space, dict):
        raise ValueError(f"config_space: expected a dict of names, got {space!r:.99}")
    for name, entry in space.items():
        if name in RESERVED or not re.fullmatch(r"[A-Za-z_][\w.-]*", str(name)):
            raise ValueError(f"{name}: expected a name such as n_units_1, and none of {RESERVED}")
        if not isinstance(entry, Domain):
            _check_json(name, entry)
    if not domains(space):
        raise ValueError("config_space: nothing to tune; give a name a domain")


def domains(space):
    """The part of the space that is tuned: name -> domain."""
    return {name: entry for name, entry in space.items() if isinstance(entry, Domain)}


def constants(space):
    """The part of the space that is fixed: name -> JSON value."""
    return {name: entry for name, entry in space.items() if not isinstance(entry, Domain)}


def n_dims(space):
    """Length of an encoded configuration."""
    return sum(domain.n_dims for domain in domains(space).values())


def encode(space, config):
    """Point (n_dims,) in [0, 1] of a configuration."""
    return np.concatenate([domain.encode(config[name]) for name, domain in domains(space).items()])


def decode(space, x):
    """Configuration at the point x (n_dims,), constants included, in the order of the space."""
    config, i = dict(space), 0
    for name, domain in domains(space).items():
        config[name] = domain.decode(x[i : i + domain.n_dims])
        i += domain.n_dims
    return config


def snap(space, X):
    """encode(decode(x)) of the rows x of X (m, n_dims), but for rounded floats."""
    parts = list(domains(space).values())
    columns = np.split(X, np.cumsum([domain.n_dims for domain in parts])[:-1], axis=1)
    return np.hstack([d.points(d.numbers(part)) for d, part in zip(parts, columns)])


def sample(space, rng):
    """A random configuration; rng is a numpy Generator."""
    return decode(space, rng.random(n_dims(space)))


def middle(space):
    """The configuration in the middle of every range (the first value of a choice)."""
    return decode(space, np.full(n_dims(space), 0.5))


def config_key(config):
    """A string for a config or a value; those of 1, 1.0, True and "1" differ."""
    return json.dumps(config, sort_keys=True, default=repr)


def cast_config(space, config, is_complete=False):
    """A complete configuration with exact types. A missing name: the middle, or a ValueError."""
    if not isinstance(config, dict):
        raise ValueError(f"configuration: expected a dict of names, got {config!r:.99}")
    complete, missing = middle(space), domains(space).keys() - config
    if is_complete and missing:
        raise ValueError(f"{min(missing)} is missing")
    for name, value in config.items():
        if name not in space:
            raise ValueError(f"{name}: no such name in the space; it has {', '.join(space)}")
        if isinstance(space[name], Domain):
            complete[name] = cast_value(name, space[name], value)
        elif config_key(value) != config_key(space[name]):
            raise ValueError(f"{name}: is the constant {space[name]!r} here, got {value!r}")
    return complete


def nearest_config(space, config):
    """(configuration, changes): one of another space as one of this space; changes is a list.

    A name that is new takes the middle of its range, a value outside a range its nearest end, and
    constants are this space's. Names that are gone are left out.
    """
    complete, known = middle(space), [name for name in space if name in config]
    complete |= {n: space[n].nearest(config[n]) for n in known if isinstance(space[n], Domain)}
    changed = [n for n in known if config_key(complete[n]) != config_key(config[n])]
    changes = [f"{name} is new" for name in domains(space) if name not in config]
    changes += [f"{name} is gone" for name in config if name not in space]
    return complete, changes + [f"{n}={config[n]} becomes {complete[n]}" for n in changed]


def cast_value(name, domain, value):
    """As domain.cast; the ValueError names the hyperparameter."""
    try:
        return domain.cast(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def set_value(space, name, text):
    """A space in which `name` has the value written as `text`; a constant keeps its type."""
    if name not in space:
        raise ValueError(f"{name}: no such name in the space; it has {', '.join(space)}")
    old, readings = space[name], [text]
    if not isinstance(old, str):
        with suppress(ValueError):
            readings.insert(0, float(text))  # .1, which is no JSON
        with suppress(ValueError):
            json_text = {"True": "true", "False": "false", "None": "null"}.get(text, text)
            readings.insert(0, json.loads(json_text))
    for value in readings:
        with suppress(ValueError):
            if isinstance(old, Domain):
                return {**space, name: old.cast(value)}
            _check_json(name, value)
            if old is None or type(value) is type(old):
                return {**space, name: value}
    of = "of" if isinstance(old, Domain) else "like"
    raise ValueError(f"{name}: expected a value {of} {old!r}, got {text!r}")


# ---- JSON ----
def space_to_json(space):
    """JSON-ready dict: {"lr": {"loguniform": [1e-6, 1]}, "n": 81, "d": {"constant": {"a": 1}}}."""
    check_space(space)
    fixed = {k: {"constant": v} if isinstance(v, dict) else v for k, v in space.items()}
    return fixed | {name: domain.to_json() for name, domain in domains(space).items()}


def space_from_json(space):
    """Inverse of `space_to_json`; the ValueError names the entry."""
    if isinstance(space, dict):
        space = {name: _from_json(name, entry) for name, entry in space.items()}
    check_space(space)
    return space


def _from_json(name, entry):
    if not isinstance(entry, dict):
        return entry
    kind = next(iter(entry), None)
    if len(entry) != 1 or kind not in FORMS:
        raise ValueError(f"{name}: expected one of {', '.join(FORMS)}, got {entry!r:.99}")
    try:
        return FORMS[kind](*([entry[kind]] if kind in LISTED else entry[kind]))
    except TypeError:  # too few or many arguments, or none
        raise ValueError(f"{name}: {kind} cannot be made of {entry[kind]!r:.99}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_json(name, value):
    with suppress(TypeError, ValueError):
        if json.loads(json.dumps(value, allow_nan=False)) == value:
            return
    raise ValueError(f"{name}: expected a domain such as uniform(0, 1), or JSON, got {value!r:.99}")


def _plain(value):  # a numpy scalar becomes a Python number
    return value.item() if isinstance(value, np.generic) else value
