"""Verdict: whether an input is one that the model knows. Pure; the thresholds are the caller's."""

from collections.abc import Iterable
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from medae.settings import Settings

Degree = Literal["ok", "review", "reject"]
DEGREES: tuple[Degree, ...] = ("ok", "review", "reject")
"""The worst last."""


class Reason(NamedTuple):
    """Something that speaks against an input."""

    degree: Degree
    text: str
    """A sentence for people; holds nothing of a patient."""


class Verdict(Settings):
    """What the gate of a model says of one input."""

    verdict: Degree
    percentile: float | None = None
    """0..100: how many per cent of the gate's reference images are more usual; None without a calibration."""
    reasons: tuple[str, ...] = ()
    """Why not `ok`, the worst first."""

    @classmethod
    def of(cls, reasons: Iterable[Reason], percentile: float | None) -> Self:
        """The worst of the reasons decides."""
        listed = sorted(reasons, key=lambda reason: -DEGREES.index(reason.degree))
        worst = listed[0].degree if listed else "ok"
        return cls(verdict=worst, percentile=percentile, reasons=tuple(reason.text for reason in listed))


class GateLimits(Settings):
    """When the caller wants to be warned: p-values, so each is the rate of false alarms among inputs that are known."""

    review: float = Field(default=0.05, ge=0, lt=1)
    """At most so probable among known inputs: `review`. 0: never."""
    reject: float = Field(default=0.01, ge=0, lt=1)
    """At most so probable among known inputs: `reject`. 0: never; from 100 references, nothing below .0099 is told."""

    @model_validator(mode="after")
    def _rejects_less(self) -> Self:
        if self.reject > self.review:
            raise ValueError(
                f"what is rejected is reviewed, too: reject {self.reject:g} is above review {self.review:g}"
            )
        return self

    @classmethod
    def of(cls, review: float | None = None, reject: float | None = None) -> Self:
        """Of what a caller gave; the other one is the usual rate or, where that makes no sense, the given one."""
        usual = cls()
        if review is None:
            review = max(usual.review, reject or 0.0)
        return cls(review=review, reject=min(usual.reject, review) if reject is None else reject)

    def reason(self, p_value: float, what: str) -> Reason | None:
        """What a p-value says against an input. `what`: "the image", "the shape of the segmentation"."""
        text = f"{what} is unlike those that the model was made from (p = {p_value:.3g})"
        if p_value <= self.reject:
            return Reason("reject", text)
        return Reason("review", text) if p_value <= self.review else None
