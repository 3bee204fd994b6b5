"""The MLflow registry in our words: versions, their tags and aliases, source runs, golden sets, artifact addresses.

Every delivery task that reads or writes the registry does it through `Registry`; nobody else in this package imports mlflow. It is a thin
layer: it decides nothing about a delivery, keeps nothing in memory, and every look asks the server again. The registry is the source of
truth, so all that a delivery must remember lies there as tags (named in the constants below) and as the aliases `production`, `previous`.
"""

from __future__ import annotations

import math
import os
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from validation.contract import Bundle
from validation.policy import Trigger

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

PRODUCTION, PREVIOUS = "production", "previous"
DELIVERY = "penstock.delivery"  # the delivery that has, or last had, this version
DRY_RUN = "dry_run"
OUTCOME = "penstock.outcome"  # promoted, refused, rolled_back, inconclusive, superseded, error, dry_run; absent while a delivery lives
ENDED_AT = "penstock.ended_at"
ENDED = "penstock.ended"
WHY = "penstock.why"
EVIDENCE = "penstock.evidence"
PROMOTING = "penstock.promoting"  # set before the gateway's stable changes, removed after the aliases: half done is visible
UNDONE_BY = "penstock.undone_by"  # who took a promoted version back; why stands in WHY
SEMANTIC_VERSION = "penstock.semantic_version"
BUNDLE_URI, BUNDLE_SHA256 = "penstock.bundle.uri", "penstock.bundle.sha256"
IMAGE = "penstock.image"  # the serving image, by digest, where there is an engine
LICENCE = "license"  # set by whoever registers the version, and copied to the image's labels
GOLDEN_URI, GOLDEN_SHA256 = "penstock.golden_set.uri", "penstock.golden_set.sha256"  # on the registered model
GOLDEN_WRITTEN = "penstock.golden_set.written_unix_s"  # beside them, for policies with a limit on the golden set's age
WAITING_S = 24 * 3600.0  # older than this, a version without an outcome is no reason to stop another: its delivery is dead, or nobody's
WHY_LIMIT = 500  # characters: a sentence, also where a store has short tag columns

_ARTIFACTS_API = "api/2.0/mlflow-artifacts/artifacts"
_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}  # MLflow's answers to names and version numbers that do not exist


class NotRegistered(LookupError):
    """The registry has no such model, version, run or artifact; asking again gives the same answer."""


class NoGoldenSet(LookupError):
    """The registered model does not name its golden set; the message says which tag is missing."""


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One registered version. `run_id` is empty when it was registered without a run; `bundle` is set once it was packaged.

    `created_s` is the Unix time by the registry's clock.
    """

    model: str
    number: int
    run_id: str
    tags: Mapping[str, str]
    created_s: float = 0.0

    @property
    def bundle(self) -> Bundle | None:
        uri, digest = self.tags.get(BUNDLE_URI), self.tags.get(BUNDLE_SHA256)
        return Bundle(uri=uri, sha256=digest) if uri and digest else None

    def claimed_by_another(self, delivery: str) -> str | None:
        """The live delivery that has this version and is not `delivery`: it was named and has no outcome yet."""
        holder = self.tags.get(DELIVERY)
        return holder if holder and holder != delivery and OUTCOME not in self.tags else None

    @property
    def never_tried(self) -> bool:
        """No delivery has it now or took it to an end. A dry run is none, unless it was the run of its own event: that run happens once."""
        if self.tags.get(OUTCOME) == DRY_RUN:
            return self.tags.get(DELIVERY) != f"deliver__{self.model}__v{self.number}"
        return DELIVERY not in self.tags and OUTCOME not in self.tags

    @property
    def name(self) -> str:
        return f"{self.model} v{self.number}"


@dataclass(frozen=True, kw_only=True)
class SourceRun:
    """The run that made a version. `artifacts` is the address of its artifacts, readable and writable with plain HTTP (or `file:`)."""

    run_id: str
    artifacts: str
    git_commit: str
    metrics: Mapping[str, float]


class Registry:
    """One MLflow server. Raises `NotRegistered` for what is not there and MLflow's own exception when the server does not answer."""

    def __init__(self, tracking_uri: str) -> None:
        from mlflow import MlflowClient

        self.tracking_uri = tracking_uri.rstrip("/")
        self._client = MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Registry:
        """The server at `MLFLOW_TRACKING_URI`. Retries are few: Airflow retries the task, and MLflow's default is minutes of silence."""
        for name, value in {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}.items():
            os.environ.setdefault(name, value)
        return cls(environ["MLFLOW_TRACKING_URI"])

    def version(self, model: str, number: int) -> ModelVersion:
        return _version(_there(self._client.get_model_version, model, str(number), what=f"{model} v{number}"))

    def versions(self, model: str) -> list[ModelVersion]:
        """All versions of a model, oldest first; of an unknown model none."""
        found: list[ModelVersion] = []
        token: str | None = None
        while True:
            page = self._client.search_model_versions(f"name = '{model}'", max_results=200, page_token=token)
            found += [_version(each) for each in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda each: each.number)

    def aliases(self, model: str) -> dict[str, int]:
        """Version numbers by alias. A search for versions does not carry their aliases, the registered model does."""
        row = _there(self._client.get_registered_model, model, what=f"model {model}")
        return {alias: int(number) for alias, number in row.aliases.items()}

    def production(self, model: str) -> int | None:
        return self.aliases(model).get(PRODUCTION)

    def tag(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Sets tags in the order given."""
        for key, value in tags.items():
            self._client.set_model_version_tag(version.model, str(version.number), key, value)

    def untag(self, version: ModelVersion, *keys: str) -> None:
        """Removes the tags that are there."""
        present = self.version(version.model, version.number).tags
        for key in keys:
            if key in present:
                self._client.delete_model_version_tag(version.model, str(version.number), key)

    def move_production(self, model: str, number: int) -> None:
        """`previous` to the old production first, then `production` to `number`.

        A crash in between leaves both aliases on the old version; doing it again finishes. When `production` is there, nothing moves.
        """
        old = self.production(model)
        if old == number:
            return
        if old is not None:
            self._client.set_registered_model_alias(model, PREVIOUS, str(old))
        self._client.set_registered_model_alias(model, PRODUCTION, str(number))

    def end(self, version: ModelVersion, *, outcome: str, at: str, why: str, evidence: str = "") -> None:
        """Writes how a delivery ended; the outcome last, because its presence says that all of it is there."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        rows = {ENDED_AT: at, ENDED: now, WHY: why[:WHY_LIMIT], EVIDENCE: evidence, OUTCOME: outcome}
        self.tag(version, {key: value for key, value in rows.items() if value})

    def run(self, run_id: str) -> SourceRun:
        row = _there(self._client.get_run, run_id, what=f"run {run_id}")
        return SourceRun(
            run_id=run_id,
            artifacts=http_address(self.tracking_uri, row.info.artifact_uri),
            git_commit=row.data.tags.get("mlflow.source.git.commit", ""),
            metrics={name: float(value) for name, value in sorted(row.data.metrics.items())},
        )

    def source(self, version: ModelVersion) -> str:
        """Where MLflow keeps the version's files; MLflow 3 resolves a logged model's `models:/m-...` here."""
        call = self._client.get_model_version_download_uri
        return str(_there(call, version.model, str(version.number), what=f"the files of {version.name}"))

    def files(self, version: ModelVersion) -> dict[str, int]:
        """Sizes in bytes by name of the files and folders at the top of a version's artifacts; empty when there are none."""
        from mlflow.artifacts import list_artifacts

        rows = _there(list_artifacts, self.source(version), tracking_uri=self.tracking_uri, what=f"the artifacts of {version.name}")
        return {each.path.rsplit("/", 1)[-1]: int(each.file_size or 0) for each in rows}

    def download(self, version: ModelVersion, folder: Path) -> Path:
        """Copies a version's artifacts below `folder` and returns where they lie."""
        from mlflow.artifacts import download_artifacts

        what = f"the artifacts of {version.name}"
        return Path(_there(download_artifacts, self.source(version), dst_path=str(folder), tracking_uri=self.tracking_uri, what=what))

    def golden_set(self, model: str) -> Bundle:
        """Address and sha256 of the model's golden set, from the registered model's tags. Raises `NoGoldenSet`."""
        tags = _there(self._client.get_registered_model, model, what=f"model {model}").tags
        for key in (GOLDEN_URI, GOLDEN_SHA256):
            if not tags.get(key):
                raise NoGoldenSet(f"registered model {model} has no tag {key}")
        return Bundle(uri=http_address(self.tracking_uri, tags[GOLDEN_URI]), sha256=tags[GOLDEN_SHA256])

    def golden_set_written(self, model: str) -> float | None:
        """Unix time at which the golden set was written, if the registered model says it. Raises `NoGoldenSet` for what is no time."""
        text = _there(self._client.get_registered_model, model, what=f"model {model}").tags.get(GOLDEN_WRITTEN)
        try:
            written = float(text) if text else None
        except ValueError:
            written = math.nan
        if written is not None and not 0 < written < math.inf:
            raise NoGoldenSet(f"registered model {model}: tag {GOLDEN_WRITTEN} is {text!r}; expected seconds since 1970")
        return written

    def size(self, version: ModelVersion) -> tuple[int, int]:
        """Number of all files and folders of a version, and their bytes, from the server's listing."""
        from mlflow.artifacts import list_artifacts

        folders, files, total = [self.source(version)], 0, 0
        while folders:
            folder = folders.pop()
            rows = _there(list_artifacts, folder, tracking_uri=self.tracking_uri, what=f"the artifacts of {version.name}")
            folders += [f"{folder}/{each.path.rsplit('/', 1)[-1]}" for each in rows if each.is_dir]
            files += len(rows)
            total += sum(int(each.file_size or 0) for each in rows)
        return files, total

    def wanted(self, model: str, trigger: Trigger) -> list[ModelVersion]:
        """Versions that carry the marker and never had a delivery, but for dry runs, oldest first. An unknown model has none.

        A version below production that is marked by a tag only is left alone: newer ones went past it, and delivering it now would be a
        step back that nobody asked for. The alias is different: it was moved there on purpose.
        """
        fresh = [each for each in self.versions(model) if each.never_tried]
        if not fresh:
            return []
        aliases = self.aliases(model)
        marked = [each for each in fresh if _marked(each, trigger, aliases)]
        production, aliased = aliases.get(PRODUCTION, 0), aliases.get(trigger.marker)
        return [each for each in marked if each.number > production or (each.number == aliased != production)]

    def newer_wanted(self, model: str, number: int, trigger: Trigger, now_s: float | None = None) -> int | None:
        """The newest version above `number` that carries the marker and is being delivered or will be; None when there is none.

        One that is older than `WAITING_S` does not count: a delivery that died without an outcome must not stop older ones for ever.
        """
        aliases, since_s = self.aliases(model), (time.time() if now_s is None else now_s) - WAITING_S
        newer = [each for each in self.versions(model) if each.number > number and each.created_s > since_s]
        waiting = [each for each in newer if each.never_tried or OUTCOME not in each.tags]
        return max((each.number for each in waiting if _marked(each, trigger, aliases)), default=None)

    def marked(self, version: ModelVersion, trigger: Trigger) -> bool:
        """Whether a version carries the policy's marker, so that its event asks for a delivery."""
        return _marked(version, trigger, self.aliases(version.model))


def http_address(tracking_uri: str, artifact_uri: str) -> str:
    """The plain address of an artifact: `mlflow-artifacts:` becomes MLflow's own HTTP interface, paths become `file:`.

    Raises `ValueError` for other stores (s3: and the like): gates have no credentials for them, MLflow's proxied artifacts need none.
    """
    parts = urllib.parse.urlsplit(artifact_uri)
    if parts.scheme in {"http", "https", "file"}:
        return artifact_uri
    if parts.scheme == "mlflow-artifacts":
        server = f"{urllib.parse.urlsplit(tracking_uri).scheme}://{parts.netloc}" if parts.netloc else tracking_uri.rstrip("/")
        return f"{server}/{_ARTIFACTS_API}/{urllib.parse.quote(parts.path.strip('/'))}"
    if not parts.scheme and artifact_uri.startswith("/"):
        return Path(artifact_uri).as_uri()
    advice = "serve them through MLflow (mlflow server --artifacts-destination), or use file: or http:"
    raise ValueError(f"artifacts at {artifact_uri!r}: {advice}")


def _marked(version: ModelVersion, trigger: Trigger, aliases: Mapping[str, int]) -> bool:
    by_tag = bool({"created", "tag"} & set(trigger.on)) and trigger.marker in version.tags
    by_alias = "alias" in trigger.on and aliases.get(trigger.marker) == version.number
    return by_tag or by_alias


def _version(row: MlflowVersion) -> ModelVersion:
    created_s = int(row.creation_timestamp or 0) / 1000
    return ModelVersion(model=row.name, number=int(row.version), run_id=row.run_id or "", tags=dict(row.tags), created_s=created_s)


def _there(call: Any, *arguments: Any, what: str, **named: Any) -> Any:
    """Calls MLflow; its answer "does not exist" becomes `NotRegistered`, any other trouble stays what it is."""
    from mlflow.exceptions import MlflowException

    try:
        return call(*arguments, **named)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            raise NotRegistered(f"{what} is not in the registry: {error.message}"[:WHY_LIMIT]) from error
        raise
