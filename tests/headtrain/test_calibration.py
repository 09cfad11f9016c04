"""One temperature for a head's probabilities, from labelled rows that a second head never saw."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cspipe.headtrain import calibration
from cspipe.headtrain.calibration import PRIOR_DEVIATION, best_temperature, calibrate, held_out
from cspipe.headtrain.tasks import HeadTask


@pytest.fixture
def task(blobs):
    rows = blobs(200, 1)
    return torch.from_numpy(rows.token), torch.from_numpy(rows.label), HeadTask(np.arange(48), np.arange(200), 3)


def test_the_second_head_sees_neither_labels_nor_tokens_of_the_rows_that_judge(task, quick, monkeypatch):
    token, label, whole = task
    seen = []

    def spy(*arguments, **options):
        seen.extend(arguments[2])
        return calibration_fit(*arguments, **options)

    calibration_fit = calibration.fit_heads
    monkeypatch.setattr(calibration, "fit_heads", spy)
    found = calibrate(token, label, whole, quick, classes=3)
    (second,) = seen
    judging = whole.labelled[held_out(label.numpy()[whole.labelled], whole.seed)]
    assert found.rows == len(judging) == 12 and found.temperature >= 1
    assert not set(judging) & (set(second.labelled) | set(second.unlabelled))
    assert len(second.labelled) + len(judging) == 48


def test_the_temperature_is_the_one_that_the_second_heads_logits_ask_for(task, quick):
    token, label, whole = task
    wrong = label.clone()
    wrong[:48] = torch.from_numpy(np.random.default_rng(0).integers(0, 3, 48))
    sure = replace(quick, entropy_weight=1.0)  # of what is not so
    assert calibrate(token, wrong, whole, sure, classes=3).temperature > 1.02
    assert calibrate(token, label, whole, sure, classes=3).temperature < 1.01


def test_too_few_labels_leave_probabilities_as_they_are(task, quick, monkeypatch):
    token, label, whole = task
    monkeypatch.setattr(calibration, "fit_heads", lambda *a, **b: pytest.fail("trained for nothing"))
    few = HeadTask(whole.labelled[:30], whole.unlabelled, 3)
    found = calibrate(token, label, few, quick, classes=3)
    assert (found.temperature, found.rows) == (1.0, 0)


def test_few_rows_move_the_temperature_little_and_many_move_it_to_where_it_belongs():
    """Labels drawn at twice the temperature of the logits."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=4, size=(4000, 5))
    half = np.exp(logits / 2) / np.exp(logits / 2).sum(1, keepdims=True)
    label = np.array([rng.choice(5, p=row) for row in half])
    assert best_temperature(logits, label) == pytest.approx(2, abs=0.1)
    few = [best_temperature(logits[start : start + 10], label[start : start + 10]) for start in range(0, 400, 10)]
    assert max(few) < np.exp(6 * PRIOR_DEVIATION) and 1 <= np.mean(few) < 1.4
