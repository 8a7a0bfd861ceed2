"""The PCI configuration access capability: the BARs, seen through configuration space (virtio 1.3, 4.1.4.9).

For firmware that cannot reach the BARs. An access to ``pci_cfg_data`` becomes one of ``length`` bytes at ``offset`` of
``bar``; what the guest wrote there wrongly is ignored.
"""

from __future__ import annotations

from typing import Final

from pyvirtfs.pci import Capability, PciFunction
from pyvirtfs.virtio.layout import CAP_ID_VENDOR, CFG_PCI, VirtioPciCfgCap, fields

_FIELDS: Final = fields(VirtioPciCfgCap)
_BAR: Final = _FIELDS["bar"][0]
_OFFSET: Final = _FIELDS["offset"][0]
_LENGTH: Final = _FIELDS["length"][0]
_DATA: Final = _FIELDS["pci_cfg_data"][0]
NBYTES: Final = _DATA + _FIELDS["pci_cfg_data"][1]


def _image(cfg_type: int, fill: int) -> bytes:
    return bytes(
        VirtioPciCfgCap.build(
            {
                "cap_vndr": CAP_ID_VENDOR,
                "cap_next": 0,
                "cap_len": NBYTES,
                "cfg_type": cfg_type,
                "bar": fill & 0xFF,
                "id": 0,
                "padding": [0, 0],
                "offset": fill,
                "length": fill,
                "pci_cfg_data": [fill & 0xFF] * 4,
            }
        )
    )


class ConfigWindow:
    """The capability of one function.

    Args:
        function: The function whose BARs it shows; `capability` has to be added to it.
    """

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self.capability = Capability(
            _image(CFG_PCI, 0),
            writable=bytes(4) + _image(0, 0xFFFFFFFF)[4:],
            before_read=self._before_read,
            after_write=self._after_write,
        )

    def _target(self, offset: int, size: int) -> tuple[int, int, int] | None:
        """BAR, offset and length, if an access to the capability reaches the data and they make sense."""
        if offset + size <= _DATA:
            return None
        load = self.capability.load
        bar, where, length = load(_BAR, 1), load(_OFFSET, 4), load(_LENGTH, 4)
        target = self._function.bars.get(bar)
        if target is None or length not in {1, 2, 4} or where % length or where + length > target.nbytes:
            return None
        return bar, where, length

    def _before_read(self, offset: int, size: int) -> None:
        target = self._target(offset, size)
        if target is not None:
            self.capability.store(_DATA, target[2], self._function.bar_read(*target))

    def _after_write(self, offset: int, size: int) -> None:
        target = self._target(offset, size)
        if target is not None:
            self._function.bar_write(*target, self.capability.load(_DATA, target[2]))
