"""docker-compose.yaml and stack.compose: who can reach what, who knows which secret, and that nothing of it stands in the file."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow_home import ROOT

from delivery.__main__ import TASKS
from stack import compose
from stack.environments import ENVIRONMENTS
from stack.keys import Keys

FILE = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
IMAGES_ONLY = {name for name, row in FILE["services"].items() if row.get("profiles") in (["images"], ["extras"])}
SERVICES: dict[str, dict[str, Any]] = {name: row for name, row in FILE["services"].items() if name not in IMAGES_ONLY}
ONCE = {"keys", "databases", "migrations", "webhook", "bootstrap", "servers", "penstock"}
PUBLISHED = {"envoy", "api-server", "mlflow", "registry", "prometheus", "alertmanager"}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_bounded_and_unprivileged(name: str) -> None:
    """No capability but what is added by name, no new privilege, a memory limit, and a root file system that only PostgreSQL writes to."""
    row = SERVICES[name]
    assert (row["cap_drop"], row["security_opt"]) == (["ALL"], ["no-new-privileges"])
    assert row["mem_limit"]
    assert row["read_only"] is (name != "postgres")
    assert "privileged" not in row
    assert set(row.get("cap_add", [])) <= {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONCE))
def test_every_lasting_service_tells_whether_it_is_well_and_comes_back(name: str) -> None:
    """`up --wait` waits for its health check; the engine starts it again when it crashes."""
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_only_gateway_uis_and_registry_are_published_and_on_loopback() -> None:
    """Nothing else is reachable from the host's own network, and nothing from another host."""
    published = {name: row["ports"] for name, row in SERVICES.items() if "ports" in row}
    assert set(published) == PUBLISHED
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert {name for name, row in SERVICES.items() if "edge" in row.get("networks", [])} == PUBLISHED
    assert [name for name, row in FILE["networks"].items() if not row.get("internal")] == ["edge"]


def test_one_service_alone_sees_the_engines_socket() -> None:
    """Whoever has the socket is root on the host."""
    seen = {name for name, row in SERVICES.items() if any("docker.sock" in str(each) for each in row.get("volumes", []))}
    assert seen == {"engine"}
    reach = {name for name, row in SERVICES.items() if "engine" in row.get("networks", [])}
    assert reach == {"engine", "scheduler", "triggerer", "servers"}


def test_each_service_has_the_volume_of_its_own_secrets_and_no_other() -> None:
    """Only what makes and uses all of them sees all of them: one-shot services that end before deliveries begin."""
    shared = {name: {v.split(":")[0] for v in row.get("volumes", []) if v.startswith("keys-")} for name, row in SERVICES.items()}
    assert {name: found for name, found in shared.items() if len(found) > 1} == {"keys": shared["keys"]}
    assert {name for name, found in shared.items() if "keys-setup" in found} == {"keys", "databases", "webhook"}


def test_no_secret_and_no_registrys_host_stands_in_the_file() -> None:
    """Passwords are made on the first start; images of other people are named as their registries' default names them."""
    text = (ROOT / "docker-compose.yaml").read_text()
    assert not re.search(r"(?i)(password|secret|token)\s*[:=]\s*['\"]?[A-Za-z0-9]{8}", text.replace("_FILE", ""))
    foreign = {
        row["image"].partition(":-")[2].rstrip("}") for row in FILE["services"].values() if not row["image"].startswith("${PENSTOCK_IMAGES")
    }
    assert foreign == {"postgres:17-bookworm", "registry:3", "prom/prometheus:v3.7.3", "prom/alertmanager:v0.29.0", "penstock/envoy"}


def test_every_task_has_an_image() -> None:
    """Each environment that an operator runs a task in is an image of the compose file; optional exporters are built by hand."""
    operators = "\n".join(path.read_text() for path in (ROOT / "operators").glob("*.py"))
    used = {*re.findall(r'^\s+environment(?:: ClassVar\[str\])? = "(\w+)"', operators, re.MULTILINE), "training"}
    built = {row["build"]["dockerfile"].split("/")[1] for row in FILE["services"].values() if "build" in row}
    assert used <= built
    assert used <= set(ENVIRONMENTS)
    assert all((ROOT / "docker" / name / "Dockerfile").is_file() for name in {*ENVIRONMENTS} - {"stack", "tests", "postgres"})
    assert "container_check" in TASKS


# ---- secrets


@pytest.fixture(name="written")
def written_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Keys]:
    owners: dict[str, int] = {}
    monkeypatch.setattr(os, "chown", lambda path, user, group: owners.__setitem__(Path(path).name, user))
    for _ in range(2):  # a second start
        compose.write_keys(tmp_path, {})
    return tmp_path, compose.read_keys(tmp_path / "setup")


def test_secrets_are_made_once_and_readable_by_their_user_only(written: tuple[Path, Keys]) -> None:
    """A second start keeps them; each file has mode 0600, its folder 0700."""
    root, _ = written
    files = [path for path in root.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.parent.stat().st_mode & 0o777 for path in files if path.parent.name != "setup"} == {0o700}
    assert not [path for path in files if path.name.startswith(".")]


def test_a_service_is_given_the_secrets_that_it_needs_and_no_more(written: tuple[Path, Keys]) -> None:
    """The director knows its token; MLflow its database and its own key; Prometheus the token that it reads targets with."""
    root, keys = written
    told = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.is_file()}
    assert told["director/environment"] == f"PENSTOCK_DIRECTOR_TOKEN={keys.director_token}\n"
    assert told["postgres/password"] == keys.postgres_password
    assert keys.director_token not in told["mlflow/environment"]
    assert keys.airflow_admin_password not in told["mlflow/environment"] + told["airflow/environment"]
    assert keys.director_token not in told["registry/htpasswd"]
    assert compose.registry_password(keys) not in told["registry/htpasswd"]  # a hash of it


def test_airflow_gets_its_connections_whole(written: tuple[Path, Keys]) -> None:
    """As Airflow reads them: JSON, each with the host that the network knows."""
    root, keys = written
    lines = dict(line.split("=", 1) for line in (root / "airflow" / "environment").read_text().splitlines())
    director, registry = (json.loads(lines[f"AIRFLOW_CONN_{name}"]) for name in ("DIRECTOR", "CONTAINER_REGISTRY"))
    assert (director["host"], director["password"]) == ("director", keys.director_token)
    assert (registry["login"], registry["password"]) == ("penstock", compose.registry_password(keys))


def test_whoever_has_tags_follow_an_undo_signs_in_at_the_registry(written: tuple[Path, Keys]) -> None:
    """The command of people, and what brings servers back: the same user and password as Airflow's tasks."""
    root, keys = written
    for name in ("people", "servers"):
        lines = dict(line.split("=", 1) for line in (root / name / "environment").read_text().splitlines())
        found = (lines["PENSTOCK_REGISTRY_USER"], lines["PENSTOCK_REGISTRY_PASSWORD"])
        assert found == ("penstock", compose.registry_password(keys))


def test_a_value_with_a_lines_end_cannot_become_another_variable() -> None:
    """It would be read as one by every service."""
    with pytest.raises(ValueError, match="A has a line's end"):
        compose._lines({"A": "1\nB=2"})


def test_one_secret_is_shown_by_name_and_an_unknown_one_is_told(
    written: tuple[Path, Keys], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a person asks for the UI's password."""
    root, keys = written
    monkeypatch.setattr(compose, "KEYS", root)
    assert compose.main(["show", "airflow_admin_password"]) == 0
    assert capsys.readouterr().out.strip() == keys.airflow_admin_password
    assert compose.main(["show", "password"]) == 1
    assert "known: airflow_admin_password" in capsys.readouterr().err
