"""The only geometry arithmetic: an image onto another grid."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medae.errors import GeometryError
from medae.image import Geometry, Image, Shape3

_EXACT = 1e-3
"""Index shifts below this many voxels, over a whole grid, come from rounding in headers, not from another place."""

_OPPOSITE = str.maketrans("LRPAIS", "RLAPSI")


def resample_onto(image: Image, geometry: Geometry, *, labels: bool = False, fill: float = 0.0) -> Image:
    """The image on another grid; the source stays.

    Where the grids differ by flips, exchanged axes and whole voxels only, values are moved, bit for bit. Otherwise
    linear interpolation to float32, after a Gaussian of sigma (factor - 1) / 2 along axes that get coarser (as in
    scikit-image's `resize`); labels: the nearest voxel, type kept. Places beyond half a voxel outside get `fill`.
    Raises GeometryError when one grid is in mm and the other in px.
    """
    if image.geometry.unit != geometry.unit:
        raise GeometryError(
            f"a grid in {image.geometry.unit} cannot be laid onto one in {geometry.unit}: the picture's size is unknown"
        )
    if image.geometry.shape == geometry.shape and np.array_equal(image.geometry.affine, geometry.affine):
        return replace(image, geometry=geometry)  # a tile's usual case, and a third of a millisecond
    to_source = np.linalg.inv(image.geometry.affine) @ geometry.affine
    moves = _whole_moves(to_source, image.geometry.shape, geometry.shape)
    if moves is not None:
        pixels = _moved(image.pixels, moves, geometry.shape, fill)
    else:
        pixels = _interpolated(image.pixels, to_source, geometry.shape, labels, fill)
    return replace(image, pixels=pixels, geometry=geometry)


def standard_grid(geometry: Geometry, *, orientation: str | None, spacing_mm: tuple[float, ...] | None) -> Geometry:
    """The grid that covers the same box with axes along `orientation` and voxels of `spacing_mm`.

    orientation: where (slices, rows, columns) point, such as "SPL" for axial slices as radiologists see them; an
    oblique grid keeps its tilt and gets the nearest order and direction. spacing_mm: in the new order.
    """
    if orientation is not None:
        geometry = _reoriented(geometry, orientation)
    if spacing_mm is None:
        return geometry
    factor = np.asarray(spacing_mm) / np.asarray(geometry.spacing_mm)
    lengths = np.asarray(geometry.shape)
    # ceil, so that no voxel of the old grid is left outside: 10 voxels of 1 mm -> 4 of 3 mm, centred
    shape = np.maximum(np.ceil(lengths / factor - _EXACT), 1).astype(int)
    affine = geometry.affine.copy()
    affine[:3, 3] = geometry.world((lengths - 1) / 2 - factor * (shape - 1) / 2)
    affine[:3, :3] *= factor
    s, r, w = shape.tolist()
    return replace(geometry, shape=(s, r, w), affine=affine)


def _reoriented(geometry: Geometry, orientation: str) -> Geometry:
    codes = geometry.axis_codes
    order, flips = [], []
    for letter in orientation:
        axis = next(n for n, code in enumerate(codes) if letter in (code, code.translate(_OPPOSITE)))
        order.append(axis)
        flips.append(codes[axis] != letter)
    columns = geometry.affine[:3, order] * np.where(flips, -1, 1)
    first = [geometry.shape[axis] - 1 if flip else 0 for axis, flip in zip(order, flips, strict=True)]
    start = np.zeros(3)
    start[order] = first
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = geometry.world(start)
    s, r, w = (geometry.shape[axis] for axis in order)
    return replace(geometry, shape=(s, r, w), affine=affine)


def _whole_moves(to_source: NDArray[np.float64], source: Shape3, target: Shape3) -> NDArray[np.int64] | None:
    """The index map as whole numbers, where it is a signed exchange of axes and a whole shift; else None."""
    whole = np.rint(to_source)
    reach = np.array([*target, 1.0])  # how far an error in each column can shift a voxel
    if (np.abs(to_source - whole) @ reach).max() > _EXACT:
        return None
    axes = np.abs(whole[:3, :3])
    if not (axes.sum(0) == 1).all() or not (axes.sum(1) == 1).all():
        return None
    return whole.astype(np.int64)


def _moved(pixels: NDArray[np.generic], moves: NDArray[np.int64], shape: Shape3, fill: float) -> NDArray[np.generic]:
    axes = [int(np.flatnonzero(moves[:3, target])[0]) for target in range(3)]  # the source axis of each target axis
    turned = np.transpose(pixels, (0, *(axis + 1 for axis in axes)))
    taken: list[slice] = [slice(None)]
    placed: list[slice] = [slice(None)]
    for target, axis in enumerate(axes):
        sign, start, length = int(moves[axis, target]), int(moves[axis, 3]), pixels.shape[axis + 1]
        # target index t lies at source index start + sign * t: keep those t that fall inside
        low, high = sorted((-start * sign, (length - 1 - start) * sign))
        first, last = max(low, 0), min(high, shape[target] - 1)
        if first > last:
            return np.full((pixels.shape[0], *shape), fill, pixels.dtype)
        at = start + sign * first
        stop = start + sign * last + sign
        taken.append(slice(at, stop if stop >= 0 else None, sign))
        placed.append(slice(first, last + 1))
    part = turned[tuple(taken)]
    if part.shape[1:] == shape:
        return part
    whole = np.full((pixels.shape[0], *shape), fill, pixels.dtype)
    whole[tuple(placed)] = part
    return whole


def _interpolated(
    pixels: NDArray[np.generic], to_source: NDArray[np.float64], shape: Shape3, labels: bool, fill: float
) -> NDArray[np.generic]:
    from scipy import ndimage  # settings refer to this module, and are read without it

    matrix, offset = to_source[:3, :3], to_source[:3, 3]
    result = np.empty((pixels.shape[0], *shape), pixels.dtype if labels else np.float32)
    coarser = np.maximum((np.linalg.norm(matrix, axis=1) - 1) / 2, 0)
    for plane, into in zip(pixels, result, strict=True):
        values = plane
        if not labels:
            values = plane.astype(np.float32)
            if coarser.max() > _EXACT:
                values = ndimage.gaussian_filter(values, coarser, mode="nearest")
        # mode "nearest", and outside filled below: "constant" also blanks voxels that rounding puts a hair outside
        ndimage.affine_transform(
            values, matrix, offset, output=into, output_shape=shape, order=0 if labels else 1, mode="nearest"
        )
    outside = _outside(to_source, pixels.shape[1:], shape)
    if outside.any():
        result[:, outside] = fill
    return result


def _outside(to_source: NDArray[np.float64], source: tuple[int, ...], shape: Shape3) -> NDArray[np.bool_]:
    """Which target voxels have their centre beyond the box of the source's voxels."""
    s, r, w = np.ogrid[: shape[0], : shape[1], : shape[2]]
    outside = np.zeros(shape, bool)
    for row, length in zip(to_source[:3], source, strict=True):
        at = row[0] * s + row[1] * r + row[2] * w + row[3]
        outside |= (at < -0.5 - _EXACT) | (at > length - 0.5 + _EXACT)
    return outside
