"""The table of regularisers: what is in it, what each needs, what is refused."""

import inspect

import pytest
import torch

from cspipe.finetune.regularisers import NEEDS, REGULARISERS, check_names, check_regularisers, needed
from cspipe.store.errors import SettingError, UnknownNameError

FINE = {"learning": 10, "labelled_classes": 2}
KINDS = ("kl", "symmetric-kl", "js", "hellinger")


def test_every_method_of_the_family_has_its_name():
    assert REGULARISERS.keys() == {
        "rift", "rift-procrustes", "rift-learned", "distillation", "l2sp", "masked", "r3f", "r4f", "supcon", "proco",
        *(f"pdr-{kind}" for kind in KINDS), *(f"pdr-{kind}-adversarial" for kind in KINDS),
    }  # fmt: skip


@pytest.mark.parametrize("name", REGULARISERS)
def test_what_a_term_needs_are_its_keywords_and_each_is_described(name):
    entry = REGULARISERS[name]
    parameters = inspect.signature(entry.term).parameters.values()
    assert tuple(p.name for p in parameters if p.default is inspect.Parameter.empty) == entry.needs
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)
    assert set(entry.needs) <= NEEDS.keys()


def test_adversarial_terms_are_the_divergence_of_their_name():
    first, second = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for kind in KINDS:
        random = REGULARISERS[f"pdr-{kind}"].term(logits_BK=first, sphere_logits_BK=second)
        worst = REGULARISERS[f"pdr-{kind}-adversarial"].term(logits_BK=first, adversarial_logits_BK=second)
        assert random.item() == worst.item() > 0
    values = {REGULARISERS[f"pdr-{kind}"].term(logits_BK=first, sphere_logits_BK=second).item() for kind in KINDS}
    assert len(values) == 4


def test_needs_of_several_are_joined():
    assert needed(["rift", "r3f"]) == {"live_BD", "cached_BD", "logits_BK", "noisy_logits_BK"}
    assert needed([]) == frozenset()


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown regulariser 'pdr-k': did you mean 'pdr-kl'"):
        check_names(["rift", "pdr-k"])


def test_on_a_frozen_backbone_every_term_is_refused_as_constant():
    for name in REGULARISERS:
        with pytest.raises(SettingError, match=f"{name} is constant where no part of the backbone learns.*--unfreeze"):
            check_regularisers([name], learning=0, labelled_classes=2)
    check_regularisers(REGULARISERS, **FINE)


def test_with_one_labelled_class_contrasts_are_refused_and_the_rest_is_not():
    for name in ("supcon", "proco"):
        with pytest.raises(SettingError, match=f"{name} contrasts classes, but the labelled rows are of 1 class"):
            check_regularisers([name], learning=10, labelled_classes=1)
    check_regularisers(["rift", "r3f", "pdr-js"], learning=10, labelled_classes=1)


def test_without_cached_tokens_terms_that_compare_with_them_are_refused():
    refused = set()
    for name in REGULARISERS:
        try:
            check_regularisers([name], **FINE, cached=False)
        except SettingError as error:
            assert "compares with the cached tokens, and there are none" in str(error)
            refused.add(name)
    assert refused == {"rift", "rift-procrustes", "rift-learned", "distillation"}


def test_under_an_adapter_the_way_of_the_weights_is_refused():
    with pytest.raises(SettingError, match="l2sp measures how far the backbone's own weights have moved"):
        check_regularisers(["l2sp"], **FINE, adapter=True)
    check_regularisers(["rift", "masked"], **FINE, adapter=True)
