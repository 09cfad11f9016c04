"""A long-tailed unlabelled set with balanced labels: the uniform class prior hurts, one told from the rows does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cspipe.headtrain import HeadSettings
from cspipe.headtrain.rows import StudyRows, labelled_positions
from cspipe.headtrain.study import Study, make_trials

SHARE = np.array([0.55, 0.25, 0.12, 0.05, 0.03])
CLASSES, WIDTH, LABELS = len(SHARE), 24, 50


def draw(count: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Gaussian tokens of five classes in these shares, with six shared directions of style that vary more."""
    world, generator = np.random.default_rng(0), np.random.default_rng(seed)
    means = world.normal(size=(CLASSES, WIDTH)) * 6 / WIDTH**0.5
    mixing = world.normal(size=(6, WIDTH)) * 4 / WIDTH**0.5
    label = generator.choice(CLASSES, size=count, p=SHARE)
    token = means[label] + generator.normal(size=(count, 6)) @ mixing + generator.normal(size=(count, WIDTH))
    return torch.from_numpy(token.astype(np.float32)), label


@pytest.fixture(scope="module")
def study() -> Study:
    """Three splits of ten labels a class among 2,000 rows; judged on rows in the same shares."""
    token_ND, label_N = draw(2000, 1)
    judged_MD, judged_M = draw(1500, 2)
    names = [str(number) for number in range(CLASSES)]
    rows = StudyRows(token_ND, label_N, np.arange(2000), judged_MD, judged_M, "test", names, 0)
    settings = HeadSettings(
        components=0, hidden=32, style=6, discriminator=32, steps=300, batch=128, labelled_batch=25,
        cluster_terms="always",
    )  # fmt: skip
    return Study(rows, make_trials(rows, labelled_positions(rows, LABELS, 3, "balanced")), settings, "cpu", None)


@pytest.fixture(scope="module")
def accuracy(study):
    """Accuracy by split of each prior, and of the supervised head."""

    def by_split(method: str, **changes) -> np.ndarray:
        outcome = replace(study, settings=replace(study.settings, **changes)).run(method)
        return np.array([row["accuracy"] for row in outcome.results])

    shares = {"prior": "given", "prior_given": tuple(SHARE)}
    ours = {kind: by_split("content-style", prior=kind) for kind in ("uniform", "estimated")}
    return ours | {"true": by_split("content-style", **shares), "supervised": by_split("supervised")}


def test_a_uniform_prior_makes_the_unlabelled_rows_do_harm(accuracy):
    assert (accuracy["uniform"] < accuracy["supervised"] - 0.1).all()


def test_the_estimated_prior_the_default_mends_that_on_every_split(accuracy):
    assert (accuracy["estimated"] > accuracy["uniform"] + 0.15).all()
    assert (accuracy["estimated"] > accuracy["supervised"]).all()


def test_the_estimated_prior_is_nearly_as_good_as_the_true_shares(accuracy):
    assert accuracy["estimated"].mean() > accuracy["true"].mean() - 0.03


def test_the_estimate_lies_near_the_true_shares_though_the_labels_are_balanced(study):
    settings = replace(study.settings, prior="estimated")
    for trial in study.trials:
        assert np.bincount(study.rows.label_N[trial.labelled]).tolist() == [10] * CLASSES
        found = study.prior(settings, trial)
        assert found == pytest.approx(SHARE, abs=0.05) and found.argmax() == 0
