"""Configuration space: a plain dict, name -> domain or constant.

    config_space = {"learning_rate": loguniform(1e-6, 1), "n_units": randint(4, 1024), "epochs": 81}

A domain knows five things: how to turn a point of the unit cube into a value (`decode`) and back (`encode`), which
points are values (`snap`), which values belong to it (`cast`), and its JSON form. Sampling is decoding a uniform
random point, so there is one definition of every distribution. Both ends of a range are inclusive. The names are Syne
Tune's.

Exactness: decode(encode(config)) == config for whatever was decoded. Integers and grid values sit in the middle of
their cells; decoded floats are rounded to 12 (log scale) or 14 significant digits, more coarsely than the errors of
the two maps.
"""

import json
import math
import re
import sys

import numpy as np

RESERVED = ("help", "config_json", "trial_seed")  # flags of hpo.objective.run_as_program
LARGEST_GRID = 100_000  # its values are listed
LARGEST_INT = 2**44  # beyond, float64 cannot tell neighbouring integers apart on a log scale


# ---- Domains ---------------------------------------------------------------------------------------------------------
class Domain:
    """A set of values and its map to the unit cube; `arguments` are those of the constructor named `kind`."""

    n_dims = 1  # coordinates in the unit cube
    n_values = math.inf
    values = None  # all of them, where they are finitely many

    def __init__(self, kind, *arguments):
        self.kind, self.arguments = kind, arguments

    def to_json(self):
        return {self.kind: self.arguments[0] if self.kind in LISTED else list(self.arguments)}

    def __reduce__(self):  # pickled as the call that made it
        return DOMAINS[self.kind], self.arguments

    def __repr__(self):
        return f"{self.kind}({', '.join(map(repr, self.arguments))})"

    def __eq__(self, other):
        return isinstance(other, Domain) and _typed(self.to_json()) == _typed(other.to_json())

    def __hash__(self):
        return hash(_typed(self.to_json()))

    def sample(self, rng):
        return self.decode(rng.random(self.n_dims))

    def encode(self, value):
        """Point (n_dims,) in [0, 1] of a value of the domain."""
        raise TypeError(f"{type(self).__name__} has no encoding")

    def decode(self, x):
        """Value at the point x (n_dims,); coordinates outside [0, 1] count as the nearest end."""
        raise TypeError(f"{type(self).__name__} has no encoding")

    def snap(self, X):
        """Encodings (m, n_dims) of the values at the rows of X (m, n_dims), but for the rounding of floats."""
        raise TypeError(f"{type(self).__name__} has no encoding")

    def cast(self, value):
        """The domain's own value equal to `value`, with its exact type; ValueError when there is none."""
        raise TypeError(f"{type(self).__name__} has no values")

    def parse(self, text):
        """The value written as `text`: JSON, Python's True/False/None, or a bare string; ValueError when not in it."""
        for value in (_parse_json(text), text):
            try:
                return self.cast(value)
            except ValueError:
                continue
        raise ValueError(f"expected a value of {self!r}, got {text!r}")


class Float(Domain):
    """Real numbers in [low, high], uniform on the scale that `to_scale` and `from_scale` map to and from."""

    def __init__(self, kind, low, high, to_scale, from_scale, n_digits=14):
        super().__init__(kind, low, high)
        coarsest = 10.0 ** (3 - n_digits) * max(abs(low), abs(high))  # a thousand values at the least
        if low < high and high - low <= coarsest:
            raise ValueError(f"{kind} needs high - low > {coarsest:.2g} or low == high, got low={low!r}, high={high!r}")
        self.low, self.high = low, high
        self.to_scale, self.from_scale, self.n_digits = to_scale, from_scale, n_digits
        self.start, self.width = to_scale(low), to_scale(high) - to_scale(low)
        self.n_values, self.values = (1, [low]) if low == high else (math.inf, None)

    def encode(self, value):
        x = (self.to_scale(value) - self.start) / self.width if self.low < self.high else 0.5
        return np.array([min(max(x, 0.0), 1.0)])

    def decode(self, x):
        x = float(x[0])
        if x <= 0 or x >= 1:
            return self.low if x <= 0 else self.high
        value = self.from_scale(self.start + x * self.width)
        if self.low < 0 < self.high:  # errors are relative to the larger end, not to the value
            value = round(value, self.n_digits - math.ceil(math.log10(max(-self.low, self.high))))
        else:
            value = float(f"{value:.{self.n_digits - 1}e}")
        return min(max(value, self.low), self.high)

    def snap(self, X):
        return np.clip(X, 0, 1) if self.low < self.high else np.full_like(X, 0.5)

    def cast(self, value):
        value = _plain(value)
        if _is_number(value) and self.low <= value <= self.high:
            return float(value)
        raise ValueError(f"expected a number in {self!r}, got {value!r}")


class Integer(Domain):
    """Integers low..high: equal cells, or (log) cells as wide as [value - 1/2, value + 1/2] on a log scale."""

    def __init__(self, kind, low, high, log):
        super().__init__(kind, low, high)
        self.low, self.high, self.log = low, high, log
        self.n_values, self.values = high - low + 1, range(low, high + 1)
        if log:
            self.start, self.width = math.log(low - 0.5), math.log((high + 0.5) / (low - 0.5))

    def encode(self, value):
        if self.log:  # the middle of the cell
            middle = (math.log(value - 0.5) + math.log(value + 0.5)) / 2
            return np.array([(middle - self.start) / self.width])
        return np.array([(value - self.low + 0.5) / self.n_values])

    def decode(self, x):
        x = min(max(float(x[0]), 0.0), 1.0)
        if self.log:
            value = round(math.exp(self.start + x * self.width))
        else:
            value = self.low + int(x * self.n_values)
        return min(max(value, self.low), self.high)

    def snap(self, X):
        X = np.clip(X, 0, 1)
        if self.log:
            values = np.clip(np.rint(np.exp(self.start + X * self.width)), self.low, self.high)
            return ((np.log(values - 0.5) + np.log(values + 0.5)) / 2 - self.start) / self.width
        return (np.minimum(np.floor(X * self.n_values), self.n_values - 1) + 0.5) / self.n_values

    def cast(self, value):
        value = _plain(value)
        if _is_number(value) and self.low <= value <= self.high and value == int(value):
            return int(value)
        raise ValueError(f"expected an integer in {self!r}, got {value!r}")


class Grid(Domain):
    """Ordered values, kept exactly; `edges` (n_values + 1,) are the ends of their cells, whose widths are the odds."""

    def __init__(self, kind, values, edges, *arguments):
        super().__init__(kind, *arguments)
        self.values, self.edges, self.n_values = values, edges, len(values)
        self.index = {_typed(value): i for i, value in enumerate(values)}

    def encode(self, value):
        i = self.index[_typed(value)]
        return np.array([(self.edges[i] + self.edges[i + 1]) / 2])

    def decode(self, x):
        x = min(max(float(x[0]), 0.0), 1.0)
        return self.values[min(int(np.searchsorted(self.edges, x, side="right")) - 1, self.n_values - 1)]

    def snap(self, X):
        i = np.minimum(np.searchsorted(self.edges, np.clip(X, 0, 1), side="right") - 1, self.n_values - 1)
        return (self.edges[i] + self.edges[i + 1]) / 2

    def cast(self, value):
        return _cast_listed(self, value)


class Choice(Domain):
    """Unordered values, one coordinate each (one-hot); the largest coordinate wins."""

    def __init__(self, values):
        super().__init__("choice", values)
        self.values, self.n_values = values, len(values)
        self.n_dims = len(values)
        self.index = {_typed(value): i for i, value in enumerate(values)}

    def encode(self, value):
        x = np.zeros(self.n_dims)
        x[self.index[_typed(value)]] = 1.0
        return x

    def decode(self, x):
        return self.values[int(np.argmax(x))]

    def snap(self, X):
        return (X.argmax(1)[:, None] == np.arange(self.n_dims)).astype(float)  # no n_dims x n_dims array

    def cast(self, value):
        return _cast_listed(self, value)


# ---- Constructors: the ten domains ------------------------------------------------------------------------------------
def uniform(low, high):
    """Real numbers in [low, high], all equally likely."""
    low, high = _bounds("uniform", low, high)
    return Float("uniform", low, high, float, float)


def loguniform(low, high):
    """Real numbers in [low, high], 0 < low, uniform in log(value)."""
    low, high = _bounds("loguniform", low, high, "0 < low <= high", above=0)
    return Float("loguniform", low, high, math.log, math.exp, n_digits=12)


def reverseloguniform(low, high):
    """Real numbers in [low, high], 0 <= low and high < 1, uniform in -log(1 - value): for values such as momentum."""
    low, high = _bounds("reverseloguniform", low, high, "0 <= low <= high < 1", least=0, below=1)
    return Float("reverseloguniform", low, high, lambda value: -math.log1p(-value), lambda t: -math.expm1(-t))


def randint(low, high):
    """Integers low..high, both included, all equally likely."""
    return Integer("randint", *_integer_bounds("randint", low, high), log=False)


def lograndint(low, high):
    """Integers low..high, 1 <= low, the probability of v proportional to log((v + 1/2) / (v - 1/2))."""
    return Integer("lograndint", *_integer_bounds("lograndint", low, high, "1 <= low <= high", least=1), log=True)


def choice(values):
    """Unordered JSON values (numbers, strings, booleans, null, lists, dicts), all equally likely."""
    return Choice(_listed("choice", values))


def ordinal(values):
    """Ordered JSON values, all equally likely; neighbours in the list count as close."""
    values = _listed("ordinal", values)
    return Grid("ordinal", values, np.linspace(0, 1, len(values) + 1), values)


def logordinal(values):
    """Increasing positive numbers, each as likely as the stretch of the log scale to which it is the nearest.

    The two outer cells reach half a mean distance beyond the ends, as in Syne Tune.
    """
    values = _listed("logordinal", values)
    if not all(_is_number(value) for value in values) or not all(a < b for a, b in zip([0, *values], values)):
        raise ValueError(f"logordinal needs increasing positive numbers, got {values}")
    t = np.array([math.log(value) for value in values])
    reach = (t[-1] - t[0]) / (len(t) - 1) / 2 if len(t) > 1 else 1.0
    edges = np.concatenate([[t[0] - reach], (t[1:] + t[:-1]) / 2, [t[-1] + reach]])
    if not np.all(np.diff(edges) > 1e-12 * np.abs(edges).max()):
        raise ValueError(f"logordinal needs values further apart on a log scale, got {values}")
    return Grid("logordinal", values, (edges - edges[0]) / (edges[-1] - edges[0]), values)


def finrange(low, high, size):
    """`size` equally spaced numbers from low to high, both included, all equally likely."""
    return _finite("finrange", uniform, _bounds("finrange", low, high), size)


def logfinrange(low, high, size):
    """`size` numbers from low to high, both included, equally spaced on a log scale, all equally likely."""
    return _finite("logfinrange", loguniform, _bounds("logfinrange", low, high, "0 < low <= high", above=0), size)


DOMAINS = {
    f.__name__: f
    for f in (uniform, loguniform, reverseloguniform, randint, lograndint)
    + (choice, ordinal, logordinal, finrange, logfinrange)
}
LISTED = ("choice", "ordinal", "logordinal")  # made from one list of values


def _bounds(kind, low, high, need="low <= high", above=-math.inf, least=-math.inf, below=math.inf):
    low, high = _plain(low), _plain(high)
    for name, bound in (("low", low), ("high", high)):
        if not _is_finite(bound):
            raise ValueError(f"{kind} needs finite numbers {need}, got {name}={bound!r}")
    if not (above < low <= high < below and least <= low):
        raise ValueError(f"{kind} needs {need}, got low={low!r}, high={high!r}")
    if not math.isfinite(float(high) - float(low)):
        raise ValueError(f"{kind} needs a finite high - low, got low={low!r}, high={high!r}")
    return float(low) + 0.0, float(high) + 0.0  # + 0.0: -0.0 becomes 0.0


def _integer_bounds(kind, low, high, need="low <= high", least=-math.inf):
    low, high = _plain(low), _plain(high)
    for name, bound in (("low", low), ("high", high)):
        if not _is_finite(bound) or bound != int(bound):
            raise ValueError(f"{kind} needs integers {need}, got {name}={bound!r}")
    if not least <= low <= high:
        raise ValueError(f"{kind} needs {need}, got low={low!r}, high={high!r}")
    if max(abs(low), abs(high)) > LARGEST_INT:
        raise ValueError(f"{kind} needs bounds of at most 2**44 in size, got low={low!r}, high={high!r}")
    return int(low), int(high)


def _listed(kind, values):
    if isinstance(values, (str, dict, set, frozenset)) or not hasattr(values, "__iter__"):
        raise ValueError(f"{kind} needs a list of values, got {values!r}")
    values = [_plain(value) for value in values]
    if not values:
        raise ValueError(f"{kind} needs at least one value, got an empty list")
    for i, value in enumerate(values):
        _check_json(f"{kind} value {i}", value)
    seen = [_typed(value) for value in values]
    for i, key in enumerate(seen):
        if key in seen[:i]:
            raise ValueError(f"{kind} needs distinct values, got {values[i]!r} twice")
    return values


def _finite(kind, domain, bounds, size):
    low, high = bounds
    size = _plain(size)
    if not _is_finite(size) or size != int(size) or size < 1 or (size == 1) != (low == high):
        raise ValueError(f"{kind} needs an integer size >= 2 (1 when low == high), got size={size!r}")
    if size > LARGEST_GRID:
        raise ValueError(
            f"{kind} needs a size of at most {LARGEST_GRID}, got size={size!r}; uniform and randint have no grid"
        )
    try:
        between = domain(low, high)
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from None
    values = [between.decode([i / (size - 1)]) for i in range(int(size))] if size > 1 else [low]
    if len(set(values)) < size:
        raise ValueError(f"{kind} needs distinct values, got size={size} between {low!r} and {high!r}")
    return Grid(kind, values, np.linspace(0, 1, int(size) + 1), low, high, int(size))


# ---- The space as a whole ----------------------------------------------------------------------------------------------
def check_space(space):
    """None; raises ValueError naming the entry that is neither a domain nor a JSON constant."""
    if not isinstance(space, dict) or not space:
        raise ValueError(f"config_space: expected a dict of domains and constants, got {space!r:.200}")
    for name, value in space.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][\w.-]*", name):
            raise ValueError(
                f"config_space: expected names of letters, digits and _ . -, a letter or _ first, got {name!r}"
            )
        if name in RESERVED:
            raise ValueError(f"{name}: is a flag of every objective file run as a program; choose another name")
        if not isinstance(value, Domain):
            _check_json(name, value)
    if not any(isinstance(value, Domain) for value in space.values()):
        raise ValueError("config_space: nothing to tune, every entry is a constant; give at least one a domain")


def domains(space):
    """The part of the space that is tuned: name -> domain."""
    return {name: value for name, value in space.items() if isinstance(value, Domain)}


def constants(space):
    """The part of the space that is fixed: name -> JSON value."""
    return {name: value for name, value in space.items() if not isinstance(value, Domain)}


def n_dims(space):
    """Length of an encoded configuration."""
    return sum(domain.n_dims for domain in domains(space).values())


def n_configs(space):
    """Number of different configurations: an int, or math.inf."""
    counts = [domain.n_values for domain in domains(space).values()]
    return math.inf if math.inf in counts else math.prod(counts)


def encode(space, config):
    """Point (n_dims,) in [0, 1] of a configuration."""
    return np.concatenate([domain.encode(config[name]) for name, domain in domains(space).items()])


def decode(space, x):
    """Configuration at the point x (n_dims,), the constants included, in the order of the space."""
    config, i = {}, 0
    for name, value in space.items():
        if isinstance(value, Domain):
            config[name] = value.decode(x[i : i + value.n_dims])
            i += value.n_dims
        else:
            config[name] = value
    return config


def snap(space, X):
    """Encodings (m, n_dims) of the configurations at the points X (m, n_dims), but for the rounding of floats."""
    parts = list(domains(space).values())
    columns = np.split(X, np.cumsum([domain.n_dims for domain in parts])[:-1], axis=1)
    return np.hstack([domain.snap(part) for domain, part in zip(parts, columns)])


def sample(space, rng):
    """A random configuration; rng is a numpy Generator."""
    return decode(space, rng.random(n_dims(space)))


def middle(space):
    """The configuration in the middle of every range (the first value of a choice)."""
    return decode(space, np.full(n_dims(space), 0.5))


def cast_config(space, config):
    """A complete configuration in the order of the space, with exact types.

    Missing hyperparameters take the middle of their range, constants their value; ValueError names what does not fit.
    """
    if not isinstance(config, dict):
        raise ValueError(f"configuration: expected a dict of names and values, got {config!r:.200}")
    complete = middle(space)
    for name, value in config.items():
        if name not in space:
            raise ValueError(f"{name}: no such name in the space; it has {', '.join(space)}")
        if isinstance(space[name], Domain):
            complete[name] = cast_value(name, space[name], value)
        elif _typed(value) != _typed(space[name]):
            raise ValueError(f"{name}: is the constant {space[name]!r} in this space, got {value!r}")
    return complete


def cast_value(name, domain, value):
    """The domain's value equal to `value`; ValueError names the hyperparameter."""
    try:
        return domain.cast(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def config_key(config):
    """A string equal for equal configurations of equal types: 1, 1.0, True and "1" are four different values."""
    return _typed(config)


def set_value(space, name, text):
    """A space in which `name` has the value written as `text`: a new value of a constant, or a domain fixed to it."""
    if name not in space:
        raise ValueError(f"{name}: no such name in the space; it has {', '.join(space)}")
    old = space[name]
    if isinstance(old, Domain):
        try:
            return {**space, name: old.parse(text)}
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return {**space, name: parse_constant(name, old, text)}


def parse_constant(name, old, text):
    """The value written as `text`, of the type of the constant `old`."""
    if isinstance(old, str):
        return text
    new = _parse_json(text)
    _check_json(name, new)
    if isinstance(old, float) and _is_finite(new):
        new = float(new)
    if old is not None and type(new) is not type(old):
        raise ValueError(f"{name}: expected a value of type {type(old).__name__} as {old!r} is, got {text!r}")
    return new


# ---- JSON --------------------------------------------------------------------------------------------------------------
def space_to_json(space):
    """JSON-ready dict: {"lr": {"loguniform": [1e-6, 1]}, "opt": {"choice": ["adam", "sgd"]}, "epochs": 81}.

    A dict-valued constant is wrapped, {"constant": {...}}, so that it cannot be taken for a domain.
    """
    check_space(space)
    as_json = {}
    for name, value in space.items():
        if isinstance(value, Domain):
            value = value.to_json()
        elif isinstance(value, dict):
            value = {"constant": value}
        as_json[name] = value
    return as_json


def space_from_json(as_json):
    """Inverse of `space_to_json`; ValueError names the entry that is wrong."""
    if not isinstance(as_json, dict):
        raise ValueError(f"config_space: expected a JSON object of domains and constants, got {as_json!r:.200}")
    space = {name: _entry_from_json(name, value) for name, value in as_json.items()}
    check_space(space)
    return space


def _entry_from_json(name, value):
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, arguments),) = value.items()
        if kind == "constant":
            return arguments
        if kind in DOMAINS:
            try:
                if kind in LISTED:
                    return DOMAINS[kind](arguments)
                if isinstance(arguments, list):
                    return DOMAINS[kind](*arguments)
                raise ValueError(f"{kind} needs a list of arguments, got {arguments!r}")
            except (ValueError, TypeError) as error:
                raise ValueError(f"{name}: {error}") from None
    raise ValueError(
        f'{name}: expected a constant or {{"DOMAIN": [arguments]}} with one of {", ".join(DOMAINS)}, got {value!r:.200}; '
        'a dict-valued constant is written {"constant": {...}}'
    )


def _check_json(name, value):
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key in value:
            _check_json(f"{name}[{key!r}]", value[key])
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_json(f"{name}[{i}]", item)
    elif type(value) is float and not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    elif type(value) not in (str, int, float, bool, type(None)):
        raise ValueError(
            f"{name}: expected a domain such as uniform(0, 1), or a JSON constant (number, string, boolean, null, list, "
            f"dict), got {value!r:.200} of type {type(value).__name__}"
        )


def _typed(value):
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):  # no JSON: equal to nothing in a space
        return repr(value)


def _plain(value):
    """A numpy scalar as a Python number."""
    return value.item() if isinstance(value, np.generic) else value


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value):  # by comparison, as an int can be too large for a float
    return _is_number(value) and -sys.float_info.max <= value <= sys.float_info.max


def _parse_json(text):
    spelled = {"True": True, "False": False, "None": None}
    try:
        return spelled[text] if text in spelled else json.loads(text)
    except ValueError:
        return text


def _cast_listed(domain, value):
    value = _plain(value)
    if _typed(value) in domain.index:
        return domain.values[domain.index[_typed(value)]]
    for listed in domain.values:
        if _is_number(listed) and _is_number(value) and listed == value:
            return listed
    raise ValueError(f"expected a value of {domain!r}, got {value!r}")
