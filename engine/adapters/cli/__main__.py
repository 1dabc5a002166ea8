"""``python -m deblendrt.engine.adapters.cli``: the same as the command ``deblendrt``."""

import sys

from deblendrt.engine.adapters.cli.main import main

if __name__ == "__main__":  # the documentation imports every module
    sys.exit(main())
