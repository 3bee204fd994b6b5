"""One Triton with fifty versions: how long their loading takes, and whether anybody notices when versions come, go and are loaded anew.

Half a minute of load over HTTP on forty-five versions, of which one is loaded anew with other content again and again, while five more come
and go. The server is started as the local stack starts its archive; loads and unloads are `delivery.archive`'s.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from bench.figures import Figure
from bench.latency_gate import NAME, let_triton_run, made, payload
from delivery.archive import Archive
from delivery.traffic import archived_name
from delivery.triton import ARCHIVE, Server
from validation.child import child
from validation.load_client import Answers, Target, load_client
from validation.private_server import free_ports
from validation.schedule import poisson

VERSIONS, ASKED, RELOADED = 50, 45, 45
"""All of them; those that are asked; the number of the one of these that is loaded anew."""

WIDTH, RATE_PER_S, LOAD_S = 16, 300.0, 30.0
READY_S = 60.0


def measure() -> list[Figure]:
    let_triton_run()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        folder = Path(name)
        contents = [made(folder, layers, WIDTH) for layers in (1, 2)]
        with _archive(folder) as archive:
            for number in range(1, VERSIONS + 1):
                shutil.copytree(contents[0], archive.packaged(NAME, number))
            start_s = time.monotonic()
            for number in range(1, VERSIONS + 1):
                archive.load(NAME, number, archive.packaged(NAME, number))
            load_s = time.monotonic() - start_s
            before = _processes(archive)
            answers, changes = _asked_meanwhile(archive, contents)
            touched = sum(_processes(archive).get(name) != before[name] for name in map(_name, range(1, RELOADED)))
    return _figures(load_s, answers, changes, touched)


def _asked_meanwhile(archive: Archive, contents: list[Path]) -> tuple[Answers, int]:
    """The answers of a load on the asked versions, and how many changes the archive had meanwhile. A change that fails is raised."""
    ended = threading.Event()

    def change() -> int:
        rounds = 0
        while not ended.is_set():
            rounds += 1
            archive.load(NAME, RELOADED, contents[rounds % 2])
            for number in range(ASKED + 1, VERSIONS + 1):
                archive.unload(NAME, number)
                archive.load(NAME, number, contents[0])
        return rounds * (1 + 2 * (VERSIONS - ASKED))

    rng, n = np.random.default_rng(0), int(RATE_PER_S * LOAD_S)
    requests = tuple(payload(_name(number), WIDTH) for number in range(1, ASKED + 1))
    with load_client() as client, ThreadPoolExecutor(1) as pool:
        client.open("archive", Target(protocol="http", address=archive.server().http, requests=requests))
        client.send_closed("archive", 4 * ASKED, 4)
        changes = pool.submit(change)
        try:
            answers = client.send("archive", poisson(RATE_PER_S, n, rng), rng.integers(ASKED, size=n))
        finally:
            ended.set()
    return answers, changes.result()


def _figures(load_s: float, answers: Answers, changes: int, touched: int) -> list[Figure]:
    p99_ms = 1000 * float(np.quantile(answers.latency_s, 0.99))
    n = len(answers.latency_s)
    return [
        Figure(
            name="load_50_s",
            value=round(load_s, 1),
            unit="s",
            goal="<= 15",
            how=f"{VERSIONS} versions loaded into one Triton over gRPC, one after another, each as a model of its own",
        ),
        Figure(
            name="archive_errors",
            value=len(answers.errors),
            unit="errors",
            goal="= 0",
            how=f"of {n:,} requests at {RATE_PER_S:g} a second to {ASKED} versions (p99 {p99_ms:.1f} ms), {changes} loads and unloads",
        ),
        Figure(
            name="archive_touched",
            value=touched,
            unit="versions",
            goal="= 0",
            how=f"of {RELOADED - 1} that did not change, whose process was another after those {changes} changes",
        ),
    ]


@contextmanager
def _archive(folder: Path) -> Iterator[Archive]:
    """An archive in this folder, on a server that ends with the block."""
    ports = free_ports("http", "grpc", "metrics")
    flags = [word for kind, port in ports.items() for word in (f"--{kind}", str(port))]
    repository = folder / ARCHIVE
    repository.mkdir()
    words = [*shlex.split(os.environ["PENSTOCK_TRITON"]), "--name", ARCHIVE, "--repository", str(repository), *flags, "--keep-going"]
    server = Server(name=ARCHIVE, **{kind: f"127.0.0.1:{port}" for kind, port in ports.items()})
    with (folder / "archive.log").open("wb") as log, child(words, stdout=log, stderr=subprocess.STDOUT):
        _wait_ready(server)
        yield Archive(repository, folder / "store", lambda: server)


def _wait_ready(server: Server) -> None:
    end_s = time.monotonic() + READY_S
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        while time.monotonic() < end_s:
            try:
                if client.is_server_ready(client_timeout=1):
                    return
            except InferenceServerException:
                time.sleep(0.05)
    raise RuntimeError(f"the archive was not ready after {READY_S:g} s")


def _name(number: int) -> str:
    return archived_name(NAME, number)


def _processes(archive: Archive) -> dict[str, int]:
    """The process of each loaded version, by the name that the archive gave it."""
    names = {_name(number) for number in range(1, VERSIONS + 1)}
    found = {}
    for each in psutil.process_iter(["pid", "cmdline"]):
        for word in each.info["cmdline"] or ():
            if str(archive.repository) in word:
                found.update({name: each.info["pid"] for name in names if f"/{name}/" in word})
    return found
