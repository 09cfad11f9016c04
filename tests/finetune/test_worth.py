"""What the report says of the worth of a fine-tuning."""

from cspipe.report import change_rows
from cspipe.verdicts import finetune_verdict


def report(gain_ci95: list[float], after: float = 0.9, hours: float = 0.25, **more) -> dict:
    right = round(1000 * after)
    counts = [[right, 1000 - right], [0, 0]]
    return {"accuracy_before": 0.88, "accuracy_after": after, "labels": 100, "split_seed": 0, "cka": 0.912,
            "gain_ci95": gain_ci95, "training_hours": hours, "knn_overlap": 0.61, "cosine": 0.97,
            "confusion": {"before": [[880, 120], [0, 0]], "after": counts}, **more}  # fmt: skip


def words(text: str) -> str:
    return text.replace("\u00a0", " ").replace("\u2212", "-")


def test_a_gain_whose_interval_is_above_zero_is_told_with_cost_and_drift():
    said = finetune_verdict(report([0.01, 0.03]))
    assert words(said.sentence).endswith(
        "2.0 points better than leaving it frozen (95 % interval +1.0 to +3.0, paired by image)."
    )
    assert "Training took 15.0 minutes" in said.note
    assert "CKA of 0.91" in said.note
    assert "one draw of the labelled ones" in said.note
    assert "Training took 2.5 hours" in finetune_verdict(report([0.01, 0.03], hours=2.5)).note


def test_a_loss_says_plainly_that_the_frozen_head_is_better():
    said = words(finetune_verdict(report([-0.03, -0.01], after=0.86)).sentence)
    assert "lowers accuracy from 88.0 % to 86.0 %" in said
    assert said.endswith("The frozen head is better: keep it.")


def test_an_interval_around_zero_says_that_the_frozen_head_is_as_good():
    for after in (0.885, 0.875, 0.88):
        said = words(finetune_verdict(report([-0.01, 0.02], after=after)).sentence)
        assert said.endswith("do not tell the two apart: the frozen head is as good and costs nothing more.")


def test_the_table_holds_every_kind_of_drift_and_kept_knowledge_where_it_was_asked_for():
    plain = {name: row for name, *row in change_rows(report([0.01, 0.03]))}
    assert plain["CKA with the frozen tokens"] == ["1", "0.912"]
    assert plain["Nearest neighbours shared"] == ["1", "0.610"]
    assert plain["Cosine with the frozen tokens"] == ["1", "0.970"]
    kept = {"dataset": "svhn", "images": 2000, "frozen": 0.41, "tuned": 0.35}
    *_, last = change_rows(report([0.01, 0.03], kept=kept))
    assert [words(cell) for cell in last] == ["Neighbours on 2,000 images of svhn", "41.0 %", "35.0 %"]
