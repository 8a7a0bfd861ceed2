"""The driver `synth`: files that Python functions make, to hand a program's state to its guest."""

from pyvirtfs.fsdev.synth.driver import DRIVER, OPTIONS, SynthDriver
from pyvirtfs.fsdev.synth.nodes import SynthFile, SynthFolder, SynthLink

__all__ = ["DRIVER", "OPTIONS", "SynthDriver", "SynthFile", "SynthFolder", "SynthLink"]
