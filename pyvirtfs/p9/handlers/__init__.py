"""The requests, grouped by what they are about; `pyvirtfs.p9.operation` says how each is written.

The modules ``plan9_*`` are for what 9P2000 and 9P2000.u have, and 9P2000.L does not or not in that way.
"""
