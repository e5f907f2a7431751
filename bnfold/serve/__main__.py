"""The worker's process, started by `bnfold.serve.supervise`."""

from __future__ import annotations

import sys

from bnfold.errors import BnfoldError
from bnfold.serve.supervise import worker

if __name__ == "__main__":
    try:
        sys.exit(worker())
    except BnfoldError as error:
        print(f"bnfold: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
