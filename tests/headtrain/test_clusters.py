"""Whether classes lie together, and what a study and the estimator do where they do not."""

from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch

from cspipe.headtrain.clusters import PLAIN_AGREEMENT, Findings, agreement, draw_sample, look_at_rows
from cspipe.headtrain.estimator import ContentStyleClassifier
from cspipe.headtrain.rows import labelled_positions, read_rows
from cspipe.headtrain.settings import HeadSettings, method_settings
from cspipe.headtrain.study import Memory, Study, make_trials
from cspipe.headtrain.tasks import HeadTask

CLASSES = 3
Rows = namedtuple("Rows", "token label")
SMALL = HeadSettings(hidden=32, steps=60, batch=64, labelled_batch=32)


def tokens(seed, *, together, rows=400):
    """Rows whose class decides the cluster, or a weak direction across clusters that tell nothing of it."""
    generator = np.random.default_rng(seed)
    label_N, nuisance_N = generator.integers(0, CLASSES, rows), generator.integers(0, 4, rows)
    centre = np.random.default_rng(0).standard_normal((4, 20)) * 4
    token_ND = generator.standard_normal((rows, 20)) + centre[label_N if together else nuisance_N]
    if not together:
        token_ND[:, :CLASSES] += 1.5 * np.eye(CLASSES)[label_N]
    return token_ND.astype(np.float32), label_N


def looked_at(token_ND, label_N, labels=60, **changes):
    """What is found with the first rows labelled."""
    at, every, tokens_ND = np.arange(labels), np.arange(len(label_N)), torch.from_numpy(token_ND)
    sample = draw_sample(tokens_ND, every, HeadSettings())
    settings = replace(SMALL, **changes)
    (found,) = look_at_rows(tokens_ND, label_N, [HeadTask(at, every)], sample, settings, classes=CLASSES)
    return found


def test_where_classes_lie_together_the_graph_tells_and_no_head_is_tried():
    found = looked_at(*tokens(1, together=True))
    assert found.agreement > 0.9 and found.held_out is None and found.bears_out


@pytest.mark.parametrize(("few", "tried"), [(399, False), (400, True)])
def test_few_rows_are_believed_only_where_the_graph_is_sure(monkeypatch, few, tried):
    monkeypatch.setattr("cspipe.headtrain.clusters.FEW_ROWS", few)
    monkeypatch.setattr("cspipe.headtrain.clusters.SURE_AGREEMENT", 1.01)
    found = looked_at(*tokens(1, together=True))
    assert found.plain and not found.anchors and (found.held_out is not None) is tried


@pytest.mark.parametrize(("agreement", "held_out", "borne_out"), [
    (0.6, (9, 4, 4), False), (0.6, (9, 5, 4), True), (0.5, (9, 5, 4), True), (0.4, (9, 5, 4), False),
    (0.4, (9, 10, 4), False), (0.4, (9, 11, 4), True), (0.2, (9, 11, 4), False), (0.0, (9, 12, 2), True),
    (0.0, (9, 11, 2), False), (-0.3, (9, 12, 2), True), (0.4, None, True),
])  # fmt: skip
def test_the_burden_on_clusters_is_less_the_more_the_graph_speaks_for_them(agreement, held_out, borne_out):
    assert Findings(agreement, held_out=held_out).bears_out is borne_out


def test_where_something_else_lies_together_heads_that_are_tried_tell():
    found = looked_at(*tokens(1, together=False))
    assert found.agreement < PLAIN_AGREEMENT and found.held_out[1] <= found.held_out[2] and not found.bears_out


def test_what_is_found_is_the_same_each_time_and_does_not_look_at_hidden_labels():
    token_ND, label_N = tokens(2, together=False)
    hidden = label_N.copy()
    hidden[60:] = -1
    assert looked_at(token_ND, label_N) == looked_at(token_ND, hidden) == looked_at(token_ND, label_N)


@pytest.mark.parametrize(("rows", "labels"), [(70, 60), (400, 4)])
def test_too_few_rows_of_either_kind_tell_nothing_and_clusters_are_relied_on(rows, labels):
    found = looked_at(*tokens(1, together=True, rows=rows), labels=labels)
    assert found == Findings(None) and found.bears_out


def test_agreement_counts_no_row_whose_class_has_no_other_label():
    token_ND, label_N = tokens(1, together=True)
    only_L = np.r_[
        np.flatnonzero(label_N == 0)[:20], np.flatnonzero(label_N == 1)[:20], np.flatnonzero(label_N == 2)[:1]
    ]
    assert agreement(token_ND[only_L], label_N[only_L], token_ND[200:]) > 0.9


def test_settings_without_clusters_are_those_of_a_supervised_head():
    left = HeadSettings().without_clusters()
    assert left == method_settings("supervised", HeadSettings())
    assert not left.asks_for_clusters and not left.semi_supervised
    assert not method_settings("supervised", HeadSettings()).asks_for_clusters
    assert not method_settings("content-style-paper", HeadSettings()).asks_for_clusters


@pytest.fixture
def study(make_store, quick):
    """A study of 3 splits on rows that do or do not lie together."""

    def make(together, **changes):
        parts = {name: Rows(*tokens(seed, together=together)) for seed, name in enumerate(("train", "test"))}
        rows = read_rows(make_store(parts))
        splits = labelled_positions(rows, 60, 3, "balanced")
        settings = replace(quick, steps=20, **changes)
        return Study(rows, make_trials(rows, splits), settings, "cpu", None, Memory())

    return make


def find(monkeypatch, found, where="study"):
    """Has these found in place of what rows tell."""
    monkeypatch.setattr(f"cspipe.headtrain.{where}.look_at_rows", lambda *_, **__: found)


@pytest.mark.parametrize(("held_out", "changes", "mixes"), [
    (None, {}, True), ((9, 1, 9), {}, False), ((9, 1, 9), {"cluster_terms": "always"}, True),
])  # fmt: skip
def test_a_study_leaves_cluster_terms_out_where_they_do_not_hold(study, monkeypatch, held_out, changes, mixes):
    find(monkeypatch, [Findings(0.1, held_out=held_out)] * 3)
    made = study(False, **changes)
    outcome = made.run("content-style")
    assert [head.settings.lambda_c > 0 for head in outcome.heads] == [mixes] * 3
    assert [head.settings.voted for head in outcome.heads] == [not mixes] * 3
    assert "L_mix" in outcome.metrics[-1] and ("D_c" in outcome.metrics[-1]) is mixes
    assert len(made.memory.findings) == (0 if changes else 3)
    assert len(made.memory.samples) == 1  # one serves all splits, and their class priors


def test_a_study_looks_at_its_own_rows_and_tells_how_far_it_is(study):
    told = []
    made = replace(study(False), on_progress=lambda what, share: told.append((what, share)))
    made.run("content-style")
    found = list(made.memory.findings.values())
    assert len(found) == 3 and all(each.held_out for each in found if each.agreement < PLAIN_AGREEMENT)
    assert any(what == "how rows lie" for what, _ in told) and max(share for _, share in told) == 1


def test_heads_of_one_study_may_differ_and_stay_in_their_order(study, monkeypatch):
    find(monkeypatch, [Findings(0.1, held_out=told) for told in (None, (9, 1, 9), (5, 20, 5))])
    made = study(True)
    outcome = made.run("content-style")
    assert [head.settings.lambda_c > 0 for head in outcome.heads] == [True, False, True]
    assert [head.settings.voted for head in outcome.heads] == [False, True, False]
    assert [row["split_seed"] for row in outcome.results] == [0, 1, 2]
    mixed = {record["split_seed"] for record in outcome.metrics if "D_c" in record}
    assert mixed == {0, 2} and {record["split_seed"] for record in outcome.metrics} == {0, 1, 2}
    alone = Study(made.rows, made.trials[1:2], made.settings, "cpu", None, Memory())
    find(monkeypatch, [Findings(0.1, held_out=(9, 1, 9))])
    assert alone.run("content-style").results[0]["accuracy"] == outcome.results[1]["accuracy"]


@pytest.mark.parametrize(("found", "voted", "norm"), [
    (Findings(0.1), False, "layer"), (Findings(0.1, held_out=(9, 1, 9)), True, "layer"),
    (Findings(0.1, held_out=(9, 1, 9), batch_norm=True), True, "batch"),
    (Findings(0.1, held_out=(9, 20, 1), batch_norm=True), False, "layer"),
])  # fmt: skip
def test_the_estimator_leaves_them_out_too(monkeypatch, found, voted, norm):
    find(monkeypatch, [found], "estimator")
    token_ND, label_N = tokens(3, together=False)
    label_N[60:] = -1
    fitted = ContentStyleClassifier(steps=20, random_state=0).fit(token_ND, label_N)
    assert (fitted.head_.settings.voted, fitted.head_.settings.norm) == (voted, norm)


def test_trials_of_many_labelled_sets_are_those_of_each_alone():
    token_ND, label_N = tokens(1, together=False)
    tokens_ND, every = torch.from_numpy(token_ND), np.arange(len(label_N))
    tasks = [HeadTask(np.arange(first, first + count), every) for first, count in ((0, 60), (30, 60), (100, 90))]
    sample = draw_sample(tokens_ND, every, HeadSettings())

    def look(asked):
        return look_at_rows(tokens_ND, label_N, asked, sample, SMALL, classes=CLASSES)

    assert look(tasks) == [found for task in tasks for found in look([task])]


@pytest.mark.parametrize(("batch_norm", "held_out", "better"), [
    (None, (1, 1, 1), False), ("1100", (1, 1, 1), False), ("1110", (2, 0, 1), True), ("0001", (1, 1, 1), False),
])  # fmt: skip
def test_the_better_norm_is_what_clusters_are_compared_with(batch_norm, held_out, better):
    with_L, without_L, batch_norm_L = (
        told and np.array([mark == "1" for mark in told]) for told in ("1100", "1010", batch_norm)
    )
    found = Findings(0.2, anchors=True).after_trial(with_L, without_L, batch_norm_L)
    assert found == Findings(0.2, True, held_out, better)


@pytest.mark.parametrize(("few", "norm", "tried"), [(400, "layer", 3), (399, "layer", 2), (400, "batch", 2)])
def test_a_batch_norm_is_tried_where_rows_are_few_and_it_was_not_asked_for(monkeypatch, few, norm, tried):
    seen = []

    def right(tokens, label_N, known, settings, **_):
        seen.append(settings)
        return [np.arange(len(known[0].labelled)) < len(seen)]

    monkeypatch.setattr("cspipe.headtrain.clusters.FEW_ROWS", few)
    monkeypatch.setattr("cspipe.headtrain.clusters.held_out_right", right)
    found = looked_at(*tokens(1, together=False), norm=norm)
    assert [settings.norm for settings in seen] == [norm, norm, "batch"][:tried]
    assert [settings.lambda_c > 0 for settings in seen] == [True, False, False][:tried]
    assert found.batch_norm is (tried == 3) and found.held_out == (1, 0, tried - 1)
