"""bench: what is measured is what the gateway does, not what somebody says of it."""

from pathlib import Path

import pytest

from bench import faults
from bench.faults import reverted, until_reverted
from bench.world import PORT_SHIFT, Unexpected, shifted_settings
from stack.settings import read_settings

HELD = {"split.digits.digits--v2--http": "100", "split.digits.digits--v2--grpc": "100", "split.digits.digits--v1--http": "900"}


@pytest.mark.parametrize(
    ("runtime", "back"),
    [
        (HELD, False),
        ({}, True),
        (dict.fromkeys(HELD, "0"), True),
        ({**HELD, "split.digits.digits--v2--http": "0"}, False),
        ({"split.digits.digits--v3--http": "100"}, True),
    ],
)
def test_traffic_is_back_when_the_gateway_has_no_weight_for_the_version(runtime: dict[str, str], *, back: bool):
    """Keys that are gone or 0, for both protocols; other versions' do not count."""
    assert reverted(runtime, 2) is back


def test_the_first_look_without_the_candidate_counts():
    """The watch may put it back right after: that is no longer the revert's business."""
    looks = iter([HELD, HELD, {}, HELD])
    until_reverted(lambda: next(looks), 2)
    assert next(looks) == HELD


def test_traffic_that_never_goes_back_is_no_figure(monkeypatch: pytest.MonkeyPatch):
    """A limit that is over ends the measurement."""
    monkeypatch.setattr(faults, "LIMIT_S", 0.0)
    with pytest.raises(Unexpected, match="still sends traffic to v2"):
        until_reverted(lambda: HELD, 2)


def test_only_ports_are_shifted(tmp_path: Path):
    """A stack beside the usual one differs from it in ports and in nothing else."""
    usual, beside = read_settings({}), read_settings({"PENSTOCK_SETTINGS": str(shifted_settings(tmp_path))})
    assert beside.ports.fixed() == {name: port + PORT_SHIFT for name, port in usual.ports.fixed().items()}
    assert (beside.airflow, beside.gateway) == (usual.airflow, usual.gateway)
