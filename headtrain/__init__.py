"""Stage two: content-style heads on cached tokens."""

from typing import TYPE_CHECKING

from cspipe.headtrain.heads import Fit, Head, HeadTask, fit_heads, load_head
from cspipe.headtrain.settings import HeadSettings

if TYPE_CHECKING:
    from cspipe.headtrain.estimator import ContentStyleClassifier

__all__ = ["ContentStyleClassifier", "Fit", "Head", "HeadSettings", "HeadTask", "fit_heads", "load_head"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Loads the estimator, and scikit-learn with it, when it is first asked for."""
        if name != "ContentStyleClassifier":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from cspipe.headtrain.estimator import ContentStyleClassifier

        return ContentStyleClassifier
