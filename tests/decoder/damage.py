"""What does not hold to the format's text."""


class Damage(Exception):
    """Bytes that are not what docs/format.md says; the message names the place."""
