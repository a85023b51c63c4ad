"""A map of scores as DICOM Parametric Map (PS3.3 A.75): its own floats, on the source's slices, by highdicom."""

from datetime import datetime

import highdicom as hd
import numpy as np
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from medae.errors import OutputError, UnsupportedImage
from medae.image import Image
from medae.io.answer import Algorithm, AnswerFile
from medae.io.dicom_answer import MEDIA_TYPE, SCHEME, Naming, source_of
from medae.io.dicom_elements import to_bytes
from medae.io.dicom_file import guarded
from medae.io.dicom_headers import finish, made_by, normalised

QUANTITY = Code("anomaly", SCHEME, "Anomaly score")


def encode_parametric(
    map_: Image, *, stem: str, maximum: float, algorithm: Algorithm, now: datetime | None = None
) -> list[AnswerFile]:
    """`{stem}_parametric.dcm`: the map's values as they are; shown from 0 to `maximum`.

    map_: (1, slices, rows, columns) float, finite. Raises OutputError for other maps, UnsupportedImage for images
    without a place in space, which this kind of object needs.
    """
    pixels = map_.pixels[0].astype(np.float32)
    if len(map_.pixels) != 1 or not np.isfinite(pixels).all():
        raise OutputError("a parametric map has one channel of finite numbers; this one has others")
    naming = Naming("parametric", source_of(map_), pixels, algorithm)
    with guarded("no parametric map can be made for a source with this header; ask for map=seg or map=overlay"):
        headers = normalised(naming, map_)
        if "ImagePositionPatient" not in headers[0]:
            raise UnsupportedImage(
                "a parametric map lies in space, and this image does not say where it lies; "
                "ask for map=seg or map=overlay"
            )
        made = hd.pm.ParametricMap(
            source_images=headers,
            pixel_array=pixels,
            # an object says yes or no: only where the source denies it is it known
            contains_recognizable_visual_features=naming.source.datasets[0].get("RecognizableVisualFeatures") != "NO",
            real_world_value_mappings=[_mapping(pixels)],
            voi_lut_transformations=[hd.VOILUTTransformation(maximum / 2, maximum, voi_lut_function="LINEAR_EXACT")],
            content_label="ANOMALY",
            content_creator_name=None,
            **made_by(naming),
        )
        made.Laterality = naming.source.datasets[0].get("Laterality")  # type 2C: empty where nobody said
        finish(made, naming, now or datetime.now())
        return [AnswerFile(f"{stem}_parametric.dcm", MEDIA_TYPE, to_bytes(made))]


def _mapping(pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> hd.pm.RealWorldValueMapping:
    """Stored values are the real ones."""
    return hd.pm.RealWorldValueMapping(
        lut_label="SCORE",
        lut_explanation="Anomaly score, higher is more anomalous",
        unit=codes.UCUM.NoUnits,
        value_range=(float(pixels.min()), float(pixels.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=QUANTITY,
    )
