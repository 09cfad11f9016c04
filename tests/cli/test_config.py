import tomllib
from pathlib import Path

import pytest

from cspipe.config import Config, load_config, override, parse_settings
from cspipe.store.errors import CspipeError, MissingDataError, SettingError

ROOT = Path(__file__).resolve().parents[2]


def write(folder, text):
    path = folder / "pipeline.toml"
    path.write_text(text)
    return path


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    config = load_config(write(tmp_path, "[head]\nlabels = 100\nseeds = 3\n"))
    changed = override(config, {"head.labels": 250, "head.seeds": None})
    assert (changed.head.labels, changed.head.seeds, changed.head.draw) == (250, 3, "balanced")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[head]\nlabel = 3\n", "unknown key head.label; did you mean labels?"),
        ("[head.settings]\nlambda_ss = 3\n", "unknown key head.settings.lambda_ss; did you mean lambda_s?"),
        ("[haed]\n", "unknown key haed; did you mean head?"),
        ("[head]\nzzzzqqq = 1\n", "known keys: labels, seeds"),
        ("[head]\nseeds = 0\n", "head.seeds = 0 cannot be used: input should be greater than or equal to 1"),
        ("[head]\nseeds = 'x'\n", "head.seeds = 'x' cannot be used"),
        ("[head\n", "is not valid TOML"),
        ("[extract]\ndtype = 'fp64'\n", "extract.dtype = 'fp64' cannot be used"),
        ("[head.settings]\nprior = 'other'\n", "head.settings.prior = 'other' cannot be used"),
    ],
)
def test_a_broken_file_is_told_in_one_plain_line(tmp_path, text, told):
    with pytest.raises(SettingError) as error:
        load_config(write(tmp_path, text))
    assert told in str(error.value)
    assert "\n" not in str(error.value).strip()


def test_a_named_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(MissingDataError, match="no configuration file"):
        load_config(tmp_path / "none.toml")


def test_no_file_means_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config() == Config()


def test_the_committed_pipeline_toml_is_the_defaults():
    assert load_config(ROOT / "pipeline.toml") == Config()


def test_the_committed_pipeline_toml_shows_every_section():
    assert set(tomllib.loads((ROOT / "pipeline.toml").read_text())) >= {"stages", "extract", "head", "finetune"}


def test_settings_are_read_as_toml_values_else_as_text():
    changes = parse_settings(["lambda_s=0.1", "steps=20", "prior=labelled", 'estimator="kl"'])
    settings = override(Config(), changes).head.settings
    assert (settings.lambda_s, settings.steps, settings.prior, settings.estimator) == (0.1, 20, "labelled", "kl")


@pytest.mark.parametrize("text", ["lambda_s", "=3"])
def test_a_setting_without_key_or_value_is_refused(text):
    with pytest.raises(SettingError, match="key=value"):
        parse_settings([text])


def test_the_resolved_settings_survive_a_round_trip_through_toml(tmp_path):
    config = override(Config(), {"head.labels": 40, "head.settings.style": 7, "finetune.regularisers": {"rift": 0.1}})
    assert load_config(write(tmp_path, config.toml())) == config


def test_every_config_error_is_one_that_the_command_line_prints_plainly():
    assert issubclass(SettingError, CspipeError) and issubclass(SettingError, ValueError)
