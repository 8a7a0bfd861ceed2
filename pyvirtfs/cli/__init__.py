"""The command line of pyvirtfs."""
