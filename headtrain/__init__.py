"""Stage two: content-style heads on cached tokens."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cspipe.headtrain.estimator import ContentStyleClassifier
    from cspipe.headtrain.headfile import load_head
    from cspipe.headtrain.heads import Fit, Head, fit_heads
    from cspipe.headtrain.settings import HeadSettings
    from cspipe.headtrain.tasks import HeadTask

__all__ = ["ContentStyleClassifier", "Fit", "Head", "HeadSettings", "HeadTask", "fit_heads", "load_head"]

if not TYPE_CHECKING:
    PLACES = {
        "ContentStyleClassifier": "estimator", "HeadSettings": "settings", "HeadTask": "tasks", "load_head": "headfile",
    }  # fmt: skip

    def __getattr__(name: str) -> object:
        """Loads a name when it is first asked for: settings come without torch, heads without scikit-learn."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{PLACES.get(name, 'heads')}"), name)
