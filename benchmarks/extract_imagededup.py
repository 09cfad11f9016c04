"""One run of imagededup's CNN encoder on a timm model; runs by any Python that has imagededup, timm and torch.

    python extract_imagededup.py MODEL_FOLDER IMAGES OUT.npy BATCH WORKERS THREADS
    python extract_imagededup.py --version

Writes the embeddings `(N, D)` in the order of the images' names, prints the seconds as JSON.
"""

import json
import logging
import sys
import time
from importlib.metadata import version
from pathlib import Path


def encode(model: str, folder: str, out: str, batch: str, workers: str, threads: str) -> float:
    """Seconds from the loaded model, once it is warm, to the encodings."""
    import numpy as np
    import timm
    import torch
    from imagededup.methods import CNN  # type: ignore[import-not-found]
    from imagededup.utils import CustomModel  # type: ignore[import-not-found]
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    logging.disable(logging.INFO)
    torch.set_num_threads(int(threads))
    network = timm.create_model(f"local-dir:{model}", pretrained=True, num_classes=0).eval()
    config = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    transform = create_transform(**config, is_training=False)
    encoder = CNN(verbose=False, model_config=CustomModel(model=network, transform=transform, name="lite0"))
    encoder.batch_size = int(batch)
    encoder.encode_image(image_file=next(Path(folder).glob("*/*")))  # warms up
    begun = time.perf_counter()
    tokens = encoder.encode_images(image_dir=folder, recursive=True, num_enc_workers=int(workers))
    seconds = time.perf_counter() - begun
    np.save(out, np.stack([tokens[name] for name in sorted(tokens, key=Path)]))
    return seconds


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        print(version("imagededup"))
    else:
        print(json.dumps({"seconds": encode(*sys.argv[1:])}))
