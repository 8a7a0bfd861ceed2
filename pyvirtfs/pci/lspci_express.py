"""The PCI Express capability in the words of `lspci -vv`, for endpoints (PCIe 2.0, 7.8, and 5.0, 7.5.3)."""

from __future__ import annotations

from typing import Any, Final

from pyvirtfs.pci.layout import EXPRESS

_ENDPOINT, _LEGACY_ENDPOINT, _ROOT_INTEGRATED = 0, 1, 9
_KINDS: Final = {
    _ENDPOINT: "Endpoint",
    _LEGACY_ENDPOINT: "Legacy Endpoint",
    _ROOT_INTEGRATED: "Root Complex Integrated Endpoint",
}
_L0S: Final = ("<64ns", "<128ns", "<256ns", "<512ns", "<1us", "<2us", "<4us", "unlimited")
_L1: Final = ("<1us", "<2us", "<4us", "<8us", "<16us", "<32us", "<64us", "unlimited")
_SPEEDS: Final = {1: "2.5GT/s", 2: "5GT/s", 3: "8GT/s", 4: "16GT/s", 5: "32GT/s", 6: "64GT/s"}
_ASPM: Final = ("not supported", "L0s", "L1", "L0s L1")
_ASPM_ENABLED: Final = ("Disabled", "L0s Enabled", "L1 Enabled", "L0s L1 Enabled")
_TIMEOUT_RANGES: Final = {
    0: "Not Supported",
    1: "Range A",
    2: "Range B",
    3: "Range AB",
    6: "Range BC",
    7: "Range ABC",
    14: "Range BCD",
    15: "Range ABCD",
}
_TIMEOUTS: Final = {
    0: "50us to 50ms",
    1: "50us to 100us",
    2: "1ms to 10ms",
    5: "16ms to 55ms",
    6: "65ms to 210ms",
    9: "260ms to 900ms",
    10: "1s to 3.5s",
    13: "4s to 13s",
    14: "17s to 64s",
}
_OBFF: Final = ("Not Supported", "Via message", "Via WAKE#", "Via message/WAKE#")
_OBFF_ENABLED: Final = ("Disabled", "Via message A", "Via message B", "Via WAKE#")
_POWER_REDUCTION: Final = ("Not Supported", "Dev Specific", "Form Factor Dev Specific", "Reserved")
_MARGINS: Final = {
    0: "Normal Operating Range",
    1: "800-1200mV(full-swing)/400-700mV(half-swing)",
    **dict.fromkeys(range(2, 6), "200-400mV(full-swing)/100-200mV(half-swing)"),
}
_PRESETS: Final = (
    "-6dB de-emphasis, 0dB preshoot",
    "-3.5dB de-emphasis, 0dB preshoot",
    "-4.4dB de-emphasis, 0dB preshoot",
    "-2.5dB de-emphasis, 0dB preshoot",
    "0dB de-emphasis, 0dB preshoot",
    "0dB de-emphasis, 1.9dB preshoot",
    "0dB de-emphasis, 2.5dB preshoot",
    "-6.0dB de-emphasis, 3.5dB preshoot",
    "-3.5dB de-emphasis, 3.5dB preshoot",
    "0dB de-emphasis, 3.5dB preshoot",
)
_CROSSLINK: Final = ("unsupported", "Upstream Port", "Downstream Port", "incomplete")


def flags(value: int, *names: tuple[str, int]) -> str:
    """The names joined by spaces, each with ``+`` or ``-`` for whether a bit of its mask is set in `value`."""
    return " ".join(f"{name}{'+' if value & mask else '-'}" for name, mask in names)


def express_lines(data: bytes, *, first_function: bool, has_memory_bar: bool) -> list[str]:
    """Describe a PCI Express capability.

    Args:
        data: The capability's bytes, id included; what is missing at the end counts as 0.
        first_function: Whether it is function 0 of slot 0: what the link can do is only read there.
        has_memory_bar: Whether the function has a memory BAR, which atomic operations could reach.

    Returns:
        The text behind the capability's offset, then further lines with their indentation.
    """
    cap = EXPRESS.parse(data.ljust(EXPRESS.sizeof(), b"\0"))
    kind, version = cap.flags >> 4 & 15, cap.flags & 15
    name = _KINDS.get(kind)
    lines = [f"Express (v{version}) {name or f'Unknown type {kind}'}, MSI {cap.flags >> 9 & 31:02x}"]
    if name is None:
        return lines
    link = kind != _ROOT_INTEGRATED
    lines += _device(cap, kind)
    if link:
        lines += _link(cap)
    if version >= 2:
        lines += _device_2(cap, kind, has_memory_bar=has_memory_bar)
        if link:
            lines += _link_2(cap, first_function=first_function)
    return lines


def _device(cap: Any, kind: int) -> list[str]:
    able, control, status = cap.device_capabilities, cap.device_control, cap.device_status
    endpoint = kind in (_ENDPOINT, _LEGACY_ENDPOINT)
    first = f"\t\tDevCap:\tMaxPayload {128 << (able & 7)} bytes, PhantFunc {(1 << (able >> 3 & 3)) - 1}"
    second = "\t\t\t" + flags(able, ("ExtTag", 0x20))
    third = flags(
        control, ("RlxdOrd", 0x10), ("ExtTag", 0x100), ("PhantFunc", 0x200), ("AuxPwr", 0x400), ("NoSnoop", 0x800)
    )
    if endpoint:
        first += f", Latency L0s {_L0S[able >> 6 & 7]}, L1 {_L1[able >> 9 & 7]}"
        second += " " + flags(able, ("AttnBtn", 0x1000), ("AttnInd", 0x2000), ("PwrInd", 0x4000))
    second += " " + flags(able, ("RBE", 0x8000))
    second += " " + flags(able, ("FLReset", 1 << 28))
    if able & 1 << 28:
        third += " " + flags(control, ("FLReset", 0x8000))
    if kind == _ENDPOINT:
        second += f" SlotPowerLimit {_watts(able >> 18 & 0xFF, able >> 26 & 3)}"
    return [
        first,
        second,
        "\t\tDevCtl:\t" + flags(control, ("CorrErr", 1), ("NonFatalErr", 2), ("FatalErr", 4), ("UnsupReq", 8)),
        "\t\t\t" + third,
        f"\t\t\tMaxPayload {128 << (control >> 5 & 7)} bytes, MaxReadReq {128 << (control >> 12 & 7)} bytes",
        "\t\tDevSta:\t"
        + flags(
            status,
            ("CorrErr", 1),
            ("NonFatalErr", 2),
            ("FatalErr", 4),
            ("UnsupReq", 8),
            ("AuxPwr", 0x10),
            ("TransPend", 0x20),
        ),
    ]


def _watts(value: int, scale: int) -> str:
    if scale == 0 and value >= 0xF0:  # codes for more than 239 W, in steps of 25 W
        return f"{250 + 25 * (value - 0xF0)}W" if value < 0xFF else ">600W"
    return f"{value / 10**scale:g}W"


def _link(cap: Any) -> list[str]:
    able, control, status = cap.link_capabilities, cap.link_control, cap.link_status
    speed, width, aspm = able & 15, able >> 4 & 63, able >> 10 & 3
    now_speed, now_width = status & 15, status >> 4 & 63
    now = f"{_speed(now_speed)}{_against(now_speed, speed)}, Width x{now_width}{_against(now_width, width)}"
    first = f"\t\tLnkCap:\tPort #{able >> 24}, Speed {_speed(speed)}, Width x{width}, ASPM {_ASPM[aspm]}"
    if aspm:
        exits = [f"L0s {_L0S[able >> 12 & 7]}"] if aspm & 1 else []
        exits += [f"L1 {_L1[able >> 15 & 7]}"] if aspm & 2 else []
        first += ", Exit Latency " + ", ".join(exits)
    return [
        first,
        "\t\t\t"
        + flags(
            able,
            ("ClockPM", 1 << 18),
            ("Surprise", 1 << 19),
            ("LLActRep", 1 << 20),
            ("BwNot", 1 << 21),
            ("ASPMOptComp", 1 << 22),
        ),
        f"\t\tLnkCtl:\tASPM {_ASPM_ENABLED[control & 3]}; RCB {128 if control & 8 else 64} bytes, "
        + flags(control, ("Disabled", 0x10), ("CommClk", 0x40)),
        "\t\t\t"
        + flags(
            control, ("ExtSynch", 0x80), ("ClockPM", 0x100), ("AutWidDis", 0x200), ("BWInt", 0x400), ("AutBWInt", 0x800)
        ),
        f"\t\tLnkSta:\tSpeed {now}",
        "\t\t\t"
        + flags(
            status,
            ("TrErr", 0x400),
            ("Train", 0x800),
            ("SlotClk", 0x1000),
            ("DLActive", 0x2000),
            ("BWMgmt", 0x4000),
            ("ABWMgmt", 0x8000),
        ),
    ]


def _speed(code: int) -> str:
    return _SPEEDS.get(code, "unknown")


def _against(now: int, most: int) -> str:
    return "" if now == most else " (downgraded)" if now < most else " (overdriven)"


def _device_2(cap: Any, kind: int, *, has_memory_bar: bool) -> list[str]:
    able, control = cap.device_capabilities_2, cap.device_control_2
    prefixes = flags(able, ("ExtFmt", 1 << 20), ("EETLPPrefix", 1 << 21))
    if able & 1 << 21:
        prefixes += f", MaxEETLPPrefixes {(able >> 22 & 3) or 4}"
    hints = (("TPHComp", 0x1000), ("ExtTPHComp", 0x2000)) if kind == _ENDPOINT and able >> 12 & 3 != 2 else ()
    lines = [
        f"\t\tDevCap2: Completion Timeout: {_TIMEOUT_RANGES.get(able & 15, 'Unknown')}, "
        + flags(able, ("TimeoutDis", 0x10), ("NROPrPrP", 0x400), ("LTR", 0x800)),
        "\t\t\t "
        + flags(able, ("10BitTagComp", 1 << 16), ("10BitTagReq", 1 << 17))
        + f" OBFF {_OBFF[able >> 18 & 3]}, {prefixes}",
        f"\t\t\t EmergencyPowerReduction {_POWER_REDUCTION[able >> 24 & 3]}, "
        + flags(able, ("EmergencyPowerReductionInit", 1 << 26)),
        "\t\t\t " + flags(able, ("FRS", 1 << 31), *hints),
    ]
    if has_memory_bar:
        lines.append("\t\t\t AtomicOpsCap: " + flags(able, ("32bit", 0x80), ("64bit", 0x100), ("128bitCAS", 0x200)))
    lines += [
        f"\t\tDevCtl2: Completion Timeout: {_TIMEOUTS.get(control & 15, 'Unknown')}, "
        + flags(control, ("TimeoutDis", 0x10), ("LTR", 0x400), ("10BitTagReq", 0x1000))
        + f" OBFF {_OBFF_ENABLED[control >> 13 & 3]},",
        "\t\t\t AtomicOpsCtl: " + flags(control, ("ReqEn", 0x40)),
    ]
    return lines


def _link_2(cap: Any, *, first_function: bool) -> list[str]:
    able, control, status = cap.link_capabilities_2, cap.link_control_2, cap.link_status_2
    lines = []
    if first_function:
        if able:
            lines.append(
                f"\t\tLnkCap2: Supported Link Speeds: {_speed_range(able >> 1 & 0x7F)}, "
                + flags(able, ("Crosslink", 0x100), ("Retimer", 1 << 23), ("2Retimers", 1 << 24), ("DRS", 1 << 31))
            )
        lines += _link_control_2(control)
    lines += [
        f"\t\tLnkSta2: Current De-emphasis Level: {'-3.5dB' if status & 1 else '-6dB'}, "
        + flags(status, ("EqualizationComplete", 2), ("EqualizationPhase1", 4)),
        "\t\t\t "
        + flags(status, ("EqualizationPhase2", 8), ("EqualizationPhase3", 0x10), ("LinkEqualizationRequest", 0x20)),
        "\t\t\t "
        + flags(status, ("Retimer", 0x40), ("2Retimers", 0x80))
        + f" CrosslinkRes: {_CROSSLINK[status >> 8 & 3]}",
    ]
    return lines


def _speed_range(vector: int) -> str:
    highest = vector.bit_length()
    if highest in (0, 1):
        return "2.5GT/s" if highest else "Unknown"
    return f"2.5-{_SPEEDS[highest]}" if highest < 6 else "RsvdP"


def _link_control_2(control: int) -> list[str]:
    preset = control >> 12 & 15
    return [
        f"\t\tLnkCtl2: Target Link Speed: {_SPEEDS.get(control & 15 or 1, 'Unknown')}, "
        + flags(control, ("EnterCompliance", 0x10), ("SpeedDis", 0x20)),
        f"\t\t\t Transmit Margin: {_MARGINS.get(control >> 7 & 7, 'Unknown')}, "
        + flags(control, ("EnterModifiedCompliance", 0x400), ("ComplianceSOS", 0x800)),
        f"\t\t\t Compliance Preset/De-emphasis: {_PRESETS[preset] if preset < len(_PRESETS) else 'Unknown'}",
    ]
