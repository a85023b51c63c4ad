"""Back ends: tiles in, tiles out. A package names those it can run on; nothing is imported before it is chosen."""

from typing import Any, Protocol

from numpy.typing import NDArray

from medae.package import ModelPackage


class Backend(Protocol):
    """Runs a network on tiles of one shape."""

    name: str
    device: str
    threads: int
    """That one forward pass uses; parallelism is over tiles and workers."""
    batch: int
    """How many tiles it likes at once."""

    def run(self, tiles: NDArray[Any]) -> NDArray[Any]:
        """(N, channels_in, *spatial) float32 -> (N, channels_out, *spatial) float32; the same bits for any N."""


def open_backend(package: ModelPackage, device: str = "auto", *, dropout_seed: int | None = None) -> Backend:
    """The package's preferred back end, on `device`: auto, cpu, cuda or cuda:N.

    dropout_seed: units are dropped as in training, the same ones at each call; None: none.
    Raises UsageError for no such device, and for dropping units of a network that was trained without.
    """
    from medae.backends.torch import TorchBackend

    return TorchBackend.from_package(package, device, dropout_seed=dropout_seed)
