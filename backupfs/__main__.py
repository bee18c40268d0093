"""The program: `backupfs`, and `python -m backupfs`."""

import sys

try:
    from backupfs.cli.main import main
except KeyboardInterrupt:  # Ctrl-C while it was being loaded: there is nothing to end yet
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
