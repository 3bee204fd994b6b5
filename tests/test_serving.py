"""How a model is served, and the guided search for what serves most."""

import math

import numpy as np
import pytest

from delivery.triton_config import Port, render
from validation.serving import MIN_GAIN, NotTunable, Serving, Space, best, configured, search

SPACE = Space(instances=(1, 2, 4), threads=(1, 2, 4), delay_us=(0, 200, 500, 2000), preferred=(0, 8, 16))
CONFIG = render("irises", [Port(name="X", dtype="FP32", shape=(4,))], [Port(name="label", dtype="INT64", shape=(1,))])


def server(cores, batch_gain, best_delay_us, *, noise=0.0, seed=0):
    """Throughput of a made server: cores are shared, batches pay so many times, and one delay is best."""
    rng = np.random.default_rng(seed)

    def measure(serving):
        wanted = serving.instances * serving.threads
        rate = 100 * min(wanted, cores) ** 0.9 * 0.97 ** max(0, wanted - cores)
        if serving.batching:
            rate *= batch_gain * math.exp(-abs(math.log((50 + serving.delay_us) / (50 + best_delay_us))) / 8)
            rate *= 1 - 0.02 * (serving.preferred > 0)
        return rate * rng.normal(1, noise)

    return measure


@pytest.mark.parametrize("cores", [1, 2, 4])
@pytest.mark.parametrize(("batch_gain", "best_delay_us"), [(4.0, 0), (1.2, 200), (0.8, 0), (5.0, 500)])
def test_a_fifth_of_the_measurements_finds_nearly_the_best(cores, batch_gain, best_delay_us):
    """At least 95 % of what the exhaustive search finds, on servers with one hill, measured within a percent."""
    every = list(SPACE.all())
    truth = server(cores, batch_gain, best_delay_us)
    for seed in range(20):
        seen = search(SPACE, server(cores, batch_gain, best_delay_us, noise=0.01, seed=seed), len(every) // 5)
        assert len(seen) <= len(every) // 5
        assert truth(best(seen)) >= 0.95 * max(map(truth, every))


def test_every_configuration_is_tried_once_by_the_exhaustive_search():
    """Without batching a delay or a preferred size is no other configuration."""
    every = list(SPACE.all())
    assert len(every) == len(set(every)) == 9 * (1 + 4 * 3)


def test_the_default_comes_first_and_stays_where_nothing_gains():
    """A flat server keeps one instance, one thread and batching without a delay."""
    seen = search(SPACE, lambda _: 100.0, 100)
    assert next(iter(seen)) == best(seen) == Serving()


def test_a_gain_within_the_noise_is_no_gain():
    """The simpler configuration stays unless another beats it clearly."""
    seen = {Serving(): 100.0, Serving(instances=2): 100.0 * MIN_GAIN, Serving(threads=2): 100.1 * MIN_GAIN}
    assert best(seen) == Serving(threads=2)


def test_the_search_ends_with_its_measurements():
    """No more than it may, whatever is left to try."""
    assert len(search(SPACE, server(4, 4.0, 500), 3)) == 3


THREE = Serving(instances=3, threads=2, delay_us=200, preferred=16)


@pytest.mark.parametrize(
    ("serving", "lines"),
    [
        (Serving(), ["count: 1 } ]", "dynamic_batching { }", 'key: "intra_op_thread_count" value { string_value: "1" }']),
        (THREE, ["count: 3 } ]", "{ preferred_batch_size: [ 16 ] max_queue_delay_microseconds: 200 }", 'string_value: "2"']),
    ],
)
def test_a_configuration_is_written_into_the_bundles_own(serving, lines):
    """Its lines take the place of those that were there; names, types and warm-up stay."""
    text = configured(CONFIG, serving)
    for each in lines:
        assert each in text
    assert text.count("instance_group") == text.count("dynamic_batching") == 1
    assert [line for line in CONFIG.splitlines() if "instance_group" not in line and "dynamic_batching" not in line] == [
        line for line in text.splitlines() if not line.startswith(("instance_group", "dynamic_batching", "parameters"))
    ]
    assert configured(text, Serving()) == configured(CONFIG, Serving())


def test_without_batching_there_is_no_such_line():
    """Triton batches where the word stands, whatever is in it."""
    assert "dynamic_batching" not in configured(CONFIG, Serving(batching=False))


@pytest.mark.parametrize("text", ["", CONFIG + CONFIG])
def test_a_configuration_that_is_not_ours_is_refused(text):
    """What cannot be changed surely is not changed at all."""
    with pytest.raises(NotTunable):
        configured(text, Serving())
