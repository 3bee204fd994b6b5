"""`penstock replay` and `penstock explain`: decides a watch again from its evidence, and says in plain words what decided.

Evidence is a folder or an address that holds what a `shadow`, `rollback_sensor` or `bake` wrote: what was counted, what it was judged by,
and the findings. Every file is held against the manifest's digests first. A replay must give the same findings, bit for bit; people's
orders and newer versions, which are not in the evidence, are shown as they were found. Nothing is asked of the stack, but for the address
of a run's evidence: `explain deliver__digits__v4` asks the registry for it.

| exit status | means                                                   |
|-------------|---------------------------------------------------------|
| 0           | the same findings again; an explanation was given       |
| 1           | other findings than those that were written down        |
| 64          | no evidence there, or it is not what its manifest says  |
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from delivery.addresses import Addresses, NoAddress
from delivery.judged import MANIFEST, NoEvidence, differences, explanation, files, read
from delivery.rollout import JUDGED
from validation.contract import download, download_into

EXIT_OTHER, EXIT_USAGE = 1, 64
RUN = re.compile(r"(?:deliver|retry)__(?P<model>[a-z0-9-]+)__v(?P<version>[0-9]+).*")
WATCHES = ("bake", "shadow")
"""Tasks beside the steps' sensors whose evidence can be decided again."""


def _fetched(place: str, folder: Path) -> Path:
    """A folder as it is; of an address the files that are needed."""
    if "://" not in place:
        return Path(place)
    for name in (MANIFEST, JUDGED):
        (folder / name).write_bytes(download(f"{place}/{name}", limit_bytes=1 << 24))
    for name in files(json.loads((folder / JUDGED).read_bytes())):
        with (folder / name).open("wb") as file:
            download_into(file, f"{place}/{name}")
    return folder


def _place(words: str, addresses: Callable[[], Addresses]) -> str:
    """Where the evidence of a run's last watch lies; anything else is the place itself."""
    run = RUN.fullmatch(words)
    if run is None:
        return words
    query = {"name": run["model"], "version": run["version"]}
    answer = httpx.get(f"{addresses().registry_url}/api/2.0/mlflow/model-versions/get", params=query, trust_env=False, timeout=10)
    tags = {each["key"]: each["value"] for each in answer.json().get("model_version", {}).get("tags", [])}
    ended_at, evidence = tags.get("penstock.ended_at", ""), tags.get("penstock.evidence", "")
    steps = [key.removeprefix("penstock.finding.") for key in tags if key.startswith("penstock.finding.rollback_sensor_")]
    watched = ended_at in WATCHES or ended_at.startswith("rollback_sensor_")
    last = ended_at if watched else max(steps, key=_share, default="")
    if not evidence or not last:
        why = tags.get("penstock.why", "the registry knows no such delivery")
        raise NoEvidence(f"{words} ended {tags.get('penstock.outcome', 'nowhere')} at {ended_at or '-'} without a watch: {why}")
    return f"{evidence}/{last}"


def _share(task: str) -> int:
    return int(task.rsplit("_", 1)[1])


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            judged = read(_fetched(_place(options.evidence, Addresses.from_env), Path(folder)))
    except (NoEvidence, NoAddress, OSError, ValueError, httpx.HTTPError) as error:
        print(f"penstock: {error}", file=sys.stderr)
        return EXIT_USAGE
    if options.word == "explain":
        print("\n".join(explanation(judged)))
        return 0
    for each in judged.again():
        print(f"{each.outcome.word:12} {each.name}: {each.why}")
    for name, spent in judged.budget.items():
        print(f"             budget of {name}: {spent:.3%} over the whole rollout")
    other = differences(judged)
    print("\n".join(other) if other else "the same findings as were written down")
    return EXIT_OTHER if other else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="penstock", description="Decides again from evidence, or says why it was decided so.")
    words = parser.add_subparsers(dest="word", required=True)
    for word, what in (
        ("replay", "decide a watch again and compare"),
        ("explain", "say what decided and what would have turned it"),
    ):
        words.add_parser(word, help=what).add_argument("evidence", help="folder or address of a watch's evidence, or a run's id")
    return parser


if __name__ == "__main__":
    sys.exit(main())
