"""The report: one file that asks nobody for anything, in which nothing of a case becomes markup."""

import base64
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image as Pillow

from medae.data import Case, LoadedCase
from medae.data.corruption import GaussianNoise
from medae.evaluation import evaluate
from medae.io.answer import Label
from medae.report import number
from medae.scores import Residual
from medae.tasks import Anomaly, Restoration, Segmentation
from tests.test_evaluation import anomaly_cases, brightness, picture, predictor

HOSTILE = "<img src=x onerror=alert(1)>\"'&"
LABELS = tuple(Label(name=name, colour=(9, 200, 30)) for name in (f"red {HOSTILE}", "green"))


class Tags(HTMLParser):
    """All elements with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def labelled_cases(count: int, prefix: str = "case") -> list[LoadedCase]:
    """The n-th has n wrong pixels of label 2, so that Dice falls with n."""
    pixels = np.repeat(np.array([[0, 128, 255, 255]], np.uint8), 8, axis=0)
    cases = []
    for wrong in range(count):
        target = np.repeat(np.array([[0, 1, 2, 2]], np.uint8), 8, axis=0)
        target[:wrong, 3] = 0
        cases.append(picture(pixels, f"{prefix}-{wrong}", target=target))
    return cases


def report(model, cases, folder) -> str:
    evaluate(model, cases, folder)
    return (folder / "report.html").read_text(encoding="utf-8")


def pages(folder) -> dict[str, str]:
    """One of each task, each with a case that failed."""
    grey = np.random.default_rng(0).integers(0, 256, (24, 20), np.uint8)
    colour = picture(np.random.default_rng(0).integers(0, 9, (8, 8, 3), np.uint8), HOSTILE)
    scored = anomaly_cases([0.1, 0.2, 0.3, 0.4, 0.9], ["normal", "normal", "ink", HOSTILE, None])
    return {
        "segmentation": report(
            predictor(Segmentation(labels=LABELS), brightness), [*labelled_cases(6), colour], folder / "s"
        ),
        "restoration": report(
            predictor(Restoration(corruption=GaussianNoise(level=0.1)), lambda x: x),
            [picture(grey, "a"), picture(grey // 2, HOSTILE), colour],
            folder / "r",
        ),
        "anomaly": report(
            predictor(Anomaly(scores=(Residual(distance="l1"),)), lambda x: 0 * x), [*scored, colour], folder / "a"
        ),
    }


def test_a_page_is_whole_in_itself_and_nothing_of_a_case_is_markup(tmp_path):
    for task, page in pages(tmp_path).items():
        tags = Tags(page)
        names = {tag for tag, _ in tags.found}
        assert not names & {"script", "link", "iframe", "object", "embed", "form", "base"}, task
        for tag, attributes in tags.found:
            assert not [name for name in attributes if name.startswith("on")], (task, tag)
            assert str(attributes.get("src", "data:")).startswith("data:"), (task, tag)
            assert "href" not in attributes
        assert HOSTILE not in page and HOSTILE in unescape(page)
        assert "url(" not in page and "@import" not in page
        (policy,) = [found["content"] for tag, found in tags.found if found.get("http-equiv")]
        assert policy.startswith("default-src 'none'")


def test_embedded_pictures_are_sound_and_ask_for_nothing(tmp_path):
    for page in pages(tmp_path).values():
        embedded = re.findall(r'src="data:image/([a-z+]+);base64,([^"]+)"', page)
        kinds = {kind for kind, _ in embedded}
        assert kinds == {"png", "svg+xml"}
        for kind, text in embedded:
            data = base64.b64decode(text, validate=True)
            if kind == "png":
                Pillow.open(BytesIO(data)).verify()
            else:
                links = re.findall(r'(?:href|src)="([^"]*)"', data.decode())
                assert all(link.startswith("#") for link in links)
                assert "<script" not in data.decode()


def test_the_worst_are_shown_first_and_each_once(tmp_path):
    page = report(predictor(Segmentation(labels=LABELS), brightness), labelled_cases(9), tmp_path)
    shown = re.findall(r"<b>(case-\d)</b>", page)
    assert shown == [f"case-{wrong}" for wrong in (8, 7, 6, 5, 0, 1, 2)]
    assert page.index("Worst") < page.index("case-8") < page.index("Best") < page.index("<b>case-0")
    rows = re.findall(r'<td class="id">(case-\d)', page)
    assert rows == [f"case-{wrong}" for wrong in range(8, -1, -1)]
    few = report(predictor(Segmentation(labels=LABELS), brightness), labelled_cases(2), tmp_path)
    assert re.findall(r"<b>(case-\d)</b>", few) == ["case-1", "case-0"] and "All, worst first" in few


def test_a_picture_shows_the_answer_and_the_target_in_the_labels_colour(tmp_path):
    labels = (Label(name="red", colour=(255, 0, 0)), Label(name="green", colour=(0, 255, 0)))
    (case,) = labelled_cases(1)
    page = report(predictor(Segmentation(labels=labels), brightness), [case], tmp_path)
    panels = [Pillow.open(BytesIO(base64.b64decode(text))) for text in re.findall(r"image/png;base64,([^\"]+)", page)]
    given, answer, target = (np.asarray(panel.convert("RGB")) for panel in panels)
    quarter = given.shape[1] // 4
    assert (given[0, quarter + 1] == 128).all()
    for panel in (answer, target):
        assert (panel[0, 0] == 0).all()  # background
        assert (panel[0, quarter + 1] == (255, 0, 0)).all()  # an outline is in full colour
        assert (panel[0, 3 * quarter + 1] == (0, 255, 0)).all()


def test_of_a_volume_the_slice_with_the_most_labels_is_shown(tilted_volume, tmp_path):
    labels = np.zeros(tilted_volume.pixels.shape, np.uint8)
    labels[:, 2] = 1
    loaded = LoadedCase(Case(id="v", image=None), tilted_volume, tilted_volume.with_pixels(labels))
    nothing = predictor(
        Segmentation(labels=LABELS[:1]), lambda x: np.concatenate([1 + 0 * x, 0 * x], axis=1)
    )  # finds nothing: the target alone says where to look
    page = report(nothing, [loaded], tmp_path)
    slices = tilted_volume.geometry.shape[0]
    assert re.search(rf"slice (3|{slices - 2}) of {slices}", page)  # the upright view may count from the other end


def test_failed_cases_stand_there_with_their_reason(tmp_path):
    none = picture(np.zeros((4, 4), np.uint8), "no-target")
    page = Tags(report(predictor(Segmentation(labels=LABELS), brightness), [none], tmp_path)).text
    assert "0 cases measured, 1 failed" in page
    assert "no-target" in page and "no target (a label image)" in page


def test_the_numbers_are_those_of_metrics_json(tmp_path):
    model = predictor(Restoration(corruption=GaussianNoise(level=0.1)), lambda x: x)
    cases = [picture(np.random.default_rng(seed).integers(0, 256, (24, 20), np.uint8), f"{seed}") for seed in (0, 1)]
    found = evaluate(model, cases, tmp_path)
    text = Tags((tmp_path / "report.html").read_text()).text
    assert f"{number(found.metrics['psnr']['mean'])} dB" in text
    assert model.package.digest in text
    assert "2 cases say little" in text


def test_a_score_that_is_no_better_than_one_line_of_code_is_said_to_be_so(tmp_path):
    cases = anomaly_cases([0.5, 0.6, 0.1, 0.2], ["normal", "normal", "ink", "ink"])
    text = Tags(report(predictor(Anomaly(), lambda x: 0 * x), cases, tmp_path)).text
    assert "ranks ink below normal images (AUROC 0)" in text
    assert "For ink the trivial intensity_mean, once its better sign is known, does as well as the score" in text
    good = [picture(np.eye(16, dtype=np.float32)[:: 1 if n else -1] * 0.5, f"{n}", label="normal") for n in range(2)]
    text = Tags(report(predictor(Anomaly(), lambda x: 0 * x), good, tmp_path)).text
    assert "cannot find them" not in text  # without abnormal cases there is nothing to say


def test_numbers_that_are_not_finite():
    assert [number(value) for value in (None, float("nan"), float("inf"), 0.123456)] == [
        *["\N{EN DASH}"] * 2,
        "\N{INFINITY}",
        "0.1235",
    ]
    with pytest.raises(TypeError):
        number("1")  # type: ignore[arg-type]


def test_equal_images_have_no_finite_psnr_and_a_page_all_the_same(tmp_path):
    same = np.arange(256, dtype=np.uint8).reshape(16, 16)
    cases = [picture(same, name, target=same) for name in ("a", "b")]
    assert "\N{INFINITY}" in report(predictor(Restoration(), lambda x: x), cases, tmp_path)


def test_a_report_needs_no_torch():
    code = "import sys, medae.report; print(*(name.split('.')[0] for name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "monai", "matplotlib", "sklearn", "jinja2"} & set(loaded)
