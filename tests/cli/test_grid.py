"""The grid that pipeline.toml describes, and the table of what its cells gave."""

import csv
import tomllib

import pytest

from cspipe.comparison import COLUMNS, compare_cells, print_comparison, write_csv
from cspipe.config import check
from cspipe.grid import make_cells
from cspipe.headtrain.evaluate import interval
from cspipe.store.errors import SettingError, UnknownNameError


def cells_of(text):
    return make_cells(check(tomllib.loads(text), source="pipeline.toml"))


def test_without_a_sweep_section_the_grid_is_what_extract_and_head_say():
    (cell,) = cells_of("[extract]\ndataset = 'mnist'\ndata_dir = 'data'\nlimit = 9\n[head]\nlabels = 40\nseeds = 3\n")
    assert cell.place == {
        "backbone": "lite0", "dataset": "mnist", "labels": 40, "regime": "frozen", "setting": "default",
    }  # fmt: skip
    assert (cell.config.head.seeds, cell.config.head.train_seeds) == (3, 1)
    assert (str(cell.config.extract.data_dir), cell.config.extract.limit) == ("data", 9)


def test_the_grid_is_every_combination_store_by_store():
    cells = cells_of("""
        [sweep]
        backbones = ["lite0", "dinov2-s"]
        datasets = ["digits", "mnist"]
        labels = [100, "all"]
        settings = [{}, {name = "thin", hidden = 8}]
        methods = ["content-style", "knn"]
        seeds = 7
        train_seeds = 3
    """)
    assert len(cells) == len({cell.name for cell in cells}) == 16
    stores = [(cell.place["backbone"], cell.place["dataset"]) for cell in cells]
    assert stores == sorted(stores, key=lambda store: (store[0] != "lite0", store[1]))
    assert [(c.place["labels"], c.setting, c.config.head.settings.hidden) for c in cells[:4]] == [
        (100, "default", 256), (100, "thin", 8), ("all", "default", 256), ("all", "thin", 8),
    ]  # fmt: skip
    assert {(c.config.head.seeds, c.config.head.train_seeds, c.config.head.methods) for c in cells} == {
        (7, 3, ("content-style", "knn"))
    }


def test_a_setting_changes_the_head_settings_of_the_file_and_is_named_by_its_changes():
    (cell,) = cells_of("[head.settings]\nsteps = 20\nstyle = 3\n[sweep]\nsettings = [{style = 4, lambda_s = 0.5}]\n")
    settings = cell.config.head.settings
    assert (settings.steps, settings.style, settings.lambda_s) == (20, 4, 0.5)
    assert cell.setting == "style=4 lambda_s=0.5"


def test_options_of_a_backbone_and_of_a_data_set_reach_their_own_cells_alone():
    cells = cells_of("""
        [extract]
        backbone = "lite0"
        dataset = "digits"
        image_px = 64
        data_dir = "digits"
        limit = 100
        split = "train"
        [sweep]
        backbones = ["lite0", "dinov2-s"]
        datasets = ["digits", "mnist"]
        [sweep.backbone.dinov2-s]
        weights = "w.safetensors"
        limit = 50
        [sweep.dataset.mnist]
        data_dir = "mnist"
        limit = 70
    """)
    seen = {
        (e.backbone, e.dataset): (e.image_px, e.weights and str(e.weights), e.data_dir and str(e.data_dir), e.limit)
        for e in (cell.config.extract for cell in cells)
    }
    assert seen == {
        ("lite0", "digits"): (64, None, "digits", 100),
        ("lite0", "mnist"): (64, None, "mnist", 70),
        ("dinov2-s", "digits"): (None, "w.safetensors", "digits", 50),
        ("dinov2-s", "mnist"): (None, "w.safetensors", "mnist", 70),
    }
    assert {cell.config.extract.split for cell in cells} == {"all"}


def test_a_frozen_cell_comes_before_every_trainable_one_and_is_there_unasked():
    cells = cells_of("[sweep]\nlabels = [20, 40]\nregimes = ['trainable']\n")
    assert [(cell.place["labels"], cell.regime) for cell in cells] == [
        (20, "frozen"), (20, "trainable"), (40, "frozen"), (40, "trainable"),
    ]  # fmt: skip
    assert cells == cells_of("[sweep]\nlabels = [20, 40]\nregimes = ['trainable', 'frozen']\n")


def test_the_name_of_a_cell_follows_all_that_its_numbers_depend_on_and_nothing_else():
    def names(text):
        return {cell.regime: cell.name for cell in cells_of("[sweep]\nregimes = ['trainable']\n" + text)}

    plain = names("")
    assert names("[[sweep.settings]]\nname = 'other'\n") == plain
    assert names("[finetune]\nepochs = 2\n")["frozen"] == plain["frozen"]
    assert names("[finetune]\nepochs = 2\n")["trainable"] != plain["trainable"]
    for text in ("[head.settings]\nsteps = 7\n", "[head]\ntrain_seed = 1\n", "[extract]\nimage_px = 64\n",
                 "[head]\ndev_rows = 10\n"):  # fmt: skip
        assert set(names(text).values()).isdisjoint(plain.values())


def test_equal_cells_are_one():
    assert len(cells_of("[sweep]\nlabels = [20, 20]\nsettings = [{}, {steps = 700}]\n")) == 1


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        (
            "[sweep.backbone.lite]\nimage_px = 3\n",
            UnknownNameError,
            r"name in \[sweep.backbone.NAME\] 'lite': did you m",
        ),
        ("[sweep.dataset.mnist]\nlimit = 3\n", UnknownNameError, r"\[sweep.dataset.NAME\] 'mnist'.*Known: digits"),
        (
            "[sweep]\nsettings = [{name = 'a'}, {name = 'a', style = 2}]\n",
            SettingError,
            "two settings 'a': give each a",
        ),
        ("[sweep]\nregimes = ['trainable']\nmethods = ['knn']\n", SettingError, "add it to sweep.methods"),
        (
            "[head]\ntest_dataset = 'x'\n[sweep]\nregimes = ['trainable']\n",
            SettingError,
            "head.test_dataset names another",
        ),
        ("[sweep]\nlabls = [3]\n", SettingError, r"unknown key sweep.labls; did you mean labels\?"),
        ("[[sweep.settings]]\nlambda_ss = 3\n", SettingError, r"sweep.settings.0.lambda_ss; did you mean lambda_s\?"),
        (
            "[[sweep.settings]]\nhidden = 0\n",
            SettingError,
            "sweep.settings.0.hidden = 0 cannot be used: input should be g",
        ),
        (
            "[sweep.backbone.lite0]\nweigts = 'x'\n",
            SettingError,
            r"sweep.backbone.lite0.weigts; did you mean weights\?",
        ),
        ("[sweep.backbone.lite0]\nbackbone = 'x'\n", SettingError, "unknown key sweep.backbone.lite0.backbone"),
        ("[sweep]\nregimes = ['frosen']\n", SettingError, "sweep.regimes.0 = 'frosen' cannot be used"),
        ("[sweep]\nlabels = [0]\n", SettingError, r"sweep.labels.0 = 0 cannot be used"),
    ],
)
def test_a_grid_that_makes_no_sense_is_told_in_one_plain_line(text, error, told):
    with pytest.raises(error, match=told) as caught:
        cells_of(text)
    assert "\n" not in str(caught.value)


def test_the_resolved_settings_of_a_sweep_survive_a_round_trip_through_toml():
    config = check(tomllib.loads("""
        [sweep]
        labels = [20, "all"]
        settings = [{}, {name = "a", lambda_s = 0.5}]
        [sweep.backbone.lite0]
        image_px = 64
    """), source="pipeline.toml")  # fmt: skip
    again = check(tomllib.loads(config.toml()), source="again")
    assert again == config
    assert [cell.name for cell in make_cells(again)] == [cell.name for cell in make_cells(config)]


def record(results, regime="frozen", labels=40, setting="default", dataset="toy"):
    """What a cell leaves; results are (method, split seed, train seed, accuracy)."""
    keys = ("method", "split_seed", "train_seed", "accuracy")
    place = {"backbone": "lite0", "dataset": dataset, "labels": labels, "regime": regime, "setting": setting}
    identity = {"extract": {"dataset": dataset}, "head": {"labels": labels, "setting": setting}}
    return {
        **place,
        "state": "done",
        "results": [dict(zip(keys, r, strict=True)) for r in results],
        "identity": identity,
    }


OURS = [
    ("content-style", 0, 0, 0.9),
    ("content-style", 0, 1, 0.7),
    ("content-style", 1, 0, 0.6),
    ("content-style", 1, 1, 0.6),
]
THEIRS = [("knn", 0, 0, 0.5), ("knn", 1, 0, 0.4)]


def test_the_table_averages_training_seeds_first_and_pairs_with_the_frozen_head():
    frozen, tuned = (
        record(OURS + THEIRS),
        record([("content-style", 0, 0, 0.85), ("content-style", 1, 0, 0.75)], "trainable"),
    )
    ours, theirs, trained = compare_cells([frozen, tuned])
    assert (ours["mean"], ours["n"], ours["difference"]) == (pytest.approx(0.7), 2, None)
    assert ours["ci95"] == pytest.approx(interval([0.8, 0.6]))
    assert (theirs["method"], theirs["difference"]) == ("knn", pytest.approx(0.25))
    assert theirs["difference_ci95"] == pytest.approx(interval([0.3, 0.2]))
    assert (trained["regime"], trained["difference"]) == ("trainable", pytest.approx(-0.1))


def test_cells_are_compared_with_the_head_of_their_own_labels_setting_and_data_set():
    records = [
        record([*OURS, *THEIRS]),
        record(THEIRS, labels=80),
        record(THEIRS, setting="a"),
        record(THEIRS, dataset="b"),
    ]
    assert [row["difference"] for row in compare_cells(records)][2:] == [None, None, None]


def test_cells_that_failed_are_not_in_the_table():
    assert compare_cells([{"state": "failed", "message": "no data"}]) == []


def test_the_csv_file_holds_the_table_as_it_is(tmp_path):
    table = compare_cells([record(OURS + THEIRS)])
    write_csv(tmp_path / "table.csv", table)
    ours, theirs = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert tuple(ours) == COLUMNS
    assert (float(ours["mean"]), ours["difference"], ours["difference_low"]) == (table[0]["mean"], "", "")
    assert float(theirs["difference_high"]) == table[1]["difference_ci95"][1]
    assert (theirs["method"], theirs["labels"], theirs["n"]) == ("knn", "40", "2")


def test_the_terminal_table_fits_100_columns_however_much_varies(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    longest = [(name, s, 0, 0.9 + 0.01 * s) for name in ("content-style", "content-style-paper") for s in range(2)]
    records = [
        record(longest, regime, labels, setting)
        for labels in (100, 60_000) for setting in ("default", "no style prior") for regime in ("frozen", "trainable")
    ]  # fmt: skip
    print_comparison(compare_cells(records))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 100
    assert sum("content-style-paper" in line for line in lines) == 8, "a row is one line"
    assert [line.strip() for line in lines if "lite0 on toy" in line] == [
        "lite0 on toy, setting default", "lite0 on toy, setting no style prior",
    ]  # fmt: skip
