"""NIfTI-1 and NIfTI-2, single files, plain or gzipped <-> Image, and the answers to them.

Nibabel's affine is RAS+ already; (i, j, k) is read as array (k, j, i), the order of the file, so columns of the affine
change places and no voxel moves. sform is preferred over qform, as nibabel does. Values per voxel (the fifth axis, and
RGB voxels) are channels; volumes along the fourth axis stay volumes, and are answered as such. Only the header goes
through nibabel: pixels are read where they lie, without a copy.

Answers are always gzipped. They keep the header of the image they answer, except what may hold names (descrip,
aux_file, db_name, extensions).
"""

import logging
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from medae.errors import GeometryError, OutputError, UnreadableImage, UnsupportedImage
from medae.image import Geometry, Image, Source
from medae.io.answer import Algorithm, AnswerFile, Label, label_numbers, to_stored
from medae.io.guard import GZIP_MAGIC, Limits, inflate, inflate_head
from medae.io.volume import VolumeSource

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

logger = logging.getLogger(__name__)

_MEDIA_TYPE = "application/gzip"
_HEADER_SIZES = (348, 540)
_LABEL, _VECTOR = 1002, 1007  # intent codes of nifti1.h
_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
_FARTHEST_MM = 1e9
_RGB, _RGBA = ("R", "G", "B"), ("R", "G", "B", "A")
_PRIVATE = ("descrip", "aux_file", "db_name", "data_type", "intent_name")
_NO_LONGER_TRUE = ("cal_min", "cal_max", "glmin", "glmax", "intent_code", "intent_p1", "intent_p2", "intent_p3")


@dataclass(frozen=True)
class NiftiSource(Source):
    """The header of the file, as it was stored."""

    format: str = "nifti"
    header: bytes = b""


class _Layout(NamedTuple):
    """What the header says about the voxels."""

    shape: tuple[int, int, int]
    """Slices, rows, columns."""
    volumes: int
    channels: int
    dtype: np.dtype[Any]
    """Of one voxel as stored: plain numbers in either byte order, or RGB."""
    offset: int

    @property
    def is_colour(self) -> bool:
        return self.dtype.names is not None

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.values * self.dtype.itemsize

    @property
    def values(self) -> int:
        """Stored for each place."""
        return self.volumes * self.channels


def read(data: bytes, limits: Limits) -> Image:
    """One volume, or several on one grid. Raises UnreadableImage, UnsupportedImage, LimitExceeded or GeometryError."""
    is_gzip = data.startswith(GZIP_MAGIC)
    header = _parse(inflate_head(data, _HEADER_SIZES[1]) if is_gzip else data[: _HEADER_SIZES[1]])
    layout = _layout(header)
    slices, rows, columns = layout.shape
    voxel = layout.values * layout.dtype.itemsize
    limits.admit_grid(slices=slices, rows=rows, columns=columns, bytes_per_voxel=voxel, stored=len(data))
    limits.admit_bytes(layout.end)
    geometry = _geometry(header, layout.shape)
    if not is_gzip and len(data) < layout.end:
        raise UnreadableImage(f"the header declares {layout.end} bytes, {len(data)} came; the file is truncated")
    stored = _stored(inflate(data, layout.end) if is_gzip else data, layout)
    pixels = stored if layout.is_colour else _scaled(stored, header)
    return Image(pixels, geometry, NiftiSource(header=header.binaryblock), layout.volumes)


def encode(image: Image, *, compress: bool) -> bytes:
    """Any image with its pixels as they are; header codes are kept where the image lies where its source lay."""
    pixels = image.pixels
    if pixels.dtype.kind == "b" or pixels.dtype == np.float16:  # NIfTI has neither
        pixels = pixels.astype(np.uint8 if pixels.dtype.kind == "b" else np.float32)
    return _file(_header_for(image), pixels, image.volumes, compress=compress)


def encode_labels(labels: Image, *, stem: str, labels_info: Sequence[Label], algorithm: Algorithm) -> list[AnswerFile]:
    """`{stem}_labels.nii.gz`, uint8, or uint16 where there are more than 255 labels."""
    return _labels(labels, stem, len(labels_info), algorithm.signature)


def encode_plain_labels(labels: Image, *, stem: str) -> list[AnswerFile]:
    """The same for a segmentation of any source, of which only the numbers are known."""
    return _labels(labels, stem, max(int(labels.pixels.max()), 0), "medae")


def encode_restored(image: Image, *, stem: str, algorithm: Algorithm, description: str) -> list[AnswerFile]:
    """`{stem}_restored.nii.gz` with type and scaling of the source. `description` has no safe place in a header."""
    header = _header_for(image)
    pixels = image.pixels
    if isinstance(image.source, NiftiSource):
        source = _parse(image.source.header)
        layout = _layout(source)
        dtype = np.dtype(np.uint8) if layout.is_colour else layout.dtype.newbyteorder("=")
        slope, inter = (1.0, 0.0) if layout.is_colour else _scaling(source)
        pixels = _unscaled(pixels, dtype, slope, inter)
        header["scl_slope"], header["scl_inter"] = source["scl_slope"], source["scl_inter"]
        if layout.is_colour and image.channels == len(_RGB):
            colours = pixels.reshape(image.volumes, len(_RGB), *pixels.shape[1:])
            voxels = np.ascontiguousarray(np.moveaxis(colours, 1, -1))
            pixels = voxels.view([(name, "u1") for name in _RGB])[..., 0]
    elif isinstance(image.source, VolumeSource):
        pixels = to_stored(pixels, image.source.dtype)
    data = _file(header, pixels, image.volumes, compress=True, made_by=algorithm.signature)
    return [AnswerFile(f"{stem}_restored.nii.gz", _MEDIA_TYPE, data)]


def encode_map(map_: Image, *, stem: str, maximum: float, algorithm: Algorithm) -> list[AnswerFile]:
    """`{stem}_map.nii.gz`, float32, the scores themselves; `maximum` is for formats that need a scale."""
    return [AnswerFile(f"{stem}_map.nii.gz", _MEDIA_TYPE, _real(map_, algorithm.signature))]


def encode_probabilities(
    probabilities: Image, *, stem: str, labels_info: Sequence[Label], algorithm: Algorithm
) -> list[AnswerFile]:
    """`{stem}_probabilities.nii.gz`, float32, labels along the fifth axis as the standard has it for values a voxel."""
    data = _real(probabilities, algorithm.signature)
    return [AnswerFile(f"{stem}_probabilities.nii.gz", _MEDIA_TYPE, data)]


def _parse(head: bytes) -> "Nifti1Header":
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    for order in "<>":
        size = struct.unpack_from(order + "i", head)[0] if len(head) >= 4 else 0
        if size in _HEADER_SIZES and len(head) >= size:
            kind = Nifti1Header if size == _HEADER_SIZES[0] else Nifti2Header
            return kind(head[:size], endianness=order, check=False)  # its checks print and repair; ours refuse
    raise UnreadableImage(f"the NIfTI header is damaged, or truncated after {len(head)} bytes")


def _layout(header: "Nifti1Header") -> _Layout:
    from nibabel.spatialimages import HeaderDataError

    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise UnreadableImage(f"the NIfTI header declares {count} axes; 1 to 7 exist, so it is damaged")
    lengths = [int(length) for length in header["dim"][1 : count + 1]] + [1] * (7 - count)
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        dtype = np.dtype(complex)  # a code that does not exist
    if dtype.names not in (_RGB, _RGBA) and (dtype.kind not in "iuf" or dtype.itemsize > 8):
        raise UnsupportedImage(
            f"this NIfTI has voxels of data type {int(header['datatype'])}; whole and real numbers of 8 to 64 bits and "
            "RGB are read"
        )
    columns, rows, slices, volumes, channels, *rest = lengths
    if max(rest) != 1:
        raise UnsupportedImage(
            f"this NIfTI has axes of {lengths[:count]}; three in space, volumes along the fourth and values along the "
            "fifth are read"
        )
    return _Layout((slices, rows, columns), volumes, channels, dtype, _offset(header))


def _offset(header: "Nifti1Header") -> int:
    first = int(header["sizeof_hdr"]) + 4
    offset = float(header["vox_offset"])
    if offset == 0:  # some writers leave it to the standard
        return first
    if not (first - 4 <= offset < 2**62 and offset == int(offset)):
        raise UnreadableImage("the NIfTI header declares an impossible place for its voxels; it is damaged")
    return int(offset)


def _geometry(header: "Nifti1Header", shape: tuple[int, int, int]) -> Geometry:
    from nibabel.spatialimages import HeaderDataError

    try:
        with np.errstate(all="ignore"):
            affine = np.array(header.get_best_affine(), np.float64)[:, [2, 1, 0, 3]]
    except (HeaderDataError, ValueError):
        raise GeometryError(
            "the NIfTI's qform is no rotation, or its voxel sizes are negative; repair its header"
        ) from None
    # anything but metre and micrometre, also an unknown unit, is taken as mm, as everywhere
    affine[:3] *= _MM.get(int(header["xyzt_units"]) % 8, 1.0)
    if not np.abs(affine).max() < _FARTHEST_MM:
        raise GeometryError("the NIfTI's affine is not a number, or lies beyond any scanner; repair its header")
    return Geometry(shape, affine)


def _stored(raw: bytes | bytearray, layout: _Layout) -> NDArray[Any]:
    """(volumes x channels, slices, rows, columns), native byte order; a view of `raw` where that is possible."""
    count = math.prod(layout.shape) * layout.values
    voxels = np.frombuffer(raw, layout.dtype, count, layout.offset)
    if layout.is_colour:
        assert layout.dtype.names is not None
        samples = voxels.view(np.uint8).reshape(layout.values, *layout.shape, len(layout.dtype.names))
        if layout.dtype.names == _RGBA:
            logger.warning("alpha was dropped: 1 of 4 samples a voxel")
        colours = np.moveaxis(samples[..., :3], -1, 1)
        return np.ascontiguousarray(colours.reshape(layout.values * 3, *layout.shape))
    if not voxels.dtype.isnative or not voxels.flags.aligned:
        voxels = voxels.astype(voxels.dtype.newbyteorder("="))
    voxels = voxels.reshape(layout.channels, layout.volumes, *layout.shape)  # volumes change faster in the file
    return voxels.swapaxes(0, 1).reshape(layout.values, *layout.shape)


def _scaling(header: "Nifti1Header") -> tuple[float, float]:
    """(1, 0) where nothing is scaled."""
    from nibabel.spatialimages import HeaderDataError

    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError:
        raise UnreadableImage("the NIfTI's scaling is not a number; repair scl_slope and scl_inter") from None
    return (1.0, 0.0) if slope is None else (float(slope), float(inter))


def _scaled(stored_CSRW: NDArray[Any], header: "Nifti1Header") -> NDArray[Any]:
    slope, inter = _scaling(header)
    if (slope, inter) == (1.0, 0.0):
        return stored_CSRW
    values = np.empty(stored_CSRW.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, for the model to refuse
        for index in np.ndindex(stored_CSRW.shape[:2]):  # by slices: double precision without a double-sized volume
            values[index] = stored_CSRW[index] * np.float64(slope) + inter
    return values


def _unscaled(values_CSRW: NDArray[Any], dtype: np.dtype[Any], slope: float, inter: float) -> NDArray[Any]:
    if (slope, inter) == (1.0, 0.0):
        return to_stored(values_CSRW, dtype)
    stored = np.empty(values_CSRW.shape, dtype)
    for index in np.ndindex(values_CSRW.shape[:2]):
        stored[index] = to_stored((values_CSRW[index].astype(np.float64) - inter) / slope, dtype)
    return stored


def _labels(labels: Image, stem: str, count: int, made_by: str) -> list[AnswerFile]:
    header = _header_for(labels)
    header["intent_code"] = _LABEL
    data = _file(header, label_numbers(labels, count), labels.volumes, compress=True, made_by=made_by)
    return [AnswerFile(f"{stem}_labels.nii.gz", _MEDIA_TYPE, data)]


def _real(image: Image, made_by: str) -> bytes:
    pixels = image.pixels.astype(np.float32, copy=False)
    return _file(_header_for(image), pixels, image.volumes, compress=True, made_by=made_by)


def _header_for(image: Image) -> "Nifti1Header":
    """A header in little-endian, unscaled: the source's, where the image lies where the source lay, else a new one."""
    if isinstance(image.source, NiftiSource):
        header = _parse(image.source.header)
        layout = _layout(header)
        place = _geometry(header, layout.shape)
        if place.shape == image.geometry.shape and np.array_equal(place.affine, image.geometry.affine):
            return _cleaned(header.as_byteswapped("<"))
    return _new_header(image.geometry)


def _cleaned(header: "Nifti1Header") -> "Nifti1Header":
    """Without what may hold names, and without what was true of the source's values only."""
    for field in (*_PRIVATE, *_NO_LONGER_TRUE):
        if field in header.keys():  # noqa: SIM118  # a header is no dict; NIfTI-2 has fewer fields
            header[field] = b"" if field in _PRIVATE else 0
    header.set_slope_inter(1, 0)
    return header


def _new_header(geometry: Geometry) -> "Nifti1Header":
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    is_large = max(geometry.shape) > np.iinfo(np.int16).max
    header = (Nifti2Header if is_large else Nifti1Header)(endianness="<")
    header.set_data_shape(geometry.shape[::-1])
    affine = geometry.affine[:, [2, 1, 0, 3]]
    header.set_qform(affine, code="scanner", strip_shears=True)
    if np.abs(header.get_qform() - affine).max() > 1e-4 * max(geometry.spacing):
        header["qform_code"] = 0  # a rotation and sizes cannot say a sheared grid
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm" if geometry.unit == "mm" else "unknown")
    header.set_slope_inter(1, 0)
    return header


def _file(
    header: "Nifti1Header", pixels_CSRW: NDArray[Any], volumes: int, *, compress: bool, made_by: str = "medae"
) -> bytes:
    from nibabel.spatialimages import HeaderDataError

    count, *shape = pixels_CSRW.shape
    channels = count // volumes
    if channels > 1:
        # the fifth axis holds the values of a voxel, the fourth is time
        header.set_data_shape((*shape[::-1], volumes, channels))
        header["intent_code"] = _VECTOR
        pixels_CSRW = pixels_CSRW.reshape(volumes, channels, *shape).swapaxes(0, 1)
    elif math.prod(header.get_data_shape()) != math.prod(pixels_CSRW.shape):
        header.set_data_shape((*shape[::-1], volumes) if volumes > 1 else shape[::-1])
    little = pixels_CSRW.astype(pixels_CSRW.dtype.newbyteorder("<"), copy=False)
    try:
        header.set_data_dtype(little.dtype)
    except HeaderDataError:
        raise OutputError(f"NIfTI cannot hold voxels of {little.dtype}; convert them first") from None
    header["descrip"] = made_by.encode("ascii")[:79]
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4
    # four zero bytes: no extensions
    data = header.binaryblock + bytes(4) + np.ascontiguousarray(little).tobytes()
    return _gzip(data) if compress else data


def _gzip(data: bytes) -> bytes:
    import imagecodecs

    # libdeflate at level 1: twice zlib's speed on noise, smaller too
    return cast(bytes, imagecodecs.gzip_encode(data, 1))
