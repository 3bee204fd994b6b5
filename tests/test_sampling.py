"""The sample that metrics are computed on: uniform, the same every time, whole queries, and every row of a rare slice."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_bundles import golden_rows, make_bundle

from validation.bundle import read_bundle
from validation.golden_rows import GoldenRows
from validation.policy import GoldenSet, Metric, Slice
from validation.sampling import Cut, Reservoir, choose, mixed, word_hashes

METRIC = Metric(name="accuracy", at_least=0.5, not_worse_than_stable=0.1)


def limits(metrics=(METRIC,), slices=()):
    return GoldenSet(min_rows=1, atol=0, rtol=0, rows_outside_permille=0, metrics=metrics, slices=slices)


@pytest.fixture
def golden(tmp_path):
    """Golden rows with a column `region` (EU in one of fifty rows) and `query` (three rows each)."""

    def write(root):
        columns = {"region": ["EU" if row % 50 == 0 else "US" for row in range(600)], "query": np.arange(600) // 3}
        pq.write_table(pa.table(columns), root / "golden/slices.parquet")

    with read_bundle(make_bundle(tmp_path, rows=golden_rows(600), change=write)) as bundle:
        yield GoldenRows(bundle)


def test_a_small_set_is_taken_whole(golden):
    """Nothing is left out while there is room."""
    sample = choose(golden, limits(), 0)
    assert sample.rows.tolist() == sample.whole.tolist() == list(range(600))


def test_a_large_set_is_sampled_the_same_way_every_time(golden):
    """The seed decides, and another seed decides otherwise."""
    one, again, other = (choose(golden, limits(), seed, most=100).rows.tolist() for seed in (1, 1, 2))
    assert len(one) == 100
    assert one == again == sorted(set(one))
    assert one != other


def test_a_rare_slice_keeps_all_its_rows(golden):
    """It has a sample of its own, beside the whole's."""
    wanted = limits(slices=(Slice(column="region", values=("EU", "US", "ASIA")), Slice(column="planet", values=("Earth",))))
    sample = choose(golden, wanted, 0, most=100)
    eu, us, asia = (Cut(column="region", value=value) for value in ("EU", "US", "ASIA"))
    assert sample.rows[sample.cuts[eu]].tolist() == list(range(0, 600, 50))
    assert (len(sample.whole), len(sample.cuts[us]), len(sample.cuts[asia])) == (100, 100, 0)
    assert [sample.seen[each] for each in (eu, us, asia)] == [12, 588, 0]
    assert Cut(column="planet", value="Earth") not in sample.cuts


def test_queries_stay_together(golden):
    """Half a query cannot be ranked: of each query all rows are in, or none."""
    ranked = limits(metrics=(Metric(name="ndcg", at_least=0.5, not_worse_than_stable=0.1, group="query"),))
    sample = choose(golden, ranked, 0, most=100)
    queries, counts = np.unique(sample.groups["query"], return_counts=True)
    assert (len(queries), set(counts.tolist())) == (33, {3})


def test_a_reservoir_is_uniform():
    """Over many seeds each row is in equally often (within four standard deviations), wherever it stands."""
    counts = np.zeros(200)
    for seed in range(400):
        reservoir = Reservoir(50)
        for start in range(0, 200, 20):
            rows = np.arange(start, start + 20)
            reservoir.add(rows, mixed(rows.astype(np.uint64), seed))
        counts[reservoir.rows()] += 1
    assert counts.sum() == 400 * 50
    assert np.abs(counts - 100).max() < 4 * np.sqrt(400 * 0.25 * 0.75)


def test_one_giant_query_is_cut():
    """A single priority with more rows than fit must not empty the sample."""
    reservoir = Reservoir(10)
    reservoir.add(np.arange(100), np.zeros(100, np.uint64))
    assert len(reservoir.rows()) == 10


def test_words_hash_alike_in_every_process():
    """Python's own hash differs from process to process; a sample may not."""
    assert word_hashes(np.array(["a", "b"], dtype=object)).tolist() == [4681665781835383343, 9543904841865449333]
    assert (word_hashes(np.array([1, 2])) == word_hashes(np.array(["1", "2"]))).all()


def test_numbers_are_mixed_as_splitmix64_does():
    """The first three numbers of the generator whose seed is 0, as its authors print them; a seed moves where it starts."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([0, golden, 2 * golden % 2**64], dtype=np.uint64)
    assert mixed(states, 0).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mixed(states[:1], 2).tolist() == [0x06C45D188009454F]
