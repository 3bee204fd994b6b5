"""Policies: every key is known, present, of the right kind and in range, or the error names the place."""

import copy
import math
import tomllib
from pathlib import Path

import pytest
from airflow.utils.dates import cron_presets
from croniter import croniter
from hypothesis import given
from hypothesis import strategies as st

from validation.policy import (
    BY_HAND,
    CRON_FIELDS,
    PRESETS,
    BadPolicy,
    Distribution,
    GoldenSet,
    Policy,
    is_model_name,
    parse,
    read_policies,
    read_policy,
    section,
)

DIGITS = Path(__file__).parents[1] / "dags" / "policies" / "digits.toml"
STEPS = ("rollout", "steps")


@pytest.fixture
def rows():
    return tomllib.loads(DIGITS.read_text())


def changed(rows, place, value):
    """The policy with one value replaced; the place is a path of keys and list positions."""
    copied = copy.deepcopy(rows)
    target = copied
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    return copied


def without(rows, place):
    copied = copy.deepcopy(rows)
    target = copied
    for key in place[:-1]:
        target = target[key]
    del target[place[-1]]
    return copied


def test_an_export_has_an_environment_that_there_is(rows):
    """Without a word it is the light one; an unknown word is refused with those that are known."""
    assert parse(Policy, rows).export.environment == "export"
    assert parse(Policy, rows | {"export": {"environment": "export_torch"}}).export.environment == "export_torch"
    with pytest.raises(BadPolicy, match=r"export\.environment is 'torch'; allowed: export, export_boosting"):
        parse(Policy, rows | {"export": {"environment": "torch"}})


def test_integration_needs_no_section(rows):
    """Without one the formats are judged with defaults; with one it names its files, each once."""
    assert parse(Policy, without(rows, ("integration",))).integration.files == ()
    calls = [CALL, CALL | {"name": "other"}]
    found = parse(Policy, changed(rows, ("integration", "calls"), calls)).integration
    assert (found.files, found.calls_seconds) == (("contracts/digits-sorter.json", "store.json"), 20.0)


def test_columns_beside_inputs_and_label_are_named(rows):
    """Slices and rankings go by columns of the golden set that the model need not see."""
    ranked = {"name": "ndcg", "at_least": 0.5, "not_worse_than_stable": 0.01, "group": "query"}
    changes = {"slices": [{"column": "region", "values": ["north"]}], "metrics": [*rows["golden_set"]["metrics"], ranked]}
    assert parse(GoldenSet, rows["golden_set"] | changes).columns == ("query", "region")
    assert parse(GoldenSet, rows["golden_set"]).columns == ()


def test_the_example_is_read_as_it_stands():
    """The policy that the demo uses and people copy is a good one."""
    policy = read_policy(DIGITS)
    assert (policy.model, policy.rollout.lease_seconds) == ("digits", 10.0)
    assert [step.permille for step in policy.rollout.steps][-1] == 1000
    good, bad = read_policies(DIGITS.parent)
    assert (good["digits"], bad) == (policy, {})


def test_sections_travel_as_json(rows):
    """A section put into a spec's limits is read back equal."""
    policy = parse(Policy, rows)
    assert parse(GoldenSet, section(policy.golden_set), "golden_set") == policy.golden_set
    assert parse(Distribution, section(policy.distribution), "distribution") == policy.distribution


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (("p95_ms",), "unknown key p95_ms; allowed here: model, owner"),
        (("latency_benchmark", "p95_ms"), r"unknown key latency_benchmark\.p95_ms; allowed here: rate_per_s"),
        ((*STEPS, 1, "dwell"), r"unknown key rollout\.steps\[1\]\.dwell; allowed here: permille"),
        (("golden_set", "metrics", 0, "better"), r"unknown key golden_set\.metrics\[0\]\.better; allowed here: name"),
    ],
)
def test_an_unknown_key_names_its_place_and_the_allowed_keys(rows, place, words):
    """A typo is an error, never a default."""
    with pytest.raises(BadPolicy, match=words):
        parse(Policy, changed(rows, place, 1))


@pytest.mark.parametrize("place", [("owner",), ("trigger",), ("golden_set", "min_rows"), ("rollout", "miss"), (*STEPS, 0, "min_seconds")])
def test_a_missing_key_is_named(rows, place):
    """Nothing but the retraining has a default."""
    with pytest.raises(BadPolicy, match=f"missing key .*{place[-1]}$"):
        parse(Policy, without(rows, place))


def test_retraining_may_be_left_out(rows):
    """A model that nobody retrains needs no section for it."""
    assert parse(Policy, without(rows, ("retrain",))).retrain is None


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("golden_set", "min_rows"), "500", "expected int"),
        (("golden_set", "min_rows"), 500.0, "expected int"),
        (("golden_set", "min_rows"), True, "expected int"),
        (("rollout", "lease_seconds"), "10s", "expected float"),
        (("rollout",), 3, "must be a table"),
        (("rollout", "steps"), "none", "must be a list"),
        (("golden_set", "atol"), math.nan, "expected a finite number"),
        (("latency_benchmark", "p99_ms"), math.inf, "expected a finite number"),
        ((*STEPS, 2, "exclude_error_rate"), math.nan, r"rollout\.steps\[2\]\.exclude_error_rate is nan"),
    ],
)
def test_values_of_another_kind_are_refused(rows, place, value, words):
    """Text with a unit, a fraction of a row, true, NaN and infinity are no values; the message shows what stood there."""
    with pytest.raises(BadPolicy, match=words):
        parse(Policy, changed(rows, place, value))


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("model",), "Digits", "lower-case"),
        (("model",), "a--b", "single hyphens"),
        (("model",), "a" * 61, "longer than 60"),
        (("trigger", "on"), ["deleted"], "allowed: created, tag, alias"),
        (("trigger", "on"), [], "at least one"),
        (("trigger", "marker"), "", "marker"),
        (("golden_set", "min_rows"), 0, r"golden_set\.min_rows is 0"),
        (("golden_set", "rtol"), 2.0, r"golden_set\.rtol"),
        (("golden_set", "metrics"), [], "at least one metric"),
        (("golden_set", "metrics", 0, "name"), "f2", "allowed: accuracy"),
        (("golden_set", "metrics", 0, "within_training"), 0.0, "above 0 to below 1"),
        (("golden_set", "metrics", 0, "within_training"), 1.0, "within_training is 1.0; allowed: above 0 to below 1"),
        (("golden_set", "metrics", 0, "not_worse_than_stable"), 1, "not_worse_than_stable is 1.0"),
        (("shadow", "exclude_error_rate"), 0.001, r"shadow\.exclude_error_rate 0\.001 must lie above rollout\.error_limit 0\.001"),
        (("owner",), "", "1 to 80"),
        (("owner",), " ml", "1 to 80"),
        (("owner",), "a" * 81, "1 to 80"),
        (("owner",), "a\nb", "1 to 80"),
        (("distribution", "majority_share"), 1.0, r"distribution\.majority_share is 1\.0; allowed: above 0 to below 1"),
        (("distribution", "entropy_bits"), 0, r"distribution\.entropy_bits is 0\.0; allowed: above 0"),
        (("distribution", "sigmas"), 0, r"distribution\.sigmas is 0\.0; allowed: above 0"),
        (("distribution", "psi"), 0, r"distribution\.psi is 0\.0; allowed: above 0"),
        (("distribution", "ks"), 1.0, r"distribution\.ks is 1\.0; allowed: above 0 to below 1"),
        (("distribution", "missing"), 1.0, r"distribution\.missing is 1\.0; allowed: from 0 to below 1"),
        (("distribution", "error"), 0.5, r"distribution\.error is 0\.5"),
        (("distribution", "ranges", 0, "high"), -1.0, r"distribution\.ranges: low 0\.0 must lie below high -1\.0"),
        (("distribution", "ranges", 0, "column"), "pixels", r"distribution\.ranges\.column: pixels, pixels names one twice"),
        (("distribution", "expectations"), "../suite.json", "expected the plain name of a .json file beside the policy"),
        (("distribution", "expectations"), "suite.yaml", "expected the plain name of a .json file beside the policy"),
        (("latency_benchmark", "rate_per_s"), 0, r"rate_per_s is 0\.0; allowed: above 0"),
        (("shadow", "permille"), 1001, "from 1 to 1000"),
        (("shadow", "min_seconds"), 90.0, "must lie below max_seconds"),
        (("rollout", "newer"), "ignore", "allowed: waits, supersedes"),
        (("rollout", "strategy"), "canary, shadow", "allowed: shadow then canary, shadow then blue_green, canary"),
        (("rollout", "lease_seconds"), 1.0, "from 2 to 600"),
        (("rollout", "false_alarm"), 0.0, "above 0 to 0.5"),
        (("rollout", "error_limit"), 0.9, "from|above"),
        ((*STEPS, 0, "permille"), 200, "must grow from step to step"),
        ((*STEPS, 3, "permille"), 900, "the last step must be 1000"),
        ((*STEPS, 3, "exclude_error_rate"), 0.001, "must lie above error_limit"),
        (STEPS, [], "must grow"),
        (("retrain", "environment"), "../x", "plain name"),
    ],
)
def test_values_out_of_range_are_refused(rows, place, value, words):
    """Each range stands in the message, with the place."""
    with pytest.raises(BadPolicy, match=words):
        parse(Policy, changed(rows, place, value))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_other_value_is_refused_in_one_way(value):
    """Whatever stands in a section's place, the answer is `BadPolicy`."""
    rows = tomllib.loads(DIGITS.read_text())
    with pytest.raises(BadPolicy):
        parse(Policy, changed(rows, ("rollout",), value))


@pytest.mark.parametrize(("text", "words"), [("model = ", "other.toml: "), ("", r"other\.toml: missing key model")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text, words):
    """What is no TOML, or empty, ends in an error with the file's name."""
    (tmp_path / "other.toml").write_text(text)
    with pytest.raises(BadPolicy, match=words):
        read_policy(tmp_path / "other.toml")


@pytest.mark.parametrize("data", ['model = "m\u00fcller"'.encode("latin-1"), b"a = " + b"[" * 5000])
def test_a_file_of_other_bytes_is_a_bad_policy(tmp_path, data):
    """A file in another encoding, or nested beyond reading, is named like any other bad one."""
    (tmp_path / "other.toml").write_bytes(data)
    good, bad = read_policies(tmp_path)
    assert (good, list(bad)) == ({}, ["other"])
    assert bad["other"].startswith("other.toml: ")


@pytest.mark.parametrize(
    "schedule", ["", "None", "daily", "@once", "@daily ", "* * * *", "* * * * * *", "60 * * * *", "0 24 * * *", "0 0 0 * *", "0 0 * 13 *"]
)
def test_a_schedule_that_is_none_is_refused(rows, schedule):
    """A schedule that Airflow cannot read would stop every retraining from loading."""
    with pytest.raises(BadPolicy, match=r"retrain\.schedule .*: expected five numeric cron fields"):
        parse(Policy, changed(rows, ("retrain", "schedule"), schedule))


@pytest.mark.parametrize("part", ["*/0", "5/10", "9-5", "a", "1-", ",", "**", "1--2", "*/99", "MON", "+1"])
def test_a_part_of_a_schedule_that_is_none_is_refused(rows, part):
    """Steps from 1, ranges upwards, numbers only."""
    with pytest.raises(BadPolicy, match=r"retrain\.schedule"):
        parse(Policy, changed(rows, ("retrain", "schedule"), f"{part} * * * *"))


def cron_fields(low, high):
    numbers = st.integers(low, high)
    ranges = st.tuples(numbers, numbers).map(sorted).map("{0[0]}-{0[1]}".format)
    parts = numbers.map(str) | ranges | st.just("*") | st.tuples(ranges | st.just("*"), st.integers(1, high)).map("{0[0]}/{0[1]}".format)
    return st.lists(parts, min_size=1, max_size=3).map(",".join)


@given(st.tuples(*(cron_fields(*bounds) for bounds in CRON_FIELDS.values())).map(" ".join) | st.sampled_from((*PRESETS, BY_HAND)))
def test_schedules_that_are_taken_are_airflows(schedule):
    """Whatever passes here can be read by the library that Airflow reads schedules with."""
    rows = tomllib.loads(DIGITS.read_text())
    taken = parse(Policy, changed(rows, ("retrain", "schedule"), schedule)).retrain.schedule
    assert taken == BY_HAND or croniter(cron_presets.get(taken, taken)).expanded


@pytest.mark.parametrize(
    ("text", "is_one"), [("digits", True), ("a-b2", True), ("digits copy", False), (".#digits", False), ("a" * 61, False), ("", False)]
)
def test_names_of_models_are_told_from_other_words(text, is_one):
    """A file's stem may be anything; a model's name is what clusters, DAGs and files can be called."""
    assert is_model_name(text) is is_one


def test_one_bad_file_does_not_stop_the_others(tmp_path):
    """A folder's good policies are read, and each bad file is named with its reason."""
    (tmp_path / "digits.toml").write_text(DIGITS.read_text())
    (tmp_path / "other.toml").write_text("model = 3")
    good, bad = read_policies(tmp_path)
    assert (list(good), list(bad)) == (["digits"], ["other"])
    assert bad["other"].startswith("other.toml: missing key")


def test_a_policy_stands_in_the_file_of_its_model(tmp_path):
    """A copied file with the old model's name would deliver the wrong one."""
    (tmp_path / "other.toml").write_text(DIGITS.read_text())
    with pytest.raises(BadPolicy, match=r"model 'digits' stands in a file named other\.toml"):
        read_policy(tmp_path / "other.toml")


def test_a_missing_file_is_a_bad_policy(tmp_path):
    """A model without a policy is an error that names the file to write."""
    with pytest.raises(BadPolicy, match=r"ghost\.toml"):
        read_policy(tmp_path / "ghost.toml")


# Bounds and refusals


ABOVE_0, ABOVE_0_BELOW_1, SHARE = "above 0 to inf", "above 0 to below 1", "from 0 to 1"
TOLERANCE = [{"output": "p", "atol": 1.0, "rtol": 0.5, "rows_outside_permille": 1}]
CALL = {"name": "store", "url": "https://store.example:8443/check?deep=1", "method": "POST", "body": "{}", "expect_schema": "store.json"}
BOUNDS = [
    ("golden_set.metrics.0.at_least", -0.1, 0.0, SHARE),
    ("golden_set.metrics.0.at_least", 1.1, 1.0, SHARE),
    ("golden_set.metrics.0.within_training", 0.0, 1e-9, ABOVE_0_BELOW_1),
    ("golden_set.metrics.0.within_training", 1.0, 0.999, ABOVE_0_BELOW_1),
    ("golden_set.metrics.0.not_worse_than_stable", 0.0, 1e-9, ABOVE_0_BELOW_1),
    ("golden_set.metrics.0.not_worse_than_stable", 1.0, 0.999, ABOVE_0_BELOW_1),
    ("golden_set.min_rows", 0, 1, "from 1 to inf"),
    ("golden_set.atol", -1e-9, 0.0, "from 0 to inf"),
    ("golden_set.rtol", -1e-9, 0.0, SHARE),
    ("golden_set.rtol", 1.001, 1.0, SHARE),
    ("golden_set.rows_outside_permille", -1, 0, "from 0 to 1000"),
    ("golden_set.rows_outside_permille", 1001, 1000, "from 0 to 1000"),
    ("golden_set.tolerances.0.atol", -1e-9, 0.0, "from 0 to inf"),
    ("golden_set.tolerances.0.rtol", 1.001, 1.0, SHARE),
    ("golden_set.tolerances.0.rows_outside_permille", 1001, 1000, "from 0 to 1000"),
    ("golden_set.error", 0.0, 1e-9, "above 0 to below 0.5"),
    ("golden_set.error", 0.5, 0.499, "above 0 to below 0.5"),
    ("golden_set.duplicates_permille", -1, 0, "from 0 to 1000"),
    ("golden_set.duplicates_permille", 1001, 1000, "from 0 to 1000"),
    ("golden_set.max_age_days", 0.0, 0.5, ABOVE_0),
    ("distribution.majority_share", 0.0, 1e-9, ABOVE_0_BELOW_1),
    ("distribution.majority_share", 1.0, 0.999, ABOVE_0_BELOW_1),
    ("distribution.entropy_bits", 0.0, 0.5, "above 0 to 64"),
    ("distribution.entropy_bits", 64.1, 64.0, "above 0 to 64"),
    ("distribution.sigmas", 0.0, 0.5, ABOVE_0),
    ("distribution.psi", 0.0, 0.5, ABOVE_0),
    ("distribution.ks", 0.0, 1e-9, ABOVE_0_BELOW_1),
    ("distribution.ks", 1.0, 0.999, ABOVE_0_BELOW_1),
    ("distribution.missing", -1e-9, 0.0, "from 0 to below 1"),
    ("distribution.missing", 1.0, 0.999, "from 0 to below 1"),
    ("distribution.unseen", -1e-9, 0.0, "from 0 to below 1"),
    ("distribution.unseen", 1.0, 0.999, "from 0 to below 1"),
    ("distribution.error", 0.0, 1e-9, "above 0 to below 0.5"),
    ("distribution.error", 0.5, 0.499, "above 0 to below 0.5"),
    *((f"latency_benchmark.{name}", 0.0, 0.5, ABOVE_0) for name in ("rate_per_s", "max_seconds", "p50_ms", "p99_ms")),
    ("latency_benchmark.min_queries", 0, 1, ABOVE_0),
    ("integration.rows", 19, 20, "from 20 to 1000"),
    ("integration.rows", 1001, 1000, "from 20 to 1000"),
    ("integration.contracts.0.atol", -1e-9, 0.0, "from 0 to inf"),
    ("integration.contracts.0.rtol", 1.001, 1.0, SHARE),
    ("integration.calls.0.expect_status", 199, 200, "from 200 to 599"),
    ("integration.calls.0.expect_status", 600, 599, "from 200 to 599"),
    ("integration.calls.0.timeout_seconds", 0.0, 0.1, "above 0 to 60"),
    ("integration.calls.0.timeout_seconds", 60.1, 60.0, "above 0 to 60"),
    ("shadow.permille", 0, 1, "from 1 to 1000"),
    ("shadow.permille", 1001, 1000, "from 1 to 1000"),
    ("shadow.min_requests", 0, 1, "from 1 to inf"),
    ("shadow.exclude_error_rate", 0.0, 0.01, "above 0 to 1"),
    ("shadow.exclude_error_rate", 1.001, 1.0, "above 0 to 1"),
    ("rollout.steps.0.permille", 0, 1, "from 1 to 1000"),
    ("rollout.steps.3.permille", 1001, 1000, "from 1 to 1000"),
    ("rollout.steps.0.exclude_error_rate", 0.0, 0.01, "above 0 to 1"),
    ("rollout.steps.0.exclude_error_rate", 1.001, 1.0, "above 0 to 1"),
    ("rollout.steps.0.exclude_latency_worse", 0.0, 0.5, ABOVE_0),
    ("rollout.lease_seconds", 1.999, 2.0, "from 2 to 600"),
    ("rollout.lease_seconds", 600.1, 600.0, "from 2 to 600"),
    *((f"rollout.{name}", 0.0, 1e-9, "above 0 to 0.5") for name in ("false_alarm", "miss", "error_limit")),
    *((f"rollout.{name}", 0.501, 0.5, "above 0 to 0.5") for name in ("false_alarm", "miss")),
    ("rollout.latency_worse", 0.0, 0.2, ABOVE_0),
    ("rollout.damage_latency", 0.0, 0.2, ABOVE_0),
    ("rollout.damage_errors", 0.501, 0.5, "above 0 to 0.5"),
    ("rollout.warmup_seconds", -0.1, 0.0, "from 0 to inf"),
    ("rollout.steps.0.min_requests", -1, 0, "from 0 to inf"),
    ("rollout.indifferent_below_ms", -0.1, 0.0, "from 0 to inf"),
    ("retrain.timeout_seconds", 0.5, 1.0, "from 1 to inf"),
]


@pytest.mark.parametrize(("dotted", "refused", "taken", "allowed"), BOUNDS)
def test_the_last_value_is_taken_and_the_next_is_refused(rows, dotted, refused, taken, allowed):
    """On either side of each bound; the refusal names place, value and what is allowed, whole."""
    place = tuple(int(each) if each.isdigit() else each for each in dotted.split("."))
    rows["golden_set"]["tolerances"] = copy.deepcopy(TOLERANCE)
    rows["integration"]["calls"] = [copy.deepcopy(CALL)]
    assert parse(Policy, changed(rows, place, taken))
    with pytest.raises(BadPolicy) as caught:
        parse(Policy, changed(rows, place, refused))
    named = ".".join(each for each in dotted.split(".") if not each.isdigit())
    assert str(caught.value) == f"{named} is {refused!r}; allowed: {allowed}"


SLICES = ("golden_set", "slices")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("golden_set", "metrics", 0, "logged_as"), "", "golden_set.metrics.logged_as must name a logged metric"),
        (
            ("golden_set", "metrics", 0, "group"),
            "q",
            "golden_set.metrics.group: ndcg needs the column of its queries, no other metric has one",
        ),
        (("golden_set", "metrics", 0, "at_most"), 0.5, "golden_set.metrics.at_most does not fit accuracy: use at_least"),
        (("golden_set", "metrics", 0, "at_least"), None, "missing key golden_set.metrics.at_least for accuracy"),
        (("golden_set", "metrics"), [], "golden_set.metrics: at least one metric, or nothing is shown about the labels"),
        (
            ("golden_set", "metrics"),
            [{"name": "mae", "at_most": 1.0, "not_worse_than_stable": 0.1}] * 2,
            "golden_set.metrics.name: mae, mae names one twice",
        ),
        (SLICES, [{"column": "", "values": ["a"]}], "golden_set.slices.column must name a column"),
        (SLICES, [{"column": "c", "values": []}], "golden_set.slices.values: one value or more, none twice"),
        (SLICES, [{"column": "c", "values": ["a", "a"]}], "golden_set.slices.values: one value or more, none twice"),
        (SLICES, [{"column": "c", "values": ["a"]}] * 2, "golden_set.slices.column: c, c names one twice"),
        (("golden_set", "tolerances"), [TOLERANCE[0] | {"output": ""}], "golden_set.tolerances.output must name an output"),
        (("golden_set", "tolerances"), TOLERANCE * 2, "golden_set.tolerances.output: p, p names one twice"),
        (("golden_set", "narrowed_to"), ["float4"], "golden_set.narrowed_to is 'float4'; allowed: float16, int8"),
        (("distribution", "ranges"), [{"column": "", "low": 0.0, "high": 1.0}], "distribution.ranges.column must name a column"),
        (("distribution", "ranges"), [{"column": "x", "low": 1.0, "high": 1.0}], "distribution.ranges: low 1.0 must lie below high 1.0"),
        (("shadow", "min_seconds"), -1.0, "shadow: min_seconds -1.0 must lie below max_seconds 60.0"),
        (STEPS, [], "rollout.steps: shares must grow from step to step"),
        ((*STEPS, 3, "permille"), 900, "rollout.steps: the last step must be 1000 per mille, or nothing is shown about full traffic"),
        (
            (*STEPS, 3, "exclude_error_rate"),
            0.001,
            (
                "rollout.steps: exclude_error_rate must lie above error_limit and error_rise; of the step at 1000 per mille it is 0.001: "
                "raise it, or damage_errors"
            ),
        ),
        (
            ("rollout", "damage_latency"),
            0.1,
            (
                "rollout.steps: exclude_latency_worse must lie above latency_worse; of the step at 500 per mille it is 0.1: "
                "raise it, or damage_latency"
            ),
        ),
        (
            ("rollout", "slices"),
            {"header": "X-Tenant", "values": ["a"]},
            "rollout.slices.header 'X-Tenant': expected the name of an HTTP header in lower case",
        ),
        (("rollout", "slices"), {"header": "x-tenant", "values": ["a", "a"]}, "rollout.slices.values: a, a names one twice"),
        (
            ("rollout", "slices"),
            {"header": "x-tenant", "values": ["a b"]},
            "rollout.slices.values: each of 1 to 40 letters, digits and . _ : -",
        ),
        (
            ("integration", "contracts"),
            [{"consumer": "Billing", "file": "a.json"}],
            "integration.contracts.consumer 'Billing': expected 1 to 40 lower-case letters, digits, _ and -, the first a letter or digit",
        ),
        *(
            (
                ("integration", "contracts"),
                [{"consumer": "b", "file": file}],
                f"integration.contracts.file {file!r}: expected a file beside the policy, as name.json or folder/name.json",
            )
            for file in ("../a.json", "/a.json", "a/b/c.json", "a.yaml", "./a.json", "a/../b.json", "")
        ),
        (
            ("integration", "contracts"),
            [{"consumer": "b", "file": "a.json"}] * 2,
            "integration.contracts.consumer: b, b names one twice",
        ),
        (
            ("integration", "contracts"),
            [{"consumer": f"b{number}", "file": "a.json"} for number in range(51)],
            "integration.contracts: at most 50",
        ),
        *(
            (
                ("integration", "calls"),
                [CALL | {"url": url}],
                f"integration.calls.url {url!r}: expected http(s)://host[:port][/path], without user, password or fragment",
            )
            for url in (
                *("ftp://store/", "file:///etc/passwd", "http://", "http://me:secret@store/", "http://store:0/", "http://store:65536/"),
                *("http://store/a b", "http://store/#a", "http://store/\n", "store/check", "http://st\u00f6re/"),
            )
        ),
        (("integration", "calls"), [CALL | {"method": "PUT"}], "integration.calls.method is 'PUT'; allowed: GET, POST"),
        (("integration", "calls"), [CALL | {"method": "GET"}], "integration.calls.body: only POST has one"),
        (("integration", "calls"), [CALL | {"body": "{"}], "integration.calls.body: expected JSON of at most 16384 characters"),
        (
            ("integration", "calls"),
            [CALL | {"body": f'"{"a" * 16_384}"'}],
            "integration.calls.body: expected JSON of at most 16384 characters",
        ),
        (
            ("integration", "calls"),
            [CALL | {"expect_schema": "../a.json"}],
            "integration.calls.expect_schema '../a.json': expected a .json file, named as contracts.file is",
        ),
        (("integration", "calls"), [CALL] * 2, "integration.calls.name: store, store names one twice"),
        (("rollout", "newer"), "ignore", "rollout.newer is 'ignore'; allowed: waits, supersedes"),
        (("retrain", "environment"), "../x", "retrain.environment '../x': expected a plain name"),
        (("owner",), "", "owner '': expected 1 to 80 letters, digits, spaces and . , @ + / _ -, the first a letter or digit"),
        (("model",), "A", "model 'A': lower-case letters, digits and single hyphens, at most 60"),
        (("model",), "a" * 61, f"model {'a' * 61!r} is longer than 60 characters"),
        (("golden_set", "min_rows"), "5", "golden_set.min_rows is '5'; expected int"),
        (("golden_set", "atol"), math.inf, "golden_set.atol is inf; expected a finite number"),
        (("rollout",), 3, "rollout must be a table"),
        (STEPS, 3, "rollout.steps must be a list"),
    ],
)
def test_a_refusal_is_one_whole_sentence(rows, place, value, words):
    """It names the place and says what is expected there."""
    with pytest.raises(BadPolicy) as caught:
        parse(Policy, changed(rows, place, value))
    assert str(caught.value) == words


@pytest.mark.parametrize("model", ["a" * 60, "a", "a-1"])
def test_a_name_may_be_sixty_characters_long(rows, model):
    """What a cluster, a DAG and a file can be called."""
    assert parse(Policy, rows | {"model": model}).model == model


@pytest.mark.parametrize("schedule", ["59 23 31 12 6", "0 0 1 1 0", "*/59 * * * *", "1-2/5 * * * *", "1,2-3,*/4 * * * *", "5-5 * * * *"])
def test_a_schedule_may_go_to_the_ends_of_each_field(rows, schedule):
    """Minutes to 59, hours to 23, days to 31, months to 12."""
    assert parse(Policy, changed(rows, ("retrain", "schedule"), schedule)).retrain.schedule == schedule


def test_margins_follow_from_the_damage_budgets(rows):
    """A step excludes whatever would do more than the budget at the next share; the steps before and at 100 % have the final margins."""
    for step in rows["rollout"]["steps"]:
        step.pop("exclude_error_rate", None)
        step.pop("exclude_latency_worse", None)
    rollout = parse(Policy, rows).rollout
    margins = [rollout.margins(step) for step in rollout.steps]
    assert [round(each.error_rate, 6) for each in margins] == [0.05, 0.01, 0.005, 0.005]
    assert [round(each.latency_worse, 6) for each in margins] == [2.5, 0.5, 0.25, 0.25]
    assert [each.final for each in margins] == [False, False, True, True]


def test_a_steps_own_margin_stands_before_the_budget(rows):
    """Who writes a margin down means it."""
    rows["rollout"]["steps"][2]["exclude_error_rate"] = 0.02
    rollout = parse(Policy, rows).rollout
    assert rollout.margins(rollout.steps[2]).error_rate == 0.02
