"""How a line of the gateway's access log judges the version that the request was sent to."""

import pytest
from envoy.data.accesslog.v3 import accesslog_pb2

from delivery.observations import UPSTREAM_TROUBLE, Observations, Request, read_entry

OWN = "127.0.0.1:8002"
ADDRESSES = {"digits--v2--http": OWN, "digits--v2--grpc": OWN}


def entry(*, cluster="digits--v2--http", host=OWN, code=200, attempts=1, grpc_status=None, flag=None, trailer=True, unix_ms=1_500):
    line = accesslog_pb2.HTTPAccessLogEntry()
    common = line.common_properties
    common.upstream_cluster, common.upstream_request_attempt_count = cluster, attempts
    if host:
        address, port = host.split(":")
        common.upstream_remote_address.socket_address.address = address
        common.upstream_remote_address.socket_address.port_value = int(port)
    common.start_time.FromMilliseconds(unix_ms)
    common.time_to_last_downstream_tx_byte.FromMicroseconds(2_500)
    if flag:
        setattr(common.response_flags, flag, True)
    if code:
        line.response.response_code.value = code
    if grpc_status is not None:
        (line.response.response_trailers if trailer else line.response.response_headers)["grpc-status"] = grpc_status
    return line


def ok(**properties) -> bool:
    return read_entry(entry(**properties), ADDRESSES).ok


def test_an_answer_at_the_first_attempt_is_a_success():
    """The version's own server answered: a row with the version, the start and what the client waited."""
    assert read_entry(entry(), ADDRESSES) == Request(model="digits", version=2, started_unix_s=1.5, ok=True, latency_ms=2.5)


@pytest.mark.parametrize("code", [400, 404, 499])
def test_the_clients_faults_are_not_the_versions(code):
    """A bad request is answered as it should be."""
    assert ok(code=code)


@pytest.mark.parametrize(
    "trouble",
    [
        {"attempts": 2},
        {"host": "127.0.0.1:8001"},
        {"host": None},
        {"code": 500},
        {"code": 503},
        {"code": 0},
        *({"flag": each} for each in UPSTREAM_TROUBLE),
    ],
)
def test_what_was_saved_by_others_counts_as_failure(trouble):
    """A retry, another server's answer, a 5xx, trouble on the way, or no status at all: the version did not answer."""
    assert not ok(**trouble)


@pytest.mark.parametrize(
    ("status", "expected"), [("0", True), ("3", True), ("5", True), *((each, False) for each in ("2", "4", "13", "14", None))]
)
@pytest.mark.parametrize("trailer", [True, False])
def test_grpc_says_it_in_its_own_status(status, expected, trailer):
    """HTTP 200 says nothing for gRPC: the server's faults are 2, 4, 13 and 14, and a missing status is no success."""
    assert ok(cluster="digits--v2--grpc", grpc_status=status, trailer=trailer) is expected


def test_refusals_of_the_gateway_are_nobodys_rows():
    """A request that was sent to no version judges none."""
    assert read_entry(entry(cluster=""), ADDRESSES) is None


def test_who_pins_a_version_is_nobodys_row():
    """Testers choose their version: what they live through is no random sample of it."""
    assert read_entry(entry(cluster="digits--v2--http--pinned"), {"digits--v2--http--pinned": OWN}) is None


def test_the_slice_is_what_the_gateway_copied():
    """It comes from our own header, and is empty without it."""
    line = entry()
    line.request.request_headers["x-penstock-slice"] = "nl"
    assert [read_entry(each, ADDRESSES).slice for each in (line, entry())] == ["nl", ""]


def test_a_clock_that_is_set_back_changes_no_order_and_no_latency():
    """Rows keep the order in which they came, whatever the gateway's wall clock says, and waiting is measured without it."""
    rows = Observations()
    for unix_ms in (7_200_000, 3_600_000, 3_600_500):
        rows.add(read_entry(entry(unix_ms=unix_ms), ADDRESSES))
    assert [(row[0], row[1], row[4]) for row in rows.after("digits", 0)["rows"]] == [(1, 7200.0, 2.5), (2, 3600.0, 2.5), (3, 3600.5, 2.5)]


def test_gaps_only_grow():
    """A reader compares two answers: any growth between them says that rows may be missing."""
    rows = Observations()
    rows.interrupted()
    rows.interrupted(5)
    rows.interrupted(0)
    assert rows.after("digits", 0)["gaps"] == 6


def test_rows_are_read_in_pages():
    """`last` leads from page to page, without loss and without repetition."""
    rows = Observations(per_answer=2)
    for _ in range(5):
        rows.add(read_entry(entry(), ADDRESSES))
    pages, last = [], 0
    while page := rows.after("digits", last)["rows"]:
        pages.append([row[0] for row in page])
        last = page[-1][0]
    assert (pages, rows.after("digits", last)["last"]) == ([[1, 2], [3, 4], [5]], 5)


def test_old_rows_leave_the_ring_and_their_numbers_tell():
    """Numbers go on when rows are lost, and a reader is told how many it has missed."""
    rows = Observations(kept=3)
    for _ in range(5):
        rows.add(read_entry(entry(), ADDRESSES))
    assert [row[0] for row in rows.after("digits", 0)["rows"]] == [3, 4, 5]
    assert [rows.after("digits", number)["lost"] for number in (0, 1, 2, 3, 5, 9)] == [2, 1, 0, 0, 0, 0]


def test_a_model_without_requests_has_no_rows():
    """Nothing seen is an empty answer, not an error."""
    rows = Observations()
    assert rows.after("digits", 7) == {"epoch": rows.epoch, "last": 0, "lost": 0, "gaps": 0, "rows": []}
