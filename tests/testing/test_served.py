from __future__ import annotations

import os
import threading
from pathlib import Path

from pyvirtfs import GuestMemory, Virtio9pPci
from pyvirtfs.guest import DirectMachine, VfioUserClient, mount
from pyvirtfs.syscalls import memfd_create
from pyvirtfs.testing import ServedFunction, check_descriptors

RAM_NBYTES = 16 << 20


def test_a_guest_over_a_socket(tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "file").write_text("Hi Guest")
    with check_descriptors():
        ram, fd = GuestMemory(), memfd_create("guest-ram", RAM_NBYTES)
        options = f"local,path={export},security_model=none"
        with (
            Virtio9pPci(options, mount_tag="tag", memory=ram, defer=True) as device,
            ServedFunction(device, ram, tmp_path / "socket") as served,
        ):
            machine = DirectMachine(GuestMemory.from_fd(fd, RAM_NBYTES))
            with VfioUserClient(served.path, machine.memory, machine.pin, memory_fd=fd) as client:
                os.close(fd)
                channel = machine.open_channel(machine.attach(client, client.progress))
                with mount(channel) as mounted:
                    assert (mounted.root / "file").read_text() == "Hi Guest"
        assert len(served.hangups) == 1
    assert not os.path.exists(served.path)
    assert threading.active_count() == 1
