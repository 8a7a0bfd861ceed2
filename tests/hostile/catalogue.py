"""What comparable file servers and devices got wrong, by number, in a line each. Each has a test of its number here.

A row that names what it waits for has no test yet, or (`in_part`) waits with a part of it.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Row(NamedTuple):
    """A kind of defect."""

    about: str
    waits_for: str = ""
    """A part of the project that does not exist yet; empty: nothing."""
    in_part: str = ""
    """The same, for a row that has tests already."""


CATALOGUE: Final[dict[str, Row]] = {
    # Names and paths
    "H001": Row("Names that are none (empty, dots, slashes, NULs, too long) reach the host; CVE-2016-7116"),
    "H002": Row("A walk of .. at the root leaves the export; CVE-2016-7116"),
    "H003": Row("A string of no bytes becomes a null pointer; CVE-2016-8578"),
    "H004": Row("What is done to the root of the export is done to the root of the host; CVE-2017-7471"),
    "H005": Row("The guest reaches the files that hold mapped attributes; CVE-2017-7493"),
    "H006": Row("A walk with .. or a slash escapes, or .. below the root stops working; rust 9p server, 2026"),
    "H007": Row("Long paths overrun a buffer or are cut off; kvmtool"),
    "H008": Row("The length of a path is kept in 16 bits; QEMU gitlab issue 3358"),
    "H009": Row("A long name overruns a buffer of one of the drivers; QEMU gitlab issue 3298"),
    "H010": Row("Plain 9P modes grow a set-user-id bit; CVE-2024-36964"),
    # Symbolic links and races
    "H020": Row("A symbolic link that the host puts in place of a parent is followed; CVE-2016-9602"),
    "H021": Row("The same for the last name, and for the export itself"),
    "H022": Row("A Tlcreate changes a fid while a walk or an xattr walk copies from it; QEMU gitlab issue 4491"),
    "H023": Row("A Tlcreate changes a fid while other requests read it; CVE-2018-19364"),
    "H024": Row("A rename races with whoever uses the name; CVE-2018-19489"),
    "H025": Row("Modes, owners and times are changed by path, so of something else"),
    "H026": Row("A symbolic link is read as another one's target under load; nixpkgs issue 22695"),
    "H027": Row("Magic links (/proc/self/root, /proc/self/fd) inside the export are followed"),
    # Fids
    "H040": Row("Opening an open fid again loses a descriptor; CVE-2017-7377"),
    "H041": Row("A Tlink keeps a reference for ever; CVE-2016-9105"),
    "H042": Row("A fid is used that was clunked meanwhile; CVE-2021-20181"),
    "H043": Row("Unlinking a file with fids on it crashes the server; QEMU gitlab issue 181"),
    "H044": Row("Entries of an open folder cannot be removed, so rm -rf fails; lib9p issue 18"),
    "H045": Row("Unlinked open files lose their attributes; QEMU gitlab issue 103"),
    "H046": Row("A device that is removed leaves things behind; CVE-2016-9913 to 9916"),
    "H047": Row("Requests in flight use a device that is gone"),
    "H048": Row("A Tclunk or Tremove that fails keeps the fid"),
    "H049": Row("A clunk of the fid that a partial walk never made changes something"),
    "H050": Row("The first and the last fid numbers, the same number twice, a number that is just being moved"),
    "H051": Row("Fids lose an object that was renamed, or one below a folder that was"),
    # Extended attributes
    "H060": Row("Announcing an attribute twice loses the first buffer; CVE-2016-9102"),
    "H061": Row("An attribute read before it was written shows foreign memory; CVE-2016-9103"),
    "H062": Row("Offset and count of an attribute overflow; CVE-2016-9104"),
    "H063": Row("A list of attributes that fails leaves memory behind; CVE-2017-8086"),
    "H064": Row("An attribute changes its size between two looks at it; CVE-2017-15038"),
    "H065": Row("Sizes and names of attributes at and beyond their limits"),
    "H066": Row("An attribute is set of which not all bytes came"),
    "H067": Row("The guest reaches attributes that hold mapped ones"),
    "H068": Row("A file capability survives a write; CVE-2021-20263"),
    # Resources
    "H080": Row("A read leaves memory behind; CVE-2016-8577"),
    "H081": Row("A write whose reply cannot be stored leaves memory behind; CVE-2016-9106"),
    "H082": Row("A guest takes all descriptors; CVE-2020-10717"),
    "H083": Row("Without descriptors, a listing lacks entries instead of failing"),
    "H084": Row("A Treaddir asks for more than a message holds"),
    "H085": Row("The count of a read or write overflows with its header; diod issue 136"),
    "H086": Row("Large folders in small portions: entries lost, or the server out of memory; minikube issue 1753"),
    "H087": Row("Listing a folder takes more than linear time; gvisor issue 6578"),
    "H088": Row("A file system without a block size divides by zero"),
    "H089": Row("The numbers for objects of other devices run out"),
    "H090": Row("Memory is not bounded by what the ring holds"),
    "H091": Row("A throttled request starves the Tflush behind it"),
    # The ring and the transport
    "H100": Row("A doorbell with a queue that does not exist; CVE-2011-2512", in_part="the legacy interface"),
    "H101": Row("More requests than the ring has entries; CVE-2016-5403"),
    "H102": Row("Descriptors in a circle, or out of the ring; CVE-2016-6490"),
    "H103": Row("Queues enabled without an address, a size, or alignment; CVE-2017-17381"),
    "H104": Row("Writes to the MSI-X region; CVE-2015-7549"),
    "H105": Row("Descriptors that point to the device itself, to the ring, or to each other; CVE-2024-3446"),
    "H106": Row("A request or the room for its reply shorter than a header"),
    "H107": Row("A reply larger than its room"),
    "H108": Row("A Tflush of its own tag hangs the reset"),
    "H109": Row("Several Tflush of one request hang the reset"),
    "H110": Row("A request is answered after it was flushed"),
    "H111": Row("One request more than the device has places for"),
    "H112": Row("Accesses at and across the edges of registers; kvmtool"),
    "H113": Row("The window to the BARs in configuration space: no such BAR, other lengths, itself"),
    "H114": Row("A forged packed ring", waits_for="packed virtqueues"),
    "H115": Row("Indirect tables of odd lengths, out of RAM, inside themselves"),
    "H116": Row("A reset while requests run: their answers come afterwards"),
    "H117": Row("A vfio-user client that lies about sizes, descriptors, memory, or just leaves"),
    "H118": Row("RAM that goes away while requests use it"),
    "H119": Row("Replies sent as requests, and any other bytes; diod issues 137 and 110"),
    # Messages
    "H130": Row("A walk that got part of the way is answered with an error"),
    "H131": Row("A walk that was flushed is answered wrongly"),
    "H132": Row("A wrong blksize in Rgetattr"),
    "H133": Row("Directory entries read behind their end"),
    "H134": Row("The status of an Rlock has four bytes; kvmtool"),
    "H135": Row("A Tfsync of the old form hangs; diod issue 118"),
    "H136": Row("A file system has no id, or another one each time; diod issue 119"),
    "H137": Row("Counts and lengths that claim more bytes than there are; CVE-2016-8577"),
    "H138": Row("Tversion with any msize and version, and amidst other requests"),
    "H139": Row("Replies into buffers as small as those of current Linux"),
    "H140": Row("Error strings: longer than a client takes, not ASCII"),
    # Special files
    "H150": Row("FIFOs, sockets and devices of the host are opened; CVE-2023-2861"),
    "H151": Row("The same, put in place between check and open; CVE-2020-35517"),
    "H152": Row("Device nodes that the guest makes give it the host's devices"),
    "H153": Row("Huge sparse files, and files that claim to have no bytes"),
    # Privileges
    "H160": Row("Set-id bits survive a write, a truncation or a new owner; CVE-2023-1386"),
    "H161": Row("Files get a group's rights from somebody who is not in it; CVE-2022-0358"),
    "H162": Row("The umask of the server changes the guest's modes"),
    "H163": Row("A readonly export is changed by some message"),
    "H164": Row("A guest remounts a readonly export and may write"),
    "H165": Row("Mapped objects belong to others than the server on the host"),
    "H166": Row("Objects belong to the user of another attach"),
}  # fmt: skip
