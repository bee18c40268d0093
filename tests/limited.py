"""backupfs with other limits: `python -m tests.limited CHECKPOINT_LOOK_S=0.02 -- mount REPO DIR` is `backupfs mount REPO DIR` with that one.

For what is rare at the limits that people have, and has to happen to a real process.
"""

import runpy
import sys

from backupfs import limits


def main(words: list[str]) -> None:
    """Set the limits before anything that could have taken note of them is loaded, and become the program."""
    at = words.index("--")
    for word in words[:at]:
        name, _, value = word.partition("=")
        setattr(limits, name, type(getattr(limits, name))(value))
    sys.argv = ["backupfs", *words[at + 1 :]]
    runpy.run_module("backupfs", run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
