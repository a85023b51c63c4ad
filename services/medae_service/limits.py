"""/v1/limits: what a client may send, before it sends it."""

from typing import Any

from medae_service.answering import OUTPUTS, PARAMETERS
from medae_service.settings import ServiceSettings

FORMATS = ("png", "jpeg", "tiff", "nifti", "metaimage", "nrrd", "dicom")
"""Recognised by content. A series of DICOM slices comes as files, or as a zip of them."""


def describe(settings: ServiceSettings) -> dict[str, Any]:
    """The limits of this service; bytes, seconds and counts as their names say."""
    return {
        "upload": {
            "bytes": settings.upload_bytes,
            "files": settings.upload_files,
            "seconds": settings.upload_seconds,
        },
        "image": settings.limits.model_dump(),
        "decode": {"seconds": settings.decode_seconds, "bytes": settings.decode_memory_bytes},
        "compute": {"seconds": settings.compute_seconds, "waiting": settings.waiting},
        "tiles": {"items": settings.request_items},
        "formats": list(FORMATS),
        "outputs": list(OUTPUTS),
        "parameters": {endpoint: list(names) for endpoint, names in PARAMETERS.items()},
    }
