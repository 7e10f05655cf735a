"""python -m benchmarks"""

import sys
from importlib import import_module

from benchmarks.commands import OWN_ARGUMENTS

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in OWN_ARGUMENTS:
        module, _ = OWN_ARGUMENTS[sys.argv[1]]
        sys.exit(import_module(module).main(sys.argv[2:]))
    from benchmarks.cli import app

    app(prog_name="python -m benchmarks")
