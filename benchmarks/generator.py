"""Does the generator draw digits? What a classifier makes of its images. Prints what docs/training.md says.

    python benchmarks/generator.py

The classifier is lenet, trained as ever on the real digits; *sure* means that it gives a class more than 90 %.
"""

from __future__ import annotations

import numpy as np
import torch

from bnfold.models import registry
from bnfold.models.data import load
from bnfold.models.train import predict, train

IMAGES = 1000


def main() -> None:
    data = load("digits")
    judge = train("lenet", data, quiet=True).module
    trained = train("dcgan", data, quiet=True).module
    torch.manual_seed(0)
    noise = np.random.default_rng(3).standard_normal((IMAGES, 16)).astype(np.float32)
    images = {
        "held-out images": data.test.images,
        "trained generator": predict(trained, noise),
        "untrained generator": predict(registry.build("dcgan").eval(), noise),
    }
    print("| images | sure | images of each class |")
    print("|---|---|---|")
    for name, given in images.items():
        shares = torch.from_numpy(predict(judge, given)).softmax(1).numpy()
        counts = np.bincount(shares.argmax(1), minlength=10)
        print(f"| {name} | {np.mean(shares.max(1) > 0.9):.0%} | {' '.join(map(str, counts))} |")


if __name__ == "__main__":
    main()
