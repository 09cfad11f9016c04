"""The scikit-learn face of a head: what scikit-learn asks for, and what is ours."""

import doctest
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from cspipe.headtrain import ContentStyleClassifier, HeadSettings, HeadTask, estimator, fit_heads
from cspipe.headtrain.calibration import best_temperature, held_out
from cspipe.headtrain.clusters import draw_sample
from cspipe.headtrain.estimator import EXPECTED_FAILED_CHECKS
from cspipe.store.errors import SettingError

SMALL = {"hidden": 32, "style": 4, "steps": 150, "batch": 32, "labelled_batch": 32}


def small(**parameters) -> ContentStyleClassifier:
    """An estimator that fits in a fraction of a second."""
    return ContentStyleClassifier(**(SMALL | {"random_state": 0} | parameters))


@pytest.fixture(scope="module")
def rows(blobs):
    """240 rows of three classes."""
    return blobs(240, 1)


@pytest.fixture(scope="module")
def few(rows):
    """The rows' labels, all but every fourth hidden."""
    return np.where(np.arange(240) % 4 == 0, rows.label, -1)


@pytest.fixture(scope="module")
def fitted(rows, few):
    """Fitted on few labels; not to be fitted again."""
    return small().fit(rows.token, few)


@parametrize_with_checks([small(steps=120)], expected_failed_checks=lambda _: dict(EXPECTED_FAILED_CHECKS))
def test_it_is_a_scikit_learn_classifier_and_transformer(estimator, check):
    check(estimator)


def test_the_only_check_expected_to_fail_is_the_one_that_takes_minus_one_for_a_class():
    assert list(EXPECTED_FAILED_CHECKS) == ["check_classifiers_classes"]


def test_the_example_in_its_docstring_holds():
    (example,) = doctest.DocTestFinder(recurse=False).find(
        ContentStyleClassifier, "ContentStyleClassifier", globs={"ContentStyleClassifier": ContentStyleClassifier}
    )
    assert len(example.examples) > 5
    assert doctest.DocTestRunner().run(example).failed == 0


def test_its_defaults_are_those_of_the_settings():
    parameters = ContentStyleClassifier().get_params()
    shared = vars(HeadSettings()).keys() & parameters.keys()
    assert {name: parameters[name] for name in shared} == {name: getattr(HeadSettings(), name) for name in shared}
    assert parameters.keys() - shared == {"calibrate", "random_state", "device"}
    assert vars(HeadSettings()).keys() - shared == {
        "anchors", "voters", "mix_share", "estimator", "discriminator", "discriminator_lr", "norm", "views",
        "precision", "compile",
    }  # fmt: skip


def test_a_seed_gives_the_head_that_fit_heads_gives(rows, few):
    ours = small(calibrate=False, random_state=7, cluster_terms="always").fit(rows.token, few)
    settings = HeadSettings(**SMALL)
    task = HeadTask(np.flatnonzero(few >= 0), np.arange(240), 7)
    label = torch.from_numpy(few.astype(np.int64))
    (head,) = fit_heads(torch.from_numpy(rows.token), label, [task], settings, classes=3).heads
    theirs = head.probabilities(torch.from_numpy(rows.token)).numpy()
    np.testing.assert_allclose(ours.predict_proba(rows.token), theirs, atol=1e-5)


def test_the_same_seed_gives_the_same_probabilities_and_another_seed_others(rows, few, fitted):
    expected = fitted.predict_proba(rows.token)
    assert np.array_equal(small().fit(rows.token, few).predict_proba(rows.token), expected)
    assert not np.array_equal(small(random_state=1).fit(rows.token, few).predict_proba(rows.token), expected)
    state = np.random.RandomState(3)
    first, second = (small(random_state=state).fit(rows.token, few).predict_proba(rows.token) for _ in range(2))
    assert not np.array_equal(first, second)


def test_labels_that_are_marked_unlabelled_are_never_looked_at(rows, few, blobs):
    test = blobs(150, 2)
    model = small().fit(rows.token, few)
    assert model.classes_.tolist() == [0, 1, 2]
    assert model.score(test.token, test.label) > 0.9


def test_it_fits_without_a_single_unlabelled_row(rows, blobs):
    test = blobs(150, 2)
    assert small().fit(rows.token, rows.label).score(test.token, test.label) > 0.9


@pytest.mark.parametrize(
    ("names", "unlabelled"),
    [
        (np.array(["red", "green", "blue"]), "-1"),
        (np.array(["red", "green", "blue"], object), -1),
        (np.array([10.0, 20.0, 30.0]), -1.0),
        (np.array([7, 3, 5]), -1),
    ],
    ids=["strings", "objects", "floats", "integers out of order"],
)
def test_labels_of_any_kind_come_back_as_they_were_given(rows, few, fitted, names, unlabelled):
    y = names[rows.label]
    hidden = y.copy()
    hidden[few == -1] = unlabelled
    model = small().fit(rows.token, hidden)
    assert model.classes_.tolist() == sorted(names.tolist())
    predicted = model.predict(rows.token)
    assert predicted.dtype == y.dtype
    assert np.mean(predicted == y) > 0.9
    assert model.score(rows.token, hidden) == np.mean((predicted == y)[few >= 0])


def test_a_list_that_mixes_names_and_minus_one_reads_as_unlabelled(rows, few):
    y = ["abc"[label] if known >= 0 else -1 for label, known in zip(rows.label, few, strict=True)]
    assert small(steps=5).fit(rows.token, y).classes_.tolist() == ["a", "b", "c"]


def test_two_classes_of_three_rows_are_enough():
    rows = np.random.default_rng(0).normal(size=(3, 2))
    model = small(steps=5).fit(rows, [0, 1, -1])
    assert model.predict_proba(rows).shape == (3, 2)
    assert (model.temperature_, model.calibration_rows_) == (1.0, 0)


def test_probabilities_and_style_have_their_shapes_whatever_the_precision_of_the_rows(rows, few, fitted):
    probability, style = fitted.predict_proba(rows.token), fitted.transform(rows.token)
    assert probability.shape == (240, 3)
    assert style.shape == (240, 4)
    np.testing.assert_allclose(probability.sum(1), 1)
    assert np.array_equal(fitted.classes_[probability.argmax(1)], fitted.predict(rows.token))
    assert fitted.get_feature_names_out()[0] == "contentstyleclassifier0"
    half = small().fit(rows.token.astype(np.float16), few)
    assert np.mean(half.predict(rows.token) == fitted.predict(rows.token)) > 0.97


def test_a_copy_from_a_pickle_tells_the_same(rows, fitted):
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict_proba(rows.token), fitted.predict_proba(rows.token))
    assert np.array_equal(again.transform(rows.token), fitted.transform(rows.token))
    assert not hasattr(clone(fitted), "head_")


def test_it_works_in_pipelines_grid_searches_and_cross_validation_with_unlabelled_rows(rows, few):
    pipeline = make_pipeline(StandardScaler(), small(steps=120))
    assert cross_val_score(pipeline, rows.token, few, cv=3).mean() > 0.85
    assert pipeline.fit(rows.token, few).transform(rows.token).shape == (240, 4)
    grid = {"contentstyleclassifier__lambda_c": np.array([0.0, 1.0]), "contentstyleclassifier__style": np.arange(2, 4)}
    best = GridSearchCV(make_pipeline(StandardScaler(), small(steps=20)), grid, cv=2).fit(rows.token, few)
    assert best.best_estimator_[-1].transform(rows.token).shape[1] == best.best_params_["contentstyleclassifier__style"]


def test_score_leaves_unlabelled_rows_out_and_refuses_when_none_is_known(rows, few, fitted):
    right = fitted.predict(rows.token) == rows.label
    weight = np.arange(240.0)
    assert fitted.score(rows.token, few) == right[few >= 0].mean()
    known = np.average(right[few >= 0], weights=weight[few >= 0])
    assert fitted.score(rows.token, few, sample_weight=weight) == pytest.approx(known)
    with pytest.raises(SettingError, match="score needs labelled rows"):
        fitted.score(rows.token, np.full(240, -1))


def test_calibration_lowers_the_loss_on_new_rows_and_changes_no_prediction(blobs):
    train, test = blobs(240, 1, gap=0.3), blobs(600, 2, gap=0.3)
    y = np.where(np.arange(240) % 3 == np.arange(240) // 3 % 3, train.label, -1)
    model = small(steps=200).fit(train.token, y)
    raw = small(steps=200, calibrate=False).fit(train.token, y)
    assert model.temperature_ > 1
    assert model.calibration_rows_ == 20
    assert (raw.temperature_, raw.calibration_rows_) == (1.0, 0)
    assert np.array_equal(model.predict(test.token), raw.predict(test.token))
    assert log_loss(test.label, model.predict_proba(test.token)) < log_loss(test.label, raw.predict_proba(test.token))


def test_the_temperature_that_made_the_labels_is_found():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(20_000, 4)) * 3
    label = (logits / 2.5 + draw.gumbel(size=logits.shape)).argmax(1)
    assert best_temperature(logits, label) == pytest.approx(2.5, abs=0.1)
    assert best_temperature(logits[:10], logits[:10].argmax(1)) == pytest.approx(1, abs=1e-3)


def test_a_quarter_is_hidden_for_calibration_but_never_the_only_row_of_a_class():
    label = np.concatenate([np.arange(5).repeat(12), [5]])
    held = held_out(label, 0)
    assert np.bincount(label[held], minlength=6).tolist() == [3, 3, 3, 3, 3, 0]
    assert len(held_out(np.arange(39) % 2, 0)) == 0
    assert len(held_out(np.arange(40) % 2, 0)) == 10


def test_hidden_rows_are_kept_from_the_head_that_judges_the_temperature(rows, few, monkeypatch):
    seen = []
    monkeypatch.setattr(estimator, "fit_heads", lambda *a, **k: seen.extend(a[2]) or fit_heads(*a, **k))
    model = small(steps=5).fit(rows.token, few)
    whole, part = seen
    assert len(np.setdiff1d(whole.labelled, part.labelled)) == model.calibration_rows_ == 15
    assert np.array_equal(np.setdiff1d(whole.unlabelled, part.unlabelled), np.setdiff1d(whole.labelled, part.labelled))


def test_the_class_prior_is_followed(rows):
    y = np.where(np.arange(240) % 4 == 0, rows.label, -1)
    for prior in ("labelled", "estimated"):
        assert small(prior=prior, steps=60).fit(rows.token, y).score(rows.token, rows.label) > 0.8
    given = small(prior="given", prior_given=[1, 1, 2], steps=20).fit(rows.token, y)
    assert given.head_.settings.prior_given == (1, 1, 2)


@pytest.mark.parametrize(
    ("parameters", "samples"),
    [({}, 1), ({"prior": "uniform"}, 1), ({"cluster_terms": "always"}, 1),
     ({"prior": "uniform", "cluster_terms": "always"}, 0)],
)  # fmt: skip
def test_one_sample_of_the_rows_tells_their_class_prior_and_how_they_lie(rows, few, monkeypatch, parameters, samples):
    drawn = []
    monkeypatch.setattr(estimator, "draw_sample", lambda *a: drawn.append(draw_sample(*a)) or drawn[-1])
    small(steps=5, **parameters).fit(rows.token, few)
    assert len(drawn) == samples


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": 0}, "steps = 0 cannot be used: input should be greater than or equal to 1"),
        ({"prior": "flat"}, "prior = 'flat' cannot be used"),
        ({"lambda_c": -1.0}, "lambda_c = -1.0 cannot be used"),
        ({"prior": "given"}, "prior_given belong together"),
        ({"prior": "given", "prior_given": (0.5, 0.5)}, "classes: give one probability a class"),
        ({"device": "toaster"}, "device = 'toaster' cannot be used here"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_told_at_fit(rows, few, parameters, message):
    with pytest.raises(SettingError, match=message):
        small(**parameters).fit(rows.token, few)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.full(240, -1), "it holds no class and 240 unlabelled rows"),
        (np.where(np.arange(240) % 2, 1, -1), r"it holds one class \(1\) and 120 unlabelled rows. -1 means unlabelled"),
    ],
)
def test_fewer_than_two_classes_are_refused_and_minus_one_is_explained(rows, y, message):
    with pytest.raises(SettingError, match=message):
        small().fit(rows.token, y)


def test_rows_too_large_for_single_precision_are_refused(rows, few):
    with pytest.raises(SettingError, match="scale them first"):
        small().fit(rows.token.astype(np.float64) * 1e20, few)


def test_importing_the_package_does_not_load_scikit_learn():
    code = "import sys, cspipe.headtrain as h; assert 'sklearn' not in sys.modules; h.ContentStyleClassifier; h.missing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "AttributeError: module 'cspipe.headtrain' has no attribute 'missing'" in done.stderr


def test_it_abstains_where_no_class_is_likely_enough(rows):
    fitted = ContentStyleClassifier(**SMALL, random_state=0).fit(rows.token, rows.label)
    likeliest = fitted.predict_proba(rows.token).max(1)
    for below in (0.0, 0.8, 1.1):
        assert fitted.abstain(rows.token, below=below).tolist() == (likeliest < below).tolist()
    assert not fitted.abstain(rows.token, below=0).any() and fitted.abstain(rows.token, below=1.1).all()
