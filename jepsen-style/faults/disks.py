"""Disks that can fail for real: file systems of their own in files, mounted by loop devices. Root only.

    Loop    an ext4 in a file. Power cut: the FS_IOC_SHUTDOWN ioctl forgets what was not synced, journal and all, as a cut
            does; what the kernel had not yet written is gone after the next mount.
    Thin    an ext4 in a sparse file on a tmpfs. Where the tmpfs is full, the device fails: a true EIO from fdatasync, after
            which the kernel has dropped the pages ("fsyncgate").

The mounts live in the mount namespace of the runner (`namespace.py`) and end with it.
"""

import contextlib
import fcntl
import os
import struct
import subprocess
from pathlib import Path

FS_IOC_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32), of linux/fs.h; ext4 and xfs know it."""
NO_LOG_FLUSH = 2
"""The journal is not flushed either."""
IMAGE_MIB = 192
THIN_MIB = 160
COMMAND_SECONDS = 30


class DiskFailed(Exception):
    """A mount did not work; the message is the command's."""


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DiskFailed(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise DiskFailed(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Loop:
    """See the module."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "disk"
        self.image = self._place() / "disk.img"
        self.path.mkdir(parents=True, exist_ok=True)
        with self.image.open("wb") as image:
            image.truncate(IMAGE_MIB << 20)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self.image))
        self.mount()

    def _place(self) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        return self.directory

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self.image), str(self.path))

    def unmount(self) -> None:
        _run("umount", str(self.path))

    def shut_down(self) -> None:
        """From now on every write and sync fails, and what was not synced is lost. `remount` makes it a disk again."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def remount(self) -> None:
        """After a cut: the journal is replayed, as at a start. Nobody may have a file open."""
        self.unmount()
        self.mount()

    @property
    def _ballast(self) -> Path:
        return self.path / "ballast"

    def fill(self) -> int:
        """Takes all the room there is; returns the bytes taken."""
        free = os.statvfs(self.path)
        size = free.f_bavail * free.f_frsize
        with self._ballast.open("wb") as ballast:
            with contextlib.suppress(OSError):
                os.posix_fallocate(ballast.fileno(), 0, size)
            with contextlib.suppress(OSError):
                for _ in range(64):  # what the estimate left
                    ballast.write(b"\0" * 65536)
                    ballast.flush()
            return ballast.tell()

    def free(self) -> None:
        """Gives the room back."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """No mount and no image remain."""
        with contextlib.suppress(DiskFailed):
            _run("umount", "-l", str(self.path))
        self.image.unlink(missing_ok=True)


class Thin(Loop):
    """See the module."""

    def _place(self) -> Path:
        store = self.directory / "store"
        store.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={THIN_MIB}m", "tmpfs", str(store))
        return store

    def starve(self) -> None:
        """The device takes no block that it does not have already: EIO."""
        facts = os.statvfs(self.image.parent)
        used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
        _run("mount", "-o", f"remount,size={max(used, 1 << 20)}", str(self.image.parent))

    def feed(self) -> None:
        """The device works again."""
        _run("mount", "-o", f"remount,size={THIN_MIB}m", str(self.image.parent))

    def close(self) -> None:
        super().close()
        with contextlib.suppress(DiskFailed):
            _run("umount", "-l", str(self.image.parent))


VOLUMES = {"loop": Loop, "thin": Thin}
