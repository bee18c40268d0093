"""The numbers and names by which things are known. All are plain integers or bytes; the types keep them apart."""

from typing import Final, NewType

Ino = NewType("Ino", int)
"""Inode number of the live tree, below 2**40. 1 is the root."""
Epoch = NewType("Epoch", int)
"""Generation of the metadata; a snapshot ends one. Starts at 1."""
BlobNumber = NewType("BlobNumber", int)
BlobId = NewType("BlobId", bytes)
"""32 bytes: keyed BLAKE3 of the plaintext."""
PackNumber = NewType("PackNumber", int)
ObjectId = NewType("ObjectId", bytes)
"""16 bytes that name an object in the store."""
RepositoryId = NewType("RepositoryId", bytes)
"""16 random bytes."""
DataNumber = NewType("DataNumber", int)
"""Names the regions of a file; a file that is emptied gets a new one."""
Serial = NewType("Serial", int)
"""Number of a snapshot, from 1; 0 stands for the live tree."""

ROOT_INO: Final = Ino(1)
FIRST_INO: Final = Ino(16)
INO_BITS: Final = 40
"""An inode number as the kernel sees it is `serial << INO_BITS | ino`, so that a file and its past are not one file."""
