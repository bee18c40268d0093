"""`python -m backupfs`."""

import sys

from backupfs.cli.main import main

sys.exit(main())
