"""Registry of data sets, and what else a user may name: folders, tables, arrays, tars, image sets of the hub.

Listing is cheap: nothing is decoded before it is needed, and a split hands out one image at a time.
"""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.cifar import read_cifar10, read_cifar100
from cspipe.extract.folders import read_folder
from cspipe.extract.galaxymnist import read_galaxymnist
from cspipe.extract.hub_images import PREFIX, SAVED, read_hub, read_saved
from cspipe.extract.mnist import FILES, read_mnist, read_striped
from cspipe.extract.published import absolute
from cspipe.extract.splits import Dataset, DatasetSpec, ImageSplit, PublishedFile
from cspipe.extract.stripes import COLOURS
from cspipe.extract.tables import read_csv, read_npz
from cspipe.extract.torchvision_sets import read_eurosat, read_stl10, read_svhn
from cspipe.extract.webdataset import read_tars
from cspipe.store.errors import MissingDataError, SettingError, UnknownNameError, unknown_name

__all__ = ["DATASETS", "Dataset", "DatasetSpec", "ImageSplit", "PublishedFile", "load_dataset"]

_KINDS = "a folder of images, a .csv, a .npz, a .tar, or hf:OWNER/NAME"


def _digits(spec: DatasetSpec, data_dir: Path | None) -> Dataset:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, stratified 80/20, always the same."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    label = bunch.target.astype(np.int64)
    halves = train_test_split(np.arange(len(label)), test_size=0.2, stratify=label, random_state=0)

    def split(name: str, images: NDArray[np.int64]) -> ImageSplit:
        paths = [f"digits/{image:05d}" for image in images]
        return ImageSplit(name, label[images], paths, lambda i: pixels[images[i]])

    train, test = (np.sort(half) for half in halves)
    splits = {"train": split("train", train), "test": split("test", test)}
    return Dataset(spec.name, [str(digit) for digit in range(10)], splits, "scikit-learn load_digits")


def _files(**sums: str) -> tuple[PublishedFile, ...]:
    return tuple(PublishedFile(name, md5) for name, md5 in sums.items())


_MNIST = tuple(PublishedFile(f"{name}.gz") for pair in FILES.values() for name in pair)
_CIFAR10 = _files(
    data_batch_1="c99cafc152244af753f735de768cd75f",
    data_batch_2="d4bba439e000b95fd0a9bffe97cbabec",
    data_batch_3="54ebc095f3ab1f0389bbae665268c751",
    data_batch_4="634d18415352ddfa80567beed471001a",
    data_batch_5="482c414d41f54cd18b22e5b47cb7c3cb",
    test_batch="40351d587109b95175f43aff81a1287e",
    **{"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
)
_CIFAR100 = _files(
    train="16019d7e3df5f24257cddd939b257f8d",
    test="f0ef6b0ae62326f3e7ffdfab6717acfc",
    meta="7973b15100ade9c7d40fb424638fde48",
)
_SVHN = _files(
    **{
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    }
)
_SVHN_EXTRA = _files(**{"extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7"})
_STL10 = _files(
    **{
        "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
        "train_y.bin": "5a34089d4802c674881badbb80307741",
        "unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4",
        "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
        "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
    }
)
_EUROSAT = _files(**{"EuroSAT.zip": "c8fa014336c82ac7804f0398fcb19387"})
_GALAXY_64 = _files(
    **{
        "train_dataset.hdf5.gz": "e408ae294e9b975482dc1abffeb373a6",
        "test_dataset.hdf5.gz": "7a940e4cea64a8b7cb60339098f74490",
    }
)
_GALAXY_224 = _files(
    **{
        "train_dataset.hdf5.gz": "3391dcddac14d5b4055db73fb600ae63",
        "test_dataset.hdf5.gz": "fb272c4e94000b4d99a09d638977b0b9",
    }
)
_THINGS = "things and animals"
_TORONTO = "https://www.cs.toronto.edu/~kriz/cifar.html"
_STANFORD = "http://ufldl.stanford.edu/housenumbers/"
_YANN = "http://yann.lecun.com/exdb/mnist/"
_GALAXIES = "https://github.com/mwalmsley/galaxy_mnist"
_STL = "https://cs.stanford.edu/~acoates/stl10/"
_ALL = (
    DatasetSpec("digits", _digits, 1437, 360, 10, 8, "scikit-learn", "handwritten digits", "https://scikit-learn.org"),
    DatasetSpec("mnist", read_mnist, 60000, 10000, 10, 28, "torchvision", "handwritten digits", _YANN, _MNIST),
    *(
        DatasetSpec(f"mnist-{colour}-stripes", read_striped, 60000, 10000, 10, 28, "torchvision",
                    f"MNIST under {colour} stripes, a re-creation", _YANN, _MNIST)
        for colour in COLOURS
    ),
    DatasetSpec("cifar10", read_cifar10, 50000, 10000, 10, 32, "torchvision", _THINGS, _TORONTO, _CIFAR10),
    DatasetSpec("cifar100", read_cifar100, 50000, 10000, 100, 32, "torchvision", _THINGS, _TORONTO, _CIFAR100),
    DatasetSpec("svhn", read_svhn, 73257, 26032, 10, 32, "torchvision", "house numbers", _STANFORD, _SVHN),
    DatasetSpec("svhn-extra", read_svhn, 73257, 26032, 10, 32, "torchvision", "SVHN with its extra split unlabelled",
                _STANFORD, _SVHN + _SVHN_EXTRA, 531131),
    DatasetSpec("stl10", read_stl10, 5000, 8000, 10, 96, "torchvision", _THINGS, _STL, _STL10, 100000),
    DatasetSpec("eurosat", read_eurosat, 21600, 5400, 10, 64, "torchvision", "land use from space, split by us",
                "https://github.com/phelber/EuroSAT", _EUROSAT),
    DatasetSpec("galaxymnist", read_galaxymnist, 8000, 2000, 4, 64, "--data-dir", "galaxies", _GALAXIES, _GALAXY_64),
    DatasetSpec("galaxymnist-224", read_galaxymnist, 8000, 2000, 4, 224, "the hub", "galaxies", _GALAXIES, _GALAXY_224),
)  # fmt: skip
DATASETS: Mapping[str, DatasetSpec] = MappingProxyType({spec.name: spec for spec in _ALL})


def _read_place(place: Path) -> Dataset:
    """A user's own folder or file, by what it holds or how its name ends."""
    if place.is_dir():
        if next(place.glob("*.tar"), None) or next(place.glob("*/*.tar"), None):
            return read_tars(place)
        saved = (
            (place / SAVED).is_file() or next(place.glob("*.parquet"), None) or next(place.glob("*/*.parquet"), None)
        )
        return read_saved(place) if saved else read_folder(place)
    readers: dict[str, Callable[[Path], Dataset]] = {".csv": read_csv, ".npz": read_npz, ".tar": read_tars}
    if place.suffix.lower() not in readers:
        raise SettingError(f"{place} is no data set: it must be {_KINDS}")
    return readers[place.suffix.lower()](place)


def load_dataset(wanted: str | Path | DatasetSpec, *, data_dir: Path | None = None) -> Dataset:
    """List a data set by its name, or a user's own by its path.

    Args:
        wanted: a name in ``DATASETS`` or an entry of that kind, ``hf:OWNER/NAME``, else the path of a folder, a
            ``.csv``, a ``.npz``, a ``.tar`` or a pattern of tars (``./digits`` is one, ``digits`` is not).
        data_dir: where the files of a named data set lie; also where a path is looked for.

    Returns:
        Its splits, classes and source.

    Raises:
        UnknownNameError: neither a known name nor a path.
        MissingDataError: a folder without classes, a data set whose files are not there.
        SettingError: files that are damaged.
    """
    if isinstance(wanted, DatasetSpec):
        return wanted.read(wanted, data_dir)
    name = str(wanted)
    if name in DATASETS:
        return DATASETS[name].read(DATASETS[name], data_dir)
    if name.startswith(PREFIX):
        return read_hub(name, data_dir)
    candidates = [Path(name).expanduser()] + ([data_dir / name] if data_dir is not None else [])
    for place in candidates:
        if place.exists():
            return _read_place(absolute(place))
    if name.endswith(".tar") and any(sign in name for sign in "*?[{"):
        return read_tars(candidates[-1])
    if len(Path(name).parts) > 1 or Path(name).suffix in (".csv", ".npz", ".tar"):
        raise MissingDataError(f"nothing at {candidates[0]}: give {_KINDS}, or a data set's name")
    error = unknown_name("dataset", name, DATASETS)
    near = difflib.get_close_matches(name, [path.name for path in Path().iterdir() if path.is_dir()], n=1)
    meant = f": did you mean the folder {near[0]}?" if near else "."
    raise UnknownNameError(f"{error} A folder of images works too, but there is none at {name}{meant}")
