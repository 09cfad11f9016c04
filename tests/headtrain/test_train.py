"""Many heads at once are each head alone; which rows a step sees; which terms and discriminators are switched on."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from cspipe.headtrain.batches import Pools, draw_batches, gather, head_generators
from cspipe.headtrain.derivatives import mixed
from cspipe.headtrain.losses import interpolation, sharpened, token_reconstruction
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.objective import critics_in_use, objective, total
from cspipe.headtrain.settings import HeadSettings
from cspipe.headtrain.train import adam, train_heads
from cspipe.store.errors import SettingError

BASE = HeadSettings(style_term="adversarial", style=4, hidden=16, discriminator=8, batch=32, labelled_batch=12)
KINDS = {
    "closed form": {},
    "all adversarial": {
        "content_term": "adversarial", "estimator": "kl", "lambda_c": 0.1, "lambda_s": 0.01, "lambda_y": 0.01,
    },
    "gaussian": {"style_term": "gaussian", "rebuilt_batch": 20},
    "mmd": {"style_term": "mmd", "lambda_mix": 0.0},
    "supervised": {"lambda_c": 0.0, "lambda_s": 0.0, "lambda_y": 0.0, "lambda_yy": 0.0, "lambda_mix": 0.0},
}  # fmt: skip
UNLABELLED = [torch.arange(90), torch.arange(60), torch.arange(30, 90)]
LABELLED = [torch.arange(9), torch.arange(3, 27), torch.arange(40, 52)]
PRIORS = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])


def trained(heads: list[int], chosen: HeadSettings, dtype: torch.dtype):
    """Stack and history of these heads of three, each with its own rows, prior and seed."""
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(90, 12, generator=generator, dtype=torch.float64).to(dtype)
    seeds = [7 + head for head in heads]
    stack = ContentStyle(
        width=12, classes=3, style=chosen.style, hidden=chosen.hidden, critics=critics_in_use(chosen), seeds=seeds,
        precision=chosen.precision,
    ).to(dtype)  # fmt: skip
    pools = Pools([LABELLED[h] for h in heads], [UNLABELLED[h] for h in heads], PRIORS[heads])
    history = train_heads(stack, table, torch.arange(90) % 3, pools, chosen, seeds=seeds)
    return stack, history


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "steps", "near"), [(torch.float64, 200, 1e-9), (torch.float32, 20, 1e-4)])
def test_heads_trained_at_once_are_the_heads_trained_alone(kind, dtype, steps, near):
    chosen = replace(BASE, steps=steps, **KINDS[kind])
    together, history = trained([0, 1, 2], chosen, dtype)
    for head in range(3):
        alone, my_history = trained([head], chosen, dtype)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(together.state_dict()[name][head], value[0], rtol=0, atol=near, msg=name)
        for name in my_history[-1].keys() - {"step"}:
            assert history[-1][name][head].item() == pytest.approx(my_history[-1][name][0].item(), abs=near)
    assert not torch.allclose(together.encoder[0].weight[0], together.encoder[0].weight[1])


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_cross_entropy_and_leaves_the_stack_in_evaluation_mode(kind):
    stack, history = trained([0, 1, 2], replace(BASE, steps=100, **KINDS[kind]), torch.float32)
    assert (history[-1]["L_c"] < 0.7 * history[0]["L_c"]).all()
    assert not stack.training


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_changes_the_products_and_nothing_else(kind):
    """Weights, moments and terms stay in fp32; what is learned is the same to bf16's three digits, not to fp32's.

    A short memory of Adam turns the sign of a small gradient into a whole step, so here it is long.
    """
    chosen = replace(BASE, steps=20, lr=0.003, beta2=0.999, **KINDS[kind])
    stack, history = trained([0, 1], replace(chosen, precision="bf16"), torch.float32)
    exact, exact_history = trained([0, 1], chosen, torch.float32)
    assert {value.dtype for value in [*stack.state_dict().values(), *history[-1].values()]} <= {
        torch.float32, torch.int64,
    }  # fmt: skip
    assert not torch.equal(stack.encoder[0].weight, exact.encoder[0].weight)
    torch.testing.assert_close(stack.encoder[0].weight, exact.encoder[0].weight, rtol=0, atol=0.01)
    torch.testing.assert_close(history[-1]["L_c"], exact_history[-1]["L_c"], rtol=0.05, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_is_one_graph_without_a_break_for_torch_compile(kind, monkeypatch):
    """With another backend than inductor, which takes half a minute; `fullgraph` refuses Python in between."""
    compile_, graphs = torch.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **settings: compile_(function, backend=backend, **settings))
    chosen = replace(BASE, steps=5, **KINDS[kind])
    stack, _ = trained([0, 1], replace(chosen, compile=True), torch.float32)
    eager, _ = trained([0, 1], chosen, torch.float32)
    assert len(graphs) == 1
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(stack.state_dict()[name], value, rtol=0, atol=1e-5, msg=name)


def test_a_machine_without_a_compiler_is_told_plainly(monkeypatch):
    compile_ = torch.compile

    def backend(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda function, **settings: compile_(function, backend=backend, **settings))
    with pytest.raises(SettingError, match=r"No working C\+\+ compiler found.*leave head.settings.compile at false"):
        trained([0], replace(BASE, steps=5, compile=True), torch.float32)


@pytest.mark.slow
def test_heads_trained_through_inductor_are_the_heads_trained_without():
    chosen = replace(BASE, steps=20)
    stack, _ = trained([0, 1], replace(chosen, compile=True), torch.float32)
    eager, _ = trained([0, 1], chosen, torch.float32)
    torch.testing.assert_close(stack.encoder[0].weight, eager.encoder[0].weight, rtol=0, atol=1e-4)


def test_history_has_fifty_records_of_every_term_and_progress_is_told_as_often():
    told = []
    chosen = replace(BASE, steps=100, **KINDS["all adversarial"])
    stack = ContentStyle(width=12, classes=3, style=4, hidden=16, critics=critics_in_use(chosen), seeds=[0])
    pools = Pools(LABELLED[:1], UNLABELLED[:1], PRIORS[:1])
    history = train_heads(
        stack, torch.randn(90, 12), torch.arange(90) % 3, pools, chosen, seeds=[0], on_step=told.append
    )
    assert [int(record["step"]) for record in history] == told == list(range(2, 101, 2))
    symbols = {"L_c", "D_c", "D_s", "D_y", "L_y", "L_mix"}
    judged = {"D_c_kl", "D_s_kl", "D_y_kl", "critic_content", "critic_style", "critic_token"}
    assert history[0].keys() == symbols | judged | {"step", "restarts", "content_entropy", "content_kl"}


def test_a_heads_weights_are_the_mean_of_those_over_its_last_steps():
    seen, ends = {}, {}
    for share in (0.0, 0.4):
        stack = ContentStyle(width=6, classes=3, style=4, hidden=8, critics={}, seeds=[1, 2])
        table = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
        train_heads(
            stack, table, torch.arange(30) % 3, Pools([torch.arange(9)] * 2, [torch.arange(30)] * 2, PRIORS[:2]),
            replace(BASE, style_term="gaussian", hidden=8, steps=100, averaged=share), seeds=[1, 2],
            on_step=lambda step, stack=stack: seen.update({step: stack.encoder[0].weight.detach().clone()}),
        )  # fmt: skip
        ends[share] = stack.encoder[0].weight
    assert sorted(seen) == list(range(2, 101, 2))
    assert torch.equal(ends[0.0], seen[100])
    last = torch.stack([weight for step, weight in seen.items() if step > 60])
    assert len(last) == 20
    torch.testing.assert_close(ends[0.4], last.mean(0))
    assert not torch.allclose(ends[0.4], seen[100], atol=1e-3)


def test_supervised_training_never_looks_at_an_unlabelled_row():
    chosen = replace(BASE, steps=5, **KINDS["supervised"])
    table = torch.full((90, 12), torch.nan)
    table[LABELLED[0]] = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    stack = ContentStyle(width=12, classes=3, style=4, hidden=16, critics={}, seeds=[0])
    train_heads(stack, table, torch.arange(90) % 3, Pools(LABELLED[:1], UNLABELLED[:1], PRIORS[:1]), chosen, seeds=[0])
    assert all(value.isfinite().all() for value in stack.state_dict().values())


def test_labels_of_rows_that_are_not_labelled_have_no_influence():
    def weights(label: torch.Tensor) -> torch.Tensor:
        stack = ContentStyle(width=12, classes=3, style=4, hidden=16, critics={"style": 8}, seeds=[0])
        table = torch.randn(90, 12, generator=torch.Generator().manual_seed(0))
        pools = Pools(LABELLED[:1], UNLABELLED[:1], PRIORS[:1])
        train_heads(stack, table, label, pools, replace(BASE, steps=5), seeds=[0])
        return stack.encoder[0].weight.detach()

    known = torch.arange(90) % 3
    hidden, wrong = known.clone(), known.clone()
    hidden[9:], wrong[0] = -1, 1
    assert torch.equal(weights(known), weights(hidden))
    assert not torch.equal(weights(known), weights(wrong))


@pytest.mark.parametrize(
    ("off", "left"),
    [
        (["lambda_c"], {"L_c", "D_s", "D_y", "L_y"}),
        (["lambda_s"], {"L_c", "D_c", "D_y", "L_y"}),
        (["lambda_y"], {"L_c", "D_c", "D_s", "L_y"}),
        (["lambda_y", "lambda_yy"], {"L_c", "D_c", "D_s"}),
    ],
)
def test_a_weight_of_0_switches_its_term_and_its_discriminator_off(off, left):
    chosen = replace(BASE, **{**KINDS["all adversarial"], **dict.fromkeys(off, 0.0)})
    critics = {{"D_c": "content", "D_s": "style", "D_y": "token"}[symbol] for symbol in left - {"L_c", "L_y"}}
    assert critics_in_use(chosen) == dict.fromkeys(critics, 8)
    stack = ContentStyle(width=12, classes=3, style=4, hidden=16, critics=critics_in_use(chosen), seeds=[0])
    terms, samples = objective(stack, torch.randn(1, 12, 12), torch.zeros(1, 4, dtype=torch.int64), PRIORS[:1], chosen)
    assert {name for name in terms if not name.startswith("content") and not name.endswith("_kl")} == left
    assert samples.keys() == critics


def test_total_is_the_weighted_sum_and_the_logged_kl_is_no_part_of_it():
    values = {"L_c": 1.0, "D_c": 10.0, "D_s": 100.0, "D_s_kl": 5e5, "D_y": 1000.0, "L_y": 10_000.0}
    terms = {name: torch.tensor([value]) for name, value in values.items()}
    terms |= {"L_mix": torch.tensor([1e5]), "content_kl": torch.tensor([1e9])}
    chosen = replace(BASE, lambda_c=0.1, lambda_s=0.2, lambda_y=0.3, lambda_yy=0.4, lambda_mix=0.5)
    assert total(terms, chosen).tolist() == pytest.approx([1 + 1 + 20 + 300 + 4000 + 50_000])


def test_the_rebuilt_tokens_target_is_held_fixed():
    chosen = replace(BASE, lambda_c=0.0, lambda_s=0.0, lambda_yy=1.0)
    stack = ContentStyle(width=12, classes=3, style=4, hidden=16, critics={}, seeds=[0]).double()
    token = torch.randn(1, 12, 12, dtype=torch.float64, requires_grad=True)
    label = torch.zeros(1, 4, dtype=torch.int64)
    target = token.detach()[:, 4:].clone().requires_grad_()
    own, _ = objective(stack, token, label, PRIORS[:1], chosen)
    given_target, _ = objective(stack, token, label, PRIORS[:1], chosen, target_HBP=target)
    through_own = torch.autograd.grad(own["L_y"].sum(), token)[0]
    through_given = torch.autograd.grad(given_target["L_y"].sum(), [token, target], allow_unused=True)
    torch.testing.assert_close(through_own, through_given[0])
    assert through_given[1] is None


def batches_of(pools: Pools, table_rows: int, chosen: HeadSettings = BASE):
    generators = head_generators(range(len(pools.labelled)), "cpu")
    return draw_batches(pools, chosen, generators, table_rows, torch.float32)


@pytest.mark.parametrize(("asked", "rebuilt"), [(0, 20), (7, 7), (20, 20), (50, 20)])
def test_as_many_unlabelled_rows_are_rebuilt_as_the_settings_say(asked, rebuilt):
    chosen = replace(BASE, rebuilt_batch=asked, lambda_y=0.1, lambda_mix=0.0)
    stack = ContentStyle(width=12, classes=3, style=4, hidden=16, critics={"style": 8, "token": 8}, seeds=[0, 1])
    token = torch.randn(2, 25, 12, generator=torch.Generator().manual_seed(0))
    terms, judged = objective(stack, token, torch.zeros(2, 5, dtype=torch.int64), PRIORS[:2], chosen)
    logits, style = stack.encode(token[:, 5:])
    known = token_reconstruction(
        token_BD=token[:, 5 : 5 + rebuilt], rebuilt_BD=stack.decode(logits.softmax(-1), style)[:, :rebuilt]
    )
    torch.testing.assert_close(terms["L_y"], known)
    assert judged["token"].shape == (2, rebuilt) and judged["style"].shape == (2, 20)


def test_rows_that_are_mixed_and_labelled_rows_may_be_any_view_or_the_clean_row():
    pools = Pools(LABELLED[:2], UNLABELLED[:2], PRIORS[:2], views=3)
    drawn = [batch for batch, _ in zip(batches_of(pools, 4 * 90), range(50), strict=False)]
    views = torch.cat([batch.view_HB for batch in drawn], 1)
    rows = torch.cat([batch.unlabelled_HB for batch in drawn], 1)
    assert torch.equal(views % 90, rows)
    assert set((views // 90).unique().tolist()) == {0, 1, 2, 3}
    labelled = torch.cat([batch.labelled_HL for batch in drawn], 1)
    assert set((labelled // 90).unique().tolist()) == {0, 1, 2, 3}
    assert set((labelled[0] % 90).tolist()) == set(LABELLED[0].tolist())


def test_a_step_sees_labelled_rows_then_clean_rows_then_their_views():
    pools = Pools(LABELLED[:2], UNLABELLED[:2], PRIORS[:2], views=1)
    batch, table = next(batches_of(pools, 180)), torch.randn(180, 5, generator=torch.Generator().manual_seed(1))
    token, share = gather(table, batch, BASE)
    assert token.shape == (2, 12 + 32 + 32, 5)
    assert torch.equal(token[:, :12], table[batch.labelled_HL])
    assert torch.equal(token[:, 12:44], table[batch.unlabelled_HB])
    assert torch.equal(token[:, 44:], table[batch.view_HB])
    assert share is batch.share_HB1
    alone, share = gather(table, batch, replace(BASE, lambda_mix=0.0))
    assert share is None
    assert torch.equal(alone, token[:, :44])


@pytest.mark.parametrize("views", [0, 1])
def test_the_rows_that_l_mix_looks_at_are_the_views_or_without_views_the_rows_themselves(views):
    chosen = replace(BASE, lambda_c=0.0, lambda_s=0.0, lambda_yy=0.0)
    pools = Pools(LABELLED[:2], UNLABELLED[:2], PRIORS[:2], views=views)
    batch, table = next(batches_of(pools, 90 * (1 + views))), torch.randn(90 * (1 + views), 12)
    stack = ContentStyle(width=12, classes=3, style=4, hidden=16, critics={}, seeds=[0, 1])
    token, share = gather(table, batch, chosen)
    assert token.shape[1] == 12 + 32 * (1 + views)
    terms, _ = objective(stack, token, torch.zeros(2, 12, dtype=torch.int64), PRIORS[:2], chosen, share_HB1=share)
    clean = table[batch.unlabelled_HB]
    looked_at = mixed(table[batch.view_HB] if views else clean, share)
    followed = sharpened(content_BK=stack.encode(clean)[0].softmax(-1), temperature=chosen.mix_temperature)
    known = interpolation(logits_BK=stack.encode(looked_at)[0], content_BK=followed, share_B1=share)
    torch.testing.assert_close(terms["L_mix"], known)


def test_training_looks_at_the_views_and_a_head_of_many_is_still_the_head_alone():
    chosen = replace(BASE, steps=30)
    table = torch.randn(270, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pools = Pools(LABELLED[:2], UNLABELLED[:2], PRIORS[:2], views=2)

    def weights(heads: list[int], spoil: bool = False) -> torch.Tensor:
        mine = Pools([pools.labelled[h] for h in heads], [pools.unlabelled[h] for h in heads], PRIORS[heads], 2)
        seeds = [5 + head for head in heads]
        stack = ContentStyle(width=12, classes=3, style=4, hidden=16, critics={"style": 8}, seeds=seeds).double()
        rows = torch.cat([table[:90], 0 * table[90:]]) if spoil else table
        train_heads(stack, rows, torch.arange(90) % 3, mine, chosen, seeds=seeds)
        return stack.encoder[0].weight.detach()

    together = weights([0, 1])
    torch.testing.assert_close(together[1], weights([1])[0], rtol=0, atol=1e-10)
    assert not torch.allclose(together, weights([0, 1], spoil=True))


def test_a_head_that_is_lost_goes_back_to_its_last_good_state_and_the_others_notice_nothing():
    chosen = replace(BASE, steps=100)

    def final(poison: bool):
        table = torch.randn(90, 12, generator=torch.Generator().manual_seed(0))
        stack = ContentStyle(width=12, classes=3, style=4, hidden=16, critics={"style": 8}, seeds=[0, 1])
        pools = Pools(LABELLED[:2], UNLABELLED[:2], PRIORS[:2])

        def spoil(step: int) -> None:
            if poison and step == 50:
                stack.encoder[0].weight.data[0, 0, 0] = torch.nan

        history = train_heads(stack, table, torch.arange(90) % 3, pools, chosen, seeds=[0, 1], on_step=spoil)
        return stack, history

    (stack, history), (calm, calm_history) = final(True), final(False)
    assert history[-1]["restarts"].tolist() == [1, 0] and calm_history[-1]["restarts"].tolist() == [0, 0]
    assert all(value.isfinite().all() for value in stack.state_dict().values())
    for name, value in stack.state_dict().items():
        torch.testing.assert_close(value[1], calm.state_dict()[name][1], rtol=0, atol=1e-6)
    assert history[-1]["L_c"][0] < 0.7 * history[0]["L_c"][0]


def test_adam_is_torchs_own_to_the_last_bit_and_keeps_its_schedule():
    def steps(make):
        weight = torch.nn.Parameter(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
        optimiser = make([weight])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10, 0.01)
        for _ in range(8):
            weight.grad = weight.detach().sin()
            optimiser.step()
            schedule.step()
        return weight.detach(), schedule.get_last_lr()

    ours = steps(lambda weights: adam(weights, 0.1, 0.95))
    theirs = steps(lambda weights: torch.optim.Adam(weights, lr=0.1, betas=(0.9, 0.95), fused=True))
    assert torch.equal(ours[0], theirs[0]) and ours[1] == theirs[1]


def test_training_does_without_torchs_compiler_whose_import_takes_a_second():
    code = """
import sys
import numpy, torch
from cspipe.headtrain import HeadSettings, HeadTask, fit_heads
fit_heads(torch.randn(60, 5), torch.arange(60) % 3, [HeadTask(numpy.arange(9), numpy.arange(60))],
          HeadSettings(hidden=8, style=2, steps=3), classes=3)
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
