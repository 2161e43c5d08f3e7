"""hpo/space.py: distributions against closed forms, exact round trips over random spaces, errors in the user's words."""

import json
import math
import pickle

import numpy as np
import pytest

from hpo.space import (
    DOMAINS,
    Domain,
    cast_config,
    check_space,
    choice,
    config_key,
    constants,
    decode,
    domains,
    encode,
    finrange,
    logfinrange,
    logordinal,
    lograndint,
    loguniform,
    middle,
    n_configs,
    n_dims,
    ordinal,
    randint,
    reverseloguniform,
    sample,
    set_value,
    space_from_json,
    space_to_json,
    uniform,
)

TUTORIAL = {
    "n_units_1": randint(4, 1024),
    "n_units_2": randint(4, 1024),
    "batch_size": randint(8, 128),
    "dropout_1": uniform(0, 0.99),
    "dropout_2": uniform(0, 0.99),
    "learning_rate": loguniform(1e-6, 1),
    "weight_decay": loguniform(1e-8, 1),
    "epochs": 81,
}
ONE_OF_EACH = [
    uniform(-2, 3),
    loguniform(1e-6, 1),
    reverseloguniform(0.5, 0.999),
    randint(-3, 12),
    lograndint(1, 1024),
    choice(["adam", "sgd", None, True, 1, [1, {"a": 2}]]),
    ordinal([8, 16, "many", 1.5]),
    logordinal([1, 2, 8, 100.0]),
    finrange(0, 1, 11),
    logfinrange(1e-4, 1, 5),
]
N = 20_000
# Kolmogorov-Smirnov at N: P(max deviation > 0.0172) = 2 exp(-2 N 0.0172^2), about 1.5e-5
TOLERANCE = 0.0172


def typed(value):
    """Value and types, told apart down to the last leaf."""
    if isinstance(value, list):
        return [typed(item) for item in value]
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    return type(value).__name__, value


def samples(domain, seed=0, n=N):
    rng = np.random.default_rng(seed)
    return [domain.sample(rng) for _ in range(n)]


# ---- Distributions ------------------------------------------------------------------------------------------------------
def max_deviation(values, cdf):
    """Kolmogorov-Smirnov statistic of a continuous distribution."""
    p = np.sort([cdf(value) for value in values])
    steps = np.arange(len(p) + 1) / len(p)
    return max(np.max(np.abs(p - steps[1:])), np.max(np.abs(p - steps[:-1])))


CONTINUOUS = [
    (uniform(-2, 3), lambda v: (v + 2) / 5),
    (loguniform(1e-6, 1), lambda v: math.log10(v) / 6 + 1),
    (reverseloguniform(0.5, 0.999), lambda v: math.log((1 - v) / 0.5) / math.log(0.001 / 0.5)),
    (reverseloguniform(0, 0.9), lambda v: math.log(1 - v) / math.log(0.1)),
]


@pytest.mark.parametrize("domain, cdf", CONTINUOUS)
def test_continuous_domain_matches_its_distribution(domain, cdf):
    values = samples(domain)
    assert all(type(value) is float and domain.low <= value <= domain.high for value in values)
    assert max_deviation(values, cdf) < TOLERANCE


@pytest.mark.parametrize("domain, cdf", CONTINUOUS)
def test_continuous_decode_is_the_inverse_distribution(domain, cdf):
    for x in np.linspace(0, 1, 101):
        assert cdf(domain.decode([x])) == pytest.approx(x, abs=1e-9)


def test_wrong_distribution_is_detected():
    """The case that must fail: the neighbouring scale is far outside the tolerance."""
    assert max_deviation(samples(uniform(0.001, 1)), lambda v: math.log10(v) / 3 + 1) > 5 * TOLERANCE
    assert max_deviation(samples(uniform(0.5, 0.999)), CONTINUOUS[2][1]) > 5 * TOLERANCE
    assert chi_square(samples(lograndint(1, 8)), [(v, 1 / 8) for v in range(1, 9)]) > 5 * chi_square_limit(7)
    # the odds of an integer that is drawn from log(low)..log(high) and rounded: half a cell at both ends
    ends = [(v, math.log(min(v + 0.5, 8) / max(v - 0.5, 1)) / math.log(8)) for v in range(1, 9)]
    assert chi_square(samples(lograndint(1, 8)), ends) > 5 * chi_square_limit(7)


def chi_square(values, probabilities):
    """Pearson's statistic; infinite when a value has no probability."""
    keys = {config_key(value): p for value, p in probabilities}
    counts = dict.fromkeys(keys, 0)
    for value in values:
        if config_key(value) not in counts:
            return math.inf
        counts[config_key(value)] += 1
    return sum((counts[key] - len(values) * p) ** 2 / (len(values) * p) for key, p in keys.items())


def chi_square_limit(degrees):
    """Wilson-Hilferty's quantile at four standard deviations: exceeded with probability 3e-5."""
    return degrees * (1 - 2 / (9 * degrees) + 4 * math.sqrt(2 / (9 * degrees))) ** 3


def log_nearest(values):
    """Probability of each value as the log-nearest on an axis that reaches half a mean distance beyond the ends."""
    t = [math.log(value) for value in values]
    reach = (t[-1] - t[0]) / (len(t) - 1) / 2
    low, high = t[0] - reach, t[-1] + reach
    points = low + (np.arange(1_000_000) + 0.5) / 1_000_000 * (high - low)
    nearest = np.argmin(np.abs(points[:, None] - np.array(t)), axis=1)
    return list(zip(values, np.bincount(nearest, minlength=len(t)) / 1_000_000))


MIXED = [1, 1.5, True, "1", None, [1, 2], {"a": [1]}, "b"]
DISCRETE = [
    (randint(-3, 12), [(v, 1 / 16) for v in range(-3, 13)]),
    (randint(0, 1), [(0, 0.5), (1, 0.5)]),
    (lograndint(1, 30), [(v, math.log((v + 0.5) / (v - 0.5)) / math.log(30.5 / 0.5)) for v in range(1, 31)]),
    (lograndint(5, 8), [(v, math.log((v + 0.5) / (v - 0.5)) / math.log(8.5 / 4.5)) for v in range(5, 9)]),
    (choice(MIXED), [(v, 1 / 8) for v in MIXED]),
    (choice(["a", "b", "c"]), [(v, 1 / 3) for v in "abc"]),
    (ordinal([8, 16, "many", 1.5]), [(v, 1 / 4) for v in (8, 16, "many", 1.5)]),
    (logordinal([1, 2, 8, 100.0]), log_nearest([1, 2, 8, 100.0])),
    (finrange(0, 1, 11), [(round(0.1 * i, 1), 1 / 11) for i in range(11)]),
    (logfinrange(1e-4, 1, 5), [(v, 1 / 5) for v in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)]),
]


@pytest.mark.parametrize("domain, odds", DISCRETE)
def test_discrete_domain_matches_its_odds(domain, odds):
    assert sum(p for _, p in odds) == pytest.approx(1)
    assert chi_square(samples(domain), odds) < chi_square_limit(len(odds) - 1)
    assert domain.n_values == len(odds) and [typed(v) for v in domain.values] == [typed(v) for v, _ in odds]


def test_randint_ends_are_as_likely_as_the_middle():
    values = np.array(samples(randint(10, 14)))
    shares = [np.mean(values == v) for v in (10, 12, 14)]
    assert shares == pytest.approx([0.2] * 3, abs=4 * math.sqrt(0.2 * 0.8 / N))  # four standard deviations


def test_logordinal_decodes_to_the_nearest_in_log():
    values = [1, 3, 4, 50, 1000]
    domain = logordinal(values)
    reach = math.log(1000) / 4 / 2
    t = np.linspace(-reach, math.log(1000) + reach, 1001)
    for x, point in zip(np.linspace(0, 1, 1001), t):
        distances = sorted(abs(math.log(v) - point) for v in values)
        if distances[1] - distances[0] > 1e-9:  # not half-way
            assert abs(math.log(domain.decode([x])) - point) == pytest.approx(distances[0], abs=1e-9)


@pytest.mark.parametrize("domain", ONE_OF_EACH, ids=lambda domain: domain.kind)
def test_samples_depend_on_the_generator_alone(domain):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    assert samples(domain, seed=3, n=50) == samples(domain, seed=3, n=50) != samples(domain, seed=4, n=50)
    assert (np.random.get_state()[1] == before).all()


# ---- Bounds -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "domain, first, last",
    [
        (uniform(1 / 3, 2 / 3), 1 / 3, 2 / 3),
        (uniform(-1e300, 1e-300), -1e300, 1e-300),
        (loguniform(1 / 3, math.pi), 1 / 3, math.pi),
        (loguniform(5e-324, 1.7e308), 5e-324, 1.7e308),
        (reverseloguniform(0, 1 - 2**-53), 0.0, 1 - 2**-53),
        (randint(-(2**44), 2**44), -(2**44), 2**44),
        (lograndint(1, 2**44), 1, 2**44),
        (ordinal(["a", "b"]), "a", "b"),
        (logordinal([0.3, 7]), 0.3, 7),
        (finrange(-1 / 3, 1 / 3, 5), -1 / 3, 1 / 3),
        (logfinrange(1 / 3, math.pi, 4), 1 / 3, math.pi),
    ],
)
def test_both_bounds_are_hit_exactly(domain, first, last):
    for x in (0.0, -0.5, -math.inf):
        assert typed(domain.decode([x])) == typed(first)
    for x in (1.0, 1.5, math.inf):
        assert typed(domain.decode(np.array([x]))) == typed(last)
    for bound in (first, last):
        assert typed(domain.decode(domain.encode(bound))) == typed(bound)
        assert typed(domain.cast(bound)) == typed(bound)


def test_all_values_of_small_domains_are_sampled():
    for domain in (randint(0, 3), lograndint(1, 4), finrange(0, 1, 4), logfinrange(1, 8, 4), choice([1, 2, 3, 4])):
        assert {config_key(v) for v in samples(domain, n=500)} == {config_key(v) for v in domain.values}


@pytest.mark.parametrize(
    "domain", [uniform(0.3, 0.3), loguniform(2, 2), reverseloguniform(0.5, 0.5), randint(7, 7), lograndint(7, 7)]
    + [choice(["a"]), ordinal([4]), logordinal([4]), finrange(0.3, 0.3, 1), logfinrange(0.3, 0.3, 1)],
    ids=lambda domain: domain.kind,
)  # fmt: skip
def test_domain_of_one_value_always_gives_it(domain):
    (value,) = domain.values
    assert domain.n_values == 1
    assert all(typed(domain.decode([x])) == typed(value) for x in (0.0, 0.3, 0.5, 1.0))
    x = domain.encode(value)
    assert x.shape == (1,) and 0 <= x[0] <= 1


@pytest.mark.parametrize("kind, high", [(uniform, 1e-300), (uniform, 1e-310), (reverseloguniform, 1e-13)])
def test_tiny_range_keeps_its_distribution_or_is_refused(kind, high):
    """Rounding must not swallow a range: quarters are where they belong."""
    try:
        domain = kind(0, high)
    except ValueError as error:
        assert kind.__name__ in str(error)
    else:
        for x in (0.25, 0.5, 0.75):
            assert domain.decode([x]) == pytest.approx(x * high, rel=1e-3, abs=0)


@pytest.mark.parametrize("kind", [uniform, loguniform])
def test_neighbouring_floats_are_told_apart_or_refused(kind):
    for low in (1.0, 1e-300, 1e300):
        try:
            domain = kind(low, math.nextafter(low, math.inf))
        except ValueError as error:
            assert kind.__name__ in str(error)
        else:
            assert [domain.decode(domain.encode(bound)) for bound in (domain.low, domain.high)] == [low, domain.high]


# ---- Encoding -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("low, high", [(0, 1), (-3, 12), (1, 1024), (-(2**44), 2**44)])
def test_integers_are_encoded_at_the_middle_of_their_cells(low, high):
    domain, n = randint(low, high), high - low + 1
    for value in {low, low + 1, (low + high) // 2, high}:
        x = domain.encode(value)
        assert x.shape == (1,) and x[0] == pytest.approx((value - low + 0.5) / n, abs=1e-15)
        ends = [(value - low) / n, (value - low + 1) / n]
        inside = [ends[0] + 0.01 / n, ends[1] - 0.01 / n]
        assert [domain.decode([end]) for end in inside] == [value, value]


def test_log_integers_are_encoded_at_the_middle_of_their_cells():
    domain, start, width = lograndint(1, 64), math.log(0.5), math.log(64.5 / 0.5)
    for value in range(1, 65):
        ends = [(math.log(value + side) - start) / width for side in (-0.5, 0.5)]
        assert domain.encode(value) == pytest.approx([sum(ends) / 2], abs=1e-12)
        assert [domain.decode([x]) for x in (ends[0] + 1e-9, ends[1] - 1e-9)] == [value, value]


def test_grid_is_encoded_at_the_middle_of_its_cells():
    for domain in (ordinal(list("abcd")), finrange(0, 3, 4), logfinrange(1, 1000, 4), logordinal([1, 10, 100, 1000])):
        assert np.concatenate([domain.encode(v) for v in domain.values]) == pytest.approx([1 / 8, 3 / 8, 5 / 8, 7 / 8])


def test_choice_is_one_hot():
    domain = choice(["a", "b", "c"])
    assert domain.n_dims == 3
    for i, value in enumerate("abc"):
        assert domain.encode(value).tolist() == np.eye(3)[i].tolist()
    assert domain.decode([0.2, 0.7, 0.69]) == "b"


def test_encode_has_a_coordinate_for_each_dimension():
    space = {"a": uniform(0, 2), "constant": [1], "b": choice([1, 2, 3]), "c": randint(0, 3)}
    x = encode(space, {"a": 0.5, "constant": [1], "b": 3, "c": 0})
    assert n_dims(space) == 5 and x.shape == (5,)
    assert x.tolist() == [0.25, 0, 0, 1, 0.125]
    assert list(decode(space, x)) == list(space)


def test_middle_of_the_tutorials_space():
    values = list(middle(TUTORIAL).values())
    assert [typed(v) for v in values] == [typed(v) for v in (514, 514, 68, 0.495, 0.495, 1e-3, 1e-4, 81)]


def test_grids_keep_round_values():
    assert finrange(0.1, 1, 10).values == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert logfinrange(1e-4, 1, 5).values == [1e-4, 1e-3, 1e-2, 1e-1, 1.0]


# ---- Random spaces ------------------------------------------------------------------------------------------------------
def random_number(rng):
    return float(rng.choice([-1, 1]) * 10 ** rng.uniform(-8, 8))


def random_json(rng, depth=0):
    kind = rng.integers(8 if depth < 3 else 6)
    if kind == 6:
        return [random_json(rng, depth + 1) for _ in range(rng.integers(4))]
    if kind == 7:
        return {random_text(rng): random_json(rng, depth + 1) for _ in range(rng.integers(4))}
    return [int(rng.integers(-9, 9)), random_number(rng), bool(rng.integers(2)), None, random_text(rng), 0.0][kind]


def random_text(rng):
    alphabet = list("ab1 ,.'\"\\\n\t{}[]é✓😀") + ["\ud800", "True", "null", "uniform"]
    return "".join(rng.choice(alphabet, rng.integers(6)))


def random_values(rng, make):
    values = {}
    for _ in range(rng.integers(1, 7)):
        value = make(rng)
        values[config_key(value)] = value
    return list(values.values())


def random_domain(rng):
    kind = list(DOMAINS)[rng.integers(len(DOMAINS))]
    if kind == "uniform":
        return uniform(*sorted([random_number(rng), random_number(rng)]))
    if kind == "loguniform":
        return loguniform(*sorted(10 ** rng.uniform(-300, 300, 2)))
    if kind == "reverseloguniform":
        return reverseloguniform(*sorted(1 - 10 ** rng.uniform(-10, 0, 2)))
    if kind == "randint":
        return randint(
            *sorted(int(b) for b in rng.integers(-(10 ** rng.integers(1, 13)), 10 ** rng.integers(1, 13), 2))
        )
    if kind == "lograndint":
        return lograndint(*sorted(int(10**b) for b in rng.uniform(0, 13, 2)))
    if kind in ("choice", "ordinal"):
        return DOMAINS[kind](random_values(rng, random_json))
    if kind == "logordinal":
        return logordinal(sorted({float(f"{10**b:.3g}") for b in rng.uniform(-5, 5, rng.integers(1, 7))}))
    if kind == "finrange":
        low = random_number(rng)
        return finrange(low, low + abs(random_number(rng)) + abs(low), int(rng.integers(2, 50)))
    low = 10 ** rng.uniform(-9, 9)
    return logfinrange(low, low * 10 ** rng.uniform(0.1, 9), int(rng.integers(2, 50)))


def random_space(seed):
    rng = np.random.default_rng(seed)
    space = {"tuned": random_domain(rng)}
    for i in range(rng.integers(5)):
        space[f"entry_{i}"] = random_domain(rng) if rng.random() < 0.6 else random_json(rng)
    return space, rng


def is_inside(domain, value):
    if domain.values is not None:
        return any(typed(value) == typed(listed) for listed in domain.values)
    return type(value) is float and domain.low <= value <= domain.high


def assert_round_trip(space, config):
    x = encode(space, config)
    assert x.shape == (n_dims(space),) and x.dtype == float and (x >= 0).all() and (x <= 1).all()
    assert typed(decode(space, x)) == typed(config) and list(config) == list(space)


@pytest.mark.parametrize("seed", range(120))
def test_random_space_decodes_what_it_encodes(seed):
    space, rng = random_space(seed)
    check_space(space)
    points = [rng.random(n_dims(space)) for _ in range(20)]
    points += [np.zeros(n_dims(space)), np.ones(n_dims(space)), rng.integers(0, 2, n_dims(space)).astype(float)]
    for config in [decode(space, x) for x in points] + [middle(space), sample(space, rng)]:
        assert_round_trip(space, config)
        assert all(is_inside_listed(domain, config[name]) for name, domain in domains(space).items())
        assert all(typed(config[name]) == typed(value) for name, value in constants(space).items())
        assert typed(cast_config(space, config)) == typed(config)
        assert typed(cast_config(space, json.loads(json.dumps(config)))) == typed(config)
        for name, domain in domains(space).items():
            assert typed(domain.parse(json.dumps(config[name]))) == typed(config[name])


def is_inside_listed(domain, value):
    """As is_inside, without listing ranges of 10^12 integers."""
    if isinstance(domain.values, range):
        return type(value) is int and value in domain.values
    return is_inside(domain, value)


@pytest.mark.parametrize("seed", range(120))
def test_random_space_survives_json_and_pickle(seed):
    space, rng = random_space(seed)
    as_json = json.dumps(space_to_json(space))
    for copy in (space_from_json(json.loads(as_json)), pickle.loads(pickle.dumps(space))):
        assert copy == space and list(copy) == list(space) and json.dumps(space_to_json(copy)) == as_json
        assert typed(constants(copy)) == typed(constants(space))
        for name, domain in domains(space).items():
            assert hash(copy[name]) == hash(domain) and type(copy[name]) is type(domain)
        x = rng.random(n_dims(space))
        assert typed(decode(copy, x)) == typed(decode(space, x))


@pytest.mark.parametrize(
    "domain",
    [loguniform(5e-324, 1.7e308), uniform(-8e307, 8e307), uniform(1e6, 1e6 + 1e-2), reverseloguniform(0, 1 - 2**-53)]
    + [lograndint(1, 2**44), lograndint(2**43, 2**44), randint(-(2**44), 2**44), loguniform(1, 1 + 1e-8)],
    ids=repr,
)
def test_extreme_range_decodes_what_it_encodes(domain):
    for value in samples(domain, n=2000):
        x = domain.encode(value)
        assert x.shape == (1,) and 0 <= x[0] <= 1
        assert typed(domain.decode(x)) == typed(value)


# ---- Casting and parsing ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "domain, given, expected",
    [
        (uniform(0, 10), 3, 3.0),
        (uniform(0, 10), np.float64(3.5), 3.5),
        (uniform(0, 10), np.int64(3), 3.0),
        (randint(0, 10), 3.0, 3),
        (randint(0, 10), np.int32(3), 3),
        (lograndint(1, 10), np.float32(4), 4),
        (choice([1, 2]), 2.0, 2),
        (choice([1, 1.0]), 1, 1),
        (choice([1, 1.0]), 1.0, 1.0),
        (choice([1.0, 1]), 1, 1),
        (ordinal([0.0, 0, False]), 0, 0),
        (choice([1, True]), True, True),
        (choice([True, 1]), 1, 1),
        (choice([0.5, 2]), np.float64(0.5), 0.5),
        (choice(["a", None]), None, None),
        (choice([[1, 2], {"a": 1}]), {"a": 1}, {"a": 1}),
        (finrange(0, 1, 3), 1, 1.0),
        (logordinal([1, 2.5]), 1.0, 1),
    ],
)
def test_cast_gives_the_domains_own_value(domain, given, expected):
    assert typed(domain.cast(given)) == typed(expected)


@pytest.mark.parametrize(
    "domain, given",
    [
        (uniform(0, 1), 1.0000001), (uniform(0, 1), math.nan), (uniform(0, 1), math.inf), (uniform(0, 1), True),
        (uniform(0, 1), "0.5"), (uniform(0, 1), None), (uniform(0, 1), 10**400), (uniform(0, 1), [0.5]),
        (randint(0, 3), 1.5), (randint(0, 3), -1), (randint(0, 3), 4), (randint(0, 3), math.nan),
        (randint(0, 3), math.inf), (randint(0, 3), False), (randint(0, 3), 10**400), (randint(0, 3), "1"),
        (choice([1, 2]), True), (choice([1, 2]), "1"), (choice([True]), 1), (choice(["1"]), 1), (choice([0]), None),
        (choice([[1]]), [1.0]), (choice([[1]]), [True]), (choice([{"a": 1}]), {"a": 1, "b": 2}), (choice([0]), {}),
        (choice([[1]]), [np.int64(1)]), (choice([{"a": 1}]), {1: 2, "a": 1}), (choice([[1]]), np.array([1])), (choice([[1]]), {1}),
        (finrange(0, 1, 3), 0.25), (logfinrange(1, 100, 3), 11), (ordinal(["a"]), "b"), (logordinal([1, 2]), 1.5),
    ],
)  # fmt: skip
def test_cast_refuses_what_is_not_in_the_domain(domain, given):
    with pytest.raises(ValueError) as error:
        domain.cast(given)
    assert repr(domain) in str(error.value) and repr(given) in str(error.value)


@pytest.mark.parametrize("domain", ONE_OF_EACH, ids=lambda domain: domain.kind)
def test_parse_reads_what_str_and_json_write(domain):
    for value in samples(domain, n=200):
        assert typed(domain.parse(json.dumps(value))) == typed(value)
        if not isinstance(value, list):  # a list is written as JSON
            assert typed(domain.parse(str(value))) == typed(value)


@pytest.mark.parametrize(
    "domain, text, expected",
    [
        (choice(["1", "2"]), "1", "1"),
        (choice(["true"]), "true", "true"),
        (choice([True, False]), "False", False),
        (choice([None]), "None", None),
        (choice([None]), "null", None),
        (choice(["a b"]), "a b", "a b"),
        (choice([""]), "", ""),
        (uniform(0, 1), "1e-3", 0.001),
        (randint(0, 1000), "1e3", 1000),
    ],
)
def test_parse_takes_json_python_and_bare_strings(domain, text, expected):
    assert typed(domain.parse(text)) == typed(expected)


@pytest.mark.parametrize("text", ["2", "nan", "NaN", "Infinity", "-1e999", "1" * 5000, "", "[", "x"])
def test_parse_refuses_other_text(text):
    with pytest.raises(ValueError, match=r"uniform\(0\.0, 1\.0\)"):
        uniform(0, 1).parse(text)


def test_cast_config_completes_with_middles_and_constants():
    config = cast_config(TUTORIAL, {"batch_size": 16.0, "epochs": 81})
    assert typed(config) == typed({**middle(TUTORIAL), "batch_size": 16}) and list(config) == list(TUTORIAL)


@pytest.mark.parametrize(
    "given, words",
    [
        ([1], ["configuration", "dict", "[1]"]),
        (None, ["configuration", "dict", "None"]),
        ({"typo": 1}, ["typo", "no such name", "batch_size"]),
        ({1: 1}, ["1", "no such name", "batch_size"]),
        ({"batch_size": 7}, ["batch_size", "randint(8, 128)", "7"]),
        ({"epochs": 27}, ["epochs", "81", "27"]),
        ({"epochs": 81.0}, ["epochs", "81", "81.0"]),
        ({"epochs": np.float32(81)}, ["epochs", "81", "float32"]),
        ({"epochs": {1, 2}}, ["epochs", "81", "{1, 2}"]),
    ],
)
def test_cast_config_names_what_does_not_fit(given, words):
    with pytest.raises(ValueError) as error:
        cast_config(TUTORIAL, given)
    assert all(word in str(error.value) for word in words), error.value


def test_cast_config_leaves_its_argument_alone():
    given = {"batch_size": 16.0}
    cast_config(TUTORIAL, given)
    assert typed(given) == typed({"batch_size": 16.0})


@pytest.mark.parametrize(
    "old, text, expected",
    [
        (81, "27", 27),
        (0.5, "1", 1.0),
        (True, "false", False),
        (True, "False", False),
        ("auto", "5", "5"),
        ("auto", "", ""),
        (None, "null", None),
        (None, "[1]", [1]),
        ([1], "[]", []),
        ({"a": 1}, '{"b": 2}', {"b": 2}),
        (uniform(0, 1), "0.5", 0.5),
        (choice(["a", "b"]), "b", "b"),
    ],
)
def test_set_value_keeps_the_type(old, text, expected):
    space = {"x": old, "tuned": uniform(0, 1)}
    changed = set_value(space, "x", text)
    assert typed(changed["x"]) == typed(expected) and list(changed) == ["x", "tuned"]
    assert space["x"] is old


@pytest.mark.parametrize(
    "old, text",
    [(81, "27.0"), (81, "many"), (81, "true"), (81, ""), (True, "1"), (True, "yes"), (0.5, "nan"), (0.5, "NaN")]
    + [(0.5, "1" + "0" * 400), (0.5, "1e999"), (0.5, "null"), ([1], "1"), ({}, "[]"), (uniform(0, 1), "2")],
)
def test_set_value_refuses_another_type(old, text):
    with pytest.raises(ValueError, match="^x"):
        set_value({"x": old, "tuned": uniform(0, 1)}, "x", text)


# ---- Equality -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "one, other",
    [
        (finrange(0, 1, 3), finrange(0, 1, 5)),
        (finrange(0, 1, 3), ordinal([0.0, 0.5, 1.0])),
        (finrange(1, 100, 3), logfinrange(1, 100, 3)),
        (choice([1]), choice([True])),
        (choice([1]), choice([1.0])),
        (choice([1]), choice(["1"])),
        (choice([None]), choice(["null"])),
        (choice([[1]]), choice([[True]])),
        (choice(["a", "b"]), choice(["b", "a"])),
        (choice([1, 2]), ordinal([1, 2])),
        (ordinal([1, 2]), logordinal([1, 2])),
        (uniform(1, 2), loguniform(1, 2)),
        (uniform(0, 1), uniform(0, math.nextafter(1, 0))),
        (uniform(1, 2), randint(1, 2)),
        (randint(1, 2), lograndint(1, 2)),
        (uniform(0, 1), 1),
    ],
)
def test_different_domains_are_unequal(one, other):
    assert one != other and other != one and len({one, other}) == 2


def test_equal_domains_are_equal():
    for domain in ONE_OF_EACH:
        again = DOMAINS[domain.kind](*domain.arguments)
        assert again == domain and hash(again) == hash(domain) and again is not domain
    assert uniform(0, 1) == uniform(0.0, 1.0) == uniform(-0.0, np.float64(1))
    assert choice([{"a": 1, "b": 2}]) == choice([{"b": 2, "a": 1}])


def test_config_key_tells_types_apart():
    keys = [config_key({"x": value}) for value in (1, 1.0, True, "1", None, [1], "null")]
    assert len(set(keys)) == len(keys)
    assert config_key({"a": 1, "b": 2}) == config_key({"b": 2, "a": 1})


def test_repr_is_the_call():
    for domain in ONE_OF_EACH:
        assert eval(repr(domain), DOMAINS.copy()) == domain


# ---- Arguments ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int64, np.int8, np.uint8, np.uint64])
def test_numpy_bounds_are_taken(kind):
    for domain in (uniform, loguniform, randint, lograndint):
        made = domain(kind(1), kind(100))
        assert made == domain(1, 100) and all(type(a) in (int, float) for a in made.arguments)
    assert finrange(kind(0), kind(4), np.int64(5)).values == [0.0, 1.0, 2.0, 3.0, 4.0]
    json.dumps(finrange(kind(0), kind(4), np.int64(5)).to_json())


def test_numpy_values_are_taken():
    assert choice(np.array([1, 2])) == choice([1, 2]) == choice([np.int64(1), np.uint8(2)])
    assert ordinal(np.linspace(0, 1, 3)) == ordinal([0.0, 0.5, 1.0])
    assert logordinal(np.array([1, 10])) == logordinal([1, 10]) == logordinal((1, 10))
    assert choice(np.array(["a", "b"])) == choice(["a", "b"]) and choice([np.bool_(True)]) == choice([True])


def test_logordinal_takes_large_integers():
    domain = logordinal([1, 10**20, 10**40])
    assert [typed(domain.decode([x])) for x in (0, 0.5, 1)] == [typed(10**e) for e in (0, 20, 40)]


def test_logordinal_tells_neighbours_apart():
    values = [1e300, math.nextafter(1e300, math.inf)]
    try:
        domain = logordinal(values)
    except ValueError as error:
        assert "logordinal" in str(error)
    else:
        assert [domain.decode(domain.encode(v)) for v in values] == values


def test_n_configs_counts():
    assert n_configs({"a": randint(1, 3), "b": choice(["x", "y"]), "c": finrange(0, 1, 4), "d": 5}) == 24
    assert n_configs({"a": randint(1, 3), "b": uniform(0, 1)}) == math.inf
    assert n_configs({"a": randint(1, 3), "b": uniform(0.5, 0.5)}) == 3


def test_n_configs_of_many_integers_and_a_float_is_infinite():
    space = {**{f"x{i}": randint(0, 2**44) for i in range(30)}, "y": uniform(0, 1)}
    assert n_configs(space) == math.inf


ERRORS = [
    (lambda: uniform(2, 1), ["uniform", "low <= high", "low=2", "high=1"]),
    (lambda: uniform("0", 1), ["uniform", "finite", "low='0'"]),
    (lambda: uniform(0, None), ["uniform", "finite", "high=None"]),
    (lambda: uniform(0, math.inf), ["uniform", "finite", "high=inf"]),
    (lambda: uniform(math.nan, 1), ["uniform", "finite", "low=nan"]),
    (lambda: uniform(False, 1), ["uniform", "finite", "low=False"]),
    (lambda: uniform(0, np.float32("inf")), ["uniform", "finite", "high=", "inf"]),
    (lambda: uniform(0, 10**400), ["uniform", "finite", "high=1000"]),
    (lambda: uniform(-1e308, 1e308), ["uniform", "finite", "low=-1e+308", "high=1e+308"]),
    (lambda: uniform(0, 1j), ["uniform", "high=1j"]),
    (lambda: uniform(np.zeros(2), 1), ["uniform", "low=array"]),
    (lambda: loguniform(0.0, 1), ["loguniform", "0 < low <= high", "low=0.0"]),
    (lambda: loguniform(-1, 1), ["loguniform", "0 < low <= high", "low=-1"]),
    (lambda: loguniform(2, 1), ["loguniform", "0 < low <= high", "low=2", "high=1"]),
    (lambda: reverseloguniform(0, 1), ["reverseloguniform", "high < 1", "high=1"]),
    (lambda: reverseloguniform(-0.1, 0.5), ["reverseloguniform", "0 <= low", "low=-0.1"]),
    (lambda: randint(3, 1), ["randint", "low <= high", "low=3", "high=1"]),
    (lambda: randint(0, 1.5), ["randint", "integers", "high=1.5"]),
    (lambda: randint(0, math.inf), ["randint", "integers", "high=inf"]),
    (lambda: randint(0, True), ["randint", "integers", "high=True"]),
    (lambda: randint(0, 2**60), ["randint", "2**44", "high="]),
    (lambda: lograndint(0, 3), ["lograndint", "1 <= low <= high", "low=0"]),
    (lambda: lograndint(5, 3), ["lograndint", "1 <= low <= high", "low=5", "high=3"]),
    (lambda: choice([]), ["choice", "at least one value", "empty"]),
    (lambda: choice("abc"), ["choice", "list", "'abc'"]),
    (lambda: choice({"a": 1}), ["choice", "list", "{'a': 1}"]),
    (lambda: choice(3), ["choice", "list", "3"]),
    (lambda: choice([1, 2, 1]), ["choice", "distinct", "1 twice"]),
    (lambda: choice([[1], [1]]), ["choice", "distinct", "[1] twice"]),
    (lambda: choice([1, math.nan]), ["choice", "value 1", "finite", "nan"]),
    (lambda: choice([[math.inf]]), ["choice", "value 0", "finite", "inf"]),
    (lambda: choice([{1: 2}]), ["choice", "value 0", "{1: 2}"]),
    (lambda: choice([(1, 2)]), ["choice", "value 0", "(1, 2)"]),
    (lambda: choice([uniform(0, 1)]), ["choice", "value 0", "uniform"]),
    (lambda: choice(["a", print]), ["choice", "value 1", "print"]),
    (lambda: ordinal([]), ["ordinal", "at least one value", "empty"]),
    (lambda: ordinal("abc"), ["ordinal", "list", "'abc'"]),
    (lambda: ordinal(["a", "a"]), ["ordinal", "distinct", "'a' twice"]),
    (lambda: logordinal([]), ["logordinal", "at least one value", "empty"]),
    (lambda: logordinal([2, 1]), ["logordinal", "increasing positive numbers", "[2, 1]"]),
    (lambda: logordinal([0, 1]), ["logordinal", "increasing positive numbers", "[0, 1]"]),
    (lambda: logordinal([1, "2"]), ["logordinal", "increasing positive numbers", "'2'"]),
    (lambda: logordinal([1, 1.0]), ["logordinal", "1"]),
    (lambda: finrange(0, 1, 1), ["finrange", "size", ">= 2", "size=1"]),
    (lambda: finrange(0, 1, 0), ["finrange", "size", ">= 2", "size=0"]),
    (lambda: finrange(0, 1, 2.5), ["finrange", "size", "size=2.5"]),
    (lambda: finrange(0, 1, True), ["finrange", "size", "size=True"]),
    (lambda: finrange(0, 1, math.inf), ["finrange", "size", "size=inf"]),
    (lambda: finrange(0, 1, 10**9), ["finrange", "size", "100000", "size=1000000000"]),
    (lambda: finrange(0, 0, 3), ["finrange", "size", "size=3"]),
    (lambda: finrange(1, 0, 3), ["finrange", "low <= high", "low=1", "high=0"]),
    (lambda: finrange(1, math.nextafter(1, 2), 5), ["finrange", "high - low"]),
    (lambda: logfinrange(0, 1, 3), ["logfinrange", "0 < low <= high", "low=0"]),
    (lambda: logfinrange(1, 10, 1), ["logfinrange", "size", "size=1"]),
    (lambda: check_space({}), ["config_space", "dict", "{}"]),
    (lambda: check_space([]), ["config_space", "dict", "[]"]),
    (lambda: check_space({"a": 1}), ["config_space", "nothing to tune"]),
    (lambda: check_space({"a b": uniform(0, 1)}), ["config_space", "names", "'a b'"]),
    (lambda: check_space({1: uniform(0, 1)}), ["config_space", "names", "1"]),
    (lambda: check_space({"": uniform(0, 1)}), ["config_space", "names", "''"]),
    (lambda: check_space({"u": uniform(0, 1), "f": print}), ["f:", "domain", "print"]),
    (lambda: check_space({"u": uniform(0, 1), "t": (1, 2)}), ["t:", "domain", "(1, 2)", "tuple"]),
    (lambda: check_space({"u": uniform(0, 1), "n": [{"a": math.nan}]}), ["n[0]['a']", "finite", "nan"]),
    (lambda: check_space({"u": uniform(0, 1), "d": {1: 2}}), ["d:", "{1: 2}"]),
    (lambda: check_space({"u": uniform(0, 1), "l": [randint(0, 1)]}), ["l[0]", "randint"]),
    (lambda: set_value({"u": uniform(0, 1)}, "v", "1"), ["v", "no such name", "u"]),
    (lambda: space_from_json([1]), ["config_space", "JSON object", "[1]"]),
    (lambda: space_from_json({"u": {"unifrom": [0, 1]}}), ["u:", "uniform", "unifrom"]),
    (lambda: space_from_json({"u": {"uniform": [0]}}), ["u:", "uniform"]),
    (lambda: space_from_json({"u": {"uniform": [1, 0]}}), ["u:", "low <= high", "low=1"]),
    (lambda: space_from_json({"u": {"uniform": 3}}), ["u:", "uniform", "list", "3"]),
    (lambda: space_from_json({"u": {"uniform": {"lo": 0, "hi": 1}}}), ["u:", "uniform", "lo"]),
    (lambda: space_from_json({"u": {"a": 1, "b": 2}}), ["u:", "constant", "{'a': 1, 'b': 2}"]),
    (lambda: space_from_json({"u": {"uniform": [0, 10**400]}}), ["u:", "finite"]),
]  # fmt: skip


@pytest.mark.parametrize("make, words", ERRORS, ids=[f"{i}-{words[0]}" for i, (_, words) in enumerate(ERRORS)])
def test_error_names_thing_expected_and_got(make, words):
    with pytest.raises(ValueError) as error:
        make()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


# ---- JSON ---------------------------------------------------------------------------------------------------------------
def test_json_form_is_the_documented_one():
    space = {"lr": loguniform(1e-6, 1), "opt": choice(["adam", "sgd"]), "epochs": 81, "grid": finrange(0, 1, 3)}
    assert space_to_json(space) == {
        "lr": {"loguniform": [1e-6, 1]},
        "opt": {"choice": ["adam", "sgd"]},
        "epochs": 81,
        "grid": {"finrange": [0, 1, 3]},
    }


@pytest.mark.parametrize(
    "constant",
    [
        {},
        {"uniform": [0, 1]},
        {"constant": 1},
        {"constant": {"constant": {}}},
        {"choice": [["a"]]},
        [],
        [{"uniform": [0]}],
    ]
    + [None, True, 1, 1.0, "uniform", 1e300, -0.0, 2**70, "\ud800\n"],
)
def test_constants_survive_json(constant):
    space = {"x": constant, "tuned": uniform(0, 1)}
    back = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert repr(typed(back["x"])) == repr(typed(constant)) and back == space


def test_domains_and_constants_part_the_space():
    space = {"a": 1, "u": uniform(0, 1), "b": [2]}
    assert domains(space) == {"u": uniform(0, 1)} and constants(space) == {"a": 1, "b": [2]}
    assert all(isinstance(domain, Domain) for domain in ONE_OF_EACH)
    assert {domain.kind for domain in ONE_OF_EACH} == set(DOMAINS) and len(DOMAINS) == 10
