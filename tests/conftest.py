"""What all tests share: the real data where it is present, and images that are tilted, permuted and odd-sized."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from medae.image import Geometry, Image
from medae.preparation import Preparation

if TYPE_CHECKING:
    from medae.package import ModelPackage
    from medae.tasks import TaskConfig


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real data sets, on machines that have them."""


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # as a job of a script's background is started; what the tests start would inherit it, and could not be interrupted
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data sets are not on this machine")
    return SHARED_DATA


SEGNET = {"kind": "segnet", "features": [4, 6], "convolutions": [1, 1]}
"""For packages that other processes load: they need not import MONAI, which takes longer than torch."""


def tilted_affine(spacing: tuple[float, float, float] = (2.5, 0.8, 1.1), seed: int = 0) -> np.ndarray:
    """Permuted (sagittal-like P-S-L axes), tilted and anisotropic: a straight affine lets axis swaps live."""
    rng = np.random.default_rng(seed)
    axes = np.array([[-1.0, 0, 0], [0, 0, -1.0], [0, -1.0, 0]]).T
    tilt, _ = np.linalg.qr(np.eye(3) + 0.15 * rng.standard_normal((3, 3)))
    tilt *= np.sign(np.diag(tilt))
    affine = np.eye(4)
    affine[:3, :3] = tilt @ axes * spacing
    affine[:3, 3] = (-31.5, 17.25, 40.0)
    return affine


@pytest.fixture
def tilted_volume() -> Image:
    """One channel, 7 x 9 x 11, every value different, int16, on a tilted permuted anisotropic grid."""
    pixels = np.arange(7 * 9 * 11, dtype=np.int16).reshape(1, 7, 9, 11) - 100
    return Image(pixels, Geometry((7, 9, 11), tilted_affine()))


def run(*arguments: object) -> str:
    """A command line in this process -> what it says on stdout; raises what would end it."""
    from typer.testing import CliRunner

    from medae.cli import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def untrained_package(
    task: "TaskConfig", network: dict[str, Any], preparation: Preparation | None = None, seed: int = 0
) -> "ModelPackage":
    """A whole package with random weights: all but the training."""
    import torch
    from pydantic import TypeAdapter

    from medae.networks import NetworkConfig
    from medae.package import Card, ModelPackage

    preparation = preparation or Preparation()
    settings = TypeAdapter(NetworkConfig).validate_python(network)
    torch.manual_seed(seed)
    built = settings.build(preparation.channels, task.network_channels(preparation.channels))
    for module in built.modules():  # statistics that matter, as training would leave them
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    card = Card(
        name="untrained",
        version="0.1",
        task=task,
        network=settings.model_dump(mode="json"),
        channels_in=preparation.channels,
        channels_out=task.channels_out(preparation.channels),
        receptive_field=task.seen(settings.receptive_field()),
        preparation=preparation,
    )
    return ModelPackage.seal(card, {name: value.numpy() for name, value in built.state_dict().items()})


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes are named by their length: gzip and zip data hold the time, and workers that collect at different seconds
    would disagree about the names of their tests."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None
