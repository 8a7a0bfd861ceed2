"""The requests of 9P2000.L, grouped by what they are about; `pyvirtfs.p9.operation` says how each is written."""
