"""Heads: fitted many at once, kept in a file, and used on what they were not made for."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cspipe.headtrain import HeadSettings, HeadTask, fit_heads, heads, load_head
from cspipe.headtrain.headfile import save_head
from cspipe.headtrain.heads import probabilities_of
from cspipe.headtrain.settings import method_settings
from cspipe.headtrain.tasks import group_tasks
from cspipe.headtrain.train import train_heads
from cspipe.store.errors import MismatchError, MissingDataError, SettingError, UnknownNameError

EVERY = np.arange(90)
CARD = {"method": "content-style", "class_names": ["a", "b", "c"]}


@pytest.fixture
def fit(blobs, quick):
    """A function (tasks, settings) -> heads on 90 rows of blobs."""
    rows = blobs(90, 1)

    def call(*tasks: HeadTask, settings: HeadSettings = quick, label=rows.label):
        return fit_heads(torch.from_numpy(rows.token), torch.from_numpy(label), tasks, settings, classes=3).heads

    return call


@pytest.fixture
def token(blobs) -> torch.Tensor:
    return torch.from_numpy(blobs(50, 2).token)


def test_a_head_comes_back_from_its_file_with_identical_probabilities(fit, token, quick, tmp_path):
    for components in (0, 5):
        settings = HeadSettings(**{**vars(quick), "components": components, "prior": "given", "prior_given": (1, 2, 3)})
        (head,) = fit(HeadTask(np.arange(9), EVERY), settings=settings)
        save_head(tmp_path / "head.safetensors", head, np.arange(9) * 10, CARD)
        saved = load_head(tmp_path / "head.safetensors")
        assert torch.equal(saved.head.probabilities(token), head.probabilities(token))
        assert torch.equal(saved.head.encode(token)[1], head.encode(token)[1])
        assert saved.labelled_row_id.tolist() == list(range(0, 90, 10))
        assert saved.head.settings == settings
        assert {key: saved.card[key] for key in CARD} == CARD
        assert [path.name for path in tmp_path.iterdir()] == ["head.safetensors"]


def test_heads_that_share_a_projection_say_together_what_each_says_alone(fit, token, monkeypatch):
    monkeypatch.setattr("cspipe.headtrain.heads.ROWS_AT_ONCE", 16)
    first, second = fit(HeadTask(np.arange(9), EVERY), HeadTask(np.arange(9, 18), EVERY, 1))
    (other,) = fit(HeadTask(np.arange(9), EVERY[:60]))
    assert first.projection is second.projection and other.projection is not first.projection
    said = probabilities_of([first, other, second], token)
    for probability_NK, head in zip(said, [first, other, second], strict=True):
        assert torch.equal(probability_NK, head.probabilities(token))


def test_a_saved_head_has_what_fine_tuning_needs_to_go_on(fit, tmp_path):
    (head,) = fit(HeadTask(np.arange(9), EVERY))
    save_head(tmp_path / "head.safetensors", head, np.arange(9), CARD)
    again = load_head(tmp_path / "head.safetensors").head.stack
    assert again.state_dict().keys() == head.stack.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in head.stack.state_dict().items())
    assert not again.training


def test_a_card_with_nan_is_refused_and_nothing_is_written(fit, tmp_path):
    (head,) = fit(HeadTask(np.arange(9), EVERY))
    with pytest.raises(ValueError, match="JSON compliant"):
        save_head(tmp_path / "head.safetensors", head, np.arange(9), {"accuracy": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_head_is_refused_by_name(tmp_path):
    with pytest.raises(MissingDataError, match=r"no head at .*lost\.safetensors\. Train one with cspipe head"):
        load_head(tmp_path / "lost.safetensors")
    (tmp_path / "text.safetensors").write_text("not a head at all")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "odd.safetensors", metadata={"cspipe": "{"})
    for name in ("text", "other", "odd"):
        with pytest.raises(MismatchError, match=rf"{name}\.safetensors is not a head written by cspipe head"):
            load_head(tmp_path / f"{name}.safetensors")


def test_a_head_cut_short_is_refused_and_one_of_a_later_format_names_both_formats(fit, tmp_path):
    (head,) = fit(HeadTask(np.arange(9), EVERY))
    path = tmp_path / "head.safetensors"
    save_head(path, head, np.arange(9), CARD)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MismatchError, match="is not a head written by cspipe head"):
        load_head(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"cspipe": json.dumps({"format": 99})})
    with pytest.raises(MismatchError, match="has head format 99; this version reads format 1"):
        load_head(path)


def test_tokens_of_another_width_are_refused(fit):
    (head,) = fit(HeadTask(np.arange(9), EVERY))
    with pytest.raises(MismatchError, match="expects tokens 24 wide, but was given 7"):
        head.probabilities(torch.zeros(4, 7))


def test_probabilities_are_those_of_a_row_alone_whatever_its_neighbours_and_its_float_type(fit, token):
    (head,) = fit(HeadTask(np.arange(9), EVERY))
    together = head.probabilities(token)
    assert together.shape == (50, 3)
    torch.testing.assert_close(together.sum(1), torch.ones(50))
    torch.testing.assert_close(head.probabilities(token[7:8])[0], together[7], rtol=0, atol=1e-5)
    assert torch.equal(head.probabilities(token.double()), together)
    torch.testing.assert_close(head.probabilities(token.half()), together, rtol=0, atol=0.02)


def test_a_row_of_nan_spoils_no_other_row(fit, token):
    (head,) = fit(HeadTask(np.arange(9), EVERY))
    spoilt = token.clone()
    spoilt[3] = torch.nan
    found, clean = head.probabilities(spoilt), head.probabilities(token)
    assert found[3].isnan().all()
    others = torch.arange(50) != 3
    assert torch.equal(found[others], clean[others])


def test_heads_on_several_pools_of_rows_are_those_fitted_one_by_one(fit, token):
    tasks = [HeadTask(np.arange(9), EVERY, seed=1), HeadTask(np.arange(20, 32), np.arange(10, 70), seed=2),
             HeadTask(np.arange(12, 30), EVERY, seed=3)]  # fmt: skip
    for head, task in zip(fit(*tasks), tasks, strict=True):
        (alone,) = fit(task)
        torch.testing.assert_close(head.probabilities(token), alone.probabilities(token), rtol=0, atol=2e-3)
        assert torch.equal(head.projection.mean_D, alone.projection.mean_D)


def test_heads_that_look_at_the_same_rows_share_one_table():
    tasks = [HeadTask(np.arange(3), EVERY), HeadTask(np.arange(5, 9), EVERY), HeadTask(np.array([80]), np.arange(40))]
    pools, group = group_tasks(tasks)
    assert group == [0, 0, 1]
    assert pools[1].tolist() == [*range(40), 80]


def test_the_projection_is_fitted_on_the_tasks_own_rows(fit, blobs):
    (head,) = fit(HeadTask(np.arange(9), np.arange(40)))
    np.testing.assert_allclose(head.projection.mean_D, blobs(90, 1).token[:40].mean(0), atol=1e-5)


def test_the_class_prior_of_a_task_moves_its_predictions(fit, token, quick):
    lopsided = np.array([0.8, 0.1, 0.1])
    settings = HeadSettings(**{**vars(quick), "lambda_c": 5.0})
    even, uneven = fit(
        HeadTask(np.arange(9), EVERY), HeadTask(np.arange(9), EVERY, prior_K=lopsided), settings=settings
    )
    assert uneven.probabilities(token)[:, 0].mean() > even.probabilities(token)[:, 0].mean() + 0.1


def test_labels_that_cannot_be_trained_on_are_refused(fit, blobs):
    with pytest.raises(SettingError, match="needs labelled rows and at least two training rows; this one has 0 and 90"):
        fit(HeadTask(np.arange(0), EVERY))
    for wrong in (-1, 3):
        label = blobs(90, 1).label.copy()
        label[4] = wrong
        with pytest.raises(SettingError, match=r"must be from 0 to 2; found"):
            fit(HeadTask(np.arange(9), EVERY), label=label)


def test_a_method_is_the_users_settings_with_its_own_on_top():
    mine = HeadSettings(style=7, hidden=33, lambda_s=0.5)
    assert method_settings("content-style", mine) == mine
    paper = method_settings("content-style-paper", mine)
    assert (paper.style, paper.hidden, paper.lambda_s, paper.content_term) == (7, 33, 0.1, "adversarial")
    supervised = method_settings("supervised", mine)
    assert not supervised.semi_supervised
    assert supervised.hidden == 33
    with pytest.raises(UnknownNameError, match="unknown method 'content-stile': did you mean 'content-style'"):
        method_settings("content-stile", mine)


@pytest.mark.parametrize("changes", [{"prior": "given"}, {"prior_given": (0.5, 0.5)}])
def test_a_given_prior_and_its_probabilities_belong_together(changes):
    with pytest.raises(SettingError, match="prior = 'given' and prior_given belong together"):
        method_settings("content-style", HeadSettings(**changes))


def test_a_head_file_that_lacks_a_tensor_is_told_plainly(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    golden = next(Path(__file__).parents[1].glob("golden/format-1/runs/*/heads/content-style-0.safetensors"))
    with safe_open(golden, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors.pop("stack.encoder.0.weight")
    save_file(tensors, tmp_path / "broken.safetensors", metadata=metadata)
    with pytest.raises(MismatchError, match="does not hold a whole head"):
        load_head(tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    ("rows", "classes", "batch"), [(60_000, 10, 384), (7_680, 10, 384), (1_440, 10, 72), (90, 3, 32), (2_000, 100, 384)]
)
def test_a_batch_is_a_small_part_of_the_rows_but_some_of_each_class(rows, classes, batch):
    asked = HeadSettings()
    assert asked.on_rows(rows, classes) == replace(asked, batch=batch)
    assert replace(asked, batch=20).on_rows(rows, classes).batch == 20


def test_heads_are_trained_with_the_batch_of_the_fewest_rows_and_keep_the_settings_they_were_given(
    blobs, quick, monkeypatch
):
    seen = []
    monkeypatch.setattr(heads, "train_heads", lambda *a, **k: seen.append(a[4].batch) or train_heads(*a, **k))
    rows, asked = blobs(1_000, 1), replace(quick, steps=2, batch=64)
    tasks = [HeadTask(np.arange(9), np.arange(count)) for count in (1_000, 800)]
    fit = fit_heads(torch.from_numpy(rows.token), torch.from_numpy(rows.label), tasks, asked, classes=3)
    assert seen == [40]
    assert [head.settings for head in fit.heads] == [asked, asked]
