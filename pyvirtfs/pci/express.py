"""The PCI Express and power management capabilities of an endpoint, with the values that guests know from QEMU."""

from __future__ import annotations

from pyvirtfs.pci import layout
from pyvirtfs.pci.config import AccessHook, Capability

_EXTENDED_TAGS = 0x0020
_DEVICE_ERRORS = 0x000F  # correctable, non-fatal, fatal, unsupported request: reporting enable and detected bits alike
_LINK_COMMON_CLOCK_AND_EXTENDED_SYNCH = 0x00C0
_EXTENDED_FORMAT_AND_PREFIXES = 0x0030_0000
_PREFIX_BLOCKING = 0x8000


def express_capability(after_write: AccessHook, *, flr: bool) -> Capability:
    """The PCI Express capability of an endpoint at 2.5 GT/s, one lane (PCIe 2.0, 7.8).

    Args:
        after_write: Called after a write to it, for the function level reset bit of device control.
        flr: Whether the function offers a function level reset (PCIe 2.0, 6.6.2).
    """
    return Capability(
        layout.EXPRESS.build(
            {
                "capability_id": layout.CAP_EXPRESS,
                "flags": 0x0002,  # version 2, endpoint
                "device_capabilities": _EXTENDED_TAGS
                | layout.DEVCAP_ROLE_BASED_ERRORS
                | (layout.DEVCAP_FLR if flr else 0),
                "link_capabilities": 0x0411,  # 2.5 GT/s, x1, L0s
                "link_status": 0x0011,  # 2.5 GT/s, x1
                "device_capabilities_2": _EXTENDED_FORMAT_AND_PREFIXES,
            }
        ),
        writable=layout.EXPRESS.build(
            {
                "device_control": _DEVICE_ERRORS | (layout.DEVCTL_INITIATE_FLR if flr else 0),
                "link_control": _LINK_COMMON_CLOCK_AND_EXTENDED_SYNCH,
                "device_control_2": _PREFIX_BLOCKING,
            }
        ),
        write_one_clears=layout.EXPRESS.build({"device_status": _DEVICE_ERRORS}),
        after_write=after_write,
    )


def power_capability(after_write: AccessHook) -> Capability:
    """The power management capability: version 3, states D0 and D3hot, no PME (PCI PM 1.2, 3.2).

    Args:
        after_write: Called after a write to it, for the change of the power state.
    """
    return Capability(
        layout.POWER_MANAGEMENT.build({"capability_id": layout.CAP_POWER_MANAGEMENT, "pmc": 0x0003}),
        writable=layout.POWER_MANAGEMENT.build({"pmcsr": layout.PMCSR_STATE}),
        after_write=after_write,
    )
