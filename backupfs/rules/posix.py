"""Attribute rules of POSIX and Linux that are this side's duty: the kernel checks permissions, but the bits change here."""

import stat


def mode_after_write(mode: int, writer_is_root: bool) -> int:
    """Mode of a regular file after its content or size was changed: set-id bits go, unless root did it."""
    return mode if writer_is_root else _without_set_id(mode)


def mode_after_chown(mode: int) -> int:
    """Mode after the owner or group was set: set-id bits go, root or not, as ext4 has it; directories keep theirs."""
    return mode if stat.S_ISDIR(mode) else _without_set_id(mode)


def new_owner(parent_mode: int, parent_gid: int, mode: int, gid: int) -> tuple[int, int]:
    """(mode, gid) of something made in a directory: a set-gid directory hands on its group, and to directories the bit."""
    if not parent_mode & stat.S_ISGID:
        return mode, gid
    return (mode | stat.S_ISGID if stat.S_ISDIR(mode) else mode), parent_gid


def _without_set_id(mode: int) -> int:
    if not stat.S_ISREG(mode):
        return mode
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode
