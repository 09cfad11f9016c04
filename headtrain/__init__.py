"""Stage two: content-style heads on cached tokens."""

from cspipe.headtrain.heads import Fit, Head, HeadTask, fit_heads, load_head
from cspipe.headtrain.settings import HeadSettings

__all__ = ["Fit", "Head", "HeadSettings", "HeadTask", "fit_heads", "load_head"]
