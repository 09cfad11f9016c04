"""Which head, which store, where the images are: what fits goes on, what does not says what to do."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cspipe.extract.run import extract
from cspipe.finetune import load
from cspipe.finetune.load import check_probe, choose_head, load_all, store_of_head
from cspipe.finetune.run import make_parts, run_finetune
from cspipe.finetune.world import join_world
from cspipe.headtrain import HeadSettings
from cspipe.headtrain.power import fit_power
from cspipe.headtrain.run import run_head
from cspipe.store import open_store
from cspipe.store.errors import MismatchError, MissingDataError

QUICK = HeadSettings(components=16, hidden=16, style=4, discriminator=8, steps=40, batch=32, labelled_batch=16)


@pytest.fixture
def own(pictures, tmp_path, settings):
    """Store and head run of a user's own folder, and a function that fine-tunes on it."""
    extracted = extract("lite0", str(pictures), stores=tmp_path / "stores", image_px=32)
    run_head(store=Path(extracted["store"]), runs=tmp_path / "runs", seeds=1, methods=["content-style"], settings=QUICK)

    def call(**options):
        chosen = options.pop("settings", settings(batch=16, unfreeze_blocks=1))
        options = {"head_run": None, "runs": tmp_path / "runs", "stores": tmp_path / "stores", **options}
        return run_finetune(settings=chosen, **options)

    return call


def test_without_a_test_split_a_fold_of_the_labelled_rows_is_held_out_of_everything(own, tmp_path, settings):
    document = own()
    assert (document["labels"], document["judged_rows"], document["images"]) == (19, 5, 31)
    saved = choose_head(None, tmp_path / "runs", None, 0, "cpu")
    store = store_of_head(saved, None, tmp_path / "stores")
    loaded = load_all(saved, store, settings(batch=16), weights=None, data_dir=None, device="cpu")
    held = loaded.judged.rows
    assert not set(held) & (set(loaded.train.labelled) | set(loaded.train.unlabelled))
    assert sorted([*held, *loaded.train.labelled]) == list(range(24))
    rest = np.setdiff1d(np.arange(36), held)
    tokens = store["train"].embedding().astype(np.float32)
    raised, _ = fit_power([torch.from_numpy(tokens[rest])], tokens.shape[1], loaded.head.settings.power, "cpu")
    mean_D = raised(torch.from_numpy(tokens[rest])).mean(0)
    np.testing.assert_allclose(loaded.head.projection.mean_D, mean_D, atol=1e-3)


def test_two_labelled_rows_of_each_class_are_enough_to_hold_a_fold_out(pictures, tmp_path, settings):
    for path in sorted(pictures.glob("*/*.png"))[:24]:
        if path.parent.name != "unlabelled" and path.stem not in ("00", "01", "02", "03"):
            path.unlink()
    extracted = extract("lite0", str(pictures), stores=tmp_path / "stores", image_px=32)
    run_head(store=Path(extracted["store"]), runs=tmp_path / "runs", seeds=1, methods=["content-style"], settings=QUICK)
    document = run_finetune(
        head_run=None, runs=tmp_path / "runs", stores=tmp_path / "stores", settings=settings(batch=8, unfreeze_blocks=1)
    )
    assert (document["labels"], document["judged_rows"], document["images"]) == (2, 2, 14)


def test_the_refitted_head_keeps_the_class_prior_of_its_settings(pictures, tmp_path, settings):
    extracted = extract("lite0", str(pictures), stores=tmp_path / "stores", image_px=32)
    means = {}
    for prior in ((0.5, 0.5), (0.9, 0.1)):
        told = {**vars(QUICK), "prior": "given", "prior_given": prior, "lambda_c": 5.0}
        run_head(store=Path(extracted["store"]), runs=tmp_path / "runs", seeds=1, methods=["content-style"],
                 settings=HeadSettings(**told))  # fmt: skip
        saved = choose_head(None, tmp_path / "runs", None, 0, "cpu")
        store = open_store(extracted["store"])
        loaded = load_all(saved, store, settings(), weights=None, data_dir=None, device="cpu")
        means[prior] = float(loaded.head.probabilities(loaded.train.cached_ND)[:, 0].mean())
    assert means[0.9, 0.1] > means[0.5, 0.5] + 0.1


def test_a_head_without_d_c_is_refitted_without_estimating_class_shares(pictures, tmp_path, settings, monkeypatch):
    extracted = extract("lite0", str(pictures), stores=tmp_path / "stores", image_px=32)
    run_head(store=Path(extracted["store"]), runs=tmp_path / "runs", seeds=1, methods=["supervised"], settings=QUICK)
    saved = choose_head(None, tmp_path / "runs", None, 0, "cpu", method="supervised")
    monkeypatch.setattr(load, "prior_of_rows", lambda *_, **__: pytest.fail("class shares were estimated"))
    loaded = load_all(saved, open_store(extracted["store"]), settings(), weights=None, data_dir=None, device="cpu")
    assert loaded.head is not saved.head and torch.equal(loaded.head.prior_K, torch.tensor([0.5, 0.5]))


def test_training_goes_on_with_the_class_shares_that_the_head_found(pictures, tmp_path, settings):
    extracted = extract("lite0", str(pictures), stores=tmp_path / "stores", image_px=32)
    run_head(store=Path(extracted["store"]), runs=tmp_path / "runs", seeds=1, methods=["content-style"], settings=QUICK)
    saved = choose_head(None, tmp_path / "runs", None, 0, "cpu")
    loaded = load_all(saved, open_store(extracted["store"]), settings(), weights=None, data_dir=None, device="cpu")
    place, world = torch.device("cpu"), join_world("cpu")
    for held in (torch.tensor([0.8, 0.2]), torch.tensor([0.4, 0.6])):
        told = replace(loaded, head=replace(loaded.head, prior_K=held))
        assert torch.allclose(make_parts(told, settings(), place, world).prior_1K, held)
    older = replace(loaded, head=replace(loaded.head, prior_K=None))  # of a file without them: the labels' own
    label_L = loaded.train.label_N[torch.from_numpy(loaded.train.labelled)]
    count_K = torch.bincount(label_L, minlength=2) + 1
    assert torch.allclose(make_parts(older, settings(), place, world).prior_1K, count_K / count_K.sum())


def test_moved_images_are_missed_with_a_word_on_data_dir_and_found_there(own, pictures, tmp_path):
    moved = pictures.rename(tmp_path / "elsewhere")
    with pytest.raises(MissingDataError, match=r"images of pictures cannot be read at .*pictures: .*--data-dir DIR"):
        own()
    assert own(data_dir=moved)["labels"] == 19


def test_images_under_other_names_are_known_by_their_bytes(own, pictures):
    for number, path in enumerate(sorted((pictures / "dark").iterdir())):
        path.rename(path.with_name(f"renamed-{99 - number}.png"))
    assert own()["judged_rows"] == 5


def test_a_folder_that_lacks_images_of_the_store_names_how_many_and_the_first(own, pictures):
    (pictures / "bright" / "01.png").unlink()
    (pictures / "bright" / "03.png").unlink()
    with pytest.raises(MissingDataError, match=r"2 of 36 images of .*first bright/01\.png: .*--data-dir DIR"):
        own()


def test_a_folder_without_the_stores_test_split_is_refused(pictures, tmp_path, settings):
    for part in ("train", "test"):
        shutil.copytree(pictures, tmp_path / "both" / part, ignore=lambda _, names: ["unlabelled"])
    extracted = extract("lite0", str(tmp_path / "both"), stores=tmp_path / "stores", image_px=32)
    run_head(store=Path(extracted["store"]), runs=tmp_path / "runs", seeds=1, methods=["content-style"], settings=QUICK)
    with pytest.raises(MissingDataError, match=r"has no split test, which both--.* --data-dir DIR"):
        run_finetune(head_run=None, runs=tmp_path / "runs", stores=tmp_path / "stores", settings=settings(),
                     data_dir=pictures)  # fmt: skip


def test_a_head_of_another_store_is_refused_with_both_widths_and_names(digits, own, tmp_path):
    (other,) = (tmp_path / "stores").glob("*.zarr")
    with pytest.raises(MismatchError) as caught:
        own(head_run=digits.head_run, stores=digits.stores, store=other)
    assert str(caught.value) == (
        "content-style-0.safetensors expects tokens 1280 wide of lite0 on digits, but "
        f"{other.name} holds 1280 (lite0 on pictures). Train a head on this store, or name the other with "
        "--backbone and --dataset."
    )


def test_a_head_whose_store_is_gone_asks_for_its_folder(own, tmp_path):
    (store,) = (tmp_path / "stores").glob("*.zarr")
    store.rename(tmp_path / store.name)
    with pytest.raises(MissingDataError, match=rf"was trained on {store.name}, which is not under .*--stores"):
        own()
    assert own(stores=tmp_path)["store"] == str(tmp_path / store.name)


def test_weights_that_are_not_the_stores_are_refused_and_lost_ones_asked_for(digits, tune, tmp_path):
    import timm
    from safetensors.torch import save_file

    with pytest.raises(MissingDataError, match=r"weights of lite0 are no longer at .*nowhere.*--weights FILE"):
        tune(weights=tmp_path / "nowhere.safetensors")
    other = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    key = open_store(digits.store).key.weights_sha256[:12]
    with pytest.raises(MismatchError, match=rf"was extracted with weights {key}, but .*holds .*--weights FILE"):
        tune(weights=tmp_path / "other.safetensors")


def test_a_backbone_that_does_not_give_the_cached_tokens_is_not_trained(digits, settings):
    saved = choose_head(digits.head_run, digits.runs, None, 0, "cpu")
    loaded = load_all(saved, open_store(digits.store), settings(), weights=None, data_dir=None, device="cpu")
    check_probe(loaded, torch.device("cpu"))
    with torch.no_grad():
        loaded.backbone.model.conv_stem.weight.mul_(-1)
    with pytest.raises(MismatchError, match="to the cached ones: weights or preprocessing differ"):
        check_probe(loaded, torch.device("cpu"))


def test_the_newest_head_run_with_so_many_labels_is_taken(digits, tmp_path):
    for labels in (20, 30, 20):
        document = run_head(store=digits.store, runs=tmp_path, labels=labels, seeds=1, methods=["content-style"],
                            settings=QUICK)  # fmt: skip
    (thirty,) = (run for run in tmp_path.iterdir() if json.loads((run / "report.json").read_text())["labels"] == 30)
    assert choose_head(None, tmp_path, None, 0, "cpu").path.parent.parent == Path(document["run"])
    assert choose_head(None, tmp_path, 20, 0, "cpu").path.parent.parent == Path(document["run"])
    assert choose_head(None, tmp_path, 30, 0, "cpu").path.parent.parent == thirty


def test_a_head_run_that_does_not_fit_says_what_it_holds(digits, tmp_path):
    with pytest.raises(MissingDataError, match=r"no finished head run under .*Run cspipe head first"):
        choose_head(None, tmp_path, None, 0, "cpu")
    with pytest.raises(MissingDataError, match="no finished head run with 7 labels under"):
        choose_head(None, digits.runs, 7, 0, "cpu")
    with pytest.raises(MismatchError, match="has 40 labels, not 7: leave out --labels or name another run"):
        choose_head(digits.head_run, digits.runs, 7, 0, "cpu")
    kept = r"no head content-style-9 \(it keeps content-style-0, content-style-1, supervised-0, supervised-1\)"
    with pytest.raises(MissingDataError, match=rf"keeps {kept}\. Give another --split-seed or --head"):
        choose_head(digits.head_run, digits.runs, None, 9, "cpu")
    with pytest.raises(MissingDataError, match=r"has no report\.json: it is not a finished run"):
        choose_head(tmp_path, digits.runs, None, 0, "cpu")
