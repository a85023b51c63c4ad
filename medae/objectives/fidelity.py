"""Likeness of predicted and clean image, both (B, C, *spatial) in the prepared range, where an image spans 0..1."""

from typing import ClassVar, Literal

from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional

from medae.errors import SettingsError
from medae.networks.base import Output
from medae.objectives.base import RECONSTRUCTION, ObjectiveSettings, Term


class MSE(ObjectiveSettings):
    """Mean squared difference: what PSNR measures."""

    applies_to: ClassVar[frozenset[str]] = RECONSTRUCTION

    kind: Literal["mse"] = "mse"

    def build(self) -> Term:
        return _MSE()


class L1(ObjectiveSettings):
    """Mean absolute difference: sharper than the square, and calmer about outliers."""

    applies_to: ClassVar[frozenset[str]] = RECONSTRUCTION

    kind: Literal["l1"] = "l1"

    def build(self) -> Term:
        return _L1()


class SSIM(ObjectiveSettings):
    """1 - structural similarity (Wang 2004, doi:10.1109/TIP.2003.819861), for values in 0..1."""

    applies_to: ClassVar[frozenset[str]] = RECONSTRUCTION
    in_range: ClassVar[bool] = True

    kind: Literal["ssim"] = "ssim"
    sigma: PositiveFloat = 1.5
    """Of the gaussian window, in voxels; the window ends at 3.5 sigma (11 voxels for 1.5)."""

    @property
    def least(self) -> int:
        return 2 * int(3.5 * self.sigma + 0.5) + 1

    def build(self) -> Term:
        return _SSIM(self.sigma, self.least)


class _MSE(Term):
    def forward(self, output: Output, target: Tensor) -> Tensor:
        return functional.mse_loss(output.prediction, target)


class _L1(Term):
    def forward(self, output: Output, target: Tensor) -> Tensor:
        return functional.l1_loss(output.prediction, target)


class _SSIM(Term):
    def __init__(self, sigma: float, window: int) -> None:
        super().__init__()
        from monai.losses import SSIMLoss

        self.window = window
        self.losses = {dims: SSIMLoss(dims, data_range=1.0, win_size=window, kernel_sigma=sigma) for dims in (2, 3)}

    def forward(self, output: Output, target: Tensor) -> Tensor:
        if min(target.shape[2:]) < self.window:
            raise SettingsError(
                f"the ssim objective looks through a window of {self.window} voxels, the patch is "
                f"{tuple(target.shape[2:])}; take larger patches or a smaller sigma"
            )
        loss: Tensor = self.losses[target.ndim - 2](output.prediction, target)
        return loss
