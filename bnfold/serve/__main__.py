"""The worker's process, started by `bnfold.serve.supervise`."""

from __future__ import annotations

import os
import sys

from bnfold.errors import BnfoldError
from bnfold.serve.supervise import worker

if __name__ == "__main__":
    try:
        code = worker()
    except BnfoldError as error:
        print(f"bnfold: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        code = error.exit_code
    # All is closed, and Python would wait for the thread of a load that does not end.
    os._exit(code)
