"""How long a bundle of 20 MB takes to become an image and to be pushed: `delivery.image` on a real engine and registry.

    <environment rollout>/bin/python bench/package_time.py SPEC       SPEC: JSON with registry (port), password, images, rounds

`bench.containers` runs it. Each round has another model, so that nothing of the layer is there already; reading the bundle is not counted.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from delivery import image
from delivery.engine import engine
from delivery.image_registry import Credentials
from validation.bundle import MANIFEST, Manifest, OpenBundle, Tensor
from validation.contract import Bundle

MODEL, SIZE = "twenty-megabytes", 20_000_000


def main(given: dict[str, Any]) -> dict[str, list[float]]:
    client = engine(os.environ)
    credentials = Credentials(user="penstock", password=given["password"])
    place = image.Place(registry=f"127.0.0.1:{given['registry']}/penstock", base=f"{given['images']}triton", credentials=credentials)
    spent = []
    for number in range(int(given["rounds"])):
        with tempfile.TemporaryDirectory() as folder:
            opened, bundle = _bundle(Path(folder), number)
            start = time.monotonic()
            built = image.build(client, place, opened, bundle, {})
            image.push(client, place, built, MODEL, image.tags(opened.manifest, bundle))
            spent.append(time.monotonic() - start)
            client.images.remove(built.id, force=True)
    return {"seconds": spent}


def _bundle(root: Path, number: int) -> tuple[OpenBundle, Bundle]:
    (root / MODEL / "1").mkdir(parents=True)
    (root / MODEL / "1" / "model.onnx").write_bytes(os.urandom(SIZE))
    (root / MODEL / "config.pbtxt").write_text(f'name: "{MODEL}"\n')
    (root / MANIFEST).write_text("{}")
    tensor = Tensor(name="x", dtype="FP32", shape=(4,))
    manifest = Manifest(
        model=MODEL,
        version=number + 1,
        semantic_version=f"v1.{number}.0",
        files={},
        inputs=(tensor,),
        outputs=(tensor,),
        opset=17,
        ir_version=8,
        source_run="bench",
        git_commit="",
        training_metrics={},
        framework_versions={},
        golden_set={"rows": 0},
        baselines={},
    )
    return OpenBundle(manifest=manifest, root=root), Bundle(uri="file:///bench", sha256=os.urandom(32).hex())


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
