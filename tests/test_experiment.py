"""An experiment whose parts do not fit each other is refused when it is read, with the reason."""

import json
from copy import deepcopy
from typing import Any

import pytest
from pydantic import ValidationError

from medae.experiment import Experiment, schema_text
from medae.shipped import configs_folder

TISSUE = {"kind": "sample", "name": "denoise-tissue"}
LABELS = [{"name": "nucleus", "colour": [255, 0, 0]}]
GAUSSIAN = {"kind": "gaussian", "level": 0.1}

SEGMENTATION: dict[str, Any] = {
    "name": "nuclei",
    "data": {"kind": "sample", "name": "nuclei"},
    "preparation": {"channels": 3},
    "task": {"kind": "segmentation", "labels": LABELS},
    "network": {"kind": "unet"},
    "objectives": [{"kind": "dice_ce"}],
}
DENOISING = SEGMENTATION | {
    "name": "denoise",
    "data": TISSUE,
    "task": {"kind": "restoration", "corruption": GAUSSIAN},
    "network": {"kind": "dncnn"},
    "objectives": [{"kind": "mse"}],
}
ANOMALY = SEGMENTATION | {
    "name": "anomaly",
    "data": {"kind": "sample", "name": "anomaly-tiles"},
    "task": {"kind": "anomaly"},
    "network": {"kind": "vae"},
    "objectives": [{"kind": "mse"}, {"kind": "kl"}],
}
FOLDER = {"kind": "folder", "root": "images", "images": "*.png"}
PAIRS = FOLDER | {"targets": "masks/*.png"}


def changed(base: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return deepcopy(base) | fields


@pytest.mark.parametrize("data", [SEGMENTATION, DENOISING, ANOMALY], ids=lambda data: data["name"])
def test_resolved_is_plain_data_that_makes_the_same_experiment(data):
    experiment = Experiment.model_validate(data)
    resolved = json.loads(json.dumps(experiment.resolved))
    assert Experiment.model_validate(resolved) == experiment
    assert resolved["training"]["steps"] == 2000  # defaults are said too


REFUSED = [
    (changed(SEGMENTATION, objectives=[{"kind": "mse"}]), "objective mse is for anomaly and restoration; the task is"),
    (changed(DENOISING, objectives=[{"kind": "dice_ce"}]), "objective dice_ce is for segmentation; the task is restor"),
    (changed(SEGMENTATION, objectives=[{"kind": "dice"}, {"kind": "dice"}]), "dice is there 2 times"),
    (changed(SEGMENTATION, objectives=[]), "at least 1 item"),
    (changed(ANOMALY, network={"kind": "unet"}, objectives=[{"kind": "mse"}]), "unet does not go through a code: take"),
    (changed(ANOMALY, network={"kind": "conv_autoencoder"}), "latent is gaussian: vae; conv_autoencoder has c"),
    (changed(ANOMALY, objectives=[{"kind": "kl"}]), "kl compares nothing with the target"),
    (
        changed(ANOMALY, objectives=[{"kind": "mse"}, {"kind": "sparse_kl"}]),
        "latent is code: .*conv.*; vae has gaussian",
    ),
    (
        changed(ANOMALY, network={"kind": "conv_autoencoder"}, objectives=[{"kind": "mse"}, {"kind": "sparse_kl"}]),
        "sparse_kl needs network.code sigmoid; conv_autoencoder has linear",
    ),
    (changed(DENOISING, objectives=[{"kind": "mse"}, {"kind": "sparse_l1"}]), "code or gaussian: .*; dncnn has none"),
    (
        changed(ANOMALY, network={"kind": "conv_autoencoder"}, objectives=[{"kind": "sparse_l1"}]),
        "sparse_l1 compares nothing",
    ),
    (
        changed(ANOMALY, objectives=[{"kind": "categorical"}]),
        "categorical needs network.decoder categorical; vae has p",
    ),
    (changed(ANOMALY, objectives=[{"kind": "bernoulli"}]), "bernoulli needs network.decoder bernoulli; vae has point"),
    (
        changed(ANOMALY, objectives=[{"kind": "gaussian", "variance": "learned"}]),
        "gaussian needs network.decoder gaussian; vae has point",
    ),
    (
        changed(ANOMALY, network={"kind": "vae", "decoder": "gaussian"}),
        "a variance that no objective judges; add the objec",
    ),
    (changed(DENOISING, objectives=[{"kind": "bernoulli"}]), "network.decoder bernoulli; dncnn has none"),
    (changed(SEGMENTATION, network={"kind": "dncnn"}), "dncnn subtracts noise from an image, it cannot give labels"),
    (
        changed(SEGMENTATION, network={"kind": "unet", "dims": 3}),
        r"3-D, so training.patch is \(slices, rows, col",
    ),
    (changed(SEGMENTATION, training={"patch": [8, 64, 64]}), r"2-D, so training.patch is \(rows, columns\); got \[8"),
    (changed(SEGMENTATION, training={"patch": [4, 64]}), "works on blocks of 8; training.patch .4, 64. is smaller"),
    (changed(SEGMENTATION, data=FOLDER), "each case needs a label image: give data.targets"),
    (changed(DENOISING, task={"kind": "restoration"}, data=FOLDER), "a clean image, or task.corruption: give"),
    (changed(DENOISING, data=PAIRS), "leave out data.targets or it"),
    (changed(DENOISING, preparation={"channels": 3, "intensity": {"kind": "zscore"}}), "zscore has no such range"),
    (changed(SEGMENTATION, preparation={"channels": 1}, augment={"stain": {}}), "preparation.channels must be 3"),
    (changed(SEGMENTATION, preparation={"channels": 1}, augment={"colour": {}}), "preparation.channels must be 3"),
    (changed(SEGMENTATION, preparation={"intensity": {"kind": "zscore"}}, augment={"invert": {}}), "1 - value"),
    (changed(SEGMENTATION, augment={"flip": ["slices"]}), "a 2-D network sees no slices"),
    (changed(SEGMENTATION, network={"kind": "segnet", "decoder": "gaussian"}), "labels need network.decoder point"),
    (
        changed(
            ANOMALY,
            network={"kind": "vae", "decoder": "bernoulli"},
            preparation={"channels": 3, "intensity": {"kind": "zscore"}},
        ),
        "bernoulli decoder knows values in 0..1, and preparation.intensity zscore has no such range",
    ),
    (
        changed(ANOMALY, network={"kind": "vae", "size": [32, 32]}),
        r"made for images of \[32, 32\] \(network.size\), so training.patch is the same; got \[64, 64\]",
    ),
    (
        changed(DENOISING, network={"kind": "unet"}, training={"layer_wise": 0.5}),
        "unet is not made of such: take dense_autoencoder or conv_autoencoder",
    ),
    (
        changed(SEGMENTATION, network={"kind": "conv_autoencoder"}, training={"layer_wise": 0.5}),
        "layer_wise reconstructs images, and segmentation gives labels",
    ),
    (changed(SEGMENTATION, name="My Model"), "pattern"),
    (changed(SEGMENTATION, training={"step": 3}), "Extra inputs are not permitted"),
    (changed(SEGMENTATION, training={"ema": 1.0}), "less than 1"),
]


@pytest.mark.parametrize(("data", "reason"), REFUSED, ids=[reason[:30] for _, reason in REFUSED])
def test_parts_that_do_not_fit_are_refused_with_the_reason(data, reason):
    with pytest.raises(ValidationError, match=reason):
        Experiment.model_validate(data)


@pytest.mark.parametrize(
    "data",
    [
        changed(SEGMENTATION, data=PAIRS),
        changed(DENOISING, data=FOLDER),
        changed(DENOISING, data=PAIRS, task={"kind": "restoration"}),
        changed(ANOMALY, data=FOLDER),
        changed(SEGMENTATION, data={"kind": "cases", "path": "cases.csv"}),
        changed(SEGMENTATION, network={"kind": "unet", "dims": 3}, training={"patch": [8, 16, 16]}),
        changed(DENOISING, objectives=[{"kind": "gaussian"}, {"kind": "perceptual"}]),
        changed(ANOMALY, objectives=[{"kind": "gaussian"}, {"kind": "kl", "beta": 1}, {"kind": "sparse_l1"}]),
        changed(
            ANOMALY,
            network={"kind": "vae", "decoder": "gaussian"},
            objectives=[{"kind": "gaussian", "variance": "learned"}, {"kind": "kl", "beta": 1}],
        ),
        changed(
            ANOMALY,
            network={"kind": "conv_autoencoder", "code": "sigmoid", "decoder": "categorical"},
            objectives=[{"kind": "categorical"}, {"kind": "sparse_kl", "rho": 0.1}, {"kind": "perceptual"}],
        ),
    ],
)
def test_parts_that_fit_are_taken(data):
    Experiment.model_validate(data)


def test_the_schema_file_is_current():
    path = configs_folder() / "experiment.schema.json"
    assert path.read_text() == schema_text(), "make schema writes it again"


def test_the_schema_takes_what_the_settings_take():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    jsonschema.Draft202012Validator.check_schema(validator.schema)
    for data in (SEGMENTATION, DENOISING, ANOMALY):
        assert validator.is_valid(data)
        assert not validator.is_valid(data | {"roof": "red"})
        assert not validator.is_valid(changed(data, network={"kind": "unett"}))
    # an editor shows what a field means
    settings = validator.schema["$defs"]["TrainingSettings"]["properties"]
    assert settings["ema"]["description"].startswith("Decay of the exponential moving average")


@pytest.mark.parametrize(
    ("network", "objectives", "warns"),
    [
        ({"kind": "dense_autoencoder", "size": [4, 4], "widths": [48]}, [{"kind": "mse"}], True),
        ({"kind": "dense_autoencoder", "size": [4, 4], "widths": [47]}, [{"kind": "mse"}], False),
        ({"kind": "conv_autoencoder", "features": [8, 8], "bottleneck": 48}, [{"kind": "mse"}], True),
        (
            {"kind": "dense_autoencoder", "size": [4, 4], "widths": [48]},
            [{"kind": "mse"}, {"kind": "sparse_l1"}],
            False,
        ),
        ({"kind": "segnet", "features": [8, 48], "convolutions": [1, 1]}, [{"kind": "mse"}], True),
        ({"kind": "segnet", "features": [8, 48], "convolutions": [1, 1], "bottleneck": 4}, [{"kind": "mse"}], False),
        ({"kind": "vae", "features": [8, 8], "latent_channels": 48}, [{"kind": "mse"}], True),
        ({"kind": "vae", "features": [8, 8], "latent_channels": 48}, [{"kind": "mse"}, {"kind": "kl"}], False),
    ],
)
def test_an_overcomplete_code_without_a_penalty_warns(network, objectives, warns, caplog):
    Experiment.model_validate(changed(ANOMALY, network=network, objectives=objectives, training={"patch": [4, 4]}))
    assert ("the code is overcomplete: 48 numbers for 48 of the image" in caplog.text) == warns


def test_an_overcomplete_code_that_mends_damage_does_not_copy(caplog):
    network = {"kind": "conv_autoencoder", "features": [8], "bottleneck": 64}
    Experiment.model_validate(changed(DENOISING, network=network))
    assert "overcomplete" not in caplog.text


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"kind": "vae"}, "without the objective kl nothing holds the code of a vae to its prior"),
        ({"kind": "vqvae"}, "without the objective commitment nothing holds the encodings of a vqvae"),
        ({"kind": "vqvae", "quantiser": {"kind": "fsq"}}, ""),
        ({"kind": "conv_autoencoder"}, ""),
    ],
)
def test_a_latent_that_nothing_holds_warns(network, said, caplog):
    Experiment.model_validate(changed(ANOMALY, network=network, objectives=[{"kind": "mse"}]))
    assert said in caplog.text and bool(said) == bool(caplog.text)


@pytest.mark.parametrize(
    "network",
    [
        {"kind": "conv_autoencoder", "features": [4, 4]},
        {"kind": "dense_autoencoder", "size": [4, 4], "widths": [8, 4], "norm": "batch"},
        {"kind": "vae", "features": [4, 4], "size": [4, 4]},
        {"kind": "unet", "features": [4, 4, 4], "strides": [2, 2]},
    ],
)
def test_a_norm_with_a_single_value_is_refused(network):
    kl = [{"kind": "kl"}] if network["kind"] == "vae" else []
    told = changed(DENOISING, network=network, objectives=[{"kind": "mse"}, *kl])
    training = {"patch": [4, 4], "batch_size": 1}
    with pytest.raises(ValidationError, match="batch_size 2 or more, a larger patch, or"):
        Experiment.model_validate(told | {"training": training})
    Experiment.model_validate(told | {"training": training | {"batch_size": 2}})
    Experiment.model_validate(changed(told | {"training": training}, network=network | {"norm": "none"}))


def test_what_ssim_cannot_look_through_is_refused_when_it_is_read():
    told = changed(ANOMALY, network={"kind": "conv_autoencoder"}, objectives=[{"kind": "ssim"}])
    with pytest.raises(ValidationError, match=r"a window of 11 voxels along each axis; training\.patch \[10, 40\]"):
        Experiment.model_validate(told | {"training": {"patch": [10, 40]}})
    with pytest.raises(ValidationError, match="the objective ssim is for values in"):
        Experiment.model_validate(changed(told, preparation={"intensity": {"kind": "zscore"}}))


@pytest.mark.parametrize(
    "score",
    [
        {"kind": "stain"},
        {"kind": "haematoxylin"},
        {"kind": "statistics", "optical_density": True},
        {"kind": "profile", "of": "haematoxylin"},
    ],
)
def test_scores_of_light_are_refused_where_values_are_none(score: dict[str, object]) -> None:
    told = changed(ANOMALY, task={"kind": "anomaly", "scores": [score, {"kind": "residual"}]})
    Experiment.model_validate(told)
    with pytest.raises(ValidationError, match=f"the score {score['kind']} measures how much light is held back"):
        Experiment.model_validate(changed(told, preparation={"channels": 3, "intensity": {"kind": "zscore"}}))
    kept = {"kind": score["kind"]} if score["kind"] in ("statistics", "profile") else {"kind": "patterns"}
    told = changed(told, task={"kind": "anomaly", "scores": [kept, {"kind": "residual"}]})
    Experiment.model_validate(changed(told, preparation={"channels": 3, "intensity": {"kind": "zscore"}}))
