"""validation.consumer_contracts: what a consumer recorded or described, and the first place where an answer is otherwise."""

import json

import pytest

from validation.consumer_contracts import BadContract, Tolerance, difference, read_contract

REQUEST = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [2, 1], "data": [1.0, 2.0]}]}
LABEL = {"name": "label", "datatype": "INT64", "shape": [2, 1], "data": [0, 1]}
SHARES = {"name": "shares", "datatype": "FP32", "shape": [2, 2], "data": [[0.5, 0.5], [0.25, 0.75]]}
WORDS = {"name": "word", "datatype": "BYTES", "shape": [1], "data": ["low"]}
LIKELY = {"properties": {"outputs": {"items": {"properties": {"data": {"items": {"minimum": 0, "maximum": 1}}}}}}}
CLOSE = Tolerance(atol=1e-3, rtol=1e-3)


def recorded(*outputs):
    return read_contract({"request": REQUEST, "response": {"model_name": "m", "outputs": list(outputs)}})[0]


def described(schema):
    return read_contract([{"request": REQUEST, "response_schema": schema}])[0]


def told(pair, *outputs, tolerance=CLOSE):
    found = difference(pair, json.dumps({"model_name": "m", "outputs": list(outputs)}).encode(), tolerance)
    return None if found is None else str(found)


def test_the_recorded_answer_keeps_to_its_own_contract():
    """Order of outputs, nesting of data and what else the answer says do not count."""
    assert told(recorded(LABEL, SHARES, WORDS), WORDS, {**SHARES, "data": [0.5, 0.5, 0.25, 0.75]}, LABEL) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([LABEL], 'outputs: expected ["label", "shares"], found ["label"]'),
        ([LABEL, SHARES, WORDS], 'outputs: expected ["label", "shares"], found ["label", "shares", "word"]'),
        ([LABEL, {**SHARES, "name": "probs"}], 'outputs: expected ["label", "shares"], found ["label", "probs"]'),
        ([LABEL, LABEL], 'outputs: expected ["label", "shares"], found {"model_name": "m", "outputs": [{"name": "label", '),
        ([{**LABEL, "datatype": "INT32"}, SHARES], 'outputs[0].datatype: expected "INT64", found "INT32"'),
        ([{**LABEL, "shape": [2]}, SHARES], "outputs[0].shape: expected [2, 1], found [2]"),
        ([{**LABEL, "data": [0]}, SHARES], "outputs[0].data: expected 2 values, found 1"),
        ([{key: LABEL[key] for key in ("name", "datatype", "shape")}, SHARES], "outputs[0].data: expected 2 values, found 0"),
        ([{**LABEL, "data": [0, 2]}, SHARES], "outputs[0].data[1]: expected 1, found 2"),
        ([{**LABEL, "data": [0, True]}, SHARES], "outputs[0].data[1]: expected 1, found true"),
        ([LABEL, {**SHARES, "data": [0.5, 0.5, 0.25, 0.76]}], "outputs[1].data[3]: expected 0.75, found 0.76"),
        ([LABEL, {**SHARES, "data": [0.5, "0.5", 0.25, 0.75]}], 'outputs[1].data[1]: expected 0.5, found "0.5"'),
        (
            [LABEL, {**SHARES, "data": [0.5, float("nan"), 0.25, 0.75]}],
            "outputs[1].data[1]: expected a finite number, found NaN or infinity",
        ),
    ],
)
def test_the_first_difference_is_named(answer, words):
    """Place, what was recorded, and what came."""
    assert told(recorded(LABEL, SHARES), *answer).startswith(words)


def test_numbers_may_be_missed_by_the_tolerance_and_labels_by_nothing():
    """The policy says by how much; whole numbers and words are equal or not."""
    close = {**SHARES, "data": [0.5005, 0.4995, 0.25, 0.75]}
    assert told(recorded(LABEL, SHARES), LABEL, close) is None
    assert "data[0]" in told(recorded(LABEL, SHARES), LABEL, close, tolerance=Tolerance(atol=1e-6, rtol=1e-6))
    large = {**LABEL, "data": [1_000_000, 1]}
    assert "data[0]" in told(recorded(large, SHARES), {**LABEL, "data": [1_000_001, 1]}, SHARES)
    assert told(recorded(WORDS), {**WORDS, "data": ["high"]}) == 'outputs[0].data[0]: expected "low", found "high"'


def test_values_can_be_left_to_the_model():
    """Without values, or without recorded data, the form alone counts; a number that is none counts always."""
    other = {**SHARES, "data": [0.1, 0.9, 0.2, 0.8]}
    form = {key: SHARES[key] for key in ("name", "datatype", "shape")}
    alone = Tolerance(atol=0, rtol=0, values=False)
    assert (told(recorded(SHARES), other, tolerance=alone), told(recorded(form), other)) == (None, None)
    assert told(recorded(form), {**SHARES, "shape": [1, 4]}) == "outputs[0].shape: expected [2, 2], found [1, 4]"
    assert "finite" in told(recorded(SHARES), {**other, "data": [0.1, float("inf"), 0, 0]}, tolerance=alone)


def test_a_schema_names_where_the_answer_breaks_it():
    """The path in the answer, the rule, and the value."""
    assert told(described(LIKELY), SHARES) is None
    found = told(described(LIKELY), LABEL, {**SHARES, "data": [0.5, 1.5]})
    assert found == "outputs[1].data[1]: expected maximum 1, found 1.5"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_schema_lets_a_number_pass_that_is_none(number):
    """NaN is not below any minimum, so a schema alone would take it."""
    body = b'{"outputs": [{"data": [' + number.encode() + b"]}]}"
    assert str(difference(described(LIKELY), body, CLOSE)) == "outputs[0].data[0]: expected a finite number, found NaN or infinity"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\x00", b"[" * 100_000])
def test_what_is_no_json_keeps_to_no_contract(body):
    """Whatever comes back, the answer is a difference and no crash."""
    assert difference(recorded(LABEL), body, CLOSE).path == "the answer"
    assert difference(described(True), body, CLOSE).path == "the answer"


@pytest.mark.parametrize("body", [b"[]", b"3", b'{"outputs": 3}', b'{"outputs": [3]}', b'{"outputs": [{"name": "label"}]}', b"{}"])
def test_an_answer_of_another_form_is_a_difference(body):
    """An answer without tensors is not the recorded one."""
    assert difference(recorded(LABEL), body, CLOSE).path == "outputs"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "0 pairs of request and answer; expected 1 to 100"),
        (3, "it is 3; expected an object"),
        ([{"request": REQUEST, "response": {"outputs": [LABEL]}}, {}], "pair 2 has no request with a list of inputs"),
        ({"request": REQUEST}, "it has neither response nor response_schema; expected one of them"),
        ({"request": REQUEST, "response": {}, "response_schema": {}}, "it has both response and response_schema"),
        ({"request": REQUEST, "answer": {}}, "it has the unknown key 'answer'; known: request, response, response_schema"),
        ({"request": REQUEST, "response": {"outputs": []}}, "it: response has no outputs"),
        ({"request": REQUEST, "response": {"outputs": [{"name": "a"}]}}, "it: response has no outputs, each with name, datatype and shape"),
        ({"request": REQUEST, "response": {"outputs": [{**LABEL, "data": [1]}]}}, "label with other values than its shape"),
        ({"request": REQUEST, "response_schema": 3}, "it: response_schema is no JSON Schema: 3"),
        ({"request": REQUEST, "response_schema": {"type": "objekt"}}, "it: response_schema is no JSON Schema: 'objekt' is not valid"),
        ({"request": REQUEST, "response_schema": {"pattern": "("}}, "it: response_schema is no JSON Schema: '\\(' is not a 'regex'"),
        ({"request": REQUEST, "response_schema": {"$schema": []}}, "no JSON Schema"),
    ],
)
def test_a_contract_that_is_none_is_said_before_anybody_is_asked(content, words):
    """It is its author's fault: the message says which pair and what is wrong."""
    with pytest.raises(BadContract, match=words):
        read_contract(content)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "http://127.0.0.1:1/elsewhere.json"}, "refers to 'http://127.0.0.1:1/elsewhere.json', which is not in it"),
        ({"$ref": "#/$defs/none"}, "which is not in it"),
        ({"$ref": "#"}, "refers to itself without end"),
    ],
)
def test_a_schema_holds_all_that_it_refers_to(schema, words):
    """Nothing is fetched from elsewhere, and nothing goes round for ever."""
    with pytest.raises(BadContract, match=words):
        told(described(schema), LABEL)
