"""What a head is and how it is trained: one frozen record, and the named methods as changes to it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from cspipe.store.errors import SettingError, unknown_name

ContentTerm = Literal["entropy", "adversarial"]
StyleTerm = Literal["adversarial", "gaussian", "mmd"]
Norm = Literal["layer", "batch"]
ClusterTerms = Literal["measured", "always"]
Estimator = Literal["nonsaturating", "kl"]
Precision = Literal["fp32", "bf16"]
Prior = Literal["uniform", "given", "labelled", "estimated"]

Count = Annotated[int, Ge(1)]
Weight = Annotated[float, Ge(0)]


BATCHES_A_PASS, FEWEST_A_BATCH, ROWS_OF_A_CLASS = 20, 32, 4
"""A batch of unlabelled rows is at most so small a part of them all, but so many rows and so many a class.

MNIST, 100 labels, dev rows: of 1,200 unlabelled rows batches of 384, 256, 128, 64 and 37 gave .848, .850, .856, .860
and .859; of 4,000 batches of 384 and 128 .882 and .890; of 8,000 (ViT-S/14) batches of 384 and 250 .950 and .949; of
50,000 batches of 384 and 256 .938 and .936.
"""

VOTERS, VOTED_MIX_SHARE = 3, 0.5
"""Supervised heads that vote where clusters tell nothing, and the share of the rows that are mixed there."""


@dataclass(frozen=True)
class HeadSettings:
    """Settings of a content-style head. A weight of 0 switches its term off: that is how ablations are made.

    Attributes:
        components: principal components the scaled tokens are projected on; 0 keeps the token as it is.
        scale_floor: share of the tokens' root mean square deviation that no dimension's scale falls below; 0
            standardises fully, see `fit_projection`.
        power: rectified dimensions of the tokens, never negative and near 0, are raised to it first, see `fit_power`; 1
            leaves them.
        anchors: tokens are standardised once more with the statistics of their neighbourhood, which are kept at so
            many anchors, see `neighbourhood`; 0 goes without.
        hidden: width of the encoder's and the decoder's hidden layer.
        norm: between the layers: `layer`, or the paper's `batch`, which needs batches of one kind of rows.
        style: width S of the style vector.
        discriminator: width of both hidden layers of each discriminator (500 in the predecessor).
        content_term: estimator of D_c: `entropy` is closed form, KL(mean content || prior) plus
            `entropy_weight` times the mean entropy of the content; `adversarial` is the paper's.
        style_term: estimator of D_s: `adversarial` as in the paper, `gaussian` the KL of its first two moments in
            closed form, `mmd` a kernel distance from prior draws.
        estimator: what the encoder and decoder minimise on a discriminator's logit T:
            `nonsaturating` softplus(-T) or `kl` -T.
        lambda_c: weight of D_c. lambda_s: of D_s. lambda_y: of D_y. lambda_yy: of L_y.
        lambda_mix: weight of L_mix: the content of two mixed rows follows the mix of their contents. Where the store
            holds augmented views, what is mixed is for each row itself or, half of the time, one of its views.
        mix_share: share of the rows that are mixed in L_mix, the others are as they are; with `voters`, 0 is
            self-training.
        mix_temperature: below 1 it sharpens the contents that L_mix follows; 1 leaves them.
        voters: L_mix follows the mean content of so many supervised heads in place of the head's own, see `polled`; 0
            follows its own. With `anchors` it is they who see tokens standardised so, and the head does without.
        cluster_terms: `measured` uses `anchors` where labelled rows tell that it helps, and `voters` alone where they
            do not bear out that rows which lie together are of one class, as D_c and L_mix on a head's own content take
            for granted, see `clusters`; `always` does not look.
        views: at most so many cached views of a row are used, as labelled rows and in L_mix.
        entropy_weight: weight of the conditional entropy inside the closed-form D_c.
        prior: class prior of D_c, how frequent classes are: `estimated` goes by the unlabelled rows where they tell
            otherwise than the labelled ones, see `class_prior`. prior_given: the K probabilities when it is `given`.
        steps: optimiser steps. batch: unlabelled rows a step, fewer where there are few, see `on_rows`.
            labelled_batch: labelled rows a step. rebuilt_batch: so many of the unlabelled rows are rebuilt, for L_y and
            D_y; 0 rebuilds all of them.
        lr: peak learning rate of Adam. lr_end: share of it left at the last step (cosine in between).
        beta2: decay of Adam's second moment; the smaller, the sooner it forgets the large gradients of the first steps.
        averaged: a head's weights are the mean of those it had over this last share of its steps (arXiv 1803.05407),
            which takes the noise of a constant rate out; 0 keeps the last ones.
        discriminator_lr: constant learning rate of the discriminators' Adam.
        precision: of the networks' products while they learn; weights, losses and Adam stay in fp32. `bf16` is
            for GPUs and for CPUs whose products in bf16 are fast, which `cspipe doctor` measures: of three with
            AVX512-BF16 heads took .5, .7 and 1.5 of the time, as accurate.
        compile: the objective through torch.compile: half a minute before the first step, pays for itself on a GPU or
            where heads train for many minutes.
    """

    components: Annotated[int, Ge(0)] = 512
    scale_floor: Weight = 1.0
    power: Annotated[float, Gt(0), Le(1)] = 0.5
    anchors: Annotated[int, Ge(0)] = 0
    hidden: Count = 256
    norm: Norm = "layer"
    style: Count = 32
    discriminator: Count = 128
    content_term: ContentTerm = "entropy"
    style_term: StyleTerm = "gaussian"
    estimator: Estimator = "nonsaturating"
    lambda_c: Weight = 1.0
    lambda_s: Weight = 0.03
    lambda_y: Weight = 0.0
    lambda_yy: Weight = 3.0
    lambda_mix: Weight = 1.0
    mix_share: Annotated[float, Ge(0), Le(1)] = 1.0
    mix_temperature: Annotated[float, Gt(0)] = 1.0
    voters: Annotated[int, Ge(0)] = 0
    cluster_terms: ClusterTerms = "measured"
    views: Annotated[int, Ge(0)] = 64
    entropy_weight: Weight = 0.3
    prior: Prior = "estimated"
    prior_given: tuple[Weight, ...] = ()
    steps: Count = 700
    batch: Annotated[int, Ge(2)] = 384
    labelled_batch: Annotated[int, Ge(2)] = 100
    rebuilt_batch: Annotated[int, Ge(0)] = 128
    lr: Annotated[float, Gt(0)] = 5e-3
    lr_end: Annotated[float, Ge(0)] = 1.0
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95
    averaged: Annotated[float, Ge(0), Lt(1)] = 0.4
    discriminator_lr: Annotated[float, Gt(0)] = 1e-3
    precision: Precision = "fp32"
    compile: bool = False

    @property
    def semi_supervised(self) -> bool:
        """True where at least one term looks at unlabelled rows."""
        return max(self.lambda_c, self.lambda_s, self.lambda_y, self.lambda_yy, self.lambda_mix) > 0

    @property
    def asks_for_clusters(self) -> bool:
        """True where it must be measured whether rows that lie together are of one class."""
        own = 0.0 if self.voted else self.lambda_mix
        return self.cluster_terms == "measured" and max(self.lambda_c, own) > 0

    @property
    def voted(self) -> bool:
        """True where L_mix follows votes."""
        return self.voters > 0 and self.lambda_mix > 0

    def on_rows(self, rows: int, classes: int) -> "HeadSettings":
        """The same with a batch of at most one in 20 of `rows` unlabelled rows, but 32 and four a class.

        What sees the same few rows hundreds of times learns its own guesses; and the mean content of fewer rows than
        four a class says little of their frequencies.
        """
        fewest = max(FEWEST_A_BATCH, ROWS_OF_A_CLASS * classes)
        return replace(self, batch=min(self.batch, max(fewest, rows // BATCHES_A_PASS)))

    def without_clusters(self) -> "HeadSettings":
        """The same head with L_c alone, on the whole token, which relies on nothing that lies together.

        Unlabelled rows still tell what tokens are standardised by.

        L_y and D_s were left in for trial, at several weights: 0.5 to 1.0 points below this with 100 labels, level
        with it at 1,000 (MNIST under white stripes, lite0, dev rows).
        """
        return replace(self, **LABELLED_ROWS_ALONE, **LONG_MEMORY)

    def by_votes(self) -> "HeadSettings":
        """L_c, and L_mix that follows the votes of supervised heads: relies on nothing that lies together.

        The head sees principal components, its voters the whole token: .529 for .524 of a head on the whole token
        (yellow stripes, lite0, 1,000 labels, dev rows, 4 splits, paired +.5 points [+.1, +.9]). Half of the rows are
        mixed: all gave the same there and .812 for .823 on solar cells, 100 labels, .823 for .828 on faces, 1,000.
        """
        alone = replace(self, **LABELLED_ROWS_ALONE)
        return replace(
            alone, components=self.components, lambda_mix=self.lambda_mix, voters=self.voters or VOTERS,
            mix_share=min(self.mix_share, VOTED_MIX_SHARE),
        )  # fmt: skip

    def unvoted(self) -> "HeadSettings":
        """The same where nobody votes: on live tokens, on tokens that stay in their store."""
        if not self.voted:
            return self
        left = replace(self, lambda_mix=0.0, voters=0)
        return left if left.semi_supervised else left.without_clusters()


LABELLED_ROWS_ALONE: Mapping[str, Any] = MappingProxyType({
    "components": 0, "lambda_c": 0.0, "lambda_s": 0.0, "lambda_y": 0.0, "lambda_yy": 0.0, "lambda_mix": 0.0,
    "voters": 0,
})  # fmt: skip
"""L_c alone."""

LONG_MEMORY: Mapping[str, Any] = MappingProxyType({"lr": 3e-3, "beta2": 0.999})
"""Adam of a head that sees its labelled rows alone.

With few rows, seen often, a short memory overfits: under yellow stripes `lr` .005 and `beta2` .95 gave .483, these
.497, on plain digits .931 and .929 (lite0, 1,000 labels, dev rows).
"""


HEAD_METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "content-style": {},
    "content-style-paper": {
        "components": 0, "norm": "batch", "content_term": "adversarial", "style_term": "adversarial", "lambda_c": 0.1,
        "lambda_s": 0.1, "lambda_y": 0.001, "lambda_yy": 1.0, "lambda_mix": 0.0, "views": 0, "cluster_terms": "always",
        "scale_floor": 0.0, "power": 1.0,
    },
    "supervised": {**LABELLED_ROWS_ALONE, **LONG_MEMORY},
    "self-training": {
        **LABELLED_ROWS_ALONE, "components": HeadSettings.components, "lambda_mix": 1.0, "voters": VOTERS,
        "mix_share": 0.0, "steps": 400,
    },
})  # fmt: skip
"""Name of a method -> what it sets above the user's settings; of steps the fewer.

`content-style-paper` is the bare objective of arXiv 2410.02069 on the whole token, every divergence adversarial;
its weights are ours, the text gives none, and it trains as content-style does. 2,000 steps at a rate of .001, of heads
twice as wide, without averaged weights, took four times as long and gave .892 and .938 with 100 and 1,000 labels, these
.895 and .938 (MNIST, lite0, dev rows). `supervised` is the same encoder with L_c alone, on the whole token, where
it is the stronger baseline (.80 against .76 on projected MNIST tokens, 100 labels, dev rows), with `lr` and `beta2` of
its own.

`self-training` is one round on the soft votes of several heads, after V-PET (arXiv 2503.09707): supervised heads vote
on every row, and a new head learns the votes, which stay soft and have no threshold, beside the true labels. The
source's voters are different backbones and adapters; ours are one architecture on one backbone's tokens, so they agree
more. Voters see the whole token: on principal components they lost 2.8, 1.0 and -.1 points with 100, 250 and 1,000
labels, and 1.2 under yellow stripes; the head that follows them gains by components, .504 for .493 there. Three voters
for four, 400 steps for 700 and the long memory of Adam are within .1 of each other (MNIST, lite0, dev rows, 5 splits).
"""


DEFAULT_METHODS = ("content-style", "supervised", "logistic")
MAIN_METHOD = "content-style"


def method_settings(method: str, settings: HeadSettings) -> HeadSettings:
    """The settings that `method` trains with, given the user's.

    Raises:
        UnknownNameError: `method` is not a head that is trained.
        SettingError: a prior was named `given` without its probabilities.
    """
    if method not in HEAD_METHODS:
        raise unknown_name("method", method, HEAD_METHODS)
    chosen = replace(settings, **HEAD_METHODS[method])
    chosen = replace(chosen, steps=min(chosen.steps, settings.steps))
    if (chosen.prior == "given") != bool(chosen.prior_given):
        raise SettingError(
            "prior = 'given' and prior_given belong together: set both, one probability a class, or neither."
        )
    return chosen
