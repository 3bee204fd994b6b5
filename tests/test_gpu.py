"""What a GPU did during a load, asked of a stand-in of NVIDIA's library: what was seen is told, and what is not known is never fit."""

import json
import math
import sys
from types import SimpleNamespace

import pytest

from validation.gpu import GpuSeen, visible_device, watched


class NVMLError(Exception):
    """As pynvml's."""


@pytest.fixture
def nvml(monkeypatch):
    """A machine with two devices. What is None is not told; `reasons` are those for lower clocks, one a look, the last for ever."""

    def told(name):
        def ask(device, *_):
            value = place.answers[name]
            place.asked.add(device)
            if value is None:
                raise NVMLError("Not Supported")
            return value

        return ask

    def handle(index):
        if index > 1:
            raise NVMLError("Invalid Argument")
        return index

    def reasons(device):
        del device
        return place.reasons.pop(0) if len(place.reasons) > 1 else place.reasons[0]

    place = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        asked=set(),
        open=0,
        reasons=[0],
        answers={
            "utilization": SimpleNamespace(gpu=40),
            "memory": SimpleNamespace(used=3 << 30),
            "clock": 1500,
            "most": 1590,
            "mig": (0, 0),
        },
        nvmlInit=lambda: setattr(place, "open", place.open + 1),
        nvmlShutdown=lambda: setattr(place, "open", place.open - 1),
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetName=lambda _: b"T4",
        nvmlDeviceGetCurrentClocksThrottleReasons=reasons,
        nvmlDeviceGetUtilizationRates=told("utilization"),
        nvmlDeviceGetMemoryInfo=told("memory"),
        nvmlDeviceGetClockInfo=told("clock"),
        nvmlDeviceGetMaxClockInfo=told("most"),
        nvmlDeviceGetMigMode=told("mig"),
    )
    monkeypatch.setitem(sys.modules, "pynvml", place)
    return place


def seen(index=0) -> GpuSeen:
    with watched(index) as end:
        found = end()
    assert found is not None
    return found


def test_what_the_device_tells_is_noted(nvml):
    """Busy time, memory and clocks of the device of this number and of no other; the library is left as it was found."""
    found = seen(1)
    assert found == GpuSeen(name="T4", busy=0.4, memory_mib=3072.0, clock_mhz=1500.0, most_clock_mhz=1590.0)
    assert (found.trouble(), nvml.asked, nvml.open) == (None, {1}, 0)
    assert str(found) == "T4: busy 40% of the time, 3,072 MiB in use, 1,500 of 1,590 MHz"


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        (0x08, "by its hardware, for heat or power"),
        (0x20, "by its driver, for its heat"),
        (0x40, "by its hardware, for its heat"),
        (0x80, "by its power supply"),
    ],
)
def test_a_device_that_was_slowed_down_is_not_fit(nvml, reason, why):
    """Once is enough, also when it is over at the next look."""
    nvml.reasons = [reason, 0]
    assert seen().trouble() == f"the GPU was slowed down {why}"


@pytest.mark.parametrize("reason", [0x00, 0x01, 0x02, 0x04])
def test_an_idle_or_capped_device_is_fit(nvml, reason):
    """Idle clocks, clocks that somebody set and the power cap that it is sold with belong to the device."""
    nvml.reasons = [reason]
    assert seen().trouble() is None


def test_a_part_of_a_device_is_named_so_and_has_no_utilisation(nvml):
    """What a device does not tell is not made up: it is no number, and null in JSON."""
    nvml.answers |= {"mig": (1, 1), "utilization": None}
    found = seen()
    assert (found.mig, math.isnan(found.busy)) == (True, True)
    assert "cut into parts (MIG)" in str(found)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["busy"] is None


def test_a_device_that_is_not_there_is_not_fit(nvml):
    """The reason is NVIDIA's own, and the library is closed again."""
    assert seen(2).trouble() == "the state of the GPU cannot be read: NVMLError: Invalid Argument"
    assert nvml.open == 0


def test_without_the_library_nothing_is_known(monkeypatch):
    """A machine without NVIDIA's library has no GPU that anybody could vouch for."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "cannot be read: ModuleNotFoundError" in str(seen().trouble())


def test_a_load_on_the_cpu_watches_no_device():
    """No number, nothing to see."""
    with watched(None) as end:
        assert end() is None


@pytest.mark.parametrize(("given", "index"), [("3", 3), ("2,5", 2), ("", 0), ("GPU-8d3a", 0)])
def test_the_device_is_the_one_that_the_task_may_use(given, index):
    """By CUDA's variable; a container, which sees one alone, has none."""
    assert visible_device({"CUDA_VISIBLE_DEVICES": given}) == index
    assert visible_device({}) == 0
