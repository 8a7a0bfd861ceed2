"""The device against QEMU's own, in a real Linux guest: `python -m benchmarks.realguest`."""
