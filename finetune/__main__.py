"""`torchrun --nproc-per-node N -m cspipe.finetune ...`: what `cspipe finetune` does, by several processes.

The first process alone writes and speaks.
"""

import os
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path


def main() -> None:
    """Runs the command line, which lies above this package and is therefore started by its name."""
    sys.argv = ["cspipe", "finetune", *sys.argv[1:]]
    if int(os.environ.get("RANK", "0")) == 0:
        runpy.run_module("cspipe.cli", run_name="__main__")
        return
    sys.argv.append("--quiet")
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        runpy.run_module("cspipe.cli", run_name="__main__")


if __name__ == "__main__":
    main()
