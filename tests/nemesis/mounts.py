"""Small disks of our own, that really get full: a tmpfs per node, in a mount namespace that ends with this process."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_NEW_NAMESPACE = 0x00020000
_REMOUNT = 32
_RECURSIVE_PRIVATE = 16384 | 1 << 18
MIB = 1024 * 1024
SIZE_BYTES = 512 * MIB
PAGE_BYTES = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def enter_namespace() -> bool:
    """From here on this process and its children see mounts of their own; False if that is not permitted.

    Nobody else sees them, and the kernel takes them away when the last of these processes ends, however it ends.
    """
    if _libc.unshare(_NEW_NAMESPACE) != 0:
        return False
    return bool(_libc.mount(b"none", b"/", None, _RECURSIVE_PRIVATE, None) == 0)


def mount_disk(folder: Path) -> bool:
    """Put a disk there; False if that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    return _mount(folder, 0, SIZE_BYTES)


def used_bytes(folder: Path) -> int:
    stat = os.statvfs(folder)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


def free_bytes(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def resize_disk(folder: Path, *, leave_bytes: int | None) -> None:
    """Let this much be free there, or (None) as much as in the beginning. Raises OSError."""
    for _ in range(20):
        size = SIZE_BYTES if leave_bytes is None else used_bytes(folder) + leave_bytes
        if _mount(folder, _REMOUNT, max(size, PAGE_BYTES)):
            return
    raise OSError(ctypes.get_errno(), f"{folder} cannot be resized")


def unmount_disk(folder: Path) -> None:
    """Take it away, now or as soon as nobody uses it."""
    _libc.umount2(str(folder).encode(), 2)


def _mount(folder: Path, flags: int, size_bytes: int) -> bool:
    options = f"size={size_bytes}".encode()
    return bool(_libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", flags, options) == 0)
