"""Decoders that pydicom does not bring, and the order in which its own are tried.

JPEG extended with 12 bits and HTJ2K are decoded by imagecodecs, and so is grey JPEG 2000, a quarter faster than by
GDCM; JPEG-LS by pyjpegls, four times as fast. A plugin in pydicom's own form (its "decoder plugins" guide); where one
gives up, the next is asked.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from pydicom.pixels.decoders import base
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

_HTJ2K = (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
_JPEG_2000 = (JPEG2000Lossless, JPEG2000)
_DECODERS = {
    JPEGExtended12Bit: "jpeg8_decode",
    **dict.fromkeys(_HTJ2K, "htj2k_decode"),
    **dict.fromkeys(_JPEG_2000, "jpeg2k_decode"),
}
DECODER_DEPENDENCIES = dict.fromkeys(_DECODERS, ("imagecodecs",))
_SLOWER = {
    **dict.fromkeys(_JPEG_2000, ("gdcm", "pillow")),
    **dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), ("gdcm",)),
}


def is_available(uid: str) -> bool:
    """For pydicom: imagecodecs is always there."""
    return uid in DECODER_DEPENDENCIES


@cache
def add_codecs() -> None:
    """Make them known to pydicom, once in a process."""
    for syntax in DECODER_DEPENDENCIES:
        base.get_decoder(syntax).add_plugin("imagecodecs", (__name__, "_decode_frame"))
    for syntax, slower in _SLOWER.items():
        for name in slower:  # to the end of those that are asked
            base.get_decoder(syntax).remove_plugin(name)
            base.get_decoder(syntax).add_plugin(name, (f"pydicom.pixels.decoders.{name}", "_decode_frame"))


def _decode_frame(src: bytes, runner: "DecodeRunner") -> bytes:
    """The samples of one frame, interleaved, in the type that the runner then expects."""
    import imagecodecs

    syntax = runner.transfer_syntax
    if syntax in _JPEG_2000 and runner.samples_per_pixel > 1:
        raise NotImplementedError("colours: pydicom knows which of its decoders undoes which transform")
    pixels: Any = getattr(imagecodecs, _DECODERS[syntax])(src)
    runner.set_option("bits_allocated", pixels.dtype.itemsize * 8)
    runner.set_option("planar_configuration", 0)
    if runner.samples_per_pixel > 1:  # both libraries undo the colour transform
        runner.set_option("photometric_interpretation", "RGB")
    if pixels.dtype.kind == "u" and runner.pixel_representation == 1:  # the bits are two's complement all the same
        pixels = _sign_extended(pixels, runner.bits_stored)
    if pixels.dtype.kind == "i" and runner.pixel_representation == 0:
        raise NotImplementedError("the stream has signed samples, the header says unsigned ones")
    data: bytes = pixels.tobytes()
    return data


def _sign_extended(pixels: Any, bits: int) -> Any:
    spare = pixels.dtype.itemsize * 8 - bits
    return (pixels << spare).view(f"i{pixels.dtype.itemsize}") >> spare
