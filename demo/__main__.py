"""`python -m demo`: see `demo.run`."""

import os
import sys

from demo.run import main

sys.exit(main(os.environ))
