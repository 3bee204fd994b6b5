"""What `claim` finds out about recent traffic for the gate `golden_set`: a sketch of the recorder's sample, put into its evidence.

Users' rows themselves stay with the recorder. Only a policy with `golden_set.traffic_drift` asks for it. It judges nothing: without a
sample it says why, and the gate decides what that means.
"""

from __future__ import annotations

from pathlib import Path

from delivery.recorder_client import Recorder, RecorderUnreachable
from validation.contract import BadSpec, Spec, sha256
from validation.traffic_sample import NO_STABLE, sketch_sample

FILE = "traffic.json"
ROWS = 5_000


def traffic_outputs(spec: Spec, evidence: Path, recorder: Recorder | None, *, stable: bool) -> dict[str, str]:
    """Address and digest of the sketch, or `traffic_absent` with the reason; nothing when the policy does not ask."""
    if not spec.limits.get("traffic_drift"):
        return {}
    if not stable:
        return {"traffic_absent": NO_STABLE}
    if recorder is None:
        return {"traffic_absent": "this place has no recorder (PENSTOCK_RECORDER_URL)"}
    try:
        data = recorder.sample(spec.model, ROWS)
        if data is None:
            return {"traffic_absent": "the recorder has kept no request of this model"}
        sketch = sketch_sample(data).to_json()
    except (RecorderUnreachable, BadSpec) as error:
        return {"traffic_absent": str(error)[:200]}
    (evidence / FILE).write_bytes(sketch)
    return {"traffic_uri": f"{spec.evidence_uri}/{FILE}", "traffic_sha256": sha256(sketch)}
