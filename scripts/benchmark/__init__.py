"""What `scripts/bench` runs: backupfs beside the empty pyfuse3 file system, Borg and the disk's own file system."""
