"""From the files of one request to its answer; runs on a worker thread. No arithmetic on images, no defaults here."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, get_args
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from starlette.datastructures import QueryParams
from starlette.responses import Response

from medae.answers import Output, answer_files, check_output, summary
from medae.errors import UsageError
from medae.io import read_image
from medae.io.answer import AnswerFile
from medae.io.guard import Limits
from medae.predictor import check_call
from medae_service.models import Endpoint, Model
from medae_service.uploads import Uploaded

STEM = "image"
"""Of every answer's name: what the client calls its file may name a patient."""

SUMMARY = f"{STEM}_summary.json"

Form = Literal["file", "json", "zip"]
JSON = "application/json"
ZIP = "application/zip"

PARAMETERS: dict[Endpoint, tuple[str, ...]] = {
    "segment": ("model", "output", "threshold"),
    "restore": ("model", "output"),
    "score": ("model", "output", "threshold"),
}
OUTPUTS: tuple[Output, ...] = get_args(Output)


@dataclass(frozen=True)
class Question:
    """What the query asks, apart from the files."""

    model: str | None
    output: Output
    threshold: float | None

    def require_fit(self, model: Model) -> None:
        """Raises UsageError for an output or a threshold that this model does not know; before any upload."""
        check_output(self.output, model.package)
        check_call(model.package, threshold=self.threshold)


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
    return Question(query.get("model"), output, _threshold(query.get("threshold")))


def _threshold(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
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


def answer(
    model: Model, files: Sequence[Uploaded], question: Question, *, form: Form, request_id: str, limits: Limits
) -> Response:
    """Read, predict, write. Raises InputError for the image, UsageError for the question."""
    image = read_image(files[0] if len(files) == 1 else files, limits=limits)
    prediction = model.predictor(image, threshold=question.threshold, probabilities=question.output == "probabilities")
    answered: list[AnswerFile] = []
    if question.output != "summary":
        answered = answer_files(prediction, model.package, stem=STEM, original=image, output=question.output)
    made = [file for file in answered if file.name != SUMMARY]  # ours has the request's id
    facts = summary(prediction, id=request_id, files=made)
    response = _response(made, facts, "zip" if form == "file" and len(answered) > 1 else form)
    response.headers["X-Medae-Model"] = f"{model.card.name}@{model.package.digest}"
    response.headers["X-Medae-Gate"] = (facts["gate"] or {}).get("verdict", "none")
    return response


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
