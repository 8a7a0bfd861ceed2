"""`python -m pyvirtfs`: the command line, where no script was installed."""

import sys

from pyvirtfs.cli.main import main

sys.exit(main())
