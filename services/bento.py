"""What `bentoml build` packs: the service, found in the checkout or in the Bento, without an installation."""

import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_ROOTS = [str(_HERE), str(_HERE.parent)]
sys.path[:0] = _ROOTS
# the processes that decode images start afresh, and find the same source
os.environ["PYTHONPATH"] = os.pathsep.join([*_ROOTS, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)

from medae_service.service import medae_service  # noqa: E402

__all__ = ["medae_service"]
