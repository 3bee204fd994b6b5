"""The container registry's tags follow what serves: `serving` and the semantic version name the stable version's image, by its digest.

Whoever finishes a promotion or follows an undo calls `follow_image`; done twice it changes nothing the second time. A version without an
image (a place without an engine) has nothing to follow. It builds and pushes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from delivery.image_registry import ImageRegistry, Reference
from delivery.registry import IMAGE, SEMANTIC_VERSION, ModelVersion

SERVING = "serving"


def follow_image(version: ModelVersion, environ: Mapping[str, str] = os.environ) -> str:
    """What was done, in a sentence. Raises `RegistryTrouble` (worth another try) and `DigestChanged`."""
    if IMAGE not in version.tags:
        return f"{version.name} has no image"
    image = Reference.parse(version.tags[IMAGE])
    registry, tags = ImageRegistry.of(image.host, environ), [SERVING, version.tags.get(SEMANTIC_VERSION, "")]
    for tag in filter(None, tags):
        registry.tag(image, tag)
    return f"{SERVING} names {image}"
