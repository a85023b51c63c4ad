"""Lossless compression of the pixels of DICOM answers: JPEG-LS, JPEG 2000, RLE (PS3.5 8.2, A.4).

Only whole numbers of 8 or 16 bits are compressed: one-bit and float pixels, and objects without pixels, have no
transfer syntax for it that readers share. An answer keeps its UID, since what it says stays the same (PS3.4 B.4.1.3).
"""

from collections.abc import Callable, Sequence
from io import BytesIO

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.uid import UID, JPEG2000Lossless, JPEGLSLossless, RLELossless

from medae.io.answer import AnswerFile
from medae.io.dicom_answer import MEDIA_TYPE
from medae.io.dicom_elements import to_bytes

Pixels = NDArray[np.integer]
Encode = Callable[[Pixels, Dataset], bytes]


def compressed(files: Sequence[AnswerFile], method: str) -> list[AnswerFile]:
    """With the pixels of the DICOM files compressed by "jpeg-ls", "jpeg-2000" or "rle", where they have such pixels."""
    return [_compressed(file, method) if file.media_type == MEDIA_TYPE else file for file in files]


def _compressed(file: AnswerFile, method: str) -> AnswerFile:
    dataset = dcmread(BytesIO(file.data))
    compress(dataset, method)
    return file._replace(data=to_bytes(dataset))


def compress(dataset: Dataset, method: str) -> None:
    """Compress the native, little-endian pixels of an answer in place, where there are such as the method takes."""
    if "PixelData" not in dataset or dataset.BitsAllocated not in (8, 16):
        return
    syntax, encode = _METHODS[method]
    frames = [encode(frame, dataset) for frame in _frames(dataset)]
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == JPEG2000Lossless and dataset.PhotometricInterpretation == "RGB":
        dataset.PhotometricInterpretation = "YBR_RCT"


def _frames(dataset: Dataset) -> Pixels:
    """(frames, rows, columns) or (frames, rows, columns, samples), as stored."""
    kind = "i" if dataset.PixelRepresentation == 1 else "u"
    shape = [int(dataset.get("NumberOfFrames") or 1), dataset.Rows, dataset.Columns]
    if dataset.SamplesPerPixel > 1:
        shape.append(dataset.SamplesPerPixel)
    count = int(np.prod(shape))
    return np.frombuffer(dataset.PixelData, f"<{kind}{dataset.BitsAllocated // 8}", count).reshape(shape)


def _jpeg_ls(frame: Pixels, dataset: Dataset) -> bytes:
    """Signed pixels as the unsigned numbers of their bits (PS3.5 8.2.3: JPEG-LS itself knows no sign)."""
    return bytes(imagecodecs.jpegls_encode(np.ascontiguousarray(frame).view(f"u{frame.itemsize}")))


def _jpeg_2000(frame: Pixels, dataset: Dataset) -> bytes:
    # colours by the reversible transform, which the photometric interpretation then names (PS3.5 8.2.4)
    return bytes(
        imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(frame),
            codecformat="j2k",
            level=0,
            bitspersample=int(dataset.BitsStored),
            reversible=True,
            mct=dataset.SamplesPerPixel > 1,
            numthreads=1,
        )
    )


def _rle(frame: Pixels, dataset: Dataset) -> bytes:
    # pydicom's own encoder: that of GDCM ends the process at an odd number of colour pixels
    return RLELosslessEncoder.encode(
        frame,
        encoding_plugin="pydicom",
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        number_of_frames=1,
        samples_per_pixel=int(dataset.SamplesPerPixel),
        bits_allocated=int(dataset.BitsAllocated),
        bits_stored=int(dataset.BitsAllocated),
        pixel_representation=int(dataset.PixelRepresentation),
        photometric_interpretation=str(dataset.PhotometricInterpretation),
        planar_configuration=0,
    )


_METHODS: dict[str, tuple[UID, Encode]] = {
    "jpeg-ls": (JPEGLSLossless, _jpeg_ls),
    "jpeg-2000": (JPEG2000Lossless, _jpeg_2000),
    "rle": (RLELossless, _rle),
}
