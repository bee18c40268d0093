"""The long-lived process behind a mount: its task tree, schedule, control socket, signals and log; and the same work
without a mount.
"""
