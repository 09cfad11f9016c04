"""Class shares of the unlabelled rows, learned by a head while it trains: what D_c holds its mean content to.

Where the shares are wrong D_c does harm: it names as many rows of a class as it was told there are. A head that is held
to them but weakly goes by its rows instead, and where classes are told apart at all its mean content is soon near their
true shares. So D_c's marginal part is weak at first, around what was found so far, and then keeps the head there.

Legend: `H` heads, `B` unlabelled batch rows, `K` classes.
"""

import torch
from torch import Tensor

from cspipe.headtrain.batches import Pools
from cspipe.headtrain.settings import HeadSettings

TOLD_AFTER = (0.1, 0.15, 0.2)
"""Parts of all steps after which the class shares are told anew, from the steps since the time before; the first time
from the later half of the steps. Of what lies far from where it started a single time takes too little (commonest class
20 times the rarest: .891 for .911; MNIST, lite0, 100 labels, dev rows), and five until .3 lose on harder rows."""

WEAK = 0.1
"""Weight of KL(mean content || class shares) until then. With .03 heads on harder rows lose classes to one another."""


class ClassShares:
    """The class prior of each head in a training, and how strongly its mean content is held to it.

    Attributes:
        prior_HK: class prior of each head at this step.
        weight: of the marginal part of D_c, a number on the device, so that a compiled step need not be made anew.
    """

    def __init__(self, pools: Pools, settings: HeadSettings) -> None:
        self.prior_HK = self.start_HK = pools.prior_HK
        self.moments = [max(1, round(part * settings.steps)) for part in TOLD_AFTER] if settings.learns_shares else [0]
        self.labels_H = torch.tensor([len(rows) for rows in pools.labelled]).to(self.prior_HK)
        self.weight = torch.tensor(WEAK if settings.learns_shares else 1.0).to(self.prior_HK)
        self.forget()

    def forget(self) -> None:
        """Begins the sums anew."""
        self.content_HK = torch.zeros_like(self.prior_HK)
        self.unsure_H, self.steps_H = torch.zeros_like(self.labels_H), torch.zeros_like(self.labels_H)

    def look(self, step: int, content_HBK: Tensor | None) -> None:
        """Sums up the content of a step; at the moments when shares are told they become what was found.

        A step of which a head was lost tells nothing of that head.
        """
        if content_HBK is None or not self.moments[0] // 2 < step <= self.moments[-1]:
            return
        told_HK, unsure_H = content_HBK.mean(1), 1 - content_HBK.amax(2).mean(1)
        fine_H = told_HK.isfinite().all(1)
        self.content_HK += told_HK.where(fine_H[:, None], 0)
        self.unsure_H += unsure_H.where(fine_H, 0)
        self.steps_H += fine_H
        if step in self.moments:
            told_H = self.steps_H.clamp_min(1)
            found_HK = shrunken(self.content_HK / told_H[:, None], self.start_HK, self.unsure_H / told_H, self.labels_H)
            self.prior_HK = found_HK.where(self.steps_H[:, None] > 0, self.prior_HK)
            self.forget()
        if step == self.moments[-1]:
            self.weight = torch.ones_like(self.weight)


def shrunken(found_HK: Tensor, start_HK: Tensor, error_H: Tensor, labels_H: Tensor) -> Tensor:
    """Shares that were found, drawn to where they started as far as chance alone may have moved them. `(H, K)`.

    The estimator of James and Stein (1961), its positive part: where the squared distance is no more than its expected
    value under no shift, nothing moves; where it is many times that, nearly all of it is taken. What is expected: a
    share is off by the rows wrongly put into its class minus those wrongly put out of it, two counts of about
    error x labels / K among the labelled rows, by which the head knows its classes; over K classes that is a squared
    distance of 2 error / labels.

    Args:
        found_HK: mean content.
        start_HK: shares that it started from.
        error_H: share of rows that a head gets wrong.
        labels_H: labelled rows of each head.
    """
    moved_HK = found_HK - start_HK
    by_chance_H = 2 * error_H / labels_H
    kept_H = (1 - by_chance_H / moved_HK.square().sum(1).clamp_min(1e-12)).clamp_min(0)
    return start_HK + kept_H[:, None] * moved_HK
