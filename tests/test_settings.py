"""stack.settings: one file of ports, and no silent default."""

from pathlib import Path

import pytest

from stack.settings import ROOT, BadSettings, Ports, read_settings, state_folder

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
    """PENSTOCK_STATE wins over the file; a relative one counts from the checkout."""
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
        ('state = ".penstock"', "state = 3", "state must name a folder"),
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


def test_a_state_folder_too_deep_for_a_socket_is_refused(tmp_path: Path):
    """The supervisor listens on a socket below the state folder, and the kernel limits its path."""
    with pytest.raises(BadSettings, match="too long for a socket: set PENSTOCK_STATE"):
        read_settings({"PENSTOCK_STATE": str(tmp_path / ("deep" * 25))})


def test_fixed_ports_leave_out_the_range():
    """Triton's range is handed out server by server; only the fixed ports are checked before a start."""
    assert "triton_first" not in read_settings({}).ports.fixed()
    assert set(read_settings({}).ports.fixed()) | {"triton_first", "triton_last"} == set(Ports.__dataclass_fields__)
