"""hpo/space.py: distributions against closed forms, exact round trips, errors a user reads."""

import json
import math
import pickle

import numpy as np
import pytest

from hpo import space as s

JSON = [  # values that must survive a file, and that only their type or a letter tells apart
    {}, {"uniform": [0, 1]}, {"constant": {"constant": {}}}, {"choice": [["a"]]}, [], [{"a": [0]}],
    None, "null", True, "True", 1, 1.0, "1", -0.0, 2**70, 0.1, "", ".'\"\\\n\t{}", "é✓😀", "\ud800",
]  # fmt: skip
MIXED = [1, 1.5, True, "1", None, [1, 2], {"a": [1]}, "b"]
SMALL = {"units": s.randint(4, 1024), "rate": s.loguniform(1e-6, 1), "epochs": 81}


# ---- Distributions: sampling is decoding a uniform random point ----
CONTINUOUS = [
    (s.uniform(-2, 3), lambda v: (v + 2) / 5),
    (s.loguniform(1e-6, 1), lambda v: math.log10(v) / 6 + 1),
    (s.reverseloguniform(0.5, 0.999), lambda v: math.log((1 - v) / 0.5) / math.log(0.001 / 0.5)),
    (s.reverseloguniform(0, 0.9), lambda v: math.log(1 - v) / math.log(0.1)),
]
DISCRETE = [  # domain, its values, the edges of their cells
    (s.randint(-3, 12), range(-3, 13), np.arange(17) / 16),
    (s.lograndint(1, 64), range(1, 65), np.log(np.arange(1, 66) * 2 - 1) / math.log(129)),
    (s.finrange(0, 1, 6), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], np.arange(7) / 6),
    (s.logfinrange(1e-4, 1, 5), [1e-4, 1e-3, 1e-2, 1e-1, 1.0], np.arange(6) / 5),
    (s.ordinal(MIXED), MIXED, np.arange(9) / 8),
    # half a mean distance beyond the ends, whose logarithms are 0 and 3
    (s.logordinal([1, 10, 1e3]), [1, 10, 1e3], np.array([-0.75, 0.5, 2, 3.75]) / 4.5 + 1 / 6),
]


@pytest.mark.parametrize("domain, cdf", CONTINUOUS)
def test_continuous_domain_has_its_distribution(domain, cdf):
    for x in np.linspace(0, 1, 1001):
        value = domain.decode([x])
        assert type(value) is float and domain.low <= value <= domain.high
        assert cdf(value) == pytest.approx(x, abs=1e-9)


@pytest.mark.parametrize("domain, values, edges", DISCRETE)
def test_discrete_domain_has_its_cells(domain, values, edges):
    """A value is encoded in the middle of its cell."""
    assert domain.n_values == len(values) and repr([*domain.values]) == repr([*values])
    for value, left, right in zip(values, edges[:-1], edges[1:], strict=True):
        assert domain.encode(value) == pytest.approx([(left + right) / 2], abs=1e-12)
        for x in (left + 1e-9, right - 1e-9):
            assert repr(domain.decode([x])) == repr(value)


def test_choice_is_one_hot():
    domain = s.choice(MIXED)
    assert [domain.encode(value).tolist() for value in MIXED] == np.eye(8).tolist()
    assert domain.n_dims == 8 and domain.decode([0.2, 0.7, 0.69, 0, 0, 0, 0, 0]) == 1.5


# ---- Encoding ----
EXTREME = [
    s.uniform(-1e300, 1e300), s.uniform(-4e307, 4e307), s.uniform(1e6, 1e6 + 1e-2),
    s.uniform(0.3, 0.3), s.uniform(-3, 7), s.loguniform(5e-324, 1e307), s.loguniform(3e-6, 0.7),
    s.reverseloguniform(0, 0.999), s.reverseloguniform(0, 1 - 1e-16), s.randint(7, 7),
    s.randint(-(2**44), 2**44), s.lograndint(1, 2**44), s.lograndint(2**43, 2**44),
    s.finrange(-1 / 3, 1 / 3, 5), s.logfinrange(0.3, 3.0, 4),
]  # fmt: skip


@pytest.mark.parametrize("domain", EXTREME, ids=str)
def test_extreme_range_reaches_its_bounds_and_decodes_what_it_encodes(domain):
    low, high = (domain.cast(bound) for bound in domain.arguments[:2])
    assert [repr(domain.decode([x])) for x in (0.0, -0.5, -math.inf)] == [repr(low)] * 3
    assert [repr(domain.decode([x])) for x in (1.0, 1.5, math.inf)] == [repr(high)] * 3
    random = np.random.default_rng(0).random(1000)
    points = [*random, *(0.3 + 1e-4 * random), 1e-16, 1 - 1e-16]  # uniform(-3, 7) is 0 at 0.3
    for value in (low, high, *(domain.decode([x]) for x in points)):
        assert low <= value <= high
        assert repr(domain.decode(domain.encode(value))) == repr(value)


def test_middle_is_round_and_completes_a_configuration():
    assert repr(s.middle(SMALL)) == repr({"units": 514, "rate": 0.001, "epochs": 81})
    assert s.middle({"a": s.randint(0, 1), "b": s.ordinal([1, 2])}) == {"a": 1, "b": 2}
    found = s.cast_config(SMALL, {"epochs": 81, "units": 16.0})
    assert repr(found) == repr({"units": 16, "rate": 0.001, "epochs": 81})


# ---- Random spaces ----
def random_domain(rng):
    kind = rng.choice([*s.FORMS][:10])
    if kind in ("choice", "ordinal"):
        return s.FORMS[kind]([JSON[i] for i in rng.permutation(len(JSON))[: rng.integers(1, 7)]])
    if kind == "logordinal":
        return s.logordinal(sorted({float(f"{10**b:.3g}") for b in rng.uniform(-5, 5, 5)}))
    pairs = {
        "loguniform": 10 ** rng.uniform(-300, 300, 2),
        "logfinrange": 10 ** rng.uniform(-9, 9, 2),
        "reverseloguniform": 1 - 10 ** rng.uniform(-4, 0, 2),
        "randint": rng.integers(-(10 ** rng.integers(1, 13)), 10 ** rng.integers(1, 13), 2),
        "lograndint": (10 ** rng.uniform(0, 13, 2)).astype(int),
    }
    low, high = sorted(pairs.get(kind, rng.normal(size=2) * 10 ** rng.uniform(-8, 8)))
    return s.FORMS[kind](low, high, *[rng.integers(2, 50)] * ("fin" in kind))


@pytest.mark.parametrize("seed", range(60))
def test_random_space_round_trips(seed):
    rng = np.random.default_rng(seed)
    space = {"tuned": random_domain(rng)}
    for i in range(rng.integers(5)):
        space[f"entry_{i}"] = random_domain(rng) if rng.random() < 0.6 else JSON[rng.integers(20)]
    as_json = json.dumps(s.space_to_json(space))
    copy = pickle.loads(pickle.dumps(s.space_from_json(json.loads(as_json))))
    assert json.dumps(s.space_to_json(copy)) == as_json
    assert list(copy) == list(space) and repr(s.constants(copy)) == repr(s.constants(space))
    assert s.domains(copy) == s.domains(space)

    d = s.n_dims(space)
    X = np.concatenate([rng.random((20, d)), rng.integers(0, 2, (5, d)), np.full((1, d), 0.5)])
    for x, snapped in zip(X, s.snap(space, X), strict=True):
        config = s.decode(space, x)
        encoded = s.encode(space, config)
        assert encoded.shape == (d,) and (encoded >= 0).all() and (encoded <= 1).all()
        assert snapped == pytest.approx(encoded, abs=1e-8)
        assert repr(s.decode(space, encoded)) == repr(s.decode(copy, x)) == repr(config)
        assert repr(s.cast_config(space, json.loads(json.dumps(config)))) == repr(config)
        for name in s.domains(space):
            fixed = s.set_value(space, name, json.dumps(config[name]))
            assert repr(fixed[name]) == repr(config[name])


# ---- Casting ----
def test_cast_gives_the_domains_own_value():
    cases = [(s.uniform(0, 10), 3, 3.0), (s.lograndint(1, 10), np.float32(4), 4)]
    cases += [(s.choice([1, 2]), 2.0, 2), (s.choice([1, 1.0]), 1, 1), (s.choice([0]), 0.0, 0)]
    cases += [(s.choice([1.0, 1]), 1, 1), (s.choice([1.0, 1]), 1.0, 1.0)]
    cases += [(s.choice([1, True]), True, True), (s.choice([0.5, 2]), np.float64(0.5), 0.5)]
    cases += [(s.finrange(0, 1, 3), 1, 1.0), (s.logordinal([1, 2.5]), np.int64(1), 1)]
    for domain, given, expected in cases:
        assert repr(domain.cast(given)) == repr(expected)


def test_cast_refuses_what_is_not_in_the_domain():
    cases = [(s.uniform(0, 1), [1.01, math.nan, math.inf, True, "0.5", None, 10**400, [0.5]])]
    cases += [(s.randint(0, 3), [1.5, -1, 4, False, "1"]), (s.finrange(0, 1, 3), [0.25, 2])]
    cases += [(s.choice([1, "2"]), [True, "1", 2, None, {}, math.nan]), (s.choice([True]), [1])]
    cases += [(s.choice([[1], {"a": 1}]), [[1.0], [True], {"a": 1, "b": 2}, np.array([1]), {1}])]
    for domain, value in [(domain, value) for domain, wrong in cases for value in wrong]:
        with pytest.raises(ValueError) as error:
            domain.cast(value)
        assert str(error.value) == f"expected a value of {domain!r}, got {value!r}"


def test_set_value_keeps_the_type():
    cases = [(81, "27", 27), (0.5, "1", 1.0), (0.1, ".2", 0.2), (True, "False", False)]
    cases += [("auto", "5", "5"), ("auto", "", ""), (None, "[1]", [1]), ({"a": 1}, "{}", {})]
    cases += [(s.uniform(0, 1), "1e-3", 0.001), (s.randint(0, 1000), "1e3", 1000)]
    cases += [(s.choice(["1", 2]), "1", "1"), (s.choice(["1", 1]), "1", 1)]
    cases += [(s.choice(["1", 1]), '"1"', "1"), (s.choice(["1.", 1.0]), "1.", 1.0)]
    cases += [(s.choice(["true"]), "true", "true"), (s.choice([True, None]), "None", None)]
    for old, text, expected in cases:
        space = {"x": old, "tuned": s.uniform(0, 1)}
        assert repr(s.set_value(space, "x", text)) == repr({**space, "x": expected})
        assert space["x"] is old


def test_set_value_refuses_another_type():
    cases = [(81, "27.0"), (81, "many"), (81, "true"), (81, ""), (True, "1"), (0.5, "1e999")]
    cases += [(0.5, "NaN"), ([1], "1"), ({}, "[]"), (s.uniform(0, 1), "2"), (s.uniform(0, 1), "[")]
    for old, text in cases:
        with pytest.raises(ValueError, match="^x: expected"):
            s.set_value({"x": old, "tuned": s.uniform(0, 1)}, "x", text)


# ---- Equality and arguments ----
def test_values_and_domains_are_told_apart():
    keys = {s.config_key([value]) for value in (1, 1.0, True, "1", None, [1], "null")}
    assert len(keys) == 7 and s.config_key({"a": 1, "b": 2}) == s.config_key({"b": 2, "a": 1})
    assert s.choice([1, 2]) != s.choice([2, 1]) != s.choice([2, True]) != s.ordinal([2, True])


def test_numpy_scalars_are_taken():
    for kind in (np.float64, np.float16, np.int64, np.uint8):
        assert s.lograndint(kind(1), kind(100)) == s.lograndint(1, 100)
        assert s.finrange(kind(0), kind(4), np.int64(3)) == s.finrange(0, 4, 3)
        assert s.choice(np.array([1, 2], kind)) == s.choice([kind(1).item(), kind(2).item()])


ERRORS = """
uniform("0", 1) -> uniform needs finite numbers, got low='0', high=1
loguniform(0.0, 1) -> loguniform needs 0 < low <= high, got low=0.0, high=1
choice("abc") -> choice needs a list of at least one value, got 'abc'
choice([[1], [1]]) -> choice needs distinct values, got [[1], [1]]
choice([(1, 2), math.nan]) -> choice: NO JSON, got [(1, 2), nan]
logordinal([0, 2]) -> logordinal needs increasing positive numbers, got [0, 2]
finrange(0, 1, 1) -> finrange needs an integer size >= 2, got size=1
check_space({"a": 1}) -> config_space: nothing to tune; give a name a domain
check_space({"a b": U}) -> a b: expected a name such as n_units_1, and none of RESERVED
check_space({"u": U, "c": int}) -> c: NO JSON, got <class 'int'>
set_value({"u": U}, "v", "1") -> v: no such name in the space; it has u
cast_config({"u": U}, [1]) -> configuration: expected a dict of names, got [1]
cast_config({"u": U, "n": 81}, {"n": 81.0}) -> n: is the constant 81 here, got 81.0
space_from_json({"u": {"unifrom": [0, 1]}}) -> u: expected one of FORMS, got {'unifrom': [0, 1]}
space_from_json({"u": {"uniform": [1, 0]}}) -> u: uniform needs low <= high, got low=1, high=0
"""


@pytest.mark.parametrize("case", ERRORS.strip().splitlines())
def test_error_names_the_thing_what_was_expected_and_what_came(case):
    call, message = case.split(" -> ")
    message = message.replace("NO JSON", "expected a domain such as uniform(0, 1), or JSON")
    message = message.replace("FORMS", ", ".join(s.FORMS)).replace("RESERVED", str(s.RESERVED))
    with pytest.raises(ValueError) as error:
        eval(call, {**vars(s), "U": s.uniform(0, 1)})
    assert str(error.value) == message


# ---- JSON ----
def test_json_form_is_the_documented_one():
    space = {"rate": s.loguniform(1e-6, 1), "opt": s.choice(["a", "b"]), "n": 1, "d": {"n": [1]}}
    expected = {"rate": {"loguniform": [1e-6, 1.0]}, "opt": {"choice": ["a", "b"]}, "n": 1}
    assert repr(s.space_to_json(space)) == repr({**expected, "d": {"constant": {"n": [1]}}})
    space |= {f"x{i}": value for i, value in enumerate(JSON)}
    assert repr(s.space_from_json(json.loads(json.dumps(s.space_to_json(space))))) == repr(space)
