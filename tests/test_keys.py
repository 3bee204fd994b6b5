"""stack.keys: secrets are made once, closed to others, and never shown."""

import dataclasses
import json
import stat
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from stack.keys import BadKeys, Keys, keys_file, read_keys, read_or_make_keys


def test_first_start_makes_keys_that_only_the_owner_can_read(tmp_path: Path):
    """The file has mode 0600 from its first byte on, and nothing else is left beside it."""
    keys = read_or_make_keys(tmp_path / "state")
    assert stat.S_IMODE(keys_file(tmp_path / "state").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["secrets.json"]
    assert all(len(value) >= 32 for value in dataclasses.asdict(keys).values())


def test_later_starts_keep_the_keys(tmp_path: Path):
    """The same state folder has the same secrets: a new database password would lock the stack out of its data."""
    assert read_or_make_keys(tmp_path) == read_or_make_keys(tmp_path)


def test_no_two_keys_are_alike():
    """Each secret is drawn by itself, in one stack and between two."""
    values = [*dataclasses.asdict(Keys()).values(), *dataclasses.asdict(Keys()).values()]
    assert len(set(values)) == len(values)


def test_encryption_keys_have_the_form_that_airflow_and_mlflow_take(tmp_path: Path):
    """Both encrypt with Fernet."""
    keys = read_or_make_keys(tmp_path)
    for key in (keys.airflow_fernet_key, keys.mlflow_fernet_key):
        assert Fernet(key).decrypt(Fernet(key).encrypt(b"x")) == b"x"


def test_secrets_do_not_get_into_tracebacks():
    """The object's `repr` shows none of them."""
    keys = Keys()
    assert not any(value in repr(keys) for value in dataclasses.asdict(keys).values())


def test_a_file_that_others_can_read_is_refused(tmp_path: Path):
    """Whoever could read it may have; the message says how to go on."""
    read_or_make_keys(tmp_path)
    keys_file(tmp_path).chmod(0o640)
    with pytest.raises(BadKeys, match=r"mode 0640.*chmod 600"):
        read_keys(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda row: row.pop("director_token"), "director_token is missing or unknown"),
        (lambda row: row.update(other="x"), "other is missing or unknown"),
        (lambda row: row.update(director_token=""), "director_token must be a non-empty string"),
        (lambda row: row.update(director_token=5), "director_token must be a non-empty string"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path: Path, change, why: str):
    """A key missing, unknown or empty is an error: an empty token would open a door."""
    read_or_make_keys(tmp_path)
    row = json.loads(keys_file(tmp_path).read_text())
    change(row)
    keys_file(tmp_path).write_text(json.dumps(row))
    with pytest.raises(BadKeys, match=why):
        read_keys(tmp_path)


@pytest.mark.parametrize(("content", "why"), [("{", "not JSON"), ("[]", "missing or unknown")])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: str, why: str):
    """Half a file is no reason to make new keys."""
    read_or_make_keys(tmp_path)
    keys_file(tmp_path).write_text(content)
    with pytest.raises(BadKeys, match=why):
        read_or_make_keys(tmp_path)


def test_no_file_is_an_error_for_those_who_only_read(tmp_path: Path):
    """Only the first start makes keys; a program that reads them names the command that does."""
    with pytest.raises(BadKeys, match="make up"):
        read_keys(tmp_path)
