"""Every exception that medae raises on purpose.

    MedaeError
    ├── InputError              the caller's image; exit 3, HTTP 4xx, named per item
    │   ├── UnreadableImage     empty, truncated or damaged
    │   ├── UnsupportedImage    a kind of file or content that is not read
    │   ├── LimitExceeded       larger than the limits allow, by its own header
    │   ├── GeometryError       no valid place in space, or two grids that differ
    │   ├── SeriesError         files that do not form one series
    │   └── UnfitImage          a sound image that this model cannot take
    ├── UsageError              the call is wrong; exit 2
    │   ├── SettingsError       a configuration that does not hold
    │   ├── PackageError        a model package that is damaged, too new or of another kind
    │   ├── UnknownModel        no such package
    │   ├── OutputError         the output cannot be written
    │   └── AccessDenied        the service does not know this token, or the token may not do this
    ├── TrainingError           training cannot go on; exit 1
    └── ServiceError            the service cannot be reached, stayed busy or failed; exit 1

A message says what came, what is allowed and what to do. It never holds a patient's data: no file content, no tag
values, no file names. Whoever knows the name of an item (command line, results table) puts it beside the message.
Anything else that is raised is a fault of ours.
"""

from typing import ClassVar


class MedaeError(Exception):
    """The root of the tree."""

    code: str = "error"
    """Stable, for programs: in results tables and in problem+json. The client's errors carry the service's code."""
    status: int = 500
    """HTTP status of the answer."""
    exit_code: ClassVar[int] = 1
    """Exit code of the command line."""


class InputError(MedaeError):
    """Something is wrong with an image that the caller gave."""

    code = "bad-input"
    status = 422
    exit_code = 3


class UnreadableImage(InputError):
    """Empty, truncated or damaged."""

    code = "unreadable-image"


class UnsupportedImage(InputError):
    """A kind of file, or of content, that medae does not read."""

    code = "unsupported-image"
    status = 415


class LimitExceeded(InputError):
    """Larger than the limits allow, judged by its own header before anything is decoded."""

    code = "limit-exceeded"
    status = 413


class GeometryError(InputError):
    """No valid place in space, or two grids that should be one and are not."""

    code = "bad-geometry"


class SeriesError(InputError):
    """Files that do not form one series of slices."""

    code = "bad-series"


class UnfitImage(InputError):
    """A sound image that this model cannot take."""

    code = "unfit-image"


class UsageError(MedaeError):
    """The call itself is wrong."""

    code = "bad-call"
    status = 400
    exit_code = 2


class SettingsError(UsageError):
    """A configuration that does not hold; names file, line and field."""

    code = "bad-settings"


class PackageError(UsageError):
    """A model package that is damaged, too new, or made for another task."""

    code = "bad-package"


class UnknownModel(UsageError):
    """No package of that name."""

    code = "unknown-model"
    status = 404


class OutputError(UsageError):
    """The output cannot be written: no permission, no space."""

    code = "bad-output"
    status = 507


class AccessDenied(UsageError):
    """The service does not know this token, or the token may not do this."""

    code = "access-denied"
    status = 403


class TrainingError(MedaeError):
    """Training cannot go on."""

    code = "training-failed"


class ServiceError(MedaeError):
    """The service cannot be reached, stayed busy, or failed."""

    code = "service-failed"
    status = 502
