"""`python -m emolab`."""

import sys

from emolab.studies.cli import main

sys.exit(main())
