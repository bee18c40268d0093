"""What the repository takes of data that comes in versions, an archive or a snapshot after each."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from scripts.benchmark.archivers import Archiver
from scripts.benchmark.figures import Figure
from scripts.benchmark.processes import Cost
from scripts.benchmark.setting import MIB, By, Figures, Setting, both, by, valued
from scripts.benchmark.sources import CODE_VERSIONS, DUMP_VERSIONS, IMAGE_VERSIONS, Sources, edit
from scripts.benchmark.systems import BackupFs, System

Put = Callable[[System, Sources, Path, int], None]
"""Have that version, of which the one before is there, in a directory."""


def _put_code(system: System, sources: Sources, place: Path, version: int) -> None:
    if version:
        edit(place / "code", version)
    else:
        system.tool("cp", "-r", sources.code, place)


def _put_dump(system: System, sources: Sources, place: Path, version: int) -> None:
    system.tool("cp", sources.dump / str(version), place / "dump.sql")


def _put_image(system: System, sources: Sources, place: Path, version: int) -> None:
    system.tool("cp", "--sparse=always", sources.image / str(version), place / "disk.img")


DATA: Final[Mapping[str, tuple[int, Put]]] = {
    "code": (CODE_VERSIONS, _put_code),
    "dump": (DUMP_VERSIONS, _put_dump),
    "image": (IMAGE_VERSIONS, _put_image),
}
"""Kind of source -> how many versions there are, and how one is put somewhere."""


def of(kind: str, mounted: type[BackupFs], *archivers: type[Archiver]) -> dict[str, By]:
    """Measures the size of that kind."""
    versions, put = DATA[kind]

    def in_mount(system: BackupFs, setting: Setting) -> Figures:
        with system.running():
            cost = Cost(0, 0, 0)
            for version in range(versions):
                cost = both(cost, system.measure(lambda version=version: put(system, setting.sources, system.tree, version)))  # type: ignore[misc]
                cost = both(cost, system.measure(system.snapshot))
            cost = both(cost, system.measure(system.stop))
            return {f"size-{kind}": _size(system, cost)}

    def in_archives(system: Archiver, setting: Setting) -> Figures:
        source = setting.place / "source"
        source.mkdir()
        try:
            system.init()
            cost = Cost(0, 0, 0)
            for version in range(versions):
                put(system, setting.sources, source, version)
                cost = both(cost, system.measure(lambda version=version: system.create(f"v{version}", source)))  # type: ignore[misc]
            return {f"size-{kind}": _size(system, cost)}
        finally:
            system.discard()
            system.tool("rm", "-rf", source)

    return {**by(in_mount, mounted), **by(in_archives, *archivers)}


def _size(system: System, cost: Cost) -> Figure:
    return valued(system.stored_bytes() / MIB, cost)
