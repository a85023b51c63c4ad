"""PyTorch: the back end that every package can run on."""

import ctypes
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import nn

from medae.backends.observer import observed
from medae.errors import LimitExceeded, PackageError, UsageError
from medae.package import ModelPackage
from medae.scores import PREFIX

if TYPE_CHECKING:
    from medae.networks.prior import Prior

logger = logging.getLogger(__name__)

CUDA_BATCH = 4
"""Tiles in one forward pass on CUDA. Always as many, the rest zeros: the batch never changes an answer."""


class TorchBackend:
    """A network on one device; one tile at a time on the CPU (larger batches only cost page faults there)."""

    name = "torch"
    threads = 1

    def __init__(self, network: nn.Module, device: str = "auto", *, dropout_seed: int | None = None) -> None:
        self._device = choose_device(device)
        self.device = str(self._device)
        self.batch = CUDA_BATCH if self._device.type == "cuda" else 1
        self._network = network.to(self._device).eval()
        self._dropout_seed = dropout_seed
        if dropout_seed is not None:
            _drop_units(self._network)

    @classmethod
    def around(
        cls, network: nn.Module, package: ModelPackage, device: str = "auto", *, dropout_seed: int | None = None
    ) -> Self:
        """The package's network, which is there already, with all that its card needs to know beside its output."""
        whole = observed(network, package.card, package.weights, partial(prior_of, package))
        return cls(whole, device, dropout_seed=dropout_seed)

    @classmethod
    def from_package(cls, package: ModelPackage, device: str = "auto", *, dropout_seed: int | None = None) -> Self:
        """Build the card's network and load its weights. Raises PackageError when they do not fit."""
        return cls.around(network_of(package), package, device, dropout_seed=dropout_seed)

    def run(self, tiles: NDArray[Any]) -> NDArray[Any]:
        """(N, channels_in, *spatial) -> (N, channels_out, *spatial), float32.

        Raises LimitExceeded where the device or this process has not the memory.
        """
        with _said_as_limit():
            return self._run_cuda(tiles) if self._device.type == "cuda" else self._run_cpu(tiles)

    def _run_cpu(self, tiles: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode(), _one_thread():
            done = [self._forward(torch.from_numpy(tile[None])).numpy() for tile in _writeable(tiles)]
        return done[0] if len(done) == 1 else np.concatenate(done)

    def _run_cuda(self, tiles: NDArray[Any]) -> NDArray[Any]:
        done = []
        layout = torch.channels_last if tiles.ndim == 4 else torch.channels_last_3d
        for start in range(0, len(tiles), self.batch):
            part = tiles[start : start + self.batch]
            full = np.zeros((self.batch, *tiles.shape[1:]), np.float32)
            full[: len(part)] = part
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
                x = torch.from_numpy(full).to(self._device, memory_format=layout)
                done.append(self._forward(x)[: len(part)].float().cpu().numpy())
        return np.concatenate(done)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._dropout_seed is None:
            output: torch.Tensor = self._network(x)
            return output
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(self._dropout_seed)
            output = self._network(x)
            return output


def _drop_units(network: nn.Module) -> None:
    """Dropout as in training, and nothing else. Raises UsageError where there is none."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0]
    if not layers:
        raise UsageError("this network was trained without dropout, so no units can be dropped; set network.dropout")
    for layer in layers:
        layer.train()


def network_of(package: ModelPackage) -> nn.Module:
    """The card's network with its weights, as it was trained. Raises PackageError when they do not fit."""
    from medae.networks import NetworkConfig

    card = package.card
    try:
        settings = TypeAdapter[Any](NetworkConfig).validate_python(card.network)
        network: nn.Module = settings.build(card.channels_in, card.task.network_channels(card.channels_in))
        _fill(network, {name: value for name, value in package.weights.items() if not name.startswith(PREFIX)})
    except ValidationError as error:
        raise PackageError(f"the card's network is not known to this medae: {error.errors()[0]['msg']}") from None
    except RuntimeError:
        raise PackageError("the weights do not fit the network of the card; the package is damaged") from None
    return network


def prior_of(package: ModelPackage) -> "Prior":
    """The package's prior over the codes of its network, at evaluation, on the CPU.

    Raises UsageError where it has none, PackageError where the weights do not fit.
    """
    from medae.networks.prior import PriorSettings
    from medae.networks.vqvae import VQVAESettings

    if package.card.prior is None or package.prior is None:
        raise UsageError("this package has no prior over its codes; make one with `medae latent prior`")
    try:
        settings = PriorSettings.model_validate(package.card.prior)
        codes, _ = VQVAESettings.model_validate(package.card.network).quantiser.book
        prior = settings.build(codes, settings.grid or ())
        _fill(prior, package.prior)
    except ValidationError as error:
        raise PackageError(f"the card's prior is not known to this medae: {error.errors()[0]['msg']}") from None
    except RuntimeError:
        raise PackageError("the prior's weights do not fit the card; the package is damaged") from None
    return prior.eval()


def _fill(module: nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})


def choose_device(device: str) -> torch.device:
    """auto: CUDA where there is one. Raises UsageError for a device that is not here; never falls back quietly."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device {device!r} is not known; use auto, cpu, cuda or cuda:0") from None
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r} is not supported; use auto, cpu, cuda or cuda:0")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {device!r} is not here: {torch.cuda.device_count()} CUDA devices were found")
    return chosen


def keep_heap() -> None:
    """Let glibc reuse large blocks instead of returning them after each layer; 2-3 x faster on large tiles.

    For processes that only infer (command line, service workers); memory once used stays with the process.
    """
    if not sys.platform.startswith("linux"):
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        for name, value in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 2**26)):
            libc.mallopt(name, value)
    except (OSError, AttributeError):  # another C library: slower, not wrong
        logger.debug("no mallopt in this C library")


def cuda_devices() -> list[str]:
    """All that are here, by name."""
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def limit_memory(device: str, size: int) -> None:
    """Bytes of a CUDA device that this process may use; what needs more is refused with LimitExceeded."""
    chosen = choose_device(device)
    if chosen.type == "cuda":
        number = chosen.index or 0  # torch wants one here
        whole = torch.cuda.get_device_properties(number).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, size / whole), number)


@contextmanager
def _said_as_limit() -> Iterator[None]:
    """torch says that there is no memory by a RuntimeError: one of its own on CUDA, a plain one of these words else."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise LimitExceeded(
            "the network needs more memory for this image than there is, or than was promised; give more, or crop it"
        ) from None


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)


def _writeable(tiles: NDArray[Any]) -> NDArray[np.float32]:
    """torch warns about read-only arrays; a tile that is a view of an image is one."""
    return np.require(tiles, np.float32, ["C", "W"])
