"""``python -m deblendrt.engine.adapters.cli``: the same as the command ``deblendrt``."""

import sys

from deblendrt.engine.adapters.cli.main import main

sys.exit(main())
