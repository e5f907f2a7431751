"""Image data from the files that it is published in: MNIST, CIFAR, and folders of images; nothing is unpickled.

| a folder with | is | source |
|---|---|---|
| `train-images-idx3-ubyte` and its three companions, `.gz` or not | MNIST, and what shares its format | http://yann.lecun.com/exdb/mnist/ |
| `data_batch_1.bin` … `test_batch.bin`, or `train.bin`, `test.bin` | CIFAR-10, CIFAR-100, binary version | https://www.cs.toronto.edu/~kriz/cifar.html |
| `train/CLASS/*.png`, `test/CLASS/*.png`, or `CLASS/*.png` | images by class, as torchvision's ImageFolder | |

Files may lie one or two folders deeper, where torchvision's downloads put them.
"""  # noqa: E501

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bnfold.arrays import Array
from bnfold.errors import InputError, UsageError

Arrays = dict[str, Array]
Pixels = npt.NDArray[np.uint8]

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")
LARGEST = 2 << 30
"""Bytes of pixels that are read into memory at most; they take four times that as float32."""


def read_folder(folder: Path) -> Arrays:
    """`x_train, y_train, x_test, y_test` of a folder's images, uint8 `(N, C, H, W)`, or `x, y` where no part is named.

    Images in folders take the size of the first; grey stays one channel. Raises `InputError` where a file is damaged
    or nothing is known in the folder, `UsageError` where it would have to be unpickled.
    """
    for found, read in ((_first(folder, "train-images-idx3-ubyte*"), _mnist), (_first(folder, "*.bin"), _cifar)):
        if found is not None:
            return read(found.parent)
    if _first(folder, "data_batch_1") is not None or (folder / "meta").exists():
        raise UsageError(f"{folder}: CIFAR as pickles, which could run code; get its binary version, *.bin, instead")
    parts = _parts(folder)
    if parts is None:
        raise InputError(f"{folder}: holds neither MNIST, CIFAR's *.bin, nor a folder of images for each class")
    return parts


def _first(folder: Path, pattern: str) -> Path | None:
    return next((path for depth in ("", "*/", "*/*/") for path in sorted(folder.glob(depth + pattern))), None)


def _mnist(folder: Path) -> Arrays:
    """IDX: two zero bytes, the type, the number of axes, their sizes in big endian, the values."""
    names = {"train": "train", "t10k": "test"}
    arrays: Arrays = {}
    for start, part in names.items():
        arrays[f"x_{part}"] = _idx(folder, f"{start}-images-idx3-ubyte")[:, None]
        arrays[f"y_{part}"] = _idx(folder, f"{start}-labels-idx1-ubyte").astype(np.int64)
    return arrays


def _idx(folder: Path, name: str) -> Pixels:
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
    if path is None:
        raise InputError(f"{folder / name}: no such file; MNIST has four")
    content = _bytes(path)
    axes = content[3] if len(content) > 3 else 0
    sizes = np.frombuffer(content[4 : 4 + 4 * axes], ">u4").astype(int)
    values = np.frombuffer(content[4 + 4 * axes :], np.uint8)
    if content[:3] != b"\0\0\x08" or len(sizes) != axes or int(np.prod(sizes)) != len(values) or not len(values):
        raise InputError(f"{path}: not a whole IDX file of bytes; download it again")
    return values.reshape(sizes)


def _cifar(folder: Path) -> Arrays:
    """Rows of one label (CIFAR-100: a coarse and a fine one) and 3·32·32 pixels, channel by channel."""
    hundred = (folder / "train.bin").exists()
    train = [folder / "train.bin"] if hundred else sorted(folder.glob("data_batch_*.bin"))
    test = folder / ("test.bin" if hundred else "test_batch.bin")
    if not train or not test.exists():
        raise InputError(f"{folder}: no CIFAR; it is data_batch_1.bin … and test_batch.bin, or train.bin and test.bin")
    labels, row = (2, 3074) if hundred else (1, 3073)
    arrays: Arrays = {}
    for part, paths in (("train", train), ("test", [test])):
        contents = [_bytes(path) for path in paths]
        for path, content in zip(paths, contents, strict=True):
            if not content or len(content) % row:
                raise InputError(f"{path}: not a whole file of CIFAR's binary version; download it again")
        rows = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, row)
        arrays[f"x_{part}"] = rows[:, labels:].reshape(-1, 3, 32, 32)
        arrays[f"y_{part}"] = rows[:, labels - 1].astype(np.int64)
    return arrays


def _parts(folder: Path) -> Arrays | None:
    """The images by class, in two named parts or in one."""
    train = folder / "train"
    test = next((folder / name for name in ("test", "val", "valid") if (folder / name).is_dir()), None)
    if train.is_dir() and test is not None:
        classes = _classes(train)
        if classes != _classes(test) or not classes:
            raise InputError(f"{folder}: {train.name} and {test.name} must hold the same folders, one for each class")
        first = _by_class(train, classes, None)
        second = _by_class(test, classes, first["x"].shape[1:])
        return {"x_train": first["x"], "y_train": first["y"], "x_test": second["x"], "y_test": second["y"]}
    classes = _classes(folder)
    return _by_class(folder, classes, None) if classes else None


def _classes(folder: Path) -> list[str]:
    """The folders that hold images, by name."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and _images(path))


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)


def _by_class(folder: Path, classes: list[str], shape: tuple[int, ...] | None) -> Arrays:
    decode = _decoder()
    files = [(path, label) for label, name in enumerate(classes) for path in _images(folder / name)]
    images: list[Pixels] = []
    for path, _ in files:
        image = decode(path, shape)
        shape = image.shape
        if len(files) * image.nbytes > LARGEST:
            raise InputError(f"{folder}: {len(files)} images of {image.shape} don't fit in memory; make them smaller")
        images.append(image)
    return {"x": np.stack(images), "y": np.array([label for _, label in files], np.int64)}


def _decoder() -> Callable[[Path, tuple[int, ...] | None], Pixels]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise UsageError("reading images needs Pillow, which is not installed: pip install pillow") from error

    def decode(path: Path, shape: tuple[int, ...] | None) -> Pixels:
        """`(C, H, W)`, of this shape if one is given."""
        try:
            with Image.open(path) as image:
                grey = shape[0] == 1 if shape else image.mode in ("1", "L", "I;16", "I")
                pixels = image.convert("L" if grey else "RGB")
                if shape is not None and pixels.size != (shape[2], shape[1]):
                    pixels = pixels.resize((shape[2], shape[1]), Image.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: can't be read as an image; remove it or write it again") from error
        array = np.asarray(pixels, np.uint8)
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))

    return decode


def _bytes(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            content = stream.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: can't be read; download it again") from error
    if len(content) > LARGEST:
        raise InputError(f"{path}: larger than {LARGEST >> 30} GiB; that is not read into memory")
    return content
