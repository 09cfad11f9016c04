"""The model card of a model directory: README.md as the Hugging Face Hub reads it, YAML first, then words."""

import html
import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from scipy.stats import binomtest

HUB_LICENCES = {"apache-2.0": "apache-2.0", "mit": "mit"}
"""Licences that the Hub has a name for; every other one is `other` with its own name beside it."""
CLASSES_TOLD = 50

USE = """```python
from cspipe.finetune.model_directory import load_model

model = load_model(".")  # this folder
(probability,) = model.probabilities(["image.png"])
print(model.class_names[probability.argmax()], probability.max())
```

For many images: `cspipe predict FOLDER IMAGES --out answers.csv`."""


ABOUT = """An image classifier: a content-style head on a vision foundation model, trained from few labels and many
unlabelled images."""

LIMITS = """## Limits

Accuracy and probabilities hold for images like those it was judged on. An image of no known class is given one all the
same, at times with a high probability.
"""


def as_text(name: str) -> str:
    """A name as it may stand in Markdown: never a tag, a link, a table's bar, or a control character."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return re.sub(r"([\\`*_\[\]|#!])", r"\\\1", html.escape(shown, quote=False))


def sampling_interval(accuracy: float, rows: int) -> tuple[float, float]:
    """Wilson 95 % interval of a share of `rows` judged rows: what the sample of test images leaves open."""
    found = binomtest(round(accuracy * rows), rows).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def front_matter(config: dict[str, Any], interval: tuple[float, float]) -> str:
    """The card's YAML, built by the Hub's own library so that any name is escaped."""
    licence = str(config["licence"])
    hub = HUB_LICENCES.get(licence.lower())
    name = f"{config['dataset']}-{config['backbone']}-{config['labels']}-labels"
    result = EvalResult(
        task_type="image-classification", dataset_type=str(config["judged_on"]), dataset_name=str(config["judged_on"]),
        metric_type="accuracy", metric_value=round(float(config["accuracy"]), 4),
        metric_name=f"accuracy on {config['judged_rows']} rows, 95 % interval {interval[0]:.4f} to {interval[1]:.4f}",
        dataset_split=str(config["evaluation"]),
    )  # fmt: skip
    data = ModelCardData(
        license=hub or "other", license_name=None if hub else re.sub(r"[^a-z0-9.-]+", "-", licence.lower()).strip("-"),
        library_name="cspipe", pipeline_tag="image-classification", base_model=config["hub_repo"],
        datasets=[str(config["dataset"])], metrics=["accuracy"],
        tags=["image-classification", "semi-supervised", "content-style"], model_name=name, eval_results=[result],
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n"


def accuracy_words(config: dict[str, Any], interval: tuple[float, float]) -> str:
    """Accuracy, its interval, and what it was measured on."""
    words = (
        f"{100 * config['accuracy']:.1f} %, 95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f} % over "
        f"{config['judged_rows']:,} judged rows ({config['evaluation']})"
    )
    told = config["over_splits"]
    if told and told["ci95"]:
        low, high = told["ci95"]
        words += (
            f"; mean of {told['splits']} draws of the labels {100 * told['mean']:.1f} %, 95 % interval "
            f"{100 * low:.1f} to {100 * high:.1f} %"
        )
    return words


def card_text(config: dict[str, Any], use: str = USE) -> str:
    """README.md of a model.

    Args:
        config: content of its config.json.
        use: how it is loaded, in Markdown.
    """
    interval = sampling_interval(config["accuracy"], config["judged_rows"])
    names = [as_text(str(name)) for name in config["class_names"]]
    shown = ", ".join(names[:CLASSES_TOLD]) + (f" and {len(names) - CLASSES_TOLD} more" if names[CLASSES_TOLD:] else "")
    weights, rows = config["weights"], config["calibration_rows"]
    fitted = f"fitted on {rows} labelled rows that a second head never saw" if rows else "not fitted: too few labels"
    trained = "trained too, weights in `backbone.safetensors`" if config["trained_backbone"] else "frozen"
    facts = {
        "Data": as_text(str(config["dataset"])), "Labelled images": f"{config['labels']:,}",
        "Classes": f"{len(names)}: {shown}", "Accuracy": accuracy_words(config, interval),
        "Backbone": f"{as_text(config['backbone'])} ({as_text(config['architecture'])}), token {config['token']}, "
                    f"{config['image_px']} px, {trained}",
        "Published weights": f"{as_text(str(weights['source']))}, SHA-256 {weights['published_sha256']}",
        "Licence of the weights": as_text(str(config["licence"])),
        "Preprocessing": as_text(config["transform"]),
        "Probabilities": f"temperature {config['temperature']:.3f}, {fitted}",
    }  # fmt: skip
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    title = f"{as_text(str(config['dataset']))} on {as_text(config['backbone'])}"
    top = f"{front_matter(config, interval)}\n# {title}"
    return "\n\n".join((top, ABOUT, f"| | |\n|---|---|\n{table}", "## Use", use, LIMITS))
