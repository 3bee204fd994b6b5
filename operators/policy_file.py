"""Reads the JSON files that lie beside a policy and that it names, so that their content can travel in a spec.

Gates do not see the policies' folder. What cannot be read or is too large ends the task without another try: the file would be the same.
What the content means is the gate's business.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from validation.contract import canonical_json

LIMIT_BYTES = 64 << 10
"""A spec travels in one environment variable, of which Linux carries 128 KiB."""


def read_beside(folder: Path, name: str, *, place: str, what: str, advice: str) -> Any:
    """The JSON of `folder/name`. `place` is the policy's key that names it, `what` a word for the file ("a suite").

    Raises `AirflowFailException` that names place, file and what is wrong.
    """
    try:
        with (folder / name).open("rb") as file:
            data = file.read(LIMIT_BYTES + 1)
            size = (folder / name).stat().st_size
        if len(data) > LIMIT_BYTES:
            raise AirflowFailException(f"{name} has {size} bytes; {what} may have {LIMIT_BYTES}: {advice}")
        content = json.loads(data, parse_constant=_refuse)
        canonical_json(content).encode()  # a number like 1e999 becomes infinite only here, and no spec can carry it
    except (OSError, ValueError, RecursionError) as error:
        raise AirflowFailException(f"{place}: {name} beside the policy cannot be read as JSON: {error}") from error
    return content


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")
