"""Reads a repository without backupfs.

python -m tests.decoder REPO --password-file F                      its snapshots, one line each
python -m tests.decoder REPO --password-file F --manifest           the present tree, as tests.oracle.manifest shows it
python -m tests.decoder REPO --password-file F --snapshot NAME      a snapshot's tree
python -m tests.decoder REPO --password-file F --compare DIR        differences from a directory; exit code 1 if any
python -m tests.decoder REPO --password-file F --audit              what does not hold; exit code 1 if anything
"""

import argparse
import os
import sys
from pathlib import Path

from tests.decoder.audit import audit
from tests.decoder.decoder import Repository
from tests.oracle.manifest import differences, manifest, tree_hash


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="decoder", description="Reads a repository from its format's text alone.")
    parser.add_argument("repository", type=Path)
    parser.add_argument("--password-file", type=Path, required=True, help="its first line is the password")
    parser.add_argument("--snapshot", metavar="NAME", help="this snapshot instead of the present")
    parser.add_argument("--manifest", action="store_true", help="show the tree")
    parser.add_argument("--compare", type=Path, metavar="DIR", help="show how the tree differs from this directory")
    parser.add_argument("--leave-out", action="append", default=[], metavar="NAME", help="pass over this name of DIR's root")
    parser.add_argument("--ignore", action="append", default=[], metavar="FIELD", help="a field that need not be equal")
    parser.add_argument("--audit", action="store_true", help="recount everything")
    parser.add_argument("--in-use", action="store_true", help="the repository is mounted or was not closed: leaks do not count")
    options = parser.parse_args(arguments)
    password = options.password_file.read_bytes().split(b"\n", 1)[0]
    if options.audit:
        lines = audit(options.repository, password, settled=not options.in_use)
        print("\n".join(lines) or "everything holds", file=sys.stdout if lines else sys.stderr)
        return 1 if lines else 0
    with Repository(options.repository, password) as repository:
        print(*repository.history.faults, sep="\n", end="\n" if repository.history.faults else "", file=sys.stderr)
        if not (options.manifest or options.snapshot or options.compare):
            for snapshot in repository.snapshots():
                print(snapshot.name, snapshot.epoch, snapshot.why, snapshot.message, *snapshot.tags, sep="\t")
            return 0
        view = repository.snapshot(options.snapshot) if options.snapshot else repository.present()
        entries = view.manifest()
    if options.compare:
        found = manifest(options.compare, leave_out=[os.fsencode(name) for name in options.leave_out])
        lines = differences(entries, found, ignore=options.ignore)
        print("\n".join(lines), end="\n" if lines else "")
        return 1 if lines else 0
    for entry in entries.values():
        print(entry.as_json())
    print(f"{len(entries)} entries, {tree_hash(entries)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
