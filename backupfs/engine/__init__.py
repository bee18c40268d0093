"""The file system: namespace, open files, commit, snapshots, recovery and checking."""
