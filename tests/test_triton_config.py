"""Triton's configuration file, as text."""

from __future__ import annotations

from delivery.triton_config import Port, render

PIXELS = Port(name="pixels", dtype="FP32", shape=(8, 8))


def test_names_types_and_sizes_stand_in_the_file() -> None:
    """Servers complete nothing by themselves: every input and output is there, and text is quoted."""
    text = render('odd"name', [PIXELS], [Port(name="label", dtype="INT64", shape=(1,), scalar=True)])
    assert 'name: "odd\\"name"' in text
    assert 'input [ { name: "pixels" data_type: TYPE_FP32 dims: [ 8, 8 ] } ]' in text
    assert 'output [ { name: "label" data_type: TYPE_INT64 dims: [ 1 ] reshape { shape: [ ] } } ]' in text
    assert 'key: "pixels" value { data_type: TYPE_FP32 dims: [ 8, 8 ] zero_data: true }' in text


def test_models_that_take_text_have_no_zeros_to_warm_up_with() -> None:
    """Zeros are no words; such a model starts cold instead of failing at its start."""
    text = render("m", [Port(name="kind", dtype="BYTES", shape=(1,)), PIXELS], [PIXELS])
    assert "TYPE_STRING" in text
    assert "model_warmup" not in text
