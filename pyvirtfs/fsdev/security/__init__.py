"""The security models of a local export, by the name that ``security_model=`` gives them."""

from typing import Final

from pyvirtfs.fsdev.security.mapped import MappedModel
from pyvirtfs.fsdev.security.mapped_file import MappedFile
from pyvirtfs.fsdev.security.mapped_xattr import MappedXattr
from pyvirtfs.fsdev.security.model import SecurityModel
from pyvirtfs.fsdev.security.none import NoModel
from pyvirtfs.fsdev.security.passthrough import Passthrough
from pyvirtfs.fsdev.security.translated import TRANSLATED

__all__ = [
    "MODELS",
    "TRANSLATED",
    "MappedFile",
    "MappedModel",
    "MappedXattr",
    "NoModel",
    "Passthrough",
    "SecurityModel",
]

MODELS: Final[dict[str, type[SecurityModel]]] = {
    "passthrough": Passthrough,
    "mapped": MappedXattr,
    "mapped-xattr": MappedXattr,
    "mapped-file": MappedFile,
    "none": NoModel,
}
