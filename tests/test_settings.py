"""stack.settings: one file of ports, and no silent default."""

import dataclasses
from pathlib import Path

import pytest

from stack.settings import ROOT, SUBSTACKS, BadSettings, Ports, read_settings, state_folder

DEFAULT = (ROOT / "stack" / "settings.toml").read_text()


def settings_with(tmp_path: Path, old: str, new: str):
    assert old in DEFAULT
    file = tmp_path / "settings.toml"
    file.write_text(DEFAULT.replace(old, new))
    return read_settings({"PENSTOCK_SETTINGS": str(file)})


def test_the_checked_in_settings_are_valid():
    """What is checked in works as it stands, with the state folder inside the checkout."""
    settings = read_settings({})
    assert (settings.state, settings.ports.gateway) == (ROOT / ".penstock", 18000)


def test_the_state_folder_can_be_moved_alone(tmp_path: Path):
    """PENSTOCK_STATE names it; a relative one counts from the checkout."""
    assert read_settings({"PENSTOCK_STATE": str(tmp_path)}).state == tmp_path
    assert state_folder({"PENSTOCK_STATE": "elsewhere"}) == ROOT / "elsewhere"


def test_another_file_replaces_the_settings(tmp_path: Path):
    """PENSTOCK_SETTINGS names a whole file, not additions."""
    assert settings_with(tmp_path, "mlflow = 15000", "mlflow = 25000").ports.mlflow == 25000


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("mlflow = 15000", "mlflow = 15000\nmflow = 1", "unknown key ports.mflow"),
        ("mlflow = 15000", "", "missing key ports.mlflow"),
        ("mlflow = 15000", 'mlflow = "15000"', "ports.mlflow is '15000'; expected a whole number"),
        ("mlflow = 15000", "mlflow = true", "ports.mlflow is True"),
        ("mlflow = 15000", "mlflow = 80", "ports.mlflow must be from 1024 to 65535"),
        ("mlflow = 15000", "mlflow = 18000", "two services have the same port"),
        ("mlflow = 15000", "mlflow = 18205", "ports.mlflow lies in the range of Triton's ports"),
        ("triton_last = 18299", "triton_last = 18204", "six ports at least"),
        ("api_workers = 2", "api_workers = 1", "airflow.api_workers must be from 2"),
        ("[ports]", 'state = ".elsewhere"\n[ports]', "unknown key state; allowed here: ports, airflow, gateway"),
        ("request_timeout_ms = 5000", "request_timeout_ms = 30001", "gateway.request_timeout_ms must be from 10 to 30000"),
        ("per_try_timeout_ms = 1000", "per_try_timeout_ms = 5001", "gateway.per_try_timeout_ms must be from 10 to request_timeout_ms"),
        ("per_try_timeout_ms = 1000", "per_try_timeout_ms = 1.5", "gateway.per_try_timeout_ms is 1.5; expected a whole number"),
        ("[ports]", "[parts]", "unknown key parts"),
        ("[ports]", "[ports", "settings.toml"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path: Path, old: str, new: str, why: str):
    """An unknown, missing, mistyped or impossible value stops the stack before it starts, and the message names it."""
    with pytest.raises(BadSettings, match=why):
        settings_with(tmp_path, old, new)


def test_a_missing_file_is_named(tmp_path: Path):
    """A settings file that is not there is an error, never the default."""
    with pytest.raises(BadSettings, match=r"nowhere\.toml"):
        read_settings({"PENSTOCK_SETTINGS": str(tmp_path / "nowhere.toml")})


def test_policies_are_the_checkouts_unless_the_user_names_a_folder(tmp_path: Path):
    """A relative name counts from the checkout, as the state folder's does."""
    assert read_settings({}).policies == ROOT / "dags" / "policies"
    assert read_settings({"PENSTOCK_POLICIES": str(tmp_path)}).policies == tmp_path
    assert read_settings({"PENSTOCK_POLICIES": "mine"}).policies == ROOT / "mine"


def test_a_state_folder_too_deep_for_a_socket_is_refused(tmp_path: Path):
    """The supervisor listens on a socket below the state folder, and the kernel limits its path."""
    with pytest.raises(BadSettings, match="bytes too long for the sockets below it: set PENSTOCK_STATE"):
        read_settings({"PENSTOCK_STATE": str(tmp_path / ("deep" * 25))})


@pytest.mark.parametrize(("length", "fits"), [(73, True), (74, False)])
def test_a_state_folder_leaves_room_for_what_lies_deeper(length: int, *, fits: bool):
    """A folder that is taken holds the demo's and the bench's sockets too, under the longer name that supervisord makes them by."""
    environ = {"PENSTOCK_STATE": "/" + "x" * (length - 1)}
    if not fits:
        with pytest.raises(BadSettings, match="is 1 bytes too long"):
            read_settings(environ)
        return
    settings = read_settings(environ)
    for inner in SUBSTACKS:
        deeper = dataclasses.replace(settings, state=settings.state / inner)
        assert len(f"{deeper.supervisor_socket}.4194304") <= 107


@pytest.mark.parametrize("name", ["my models", "a'b", "a$b", "50%", "naïve", "a;b", "(a)"])
def test_a_state_folder_that_a_shell_would_take_apart_is_refused(name: str):
    """Triton starts its backends through a shell without quoting: no server would come up, and none would say why."""
    for read in (read_settings, state_folder):
        with pytest.raises(BadSettings, match="set PENSTOCK_STATE to a path of"):
            read({"PENSTOCK_STATE": f"/srv/{name}"})


def test_fixed_ports_leave_out_the_range():
    """Triton's range is handed out server by server; only the fixed ports are checked before a start."""
    assert "triton_first" not in read_settings({}).ports.fixed()
    assert set(read_settings({}).ports.fixed()) | {"triton_first", "triton_last"} == set(Ports.__dataclass_fields__)
