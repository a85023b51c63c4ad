"""Core + halo tiles: plan them, and put their cores back together. Pure arithmetic on shapes.

A tile is read with a halo as wide as the network sees; only its core, which saw all that the whole image would have
shown it, is written, once, in its final type. So tiles equal whole-image inference without blending.
"""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from medae.settings import Settings


class ReceptiveField(Settings):
    """What a network needs to see around a voxel; halo and padding follow from it."""

    dims: Literal[2, 3]
    """2: the slices of a volume are seen one by one; 3: the whole volume."""
    stride: PositiveInt
    """Sizes must be a multiple of it along each seen axis, and tiles must start on one."""
    radius: NonNegativeInt
    """An output voxel depends on inputs at most this far away along each axis."""
    tileable: bool = True
    """False where the whole window changes every voxel (instance norm): then there is no finite radius."""

    @property
    def halo(self) -> int:
        """The radius, rounded up to whole strides."""
        return -(-self.radius // self.stride) * self.stride
