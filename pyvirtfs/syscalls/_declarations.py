"""The C declarations behind this package, and how ``_libc.py`` is made of them.

Parsing C at import would cost 50 ms, so cffi's out-of-line ABI mode is used: ``python -m
pyvirtfs.syscalls._declarations`` writes the parsed form, which is checked in. No compiler is needed, and nothing is
parsed at run time.
"""

from __future__ import annotations

import os
import tempfile
from typing import Final

from cffi import FFI

DECLARATIONS: Final = """
/* The types of a 64-bit Linux: off_t and ssize_t are int64_t there. Structures that Python packs and unpacks itself are
   plain bytes here. */

struct iovec { uint64_t base; uint64_t nbytes; };
struct open_how { uint64_t flags; uint64_t mode; uint64_t resolve; };
struct timespec { int64_t sec; int64_t nsec; };
struct file_handle { unsigned int handle_bytes; int handle_type; unsigned char f_handle[128]; };

int statx(int dirfd, const char *path, int flags, unsigned int mask, void *statxbuf);
int fchownat(int dirfd, const char *path, uint32_t uid, uint32_t gid, int flags);
int utimensat(int dirfd, const char *path, const struct timespec *times, int flags);
int linkat(int old_dirfd, const char *old_path, int new_dirfd, const char *new_path, int flags);
int renameat2(int old_dirfd, const char *old_path, int new_dirfd, const char *new_path, unsigned int flags);

int64_t getdents64(int fd, void *buffer, size_t nbytes);
int64_t preadv(int fd, const struct iovec *iov, int count, int64_t offset);
int64_t pwritev(int fd, const struct iovec *iov, int count, int64_t offset);
int sync_file_range(int fd, int64_t offset, int64_t nbytes, unsigned int flags);

void *mmap(void *address, size_t nbytes, int protection, int flags, int fd, int64_t offset);
int munmap(void *address, size_t nbytes);

int64_t listxattr(const char *path, char *list, size_t nbytes);
int fstatfs(int fd, void *statfsbuf);

int name_to_handle_at(int dirfd, const char *path, struct file_handle *handle, int *mount_id, int flags);
int open_by_handle_at(int mount_fd, struct file_handle *handle, int flags);

int capget(void *header, void *data);

/* Takes any number of arguments of any type: it is cast to the right signature where it is used. */
long syscall(long number);
"""

_HEADER: Final = '''"""Made by ``python -m pyvirtfs.syscalls._declarations``; not to be edited."""
# fmt: off
# ruff: noqa: E501, Q000
# Lines and quotes are as cffi writes them.

from __future__ import annotations

import _cffi_backend
'''


def generate() -> str:
    """Make the source of ``_libc.py``."""
    builder = FFI()
    builder.set_source("pyvirtfs.syscalls._libc", None)
    builder.cdef(DECLARATIONS)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "_libc.py")
        builder.emit_python_code(path)
        with open(path, encoding="ascii") as source:
            return _HEADER + source.read().partition("import _cffi_backend\n")[2]


def main() -> None:
    """Write ``_libc.py`` beside this file."""
    with open(os.path.join(os.path.dirname(__file__), "_libc.py"), "w", encoding="ascii") as target:
        target.write(generate())


if __name__ == "__main__":
    main()
