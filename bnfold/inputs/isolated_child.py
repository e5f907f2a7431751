"""The child of `bnfold.inputs.isolated`: reads sizes, a JSON object a line, runs the model there, and answers."""

from __future__ import annotations

import json
import sys

from bnfold import io, runtime
from bnfold.inputs import feeds, sizes


def main(path: str) -> None:
    """Answer with the share of outputs that say something, or with why the model does not run."""
    model, session = io.load(path), runtime.session(path, "cpu", optimize=False, threads=1)
    for line in sys.stdin:
        outputs = runtime.attempt(lambda arrays: runtime.run(session, arrays), feeds.example(model, json.loads(line)))
        print(json.dumps(outputs if isinstance(outputs, str) else sizes.telling(outputs)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
