"""``python -m jscope_tl.cli``."""

import sys

from jscope_tl.cli.command import main

sys.exit(main())
