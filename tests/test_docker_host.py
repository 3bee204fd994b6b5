"""stack.docker_host: around `docker compose`, with a `docker` command that notes what it is asked."""

import json
import os
from pathlib import Path

import pytest

from stack.docker_host import DATABASES, VOLUMES, Host, HostTrouble, main

FAKE = """#!/usr/bin/env python3
import json, os, pathlib, sys
folder = pathlib.Path(__file__).parent
with (folder / "calls").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
answer = json.loads((folder / "answers").read_text()) if (folder / "answers").exists() else {}
for sign, (status, out, err) in answer.items():
    if sign in " ".join(sys.argv[1:]):
        sys.stdout.write(out)
        sys.stderr.write(err)
        sys.exit(status)
"""


class Docker:
    """The fake command's folder: its calls, and what it answers to calls that contain a word."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "docker").write_text(FAKE)
        (folder / "docker").chmod(0o755)
        self.environ = {"PATH": f"{folder}:{os.environ['PATH']}", "COMPOSE_PROJECT_NAME": "mine"}

    def answers(self, **rows: tuple[int, str, str]) -> None:
        (self.folder / "answers").write_text(json.dumps(rows))

    def calls(self) -> list[str]:
        return [" ".join(json.loads(line)) for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture(name="docker")
def docker_fixture(tmp_path: Path) -> Docker:
    return Docker(tmp_path)


def test_the_images_that_others_stand_on_are_built_first(docker: Docker) -> None:
    """run, build, the serving image, then all of them side by side; another base image is handed to the first two."""
    Host({**docker.environ, "BASE_IMAGE": "python:3.11-slim"}).build_images()
    calls = docker.calls()
    assert [("--target run" in calls[0], "--target build" in calls[1]), calls[2].endswith("build triton"), calls[3].endswith("build")] == [
        (True, True),
        True,
        True,
    ]
    assert all("BASE_IMAGE=python:3.11-slim" in call for call in calls[:2])


def test_down_ends_what_deliveries_have_started_after_airflow_and_before_the_networks(docker: Docker) -> None:
    """Nothing new may start meanwhile, and a network with a container on it is not removed."""
    docker.answers(ps=(0, "aaa\nbbb\n", ""))
    Host(docker.environ).down(with_data=True)
    kinds = [next(word for word in ("stop", "ps", "rm", "down") if word in call.split()) for call in docker.calls()]
    assert kinds == ["stop", "ps", "rm", "down"]
    assert "label=penstock.project=mine" in docker.calls()[1]
    assert docker.calls()[2].endswith("aaa bbb")
    assert docker.calls()[3].split()[-1] == "-v"


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("write /x: no space left on device", "docker builder prune"),
        ("pull access denied for penstock/build", "make images"),
        ("Bind for 127.0.0.1:18080 failed: port is already allocated", "another program has that port"),
        ("Pool overlaps with other one on this address space", "PENSTOCK_SUBNET"),
        ("Cannot connect to the Docker daemon at unix:///x", "start the Docker engine"),
    ],
)
def test_what_docker_says_is_told_with_what_to_do(docker: Docker, said: str, advice: str) -> None:
    """The command's own words, and the way out."""
    docker.answers(build=(1, "", said))
    with pytest.raises(HostTrouble, match=advice) as told:
        Host(docker.environ).build_images()
    assert said in str(told.value)


def test_a_host_without_docker_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which versions are needed stands in the sentence; the status is 1."""
    assert main(["down"], {"PATH": str(tmp_path)}) == 1
    assert "install Docker 20.10 or newer with Compose 2.20 or newer" in capsys.readouterr().err


def test_a_backup_is_whole_private_and_starts_again_what_it_stopped(docker: Docker, tmp_path: Path) -> None:
    """Both databases and every volume, files of mode 0600 in a folder of mode 0700; services that write rest meanwhile."""
    docker.answers(**{"ps --services": (0, "mlflow\npostgres\nscheduler\n", ""), "pg_dump": (0, "dump", ""), "run --rm -i": (0, "tar", "")})
    folder = tmp_path / "backups" / "today"
    Host(docker.environ).backup(folder)
    assert {path.name for path in folder.iterdir()} == {*(f"{name}.dump" for name in DATABASES), *(f"{name}.tar" for name in VOLUMES)}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    stops = [call.rsplit(" stop ", 1)[1] for call in docker.calls() if " stop " in call]
    starts = [call.rsplit(" start ", 1)[1] for call in docker.calls() if " start " in call]
    assert stops == starts == ["mlflow scheduler"]


def test_services_start_again_after_a_backup_that_failed(docker: Docker, tmp_path: Path) -> None:
    """A full disk must not leave the system stopped."""
    docker.answers(**{"ps --services": (0, "mlflow\n", ""), "pg_dump": (1, "", "no such database")})
    with pytest.raises(HostTrouble, match="no such database"):
        Host(docker.environ).backup(tmp_path / "today")
    assert docker.calls()[-1].endswith("start mlflow")


def test_a_folder_that_is_no_backup_stops_nothing(docker: Docker, tmp_path: Path) -> None:
    """What is missing is named before anything is taken down."""
    with pytest.raises(HostTrouble, match=r"is no backup: airflow\.dump is missing"):
        Host(docker.environ).restore(tmp_path)
    assert not (tmp_path / "calls").exists()


def test_a_backup_never_goes_over_another(docker: Docker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder must be new."""
    assert main(["backup", str(tmp_path)], docker.environ) == 1
    assert "File exists" in capsys.readouterr().err
