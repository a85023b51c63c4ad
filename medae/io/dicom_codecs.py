"""Decoders that pydicom does not bring: JPEG extended with 12 bits and HTJ2K, both by imagecodecs.

A plugin in pydicom's own form (its "decoder plugins" guide), used where its others have none or give up.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from pydicom.pixels.decoders import base
from pydicom.uid import HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL, JPEGExtended12Bit

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

DECODER_DEPENDENCIES = {
    syntax: ("imagecodecs",) for syntax in (JPEGExtended12Bit, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
}


def is_available(uid: str) -> bool:
    """For pydicom: imagecodecs is always there."""
    return uid in DECODER_DEPENDENCIES


@cache
def add_codecs() -> None:
    """Make them known to pydicom, once in a process."""
    for syntax in DECODER_DEPENDENCIES:
        base.get_decoder(syntax).add_plugin("imagecodecs", (__name__, "_decode_frame"))


def _decode_frame(src: bytes, runner: "DecodeRunner") -> bytes:
    """The samples of one frame, interleaved, in the type that the runner then expects."""
    import imagecodecs

    is_jpeg = runner.transfer_syntax == JPEGExtended12Bit
    pixels: Any = imagecodecs.jpeg8_decode(src) if is_jpeg else imagecodecs.htj2k_decode(src)
    runner.set_option("bits_allocated", pixels.dtype.itemsize * 8)
    runner.set_option("planar_configuration", 0)
    if runner.samples_per_pixel > 1:  # both libraries undo the colour transform
        runner.set_option("photometric_interpretation", "RGB")
    if pixels.dtype.kind == "u" and runner.pixel_representation == 1:  # the bits are two's complement all the same
        pixels = _sign_extended(pixels, runner.bits_stored)
    data: bytes = pixels.tobytes()
    return data


def _sign_extended(pixels: Any, bits: int) -> Any:
    spare = pixels.dtype.itemsize * 8 - bits
    return (pixels << spare).view(f"i{pixels.dtype.itemsize}") >> spare
