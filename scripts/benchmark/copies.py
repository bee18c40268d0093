"""Large files and trees of small ones, copied in and back."""

import os

from scripts.benchmark.archivers import Archiver, BorgMount
from scripts.benchmark.processes import Cost
from scripts.benchmark.setting import MIB, Figures, Setting, both, drop_caches, seconds, valued, warm
from scripts.benchmark.systems import MountedSystem


def large_mounted(system: MountedSystem, setting: Setting) -> Figures:
    """In, until the unmount has returned; back out of a snapshot, if the system has them."""
    source = setting.sources.large
    with system.running():
        warm(source)
        copied = system.measure(lambda: _copy_and_stop(system, setting))
        synced = system.measure(os.sync)
        stored = system.stored_bytes()
        system.mount()
        if not system.keeps:
            system.tool("cp", "-r", source, system.tree)
        past = system.past(source.name)
        if system.keeps:
            system.stop()
            drop_caches()
            system.mount()
        drop_caches()
        back = system.measure(lambda: system.tool("cp", "-r", past, setting.place / "back"))
        system.tool("rm", "-rf", setting.place / "back")
        system.stop()
    return _figures(copied, synced, stored, back)


def _copy_and_stop(system: MountedSystem, setting: Setting) -> None:
    system.tool("cp", "-r", setting.sources.large, system.tree)
    system.stop()


def large_archived(system: Archiver, setting: Setting) -> Figures:
    """In and back by the commands for it."""
    try:
        system.init()
        warm(setting.sources.large)
        copied = system.measure(lambda: system.create("one", setting.sources.large))
        synced = system.measure(os.sync)
        stored = system.stored_bytes()
        drop_caches()
        target = setting.place / "back"
        target.mkdir()
        back = system.measure(lambda: system.restore("one", target))
        system.tool("rm", "-rf", target)
    finally:
        system.discard()
    return _figures(copied, synced, stored, back)


def _figures(copied: Cost, synced: Cost, stored: int, back: Cost) -> Figures:
    through = both(copied, synced)
    figures = {"copy-in": seconds(copied), "copy-in-synced": seconds(through), "copy-back": seconds(back)}
    return {**figures, "size-large": valued(stored / MIB, through)} if stored else figures


def large_borg_mount(system: BorgMount, setting: Setting) -> Figures:
    """Back through `borg mount`; mounting does not count."""
    try:
        system.init()
        system.create("one", setting.sources.large)
        past = system.mount() / "one" / setting.sources.large.name
        drop_caches()
        back = system.measure(lambda: system.tool("cp", "-r", past, setting.place / "back"))
        system.tool("rm", "-rf", setting.place / "back")
        system.stop()
    finally:
        system.discard()
    return {"copy-back": seconds(back)}


def tree_mounted(system: MountedSystem, setting: Setting) -> Figures:
    """`cp -a`, and the unmount."""
    with system.running():
        warm(setting.sources.tree)
        copied = system.measure(lambda: system.tool("cp", "-a", setting.sources.tree, system.tree))
        stopped = system.measure(system.stop)
    return {"tree": seconds(copied), "tree-durable": seconds(both(copied, stopped))}


def tree_archived(system: Archiver, setting: Setting) -> Figures:
    """By the command for it."""
    try:
        system.init()
        warm(setting.sources.tree)
        copied = system.measure(lambda: system.create("one", setting.sources.tree))
    finally:
        system.discard()
    return {"tree-durable": seconds(copied)}


def remove(system: MountedSystem, setting: Setting) -> Figures:
    """`rm -rf` of a tree that was just copied in."""
    with system.running():
        warm(setting.sources.tree)
        system.tool("cp", "-a", setting.sources.tree, system.tree)
        system.settle()
        removed = system.measure(lambda: system.tool("rm", "-rf", system.tree / setting.sources.tree.name))
        system.stop()
    return {"tree-remove": seconds(removed)}
