"""Where training data comes from, and that nothing of the held-out part leaks."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from bnfold.errors import InputError, UsageError
from bnfold.models import boxes, data, derive, folders

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


def test_digits(digits: data.Dataset) -> None:
    images = np.concatenate([digits.train.images, digits.test.images])
    assert images.shape == (1797, 1, 8, 8) and images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    assert digits.train.labels.dtype == np.int64 and digits.classes == 10 and digits.input_shape == (1, 8, 8)
    for label in range(10):
        held = int((digits.test.labels == label).sum())
        assert held == round(0.2 * (held + int((digits.train.labels == label).sum())))


def test_the_split_is_fixed_by_its_seed_and_leaks_nothing(digits: data.Dataset) -> None:
    # On any machine and numpy: a model's held-out accuracy is only comparable on the same images.
    labels = np.arange(40) % 4
    assert data.stratified(labels, 0.2, seed=0)[1].tolist() == [2, 3, 11, 13, 18, 20, 21, 32]
    assert data.stratified(labels, 0.2, seed=1)[1].tolist() != data.stratified(labels, 0.2, seed=0)[1].tolist()
    train_rows, test_rows = data.stratified(digits.train.labels, 0.2, seed=0)
    assert sorted([*train_rows, *test_rows]) == list(range(len(digits.train)))


def test_a_rare_class_stays_on_both_sides() -> None:
    labels = np.array([0, 0, 1] + [2] * 20)
    train_rows, test_rows = data.stratified(labels, 0.2, seed=0)
    assert set(labels[train_rows]) == {0, 1, 2} and set(labels[test_rows]) == {0, 2}


def arrays(**changes: object) -> dict[str, object]:
    rng = np.random.default_rng(0)
    return {"x": rng.random((20, 1, 4, 4), np.float32), "y": np.arange(20) % 2, **changes}


@pytest.mark.parametrize(
    ("content", "shape", "largest"),
    [
        (arrays(), (1, 4, 4), 1.0),
        (arrays(x=np.full((20, 4, 4), 255, np.uint8)), (1, 4, 4), 1.0),
        (arrays(x=np.full((20, 7), 3.0)), (7,), 3.0),
        ({f"{k}_{part}": v for k, v in arrays().items() for part in ("train", "test")}, (1, 4, 4), 1.0),
    ],
)
def test_npz(tmp_path: Path, content: dict[str, object], shape: tuple[int, ...], largest: float) -> None:
    np.savez(tmp_path / "d.npz", **content)
    loaded = data.load(tmp_path / "d.npz")
    assert loaded.input_shape == shape and loaded.classes == 2
    assert loaded.train.images.dtype == np.float32 and loaded.train.images.max() <= largest
    assert len(loaded.test) == (4 if "x" in content else 20)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"images": np.zeros(3)}, "it holds images"),
        ({}, "it holds nothing"),
        (arrays(x=np.array([None] * 20)), "plain arrays"),
        (arrays(x=np.zeros((20, 1, 4, 4), np.int64)), "x is int64"),
        (arrays(x=np.zeros(20)), "shape"),
        (arrays(x=np.full((20, 4, 4), 1e300)), "not finite"),
        (arrays(x=np.full((20, 4, 4), np.nan)), "not finite"),
        (arrays(y=np.zeros(20)), "y is float64"),
        (arrays(y=np.zeros(19, int)), "20 whole numbers"),
        (arrays(y=np.full(20, -1)), "number the classes from 0"),
        (arrays(y=np.arange(20)), "no class has two examples"),
        ({"x": np.zeros((1, 4, 4)), "y": np.zeros(1, int)}, "can't be split"),
        (
            {"x_train": np.zeros((4, 3)), "y_train": np.zeros(4, int), "x_test": np.zeros((4, 2)), "y_test": [0] * 4},
            "make their examples the same shape",
        ),
    ],
)
def test_npz_refused(tmp_path: Path, content: dict[str, object], says: str) -> None:
    np.savez(tmp_path / "d.npz", **content)
    with pytest.raises(InputError, match=says) as caught:
        data.load(tmp_path / "d.npz")
    assert str(tmp_path / "d.npz") in str(caught.value) and "\n" not in str(caught.value)


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        data.load(tmp_path / "none.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError, match="can't be read"):
        data.load(tmp_path / "folder.npz")
    with pytest.raises(UsageError, match="give digits, or the path"):
        data.load("mnist")


@pytest.mark.parametrize(
    ("predictions", "labels", "share"),
    [
        ([1, 2, 3, 4], [1, 2, 0, 0], 0.5),
        ([[0.1, 0.9], [0.8, 0.2]], [1, 0], 1.0),
        ([[np.nan, 0.9], [0.8, 0.2]], [0, 0], 0.5),
    ],
)
def test_accuracy(predictions: list[object], labels: list[int], share: float) -> None:
    assert data.accuracy(predictions, labels) == share


@pytest.mark.parametrize(("predictions", "labels"), [([1], [1, 2]), ([], [])])
def test_accuracy_refuses(predictions: list[int], labels: list[int]) -> None:
    with pytest.raises(InputError, match="one per label"):
        data.accuracy(predictions, labels)


# Folders


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


def mnist(folder: Path, *, compressed: bool = False, **changes: bytes) -> Path:
    """Four IDX files: 6 and 3 images of 5×4."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 6), ("t10k", 3)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 5, 4)))
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count) % 3)
    for name, content in {**files, **changes}.items():
        path = folder / (f"{name}.gz" if compressed else name)
        path.write_bytes(gzip.compress(content) if compressed else content)
    return folder


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("where", [".", "MNIST/raw"])
def test_mnist(where: str, compressed: bool, tmp_path: Path) -> None:
    mnist(tmp_path / "d" / where, compressed=compressed)
    loaded = data.load(tmp_path / "d")
    assert (len(loaded.train), len(loaded.test), loaded.input_shape, loaded.classes) == (6, 3, (1, 5, 4), 3)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4))
    np.testing.assert_allclose(loaded.train.images[:, 0], pixels / 255, rtol=1e-6)
    assert loaded.test.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "labels"), [(("data_batch_1", "data_batch_2", "test_batch"), 1), (("train", "test"), 2)]
)
def test_cifar(names: tuple[str, ...], labels: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(0, 4, (5, labels + 3072)).astype(np.uint8) for name in names}
    for name, row in rows.items():
        (tmp_path / f"{name}.bin").write_bytes(row.tobytes())
    loaded = data.load(tmp_path)
    train_rows = np.concatenate([row for name, row in rows.items() if not name.startswith("test")])
    assert loaded.input_shape == (3, 32, 32) and len(loaded.train) == len(train_rows)
    assert loaded.train.labels.tolist() == train_rows[:, labels - 1].tolist()
    red = train_rows[:, labels : labels + 1024].reshape(-1, 32, 32) / 255
    np.testing.assert_allclose(loaded.train.images[:, 0], red, rtol=1e-6)


def pictures(folder: Path, *, mode: str = "L", count: int = 4, size: tuple[int, int] = (6, 5)) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
            Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(folder / label / f"{i}.png")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_folder_of_images_by_class(mode: str, channels: int, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pictures(tmp_path / "whole", mode=mode)
    whole = data.load(tmp_path / "whole")
    assert whole.input_shape == (channels, 5, 6) and (len(whole.train), len(whole.test)) == (6, 2)
    pictures(tmp_path / "parts" / "train", mode=mode)
    pictures(tmp_path / "parts" / "val", mode=mode, count=2, size=(12, 10))
    parts = data.load(tmp_path / "parts")
    assert parts.test.images.shape == (4, channels, 5, 6) and parts.test.labels.tolist() == [0, 0, 1, 1]


def test_a_trained_folder(tmp_path: Path) -> None:
    """From pictures on disk to a checkpoint that can be read again."""
    pytest.importorskip("PIL")
    pytest.importorskip("lightning")
    from bnfold.models.train import train

    pictures(tmp_path, count=12, mode="RGB", size=(8, 8))
    result = train("resnet", data.load(tmp_path), epochs=1, batch_size=16, quiet=True)
    assert result.meta.input_shape == (3, 8, 8) and result.meta.kwargs["classes"] == 2


def test_folders_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path, says: str, error: type[Exception] = InputError) -> None:
        with pytest.raises(error, match=says) as caught:
            data.load(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds neither MNIST, CIFAR")
    refused(mnist(tmp_path / "cut", **{"train-images-idx3-ubyte": idx(np.zeros((6, 5, 4)))[:-1]}), "not a whole IDX")
    refused(mnist(tmp_path / "none", **{"train-images-idx3-ubyte": b""}), "not a whole IDX")
    refused(mnist(tmp_path / "floats", **{"t10k-labels-idx1-ubyte": b"\0\0\x0d\1" + bytes(8)}), "not a whole IDX")
    refused(mnist(tmp_path / "fewer", **{"train-labels-idx1-ubyte": idx(np.zeros(5))}), "6 whole numbers")
    broken = mnist(tmp_path / "zip", compressed=True)
    (broken / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8bnothing")
    refused(broken, "can't be read")
    # A thousand times smaller than what comes out of it.
    monkeypatch.setattr(folders, "LARGEST", 1 << 20)
    (broken / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes((1 << 20) + 1)))
    refused(broken, "that is not read into memory")
    missing = mnist(tmp_path / "missing")
    (missing / "t10k-images-idx3-ubyte").unlink()
    refused(missing, "no such file; MNIST has four")
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "data_batch_1.bin").write_bytes(bytes(3073))
    refused(tmp_path / "cifar", "no CIFAR")
    (tmp_path / "cifar" / "test_batch.bin").write_bytes(bytes(3000))
    refused(tmp_path / "cifar", "not a whole file of CIFAR")
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "data_batch_1").write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.")
    refused(tmp_path / "pickles", "could run code", UsageError)


def test_pictures_refused(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pictures(tmp_path / "d")
    (tmp_path / "d" / "cat" / "9.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"9\.png: can't be read as an image"):
        data.load(tmp_path / "d")
    pictures(tmp_path / "p" / "train")
    (tmp_path / "p" / "test" / "bird").mkdir(parents=True)
    with pytest.raises(InputError, match="the same folders"):
        data.load(tmp_path / "p")


# Derived tasks

DERIVED = {
    "images": ((1, 8, 8), (1, 8, 8)), "masks": ((1, 8, 8), (1, 8, 8)), "points": ((3, 48), ()),
    "strips": ((1, 8, 24), (3,)), "scenes": ((1, 24, 24), (90, 5)), "noise": ((16,), (1, 8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", DERIVED)
def test_a_derived_split_is_seeded_finite_and_of_its_shape(name: str, digits: data.Dataset) -> None:
    split = data.Split(digits.train.images[:40], digits.train.labels[:40])
    made, again, other = (getattr(derive, name)(split, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (made.images.shape[1:], made.labels.shape[1:]) == DERIVED[name] and len(made) == 40
    assert made.images.dtype == np.float32 and np.isfinite(made.images).all() and np.isfinite(made.labels).all()
    np.testing.assert_array_equal(made.images, again.images)
    np.testing.assert_array_equal(made.labels, again.labels)
    assert (name == "images") == np.array_equal(made.images, other.images)


def test_what_is_derived_is_what_it_says(digits: data.Dataset) -> None:
    split, random = digits.train, np.random.default_rng(0)
    assert np.array_equal(derive.masks(split, random).labels == 1, split.images >= derive.INK)
    strip = derive.strips(split, random)
    np.testing.assert_array_equal(strip.images[:, :, :, :8], split.images)
    np.testing.assert_array_equal(strip.labels[:, 0], split.labels)
    cloud = derive.points(split, random).images
    columns, rows = (np.round((cloud[:, axis] + 1) * 3.5).astype(int) for axis in (0, 1))
    np.testing.assert_array_equal(cloud[:, 2], split.images[np.arange(len(split))[:, None], 0, rows, columns])
    assert cloud[:, 2].min() > 0  # blank pixels are not drawn


def test_the_box_of_a_scene_holds_all_of_its_ink(digits: data.Dataset) -> None:
    split = data.Split(digits.train.images[:50], digits.train.labels[:50])
    scenes = derive.scenes(split, np.random.default_rng(0))
    defaults = boxes.default_boxes(24, 24)
    for image, target, label in zip(scenes.images[:, 0], scenes.labels, split.labels, strict=True):
        found = np.flatnonzero(target[:, 0])
        assert len(found) and set(target[found, 0]) == {label + 1}
        cx, cy, w, h = boxes.decode(target[found[0], 1:], defaults[found[0]]) * 24
        y, x = np.nonzero(image >= 0.5 + 0.4)  # surely ink, and no noise
        assert (abs(x + 0.5 - cx) <= w / 2 + 1e-3).all() and (abs(y + 0.5 - cy) <= h / 2 + 1e-3).all()


def test_a_blank_image_is_no_reason_to_fail() -> None:
    blank = data.Split(np.zeros((2, 1, 8, 8), np.float32), np.zeros(2, np.int64))
    for name in DERIVED:
        assert np.isfinite(getattr(derive, name)(blank, np.random.default_rng(0)).labels).all()


def test_boxes_are_what_they_were_encoded_from() -> None:
    defaults = boxes.default_boxes(24, 32)
    assert defaults.shape == (2 * (6 * 8 + 3 * 4), 4) and defaults.min() > 0 and defaults.max() < 1
    box = np.array([0.4, 0.6, 0.25, 0.5], np.float32)
    np.testing.assert_allclose(boxes.decode(boxes.encode(box, defaults), defaults), np.tile(box, (120, 1)), rtol=1e-5)
    assert boxes.overlap(box, box) == pytest.approx(1)
    half = box * [1, 1, 0.5, 1]
    assert boxes.overlap(box, half) == pytest.approx(0.5) and boxes.overlap(box, box + np.float32([1, 0, 0, 0])) == 0
