"""What a decoder sends, judged as if an attacker had sent it, who took the decoder over with a picture.

So it is plain data of a fixed form and never a pickle: sizes are checked against the file and the limits, and so are
the seals, without which a sender could cut the file away under our feet. What lies in the page, which the sender can
still change, is copied before it is looked at. Of DICOM headers a decoder tells only where
they end; they are read again from what the client sent. Error texts go to that client alone.
"""

import fcntl
import logging
import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter

from medae.errors import GeometryError, LimitExceeded, SeriesError, UnreadableImage, UnsupportedImage
from medae.image import Geometry, Image, Source
from medae.settings import Settings
from medae_service import packets
from medae_service.uploads import Uploaded

logger = logging.getLogger(__name__)

DType = Literal[
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"
]
_ERRORS = {kind.code: kind for kind in (UnreadableImage, UnsupportedImage, LimitExceeded, GeometryError, SeriesError)}


class _Raster(Settings):
    format: Literal["png", "jpeg", "tiff"]
    dtype: DType
    orientation: Annotated[int, Field(ge=1, le=8)]


class _Nifti(Settings):
    format: Literal["nifti"]
    header: Annotated[str, Field(pattern="^([0-9a-f]{696}|[0-9a-f]{1080})$")]


class _Volume(Settings):
    format: Literal["metaimage", "nrrd"]
    dtype: DType


class _Array(Settings):
    format: Literal["array"]
    """Of no file any more: slices that were made even."""


class _Dicom(Settings):
    format: Literal["dicom"]
    origins: tuple[tuple[NonNegativeInt, PositiveInt], ...]
    frames: tuple[tuple[NonNegativeInt, NonNegativeInt], ...]
    padding: bool


class _Answer(Settings):
    kind: Literal["image"]
    shape: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
    dtype: DType
    affine: Annotated[tuple[float, ...], Field(min_length=16, max_length=16)]
    unit: Literal["mm", "px"]
    volumes: PositiveInt
    frame_of_reference: Annotated[str, Field(max_length=1024)] | None
    source: Annotated[_Raster | _Nifti | _Volume | _Array | _Dicom, Field(discriminator="format")]

    @property
    def pixel_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def padding_bytes(self) -> int:
        return math.prod(self.shape[1:]) if isinstance(self.source, _Dicom) and self.source.padding else 0


class _Refused(Settings):
    kind: Literal["refused"]
    code: str
    detail: Annotated[str, Field(max_length=4096)]


class _Fault(Settings):
    kind: Literal["fault"]
    error: Annotated[str, Field(pattern=r"^\w{1,64}$")]
    at: Annotated[str, Field(pattern=r"^[\w.]{1,64}:\d{1,6}$")]


_REPLY: TypeAdapter[_Answer | _Refused | _Fault] = TypeAdapter(
    Annotated[_Answer | _Refused | _Fault, Field(discriminator="kind")]
)


class DecoderFault(Exception):
    """A fault of ours, met in a decoder; where it is, is in the log."""


class Breach(Exception):
    """A decoder that is gone, or that sent what no decoder of ours sends."""


@dataclass(frozen=True)
class Decoded:
    """A decoded image, but for the headers of DICOM files."""

    said: _Answer
    pixels: NDArray[Any]
    padding: NDArray[np.bool_] | None

    @property
    def has_headers(self) -> bool:
        """Whether there are files whose headers are to be read again."""
        return isinstance(self.said.source, _Dicom)


def judged(packet: packets.Packet, *, most: int, most_header: int) -> "Decoded | _Refused | _Fault":
    """A packet, judged. Raises Breach for one that no decoder of ours sends."""
    try:
        begin, end = packets.PLACE.unpack(packet.message)
        if not (begin <= most and 0 < end - begin <= most_header and _is_whole(packet, end)):
            raise Breach
        reply = _REPLY.validate_json(_header(packet, begin, end))
        if not isinstance(reply, _Answer):
            return reply
        if reply.pixel_bytes + reply.padding_bytes != begin:
            raise Breach
        return _arrays(reply, _blobs(packet, begin))
    except (packets.PLACE_ERROR, OSError, ValueError):  # a ValidationError is a ValueError
        raise Breach from None
    finally:
        if packet.file is not None:
            os.close(packet.file)


def _is_whole(packet: packets.Packet, end: int) -> bool:
    """Whether all of it is there, and stays so."""
    if packet.file is None:
        return end <= len(packet.page)
    is_sealed = fcntl.fcntl(packet.file, fcntl.F_GET_SEALS) & packets.SEALS == packets.SEALS
    return is_sealed and os.fstat(packet.file).st_size == end


def _header(packet: packets.Packet, begin: int, end: int) -> bytes:
    return packet.page[begin:end] if packet.file is None else os.pread(packet.file, end - begin, begin)


def _blobs(packet: packets.Packet, size: int) -> NDArray[np.uint8]:
    """A copy out of the page, or a file's map: private, since kernels before 6.7 share none that is sealed against
    writing."""
    if packet.file is None:
        return np.frombuffer(packet.page, np.uint8, size).copy()
    return np.frombuffer(mmap.mmap(packet.file, size, mmap.MAP_PRIVATE, mmap.PROT_READ), np.uint8)


def _arrays(said: _Answer, raw: NDArray[np.uint8]) -> Decoded:
    stored, outside = raw[: said.pixel_bytes], raw[said.pixel_bytes :]
    # a bool that is neither 0 nor 1 is not to come into being
    values = stored != 0 if said.dtype == "bool" else stored.view(said.dtype)
    padding = (outside != 0).reshape(said.shape[1:]) if said.padding_bytes else None
    return Decoded(said, values.reshape(said.shape), padding)


def require_pixels(reply: Decoded | _Refused | _Fault) -> Decoded:
    """Raises the error that a decoder met."""
    if isinstance(reply, _Refused):
        raise _ERRORS.get(reply.code, UnreadableImage)(reply.detail)
    if isinstance(reply, _Fault):
        logger.error("fault in a decoder", extra={"fields": {"error": reply.error, "at": reply.at}})
        raise DecoderFault(f"{reply.error} in a decoder")
    return reply


def image_of(read: Decoded, files: Sequence[Uploaded]) -> Image:
    said = read.said
    affine = np.array(said.affine).reshape(4, 4)
    geometry = Geometry(said.shape[1:], affine, said.unit, said.frame_of_reference)
    return Image(read.pixels, geometry, _source(said.source, read.padding, files), said.volumes)


def _source(
    said: _Raster | _Nifti | _Volume | _Array | _Dicom, padding: NDArray[np.bool_] | None, files: Sequence[Uploaded]
) -> Source:
    if isinstance(said, _Raster):
        from medae.io.raster import RasterSource

        return RasterSource(said.format, said.dtype, said.orientation)
    if isinstance(said, _Nifti):
        from medae.io.nifti import NiftiSource

        return NiftiSource(header=bytes.fromhex(said.header))
    if isinstance(said, _Volume):
        from medae.io.volume import VolumeSource

        return VolumeSource(said.format, said.dtype)
    if isinstance(said, _Array):
        return Source()
    from medae.io.dicom_file import DicomSource, read_header

    indices = {index for index, _ in said.origins}
    if len(indices) != len(said.origins) or not indices <= set(range(len(files))):
        raise DecoderFault("a decoder made headers up")
    if any(dataset >= len(indices) for dataset, _ in said.frames):
        raise DecoderFault("a decoder made frames up")
    datasets = tuple(read_header(files[index], size) for index, size in said.origins)
    return DicomSource("dicom", datasets, padding, said.origins, said.frames)
