"""`python -m microdiffusion.daemon.cli`: the `mdd` command."""

import sys

from microdiffusion.daemon.cli import main

sys.exit(main())
