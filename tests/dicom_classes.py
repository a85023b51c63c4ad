"""DICOM files of classes that no file at hand is of, made to the standard (PS3.3 A), so that dciodvfy finds no error:
angiography, nuclear medicine, PET, ultrasound."""

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset, validate_file_meta
from pydicom.uid import ExplicitVRLittleEndian

RNG = np.random.default_rng(8)
_ROOT = "1.2.826.0.1.3680043.8.498.77"
_SHAPE = (12, 10)


def item(**values: object) -> Dataset:
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def code(value: str, scheme: str, meaning: str) -> Dataset:
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _image(sop_class: str, modality: str, pixels: np.ndarray, number: int = 1, **more: object) -> FileDataset:
    """pixels: unsigned, (rows, columns), (frames, rows, columns), or with three samples behind."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{sop_class}"
    made = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    root = f"{_ROOT}.{sop_class}"
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, f"{root}.3.{number}"
    made.StudyInstanceUID, made.SeriesInstanceUID = f"{root}.1", f"{root}.2"
    made.PatientName, made.PatientID, made.PatientBirthDate, made.PatientSex = "Any^One", "7", "19700101", "O"
    made.StudyDate = made.SeriesDate = made.AcquisitionDate = made.ContentDate = "20260304"
    made.StudyTime = made.SeriesTime = made.AcquisitionTime = made.ContentTime = "050607"
    made.StudyID, made.AccessionNumber, made.ReferringPhysicianName = "1", "2", ""
    made.Modality, made.Manufacturer, made.SeriesNumber, made.InstanceNumber = modality, "Nobody", 3, number
    made.PatientOrientation, made.Laterality, made.ImageType = ["L", "P"], "", ["ORIGINAL", "PRIMARY"]
    is_colour = pixels.shape[-1] == 3
    made.SamplesPerPixel = 3 if is_colour else 1
    made.PhotometricInterpretation = "RGB" if is_colour else "MONOCHROME2"
    if is_colour:
        made.PlanarConfiguration = 0
    made.Rows, made.Columns = pixels.shape[-3:-1] if is_colour else pixels.shape[-2:]
    made.BitsAllocated = made.BitsStored = 8 * pixels.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, 0
    made.add_new("PixelData", "OB" if pixels.itemsize == 1 else "OW", pixels.tobytes())
    if pixels.ndim - is_colour == 3:
        made.NumberOfFrames = len(pixels)
    for name, value in more.items():
        setattr(made, name, value)
    meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    validate_file_meta(meta)  # and complete it
    meta.FileMetaInformationGroupLength = 0  # counted when it is written
    return made


def _pixels(*shape: int, kind: str = "<u2") -> np.ndarray:
    return RNG.integers(0, 200, shape).astype(kind)


def angiography(frames: int = 4) -> list[FileDataset]:
    return [
        _image(
            "12.1",
            "XA",
            _pixels(frames, *_SHAPE, kind="u1"),
            ImageType=["ORIGINAL", "PRIMARY", "SINGLE PLANE"],
            PixelIntensityRelationship="LIN",
            KVP="80",
            ExposureTime="10",
            XRayTubeCurrent="100",
            RadiationSetting="GR",
            PositionerMotion="STATIC",
            PositionerPrimaryAngle="0",
            PositionerSecondaryAngle="0",
            ImagerPixelSpacing=[0.3, 0.3],
            FrameTime="66",
            FrameIncrementPointer=0x00181063,
            BurnedInAnnotation="NO",
            LossyImageCompression="00",
        )
    ]


def ultrasound(frames: int = 3) -> list[FileDataset]:
    return [
        _image(
            "3.1",
            "US",
            _pixels(frames, *_SHAPE, 3, kind="u1"),
            ImageType=["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"],
            UltrasoundColorDataPresent=1,
            FrameTime="40",
            FrameIncrementPointer=0x00181063,
            LossyImageCompression="00",
        )
    ]


def nuclear(frames: int = 4) -> list[FileDataset]:
    """Planar, of one detector and one energy window, at several times."""
    window = item(EnergyWindowRangeSequence=[item(EnergyWindowLowerLimit="126", EnergyWindowUpperLimit="154")])
    return [
        _image(
            "20",
            "NM",
            _pixels(frames, *_SHAPE),
            ImageType=["ORIGINAL", "PRIMARY", "DYNAMIC", "EMISSION"],
            PixelSpacing=[4.0, 4.0],
            CountsAccumulated="5000",
            FrameIncrementPointer=[0x00540010, 0x00540020, 0x00540030, 0x00540100],
            EnergyWindowVector=[1] * frames,
            DetectorVector=[1] * frames,
            PhaseVector=[1] * frames,
            TimeSliceVector=list(range(1, frames + 1)),
            NumberOfEnergyWindows=1,
            NumberOfDetectors=1,
            NumberOfPhases=1,
            NumberOfTimeSlices=frames,
            EnergyWindowInformationSequence=[window],
            RadiopharmaceuticalInformationSequence=[item(RadionuclideCodeSequence=[code("C-163A8", "SRT", "Tc99m")])],
            DetectorInformationSequence=[
                item(
                    CollimatorType="PARA",
                    FieldOfViewShape="RECTANGLE",
                    FocalDistance="0",
                    ViewCodeSequence=[code("R-10206", "SRT", "anterior")],
                    ImageOrientationPatient=None,
                    ImagePositionPatient=None,
                )
            ],
            PhaseInformationSequence=[
                item(
                    PhaseDelay="0",
                    ActualFrameDuration="1000",
                    PauseBetweenFrames="0",
                    NumberOfFramesInPhase=frames,
                )
            ],
            PatientOrientationCodeSequence=[],
            PatientGantryRelationshipCodeSequence=[],
            LossyImageCompression="00",
        )
    ]


def positron(slices: int = 3) -> list[FileDataset]:
    """Each slice with its own rescale, as scanners write them."""
    return [
        _image(
            "128",
            "PT",
            _pixels(*_SHAPE),
            number=number + 1,
            FrameOfReferenceUID=f"{_ROOT}.4",
            PositionReferenceIndicator="",
            ImagePositionPatient=[-20.0, -24.0, 3.0 * number],
            ImageOrientationPatient=[1, 0, 0, 0, 0.96, 0.28],
            PixelSpacing=[4.0, 4.0],
            SliceThickness="3",
            RescaleSlope=str(1.5 + number),
            RescaleIntercept="0",
            Units="BQML",
            CountsSource="EMISSION",
            SeriesType=["STATIC", "IMAGE"],
            NumberOfSlices=slices,
            ImageIndex=number + 1,
            CorrectedImage=["DECY", "ATTN"],
            DecayCorrection="START",
            CollimatorType="NONE",
            FrameReferenceTime="0",
            DecayFactor="1.1",
            ActualFrameDuration="60000",
            RadiopharmaceuticalInformationSequence=[
                item(
                    RadionuclideCodeSequence=[code("C-111A1", "SRT", "^18^Fluorine")],
                    RadionuclideTotalDose="370000000",
                    RadiopharmaceuticalStartTime="040000",
                )
            ],
            PatientOrientationCodeSequence=[code("F-10450", "SRT", "recumbent")],
            PatientGantryRelationshipCodeSequence=[code("F-10470", "SRT", "headfirst")],
            LossyImageCompression="00",
        )
        for number in range(slices)
    ]
