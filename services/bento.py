"""What `bentoml build` packs: the service, found in the checkout or in the Bento, without an installation."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from medae_service.service import medae_service  # noqa: E402

__all__ = ["medae_service"]
