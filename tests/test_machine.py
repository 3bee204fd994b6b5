"""What was taken from the machine meanwhile: read from the kernel's files, which are made here."""

import math
import os

import pytest

from validation import machine
from validation.machine import Look, Taken, look, taken

HERTZ = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Writes files as the kernel has them; a name that is not written is not there."""
    (tmp_path / "stat").write_text(stat(0, 0))
    monkeypatch.setattr(machine, "STAT", tmp_path / "stat")
    monkeypatch.setattr(machine, "CPUS", tmp_path / "cpu")
    quotas = [(str(tmp_path / name), word, unit) for name, (_, word, unit) in zip("21", machine.QUOTAS, strict=True)]
    monkeypatch.setattr(machine, "QUOTAS", quotas)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def stat(stolen_s, used_s, guest_s=0.0):
    """As in proc(5): user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice; the guests' time is in the user's too."""
    ticks = [int(each * HERTZ) for each in (used_s, 0, 0, 0, 0, 0, 0, stolen_s, guest_s, 0)]
    return f"cpu  {' '.join(map(str, ticks))}\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5\n"


def heat(core):
    return f"cpu/cpu{core}/thermal_throttle/core_throttle_count"


def a_look(**changes):
    return Look(**{"at_s": 0.0, "stolen_s": 0.0, "all_s": 0.0, "held_up_s": 0.0, "too_hot": 0, **changes})


def test_stolen_time_is_a_share_of_all_cpu_time(kernel):
    """What the hypervisor took between two looks, of what all cores had; what was stolen before does not count."""
    kernel("stat", stat(stolen_s=50, used_s=100))
    before = look()
    kernel("stat", stat(stolen_s=52, used_s=106))
    assert taken(before, look()).stolen == pytest.approx(2 / 8)


def test_guests_time_is_not_counted_twice(kernel):
    """The kernel adds it to the user's time already."""
    before = look()
    kernel("stat", stat(stolen_s=1, used_s=3, guest_s=3))
    assert taken(before, look()).stolen == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("2", "usage_usec 9\nnr_periods 5\nnr_throttled 2\nthrottled_usec 1500000\n"),
        ("1", "nr_periods 5\nnr_throttled 2\nthrottled_time 1500000000\n"),
    ],
)
def test_a_quota_is_read_in_both_versions_of_control_groups(kernel, version, text):
    """Microseconds in the one, nanoseconds in the other."""
    kernel(version, text)
    assert look().held_up_s == pytest.approx(1.5)


def test_the_newer_control_groups_are_believed_first(kernel):
    """On a machine that has both, the second version rules."""
    kernel("2", "throttled_usec 1000000\n")
    kernel("1", "throttled_time 9000000000\n")
    assert look().held_up_s == pytest.approx(1.0)


def test_a_control_group_without_quota_holds_nothing_up(kernel):
    """The file of a group that has no quota lacks the word."""
    kernel("2", "usage_usec 9\nuser_usec 5\n")
    assert look().held_up_s == 0.0


def test_time_held_up_is_a_share_of_wall_time():
    """Between the looks, by the clock that no one sets."""
    assert taken(a_look(at_s=10.0, held_up_s=5.0), a_look(at_s=14.0, held_up_s=6.0)).held_up == 0.25


def test_heat_is_counted_over_all_cores(kernel):
    """Each core's count, and only what came between the looks."""
    kernel(heat(0), "3\n")
    kernel(heat(11), "4\n")
    before = look()
    kernel(heat(11), "6\n")
    assert (before.too_hot, taken(before, look()).too_hot) == (7, 2)


def test_what_the_kernel_does_not_tell_counts_as_nothing_taken(kernel):
    """Without control groups and sensors, as in most virtual machines, there is no trouble."""
    found = taken(look(), look())
    assert (found.stolen, found.held_up, found.too_hot) == (0.0, 0.0, 0)
    assert found.trouble(0.0) is None


def test_two_looks_at_once_divide_by_nothing():
    """No time between them is nothing taken."""
    assert taken(a_look(), a_look()) == Taken(stolen=0.0, held_up=0.0, too_hot=0)


def test_this_machine_can_be_looked_at():
    """The real files of whatever runs the tests are read without error, and time goes on."""
    before, after = look(), look()
    assert before.at_s <= after.at_s
    assert before.all_s <= after.all_s


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"stolen": 0.02}, "the hypervisor took 2.0% of the CPU time; 1.0% are allowed"),
        ({"held_up": 0.5}, "the container's CPU quota held it up for 50.0% of the time; 1.0% are allowed"),
        ({"too_hot": 3}, "the processor was slowed down 3 times for its heat"),
        ({"stolen": 0.01, "held_up": 0.01}, None),
    ],
)
def test_trouble_names_what_was_taken_and_what_is_allowed(changes, why):
    """Exactly the share is allowed; heat never is."""
    assert Taken(**{"stolen": 0.0, "held_up": 0.0, "too_hot": 0, **changes}).trouble(0.01) == why


@pytest.mark.parametrize("name", ["stolen", "held_up"])
def test_a_share_that_is_no_number_is_trouble(name):
    """NaN is not below any limit, and no limit is NaN."""
    nothing = {"stolen": 0.0, "held_up": 0.0, "too_hot": 0}
    assert Taken(**{**nothing, name: math.nan}).trouble(1.0) is not None
    assert Taken(**nothing).trouble(math.nan) is not None


def test_a_kernel_without_counters_took_nothing(tmp_path, monkeypatch):
    """No /proc/stat is no reason to end."""
    monkeypatch.setattr(machine, "STAT", tmp_path / "stat")
    assert machine.taken(machine.look(), machine.look()).stolen == 0
