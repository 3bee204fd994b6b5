"""The rules of shares and leases, without a gateway."""

import json
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from delivery import traffic
from delivery.traffic import Backend, Held, Lapsed, Lease, ModelTraffic, NotAllowed, Unknown


def backend(version: int) -> Backend:
    return Backend(version=version, http=f"127.0.0.1:{8000 + version}", grpc=f"127.0.0.1:{9000 + version}")


ROLLOUT = ModelTraffic(model="digits", stable=backend(1), candidate=backend(2))
LEASE = Lease(holder="a", permille=100, expires_at_s=10.0, stable=1, candidate=2)


def test_first_version_becomes_stable_without_a_predecessor():
    """With nothing stable, the promoted candidate is stable and there is no previous."""
    first = ModelTraffic(model="digits").with_candidate(backend(1), None)
    assert first.promoted(1) == ModelTraffic(model="digits", stable=backend(1))


def test_promotion_moves_every_role_by_one():
    """The candidate becomes stable, stable becomes previous, the version before that is gone, and so is the mirror."""
    before = replace(ROLLOUT, previous=backend(7), shadow_permille=1000)
    assert before.promoted(2) == ModelTraffic(model="digits", stable=backend(2), previous=backend(1))


def test_promotion_twice_is_promotion_once():
    """Asking again for what is stable changes nothing."""
    assert ROLLOUT.promoted(2).promoted(2) == ROLLOUT.promoted(2)


PROMOTED = ROLLOUT.promoted(2)


def test_undo_swaps_stable_and_previous():
    """The version before is stable again, the one undone is kept as previous, and a candidate stays where it is."""
    before = replace(PROMOTED, candidate=backend(3), slice_header="x-country")
    assert before.undone(1, None) == replace(before, stable=backend(1), previous=backend(2))


def test_undo_twice_is_undo_once():
    """It names the version that shall be stable, so that asking again does not bring the bad one back, whoever holds a split."""
    assert PROMOTED.undone(1, None).undone(1, LEASE) == PROMOTED.undone(1, None)


ARCHIVED = replace(ROLLOUT, archived=(backend(5), backend(6)))
SHARED = replace(backend(6), name="digits--v6")


def test_archived_versions_stay_while_roles_move():
    """A promotion and an undo are none of their business."""
    assert ARCHIVED.promoted(2).archived == ARCHIVED.archived
    assert ARCHIVED.promoted(2).undone(1, None).archived == ARCHIVED.archived


def test_an_undo_may_lead_to_an_archived_version():
    """Stable becomes previous as ever; the version before is loaded still, and is archived in the other's place."""
    before = replace(ARCHIVED.promoted(2), candidate=backend(3))
    assert before.undone(6, None) == replace(before, stable=backend(6), previous=backend(2), archived=(backend(1), backend(5)))
    assert before.undone(6, None).undone(6, LEASE) == before.undone(6, None)
    with pytest.raises(Held, match="'a'"):
        before.undone(6, LEASE)


def test_whoever_is_stable_shares_its_server_with_nobody():
    """An archived version with others beside it gets a server of its own first; the refusal says how."""
    with pytest.raises(NotAllowed, match=r"v6 shares the archive's server; order it from the DAG `steer`"):
        ROLLOUT.with_archived([SHARED]).undone(6, None)
    with pytest.raises(ValueError, match="v6 shares a server with others and can have no role"):
        ModelTraffic(model="digits", stable=SHARED)


@pytest.mark.parametrize("name", ["", "digits", r"digits--v1\1", "../x--v1", "digits--v0"])
def test_the_name_on_a_shared_server_is_a_version_of_a_model(name):
    """It becomes a part of the gateway's paths."""
    with pytest.raises(ValueError, match="expected <model>--v<version>"):
        replace(backend(6), name=name)


def test_a_candidate_leaves_the_archive():
    """A version that is delivered again has a server of its own from then on."""
    assert ARCHIVED.with_candidate(backend(5), None).archived == (backend(6),)


def test_what_has_a_role_is_not_archived():
    """Two servers of one version would be two truths; the versions are kept in their order."""
    with pytest.raises(NotAllowed, match="digits v1 has a server of its own"):
        ROLLOUT.with_archived([backend(5), backend(1)])
    assert ROLLOUT.with_archived([backend(6), backend(5)]) == ARCHIVED


def test_the_archive_survives_a_restart():
    """It is durable like the roles, and nothing of it is written where there is none."""
    for known in (ARCHIVED, ROLLOUT.with_archived([SHARED])):
        assert traffic.load(json.loads(json.dumps(traffic.dump({"digits": known})))) == {"digits": known}
    assert "archived" not in traffic.dump({"digits": ROLLOUT})["models"]["digits"]


@pytest.mark.parametrize(
    ("known", "version", "why"),
    [(ROLLOUT, 7, "no version is kept"), (PROMOTED, 7, "v1 is kept"), (ModelTraffic(model="digits"), 1, "no version is kept")],
)
def test_undo_goes_to_the_previous_version_alone(known, version, why):
    """Any other version is refused, and what is kept is named."""
    with pytest.raises(NotAllowed, match=f"cannot go back to v{version}: {why}") as refused:
        known.undone(version, None)
    assert refused.value.status == 409


def test_undo_waits_for_who_holds_a_split():
    """The leased weights name the stable of now."""
    with pytest.raises(Held, match="'a'"):
        replace(PROMOTED, candidate=backend(3)).undone(1, LEASE)


def test_slices_outlive_the_promotion():
    """The new stable is judged on after its promotion, slice by slice."""
    assert ROLLOUT.with_slices("x-country").promoted(2).slice_header == "x-country"


@pytest.mark.parametrize("header", ["", "X-Country", ":path", "x country", "x%REQ", "x-" + "a" * 63, "1x"])
def test_slice_headers_are_plain_names(header):
    """The name becomes part of a format of Envoy's."""
    with pytest.raises(ValueError, match="slice_header"):
        ROLLOUT.with_slices(header)


def test_only_the_candidate_can_be_promoted():
    """A version that is not the candidate is not there."""
    with pytest.raises(Unknown, match="v3 is not the candidate"):
        ROLLOUT.promoted(3)


def test_stable_cannot_be_a_candidate():
    """One version cannot have two roles: its clusters carry its name."""
    with pytest.raises(NotAllowed, match="v1 is stable already"):
        ROLLOUT.with_candidate(backend(1), None)


def test_previous_can_come_back_as_candidate():
    """Delivering the previous version again takes its role as previous from it."""
    after = ModelTraffic(model="digits", stable=backend(2), previous=backend(1)).with_candidate(backend(1), None)
    assert (after.previous, after.candidate) == (None, backend(1))


def test_candidate_with_a_share_is_not_replaced():
    """While its split is held, another candidate is refused and the holder named."""
    with pytest.raises(Held) as refused:
        ROLLOUT.with_candidate(backend(3), LEASE)
    assert refused.value.holder == "a"


def test_same_candidate_again_changes_nothing():
    """Registering is idempotent, also while the split is held."""
    assert ROLLOUT.with_candidate(backend(2), LEASE) == ROLLOUT


def test_removing_another_candidate_changes_nothing():
    """A late clean-up of version 9 must not remove version 2."""
    assert ROLLOUT.without_candidate(9) == ROLLOUT


def test_removing_the_candidate_ends_its_mirror():
    """Without a candidate there is nothing to mirror to."""
    assert replace(ROLLOUT, shadow_permille=500).without_candidate(2) == ModelTraffic(model="digits", stable=backend(1))


def test_fallbacks_go_from_candidate_to_stable_to_previous():
    """A failing version is answered for by the one before it; the last has nobody."""
    known = replace(ROLLOUT, previous=backend(7))
    assert [known.fallback(backend(each)) for each in (2, 1, 7)] == [backend(1), backend(7), None]


def test_split_needs_a_candidate():
    """A share of nothing is not found."""
    with pytest.raises(Unknown, match="no candidate"):
        traffic.taken(ModelTraffic(model="digits", stable=backend(1)), None, holder="a", permille=1, ttl_s=1, now_s=0)


def test_split_needs_a_stable_version():
    """With nothing stable there is nothing to share with."""
    with pytest.raises(NotAllowed, match="no stable version"):
        traffic.taken(ModelTraffic(model="digits", candidate=backend(1)), None, holder="a", permille=1, ttl_s=1, now_s=0)


def test_lease_ends_at_its_time():
    """A lease of ten seconds is over ten seconds later, not a moment after."""
    lease = traffic.taken(ROLLOUT, None, holder="a", permille=100, ttl_s=10, now_s=5)
    assert (lease.alive(14.999), lease.alive(15.0)) == (True, False)


def test_weights_of_both_protocols_sum_to_the_whole():
    """Stable has what the candidate has not, under keys that the gateway reads."""
    assert LEASE.weights("digits") == {
        "split.digits.digits--v1--http": 900,
        "split.digits.digits--v1--grpc": 900,
        "split.digits.digits--v2--http": 100,
        "split.digits.digits--v2--grpc": 100,
    }


def test_lapsed_lease_cannot_be_renewed():
    """A holder that comes too late is told that the lease is over."""
    with pytest.raises(Lapsed, match="over"):
        traffic.renewed(None, holder="a", ttl_s=1, now_s=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda: traffic.taken(ROLLOUT, LEASE, holder="b", permille=1, ttl_s=1, now_s=0),
        lambda: traffic.renewed(LEASE, holder="b", ttl_s=1, now_s=0),
        lambda: traffic.may_release(LEASE, "b"),
    ],
)
def test_a_lease_belongs_to_its_holder(change):
    """Nobody else sets, renews or releases it."""
    with pytest.raises(Held, match="'a'"):
        change()


@pytest.mark.parametrize(
    ("permille", "ttl_s", "holder"), [(-1, 1, "a"), (1001, 1, "a"), (1, 0, "a"), (1, float("nan"), "a"), (1, 601, "a"), (1, 1, "")]
)
def test_values_out_of_range_are_refused(permille, ttl_s, holder):
    """A share outside of 0 to 1000, a time that is none and a holder without a name are no split."""
    with pytest.raises(ValueError, match=r"permille|ttl_s|holder"):
        traffic.taken(ROLLOUT, None, holder=holder, permille=permille, ttl_s=ttl_s, now_s=0)


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", "::1:80", "127.0.0.1:8 ", "a/b:1"])
def test_addresses_are_numbers(address):
    """Names are refused: the gateway looks none up."""
    with pytest.raises(ValueError, match="address"):
        Backend(version=1, http=address, grpc="127.0.0.1:1")


def test_where_a_server_tells_its_figures_changes_no_traffic():
    """The same server with another metrics address is the same backend, even under a split; what it said last is remembered."""
    told = Backend(version=2, http=backend(2).http, grpc=backend(2).grpc, metrics="127.0.0.1:7002")
    after = ROLLOUT.with_candidate(told, LEASE)
    assert after == ROLLOUT
    assert after.candidate.metrics == "127.0.0.1:7002"
    with pytest.raises(ValueError, match="address"):
        Backend(version=1, http="127.0.0.1:1", grpc="127.0.0.1:1", metrics="triton:8002")


@pytest.mark.parametrize("name", ["", "Digits", "a--b", "a.b", "-a", "a" * 61, "a/b"])
def test_model_names_are_parts_of_other_names(name):
    """What could not be told apart in a cluster's name is refused."""
    with pytest.raises(ValueError, match="model"):
        ModelTraffic(model=name)


def test_cluster_names_are_read_back():
    """Model, version and protocol survive the way into a name and back; other names are nobody's."""
    assert traffic.parse_cluster(traffic.cluster_name("a-b", 12, "grpc")) == ("a-b", 12, "grpc")
    assert [traffic.parse_cluster(each) for each in ("director", "a--v0--http", "a--v1--tcp", "")] == [None] * 4


def test_state_survives_its_file():
    """What was written is read back equal, empty roles included."""
    models = {"digits": ROLLOUT.with_slices("x-country"), "a": ModelTraffic(model="a", stable=backend(1))}
    assert traffic.load(json.loads(json.dumps(traffic.dump(models)))) == models


def test_a_metrics_address_survives_the_state_file():
    """A server that tells its figures is found after a restart; one that does not leaves no empty key behind."""
    known = Backend(version=1, http="127.0.0.1:8001", grpc="127.0.0.1:9001", metrics="127.0.0.1:7001")
    rows = traffic.dump({"digits": ModelTraffic(model="digits", stable=known, previous=backend(2))})
    assert traffic.load(rows)["digits"].stable.metrics == "127.0.0.1:7001"
    assert list(rows["models"]["digits"]["previous"]) == ["version", "http", "grpc"]


def test_a_state_from_before_there_were_metrics_is_read():
    """The format is the same: such a server serves as before, and no metrics address is made up for it."""
    row = {"model": "digits", "stable": {"version": 1, "http": "127.0.0.1:8001", "grpc": "127.0.0.1:9001"}, "shadow_permille": 0}
    assert traffic.load({"format": 1, "models": {"digits": row}})["digits"].stable.metrics is None


def test_a_state_from_before_there_were_slices_is_read():
    """The format is the same: a model without a slice header tells no requests apart."""
    row = {"model": "digits", "stable": {"version": 1, "http": "127.0.0.1:8001", "grpc": "127.0.0.1:9001"}, "shadow_permille": 0}
    assert traffic.load({"format": 1, "models": {"digits": row}}) == {"digits": ModelTraffic(model="digits", stable=backend(1))}


def test_no_mirror_survives_a_restart():
    """Who asked for it has lost it like a lease, and asks again."""
    mirrored = {"digits": replace(ROLLOUT, shadow_permille=7)}
    assert traffic.load(traffic.dump(mirrored)) == {"digits": ROLLOUT}


@pytest.mark.parametrize(("permille", "ttl_s", "time_s"), [(0, None, 0), (0, 5, 0), (1, 2, 2), (1000, 600, 600)])
def test_a_mirror_holds_for_its_time(permille, ttl_s, time_s):
    """From 2 to 600 seconds unrenewed; none needs none."""
    assert traffic.mirror_ttl(permille, ttl_s) == time_s


@pytest.mark.parametrize(("permille", "ttl_s"), [(1, None), (1, 1.9), (1, 601), (1, float("nan")), (-1, 5), (1001, 5)])
def test_a_mirror_without_an_end_is_refused(permille, ttl_s):
    """It is candidate traffic: no time to live, or one that is none, is no mirror."""
    with pytest.raises(ValueError, match=r"ttl_s|permille"):
        traffic.mirror_ttl(permille, ttl_s)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.update(more=1),
        lambda state: state.update(format=2),
        lambda state: state["models"]["digits"].update(share=1),
        lambda state: state["models"]["digits"]["stable"].update(port=1),
        lambda state: state["models"]["digits"]["stable"].pop("grpc"),
        lambda state: state["models"]["digits"].update(shadow_permille=True),
        lambda state: state["models"].update(other=state["models"]["digits"]),
    ],
)
def test_state_that_is_not_understood_is_refused(damage):
    """A director that guessed would forget what is stable."""
    state = traffic.dump({"digits": ROLLOUT})
    damage(state)
    with pytest.raises(ValueError, match=r"state|key|expected"):
        traffic.load(state)


class Leases(RuleBasedStateMachine):
    """Two holders and a clock in any order: the model below says who must succeed."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.lease: Lease | None = None

    def alive(self) -> Lease | None:
        return self.lease if self.lease is not None and self.lease.alive(self.now_s) else None

    @rule(holder=st.sampled_from("ab"), permille=st.integers(0, 1000), ttl_s=st.floats(0.1, 5))
    def take(self, holder, permille, ttl_s):
        free = self.alive() is None or self.alive().holder == holder
        try:
            self.lease = traffic.taken(ROLLOUT, self.alive(), holder=holder, permille=permille, ttl_s=ttl_s, now_s=self.now_s)
        except Held:
            assert not free
        else:
            assert free
            assert self.lease.permille == permille

    @rule(holder=st.sampled_from("ab"), ttl_s=st.floats(0.1, 5))
    def renew(self, holder, ttl_s):
        before = self.alive()
        try:
            self.lease = traffic.renewed(before, holder=holder, ttl_s=ttl_s, now_s=self.now_s)
        except (Held, Lapsed):
            assert before is None or before.holder != holder
        else:
            assert (self.lease.holder, self.lease.permille) == (holder, before.permille)

    @rule(seconds=st.floats(0, 6))
    def wait(self, seconds):
        self.now_s += seconds

    @invariant()
    def weights_are_whole(self):
        if self.lease is not None:
            weights = self.lease.weights("digits")
            assert sum(value for key, value in weights.items() if key.endswith("http")) == traffic.WHOLE


Leases.TestCase.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)
TestLeases = Leases.TestCase
