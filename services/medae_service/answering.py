"""From one image to its answer; runs on a worker thread. No arithmetic on images, no defaults here."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, get_args
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.responses import Response

from medae.answers import Output, answer_files, check_dicom, check_output, summary
from medae.errors import MedaeError, UsageError
from medae.image import Image
from medae.io.answer import AnswerFile
from medae.io.dicom_options import DEFAULT_DICOM, DicomAnswers, series_named
from medae.predictor import USUAL, check_call
from medae.pseudonyms import Pseudonyms
from medae.verdict import GateLimits
from medae_service import metrics
from medae_service.engine import Ticket
from medae_service.models import Endpoint, Model
from medae_service.problems import Refusal

STEM = "image"
"""Of every answer's name: what the client calls its file may name a patient."""

SUMMARY = f"{STEM}_summary.json"

Form = Literal["file", "json", "zip"]
JSON = "application/json"
ZIP = "application/zip"

GATE = ("gate_review", "gate_reject")
"""When the gate of a model warns."""
DICOM = "dicom_"
"""Before the names of DicomAnswers' fields, in a query."""
READING = ("series", "regular_grid")
"""How several DICOM files become one image."""

_OF_SEG = ("dicom_seg", "dicom_empty_frames")
_OF_ANY = ("dicom_compress", "dicom_report", "dicom_deidentify")
PARAMETERS: dict[Endpoint, tuple[str, ...]] = {
    "segment": ("model", "output", "threshold", *GATE, *READING, *_OF_SEG, *_OF_ANY),
    "restore": ("model", "output", "noise", *GATE, *READING, *_OF_ANY),
    "score": ("model", "output", "threshold", *READING, "dicom_map", "dicom_empty_frames", *_OF_ANY),
}
OUTPUTS: tuple[Output, ...] = get_args(Output)


@dataclass(frozen=True)
class Question:
    """What the query asks, apart from the files."""

    model: str | None
    output: Output
    threshold: float | None
    noise: float | None = None
    gate: GateLimits = USUAL
    dicom: DicomAnswers = DEFAULT_DICOM
    series: int | str | None = None
    """Of several, by number or SeriesInstanceUID."""
    regular_grid: bool = False
    """Whether slices that are uneven, or of a tilted gantry, are put on a regular grid."""

    def require_fit(self, model: Model, pseudonyms: Pseudonyms | None = None) -> None:
        """Raises UsageError for what this model does not know; before any upload."""
        check_output(self.output, model.package)
        check_dicom(self.dicom, model.package, pseudonyms)
        check_call(model.package, threshold=self.threshold)
        if self.noise is not None:  # no task knows it by now
            raise UsageError(f"the model {model.card.name} finds the noise by itself; leave `noise` out")


def parse_query(query: QueryParams, endpoint: Endpoint) -> Question:
    """Raises UsageError (400) for a parameter that is unknown, repeated or out of its range."""
    allowed = PARAMETERS[endpoint]
    given = [name for name, _ in query.multi_items()]
    if not set(given) <= set(allowed) or len(given) > len(set(given)):
        raise UsageError(
            f"the query has an unknown or repeated parameter; {endpoint} takes, each once: {', '.join(allowed)}"
        )
    wanted = query.get("output", "default")
    output = next((name for name in OUTPUTS if name == wanted), None)
    if output is None:
        raise UsageError(f"output is one of {', '.join(OUTPUTS)}; the request asks for something else")
    dicom = {name.removeprefix(DICOM): query[name] for name in given if name.startswith(DICOM)}
    return Question(
        query.get("model"),
        output,
        _threshold(query.get("threshold")),
        _noise(query.get("noise")),
        _gate(query),
        DicomAnswers.from_texts(dicom),
        None if (series := query.get("series")) is None else series_named(series),
        _regular_grid(query.get("regular_grid", "false")),
    )


def _regular_grid(text: str) -> bool:
    if text not in ("true", "false"):
        raise UsageError("regular_grid is true or false")
    return text == "true"


def _gate(query: QueryParams) -> GateLimits:
    rates = [None if (text := query.get(name)) is None else _number(text) for name in GATE]
    try:
        return GateLimits.of(*rates)
    except ValidationError:
        raise UsageError(
            f"{' and '.join(GATE)} are numbers from 0 to below 1, and reject is not above review"
        ) from None


def _noise(text: str | None) -> float | None:
    if text is None:
        return None
    value = _number(text)
    if not 0 < value < math.inf:
        raise UsageError("noise is a number above 0: the noise's standard deviation in the image's own values")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _threshold(text: str | None) -> float | None:
    if text is None:
        return None
    value = _number(text)
    if not 0 < value < 1:
        raise UsageError("threshold is a number between 0 and 1, such as 0.5")
    return value


def wanted_form(accept: str) -> Form:
    """What the Accept header likes best: the summary, the zip, or else the file itself."""
    quality: dict[str, float] = {}
    for item in accept.split(","):
        media, *parameters = (part.strip().lower() for part in item.split(";"))
        quality[media] = max(quality.get(media, 0.0), _quality(parameters))
    liked: dict[Form, float] = {
        "file": max((q for media, q in quality.items() if media not in (JSON, ZIP)), default=0.0),
        "json": quality.get(JSON, 0.0),
        "zip": quality.get(ZIP, 0.0),
    }
    return max(liked, key=lambda form: liked[form])  # of equals the first


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


@dataclass(frozen=True)
class Answer:
    """Of one image."""

    files: Sequence[AnswerFile]
    facts: dict[str, Any]
    """The summary."""
    single: bool
    """The file alone is the whole answer."""

    @property
    def gate(self) -> str:
        return str((self.facts["gate"] or {}).get("verdict", "none"))


def compute(
    model: Model,
    image: Image,
    question: Question,
    *,
    stem: str,
    id: str,
    ticket: Ticket,
    pseudonyms: Pseudonyms | None = None,
) -> Answer:
    """Predict and write. Raises InputError for the image, UsageError for the question, Abandoned, Refusal (503)."""
    probabilities = question.output == "probabilities"
    prediction = model.predictor(
        image, threshold=question.threshold, probabilities=probabilities, gate=question.gate, ticket=ticket
    )
    with metrics.stage("answer"):
        written: list[AnswerFile] = []
        if question.output != "summary":
            written = answer_files(
                prediction,
                model.package,
                stem=stem,
                original=image,
                output=question.output,
                dicom=question.dicom,
                pseudonyms=pseudonyms,
            )
        made = [file for file in written if file.name != f"{stem}_summary.json"]  # ours has the request's id
        answer = Answer(made, summary(prediction, id=id, files=made), single=len(written) == 1)
    metrics.answered(model.card.name, 200, answer.gate)
    return answer


@contextmanager
def counted(model: Model) -> Iterator[None]:
    """One image that is asked of a model; counts it where it fails."""
    try:
        yield
    except (MedaeError, Refusal) as error:
        metrics.answered(model.card.name, error.status)
        raise
    except Exception:
        metrics.answered(model.card.name, 500)
        raise


def respond(answer: Answer, model: Model, form: Form) -> Response:
    """The answer in the form that the client wants."""
    response = _response(answer.files, answer.facts, "zip" if form == "file" and not answer.single else form)
    response.headers.update(model_headers(model, answer.gate))
    return response


def model_headers(model: Model, gate: str) -> dict[str, str]:
    return {"X-Medae-Model": f"{model.card.name}@{model.package.digest}", "X-Medae-Gate": gate}


def _response(made: Sequence[AnswerFile], facts: dict[str, Any], form: Form) -> Response:
    facts_json = json.dumps(facts, allow_nan=False).encode()
    if form == "json" or not made:
        return Response(facts_json, media_type=JSON)
    if form == "file":
        return _attachment(made[0])
    return _attachment(AnswerFile(f"{STEM}.zip", ZIP, _zip([*made, AnswerFile(SUMMARY, JSON, facts_json)])))


def _attachment(file: AnswerFile) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{file.name.rpartition("/")[2]}"'}
    return Response(file.data, media_type=file.media_type, headers=headers)


def _zip(files: Sequence[AnswerFile]) -> bytes:
    """Stored, not deflated (images are compressed or noise); no times, so that equal answers have equal bytes."""
    target = BytesIO()
    with ZipFile(target, "w", ZIP_STORED) as archive:
        for file in files:
            archive.writestr(ZipInfo(file.name), file.data)
    return target.getvalue()
