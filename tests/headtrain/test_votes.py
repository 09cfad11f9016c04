"""Votes of supervised heads, which L_mix follows where nothing is to be told from what lies together."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cspipe.headtrain import HeadSettings, HeadTask, fit_heads, heads, losses
from cspipe.headtrain.batches import Pools, Votes, draw_batches, draw_shares, gather
from cspipe.headtrain.headfile import load_head, save_head
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.objective import objective
from cspipe.headtrain.settings import method_settings
from cspipe.headtrain.tasks import table_of_tasks
from cspipe.headtrain.train import train_heads

EVERY, CLASSES = np.arange(90), 3
TASKS = [HeadTask(np.arange(9), EVERY), HeadTask(np.arange(9, 18), EVERY, 4), HeadTask(np.arange(9), EVERY[:60])]


@pytest.fixture
def rows(blobs):
    drawn = blobs(90, 1)
    return torch.from_numpy(drawn.token), torch.from_numpy(drawn.label)


@pytest.fixture
def voted(quick):
    return replace(quick.by_votes(), voters=2, steps=20)


@pytest.fixture
def seen(monkeypatch):
    """Every call of `fit_heads` that is made inside, and every table that heads train on."""
    calls, tables = [], []
    monkeypatch.setattr(heads, "fit_heads", lambda *a, **k: calls.append((a, k)) or fit_heads(*a, **k))
    polled = heads.polled
    monkeypatch.setattr(heads, "polled", lambda *a: tables.append(polled(*a)) or tables[-1])
    return calls, tables


def test_settings_of_a_voted_head_hold_no_term_that_relies_on_clusters():
    left = HeadSettings(lambda_mix=0.7, anchors=9, components=77).by_votes()
    assert left.voted and left.semi_supervised and not left.asks_for_clusters
    assert (left.voters, left.lambda_mix, left.lambda_c, left.anchors, left.components) == (3, 0.7, 0, 9, 77)
    assert HeadSettings(voters=5).by_votes().voters == 5 and HeadSettings().unvoted() == HeadSettings()
    assert not left.unvoted().semi_supervised and left.unvoted() == left.without_clusters()
    assert (left.lr, left.beta2) == (HeadSettings.lr, HeadSettings.beta2) != (left.unvoted().lr, left.unvoted().beta2)
    assert not HeadSettings(lambda_mix=0).by_votes().voted and HeadSettings(voters=3).asks_for_clusters


def test_l_mix_follows_given_votes_in_place_of_the_head_s_own_content():
    generator = torch.Generator().manual_seed(0)
    stack = ContentStyle(width=5, classes=CLASSES, style=2, hidden=7, critics={}, seeds=[1, 2]).double()
    token_HXP = torch.randn(2, 11, 5, generator=generator, dtype=torch.float64)
    label_HL = torch.zeros(2, 3, dtype=torch.int64)
    share_HB1 = torch.rand(2, 8, 1, generator=generator, dtype=torch.float64)
    vote_HBK = torch.rand(2, 8, CLASSES, generator=generator, dtype=torch.float64).softmax(-1)
    prior_HK = torch.full((2, CLASSES), 1 / 3, dtype=torch.float64)
    settings = HeadSettings().by_votes()
    terms, _ = objective(stack, token_HXP, label_HL, prior_HK, settings, share_HB1=share_HB1, vote_HBK=vote_HBK)
    unlabelled_HBP = token_HXP[:, 3:]
    mixed_HBP = share_HB1 * unlabelled_HBP + (1 - share_HB1) * unlabelled_HBP.roll(1, 1)
    logits_HBK = stack.encode(mixed_HBP)[0]
    expected = losses.interpolation(logits_BK=logits_HBK, content_BK=vote_HBK, share_B1=share_HB1)
    torch.testing.assert_close(terms["L_mix"], expected)
    own, _ = objective(stack, token_HXP, label_HL, prior_HK, settings, share_HB1=share_HB1)
    assert not torch.allclose(own["L_mix"], expected)


def test_self_training_relies_on_no_clusters_and_takes_no_more_steps_than_it_is_given():
    settings = method_settings("self-training", HeadSettings())
    assert settings.voted and not settings.asks_for_clusters and settings.mix_share == 0
    assert max(settings.lambda_c, settings.lambda_s, settings.lambda_y, settings.lambda_yy) == 0
    assert (settings.steps, settings.components) == (400, HeadSettings.components)
    assert method_settings("self-training", HeadSettings(steps=20)).steps == 20


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_a_share_of_the_rows_is_mixed_and_what_they_keep_is_even(part):
    settings = replace(HeadSettings(), mix_share=part)
    kept = draw_shares(200, 50, settings, torch.Generator().manual_seed(0), torch.float64).flatten()
    mixed = kept[kept < 1]
    assert abs(len(mixed) / len(kept) - part) < 0.02
    if part:
        decile = torch.histc(mixed, 10, 0, 1) / len(mixed)
        assert (decile - 0.1).abs().max() < 0.01
    assert HeadSettings().by_votes().mix_share == 0.5 and settings.by_votes().mix_share == min(part, 0.5)


@pytest.mark.parametrize("views", [False, True])
def test_rows_that_are_not_mixed_follow_their_own_vote_and_so_do_their_views(views):
    generator = torch.Generator().manual_seed(0)
    stack = ContentStyle(width=5, classes=CLASSES, style=2, hidden=7, critics={}, seeds=[1, 2]).double()
    token_TP = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    pools = Pools([torch.arange(3)] * 2, [torch.arange(20)] * 2, torch.full((2, CLASSES), 1 / 3), int(views))
    settings = method_settings("self-training", HeadSettings(batch=8, labelled_batch=3))
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    batch = next(draw_batches(pools, settings, generators, 40 if views else 20, torch.float64))
    token_HXP, share_HB1 = gather(token_TP, batch, settings)
    assert share_HB1 is not None and (share_HB1 == 1).all() and token_HXP.shape[1] == (19 if views else 11)
    vote_HBK = torch.rand(2, 8, CLASSES, generator=generator, dtype=torch.float64).softmax(-1)
    terms, _ = objective(
        stack, token_HXP, torch.zeros(2, 3, dtype=torch.int64), pools.prior_HK, settings, share_HB1=share_HB1,
        vote_HBK=vote_HBK,
    )  # fmt: skip
    row_HB = batch.view_HB if views else batch.unlabelled_HB
    log_content_HBK = stack.encode(token_TP[row_HB])[0].log_softmax(-1)
    torch.testing.assert_close(terms["L_mix"], -(vote_HBK * log_content_HBK).sum(-1).mean(-1))


def test_a_head_learns_soft_votes_and_the_true_labels_over_wrong_votes(rows, quick):
    """Every row is voted 0.3, 0.7, 0; the labelled rows are of class 2 in truth and far from the others."""
    token_ND, known_L = rows[0].clone(), torch.arange(9)
    token_ND[known_L] += 20
    vote_1VK = torch.tensor([0.3, 0.7, 0.0]).repeat(1, 90, 1)
    vote_1VK[0, known_L] = torch.tensor([0.0, 0.0, 1.0])
    settings = replace(method_settings("self-training", replace(quick, steps=400)), components=0)
    stack = ContentStyle(width=token_ND.shape[1], classes=CLASSES, style=4, hidden=16, critics={}, seeds=[0])
    every_N = torch.arange(90)
    pools = Pools([known_L], [every_N], torch.full((1, CLASSES), 1 / 3), 0, Votes(vote_1VK.half(), every_N))
    train_heads(stack, token_ND, torch.full((90,), 2), pools, settings, seeds=[0])
    learned_NK = stack.encode(token_ND[None])[0][0].softmax(-1).detach()
    assert (learned_NK[known_L, 2] > 0.9).all()
    assert learned_NK[9:].mean(0).numpy() == pytest.approx(np.array([0.3, 0.7, 0]), abs=0.05)


def test_self_training_is_no_worse_than_a_supervised_head_and_the_same_again(rows, blobs, quick):
    judged = blobs(300, 2)

    def right(method):
        settings = method_settings(method, replace(quick, steps=150))
        fits = [fit_heads(*rows, TASKS[:2], settings, classes=CLASSES) for _ in range(2)]
        first, again = ([head.predict(torch.from_numpy(judged.token)) for head in fit.heads] for fit in fits)
        assert np.array_equal(first, again)
        return np.mean(np.array(first) == judged.label)

    assert right("self-training") >= right("supervised") - 0.01


@pytest.mark.parametrize("anchors", [0, 6])
def test_votes_are_the_voters_mean_and_a_labelled_row_has_its_class(rows, voted, seen, monkeypatch, anchors):
    monkeypatch.setattr(heads, "ROWS_AT_ONCE", 17)
    token_ND, label_N = rows
    settings = replace(voted, anchors=anchors)
    made = []
    fit_several = heads.fit_several
    monkeypatch.setattr(heads, "fit_several", lambda *a, **k: made.append(fit_several(*a, **k)) or made[-1])
    fit = fit_heads(token_ND, label_N, TASKS, settings, classes=CLASSES)
    (table,), voters = seen[1], made[0]
    assert [len(own) for own in voters] == [2] * 3
    assert all((head.projection.around is not None) is bool(anchors) for own in voters for head in own)
    assert all(head.projection.around is None for head in fit.heads)
    for number, (task, own) in enumerate(zip(TASKS, voters, strict=True)):
        expected_NK = torch.stack([head.probabilities(token_ND[task.unlabelled]) for head in own]).mean(0)
        expected_NK[task.labelled] = torch.nn.functional.one_hot(label_N[task.labelled], CLASSES).float()
        given_NK = table.votes.of(torch.stack([table.unlabelled[number]] * 3))[number]
        torch.testing.assert_close(given_NK, expected_NK, rtol=0, atol=1e-3)


def test_of_many_rows_some_are_voted_on_and_those_alone_are_looked_at(rows, voted, seen, monkeypatch):
    monkeypatch.setattr(heads, "VOTED_ROWS", 40)
    fit_heads(*rows, TASKS, voted, classes=CLASSES)
    (table,) = seen[1]
    assert [len(row.unique()) for row in table.unlabelled] == [40, 40, 40]
    assert table.votes.vote_HVK.shape == (3, 40, CLASSES) and table.votes.vote_HVK.dtype == torch.float16
    assert torch.equal(table.unlabelled[0], table.unlabelled[1]) and table.unlabelled[2].min() >= 90
    assert table.votes.place_T[table.unlabelled[2]].tolist() == list(range(40))


def test_voters_learn_from_labelled_rows_alone_in_fewer_steps_and_no_two_alike(rows, voted, seen, monkeypatch):
    monkeypatch.setattr(heads, "VOTERS_STEPS", 7)
    fit_heads(*rows, TASKS, replace(voted, anchors=6), classes=CLASSES)
    asked = [call[0][3] for call in seen[0]]
    assert [(settings.anchors, settings.steps, settings.semi_supervised) for settings in asked] == [(6, 7, False)]
    tasks = seen[0][0][0][2]
    assert [task.seed for task in tasks] == [0, 1, 8, 9, 0, 1]
    assert all(np.array_equal(tasks[2 * n].labelled, task.labelled) for n, task in enumerate(TASKS))


def test_heads_that_follow_votes_learn_together_what_each_learns_alone(rows, voted):
    together = fit_heads(*rows, TASKS, voted, classes=CLASSES).heads
    for task, head in zip(TASKS, together, strict=True):
        alone = fit_heads(*rows, [task], voted, classes=CLASSES).heads[0]
        torch.testing.assert_close(head.probabilities(rows[0]), alone.probabilities(rows[0]), rtol=1e-4, atol=1e-4)


def test_a_voted_head_comes_back_from_its_file_and_names_its_voters(rows, voted, tmp_path):
    head = fit_heads(*rows, TASKS[:1], voted, classes=CLASSES).heads[0]
    save_head(tmp_path / "head.safetensors", head, np.arange(9), {})
    back = load_head(tmp_path / "head.safetensors").head
    assert back.settings == voted and torch.equal(back.probabilities(rows[0]), head.probabilities(rows[0]))


def test_progress_rises_through_the_voters_and_the_head_to_its_last_step(rows, voted, monkeypatch):
    monkeypatch.setattr(heads, "VOTERS_STEPS", 10)
    told = []
    fit_heads(*rows, TASKS, voted, classes=CLASSES, on_step=told.append)
    assert told == sorted(told) and len(told) == 30
    assert (told[9], told[-1]) == (10 * 20 // 30, 20)


def test_votes_are_read_at_the_place_of_a_row_of_the_table():
    vote_HVK = torch.arange(12).view(2, 3, 2).half()
    votes = Votes(vote_HVK, torch.tensor([0, 0, 2, 1]))
    assert votes.of(torch.tensor([[2, 3], [3, 3]])).tolist() == [[[4, 5], [2, 3]], [[8, 9], [8, 9]]]


def test_the_table_of_a_voted_head_goes_without_anchors(rows, voted, monkeypatch):
    asked = []
    monkeypatch.setattr(heads, "table_of_tasks", lambda *a: asked.append(a[4].anchors) or table_of_tasks(*a))
    fit_heads(*rows, TASKS[:1], replace(voted, anchors=6), classes=CLASSES)
    assert asked == [0, 6]
