"""From construct declarations to fast code.

Parsing through construct costs some 10 µs a message. The declarations say all that there is to know, so this module
walks them (`describe`), joins neighbouring numbers to one `struct.Struct` each, and writes a Python module with one
decoder and one encoder per message (`generate`): plain, readable source, the same for the same declarations, which
`load` compiles. A traceback through it shows its lines.

Only what 9P needs is understood: integers, nested structs of integers, counted strings, counted arrays of either, and
counted data at the end. Anything else is refused with TypeError at import, not mistranslated.
"""

from __future__ import annotations

import linecache
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import construct

from pyvirtfs.errors import MessageError
from pyvirtfs.p9.messages import HEADER, Declaration, Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_INTEGER_CODES = "BHIQbhiq"
_HEADER_CODES = "IBH"
_SIZE_MARK = "<size>"
_RESERVED = frozenset({"message", "tag", "error", "malformed", "len", "range", "tuple"})  # what generated functions use


# --- what a declaration is made of ---


class Integer(NamedTuple):
    """A number."""

    name: str
    code: str
    """Its `struct` format character."""


class Group(NamedTuple):
    """Numbers that make one value, such as a qid; a tuple in Python."""

    name: str
    members: tuple[Integer, ...]

    @property
    def codes(self) -> str:
        """The `struct` format of its members."""
        return "".join(member.code for member in self.members)


class Text(NamedTuple):
    """A string with its length before it; bytes in Python."""

    name: str
    prefix: str
    """The `struct` format character of the length."""


class Array(NamedTuple):
    """Equal elements with their number before them; a tuple in Python."""

    name: str
    prefix: str
    """The `struct` format character of the number."""
    element: Group | Text


class Payload(NamedTuple):
    """Data at the end, as long as an earlier field says; never copied here, so no value in Python."""

    name: str
    length_field: str
    """The name of the field that holds the length."""


class _NameOfField(dict[str, str]):
    """A context for construct's expressions that answers ``this.x`` with its name."""

    def __missing__(self, key: str) -> str:
        return key


Field: TypeAlias = Integer | Group | Text | Array | Payload


def _integer_code(declaration: Declaration) -> str | None:
    """The `struct` character of a little-endian construct integer, None for anything else."""
    if not isinstance(declaration, construct.FormatField):
        return None
    order, code = declaration.fmtstr
    code = {"L": "I", "l": "i"}.get(code, code)  # two names of one format
    return code if order == "<" and code in _INTEGER_CODES else None


def _describe_array(name: str, declaration: Declaration) -> Array | None:
    """Recognise construct.PrefixedArray, which is a FocusedSeq of a rebuilt count and the items."""
    parts = {part.name: part.subcon for part in declaration.subcons}
    if set(parts) != {"count", "items"} or not isinstance(parts["items"], construct.Array):
        return None
    prefix = _integer_code(parts["count"].subcon)
    element = _describe_field(name, parts["items"].subcon)
    return Array(name, prefix, element) if prefix and isinstance(element, Group | Text) else None


def _describe_field(name: str, declaration: Declaration) -> Field:
    field: Field | None = None
    if code := _integer_code(declaration):
        field = Integer(name, code)
    elif isinstance(declaration, construct.Struct):
        members = describe(declaration)
        if members and all(isinstance(member, Integer) for member in members):
            field = Group(name, members)  # type: ignore[arg-type]  # just checked
    elif isinstance(declaration, construct.Prefixed) and declaration.subcon is construct.GreedyBytes:
        prefix = _integer_code(declaration.lengthfield)
        field = Text(name, prefix) if prefix and not declaration.includelength else None
    elif isinstance(declaration, construct.FocusedSeq):
        field = _describe_array(name, declaration)
    elif isinstance(declaration, construct.Bytes) and callable(declaration.length):
        length_field = declaration.length(_NameOfField())
        field = Payload(name, length_field) if isinstance(length_field, str) else None
    if field is None:
        raise TypeError(f"field {name}: no lowering for {declaration!r}")
    return field


def describe(declaration: Declaration) -> tuple[Field, ...]:
    """The fields of a construct Struct, in wire order.

    Raises:
        TypeError: It holds something that this module does not understand.
    """
    fields = tuple(_describe_field(subcon.name, subcon.subcon) for subcon in declaration.subcons)
    for position, field in enumerate(fields):
        if not field.name.isidentifier() or field.name.startswith("_") or field.name in _RESERVED:
            raise TypeError(f"field {field.name!r}: not usable as a name in generated code")
        if isinstance(field, Payload) and (
            position != len(fields) - 1
            or fixed_size(fields[:position]) is None
            or not any(other.name == field.length_field for other in fields[:position])
        ):
            raise TypeError(f"field {field.name!r}: a payload stands at the end, behind its count and numbers only")
    return fields


def fixed_size(fields: Iterable[Field]) -> int | None:
    """The bytes that the fields take, None if that depends on their values."""
    codes = ""
    for field in fields:
        if isinstance(field, Integer):
            codes += field.code
        elif isinstance(field, Group):
            codes += field.codes
        else:
            return None
    return struct.calcsize("<" + codes)


# --- the writer of code ---


class _Module:
    """Collects the source: Structs are made once for each format, above the functions."""

    def __init__(self) -> None:
        self._plans: dict[str, str] = {}
        self._functions: list[str] = []

    def plan(self, method: str, codes: str) -> str:
        """The global name of a bound method (pack, unpack_from, iter_unpack) of the Struct for `codes`."""
        name = f"_{method}_{codes}"
        self._plans.setdefault(name, f'{name} = Struct("<{codes}").{method}')
        return name

    def add(self, *lines: str) -> None:
        self._functions.append("\n".join(lines))

    def source(self) -> str:
        return "\n".join([*sorted(self._plans.values()), "", "", "\n\n\n".join(self._functions), ""])


def _values(field: Integer | Group) -> list[str]:
    """The local variables that a field's numbers live in."""
    return [field.name] if isinstance(field, Integer) else [f"_{field.name}_{m.name}" for m in field.members]


def _joined(names: list[str]) -> str:
    """The names as the inside of a tuple display."""
    return f"{names[0]}," if len(names) == 1 else ", ".join(names)


class _Decoder:
    """Writes the decoder of one message.

    Neighbouring numbers, and the length of the string or array behind them, are one unpack. `_fixed` is where the
    next byte is as long as that is known now; later the generated code counts in `_at`.
    """

    def __init__(self, module: _Module, message: Message) -> None:
        self._module = module
        self._message = message
        self._lines: list[str] = []
        self._fixed: int | None = 0
        self._codes = "IxH"  # the run of numbers that is not unpacked yet: size, type (known), tag
        self._targets = ["_size", "tag"]
        self._results: list[str] = []

    def _unpack_run(self) -> None:
        """Emit the unpacking of the run so far, and move behind it."""
        if not self._codes:
            return
        where = "message" if self._fixed == 0 else f"message, {self._at()}"
        self._lines.append(f"{_joined(self._targets)} = {self._module.plan('unpack_from', self._codes)}({where})")
        nbytes = struct.calcsize("<" + self._codes)
        if self._fixed is None:
            self._lines.append(f"_at += {nbytes}")
        else:
            self._fixed += nbytes
        self._codes, self._targets = "", []

    def _at(self) -> str:
        return "_at" if self._fixed is None else str(self._fixed)

    def _field(self, field: Field) -> None:
        if isinstance(field, Integer | Group):
            names = _values(field)
            self._codes += field.code if isinstance(field, Integer) else field.codes
            self._targets += names
            self._results.append(field.name if isinstance(field, Integer) else f"({', '.join(names)})")
            return
        if isinstance(field, Payload):
            return
        self._codes += field.prefix
        self._targets.append(f"_n_{field.name}")
        self._unpack_run()
        start, count, name = self._at(), f"_n_{field.name}", field.name
        self._results.append(name)
        if isinstance(field, Text) and self._fixed is not None:
            self._lines += [f"_at = {start} + {count}", f"{name} = message[{start}:_at]"]
        elif isinstance(field, Text):
            self._lines += [f"_end = _at + {count}", f"{name} = message[_at:_end]", "_at = _end"]
        elif isinstance(field.element, Group):
            plan = self._module.plan("iter_unpack", field.element.codes)
            nbytes = struct.calcsize("<" + field.element.codes)
            self._lines += [
                f"_end = {start} + {nbytes} * {count}",
                f"{name} = tuple({plan}(message[{start}:_end]))",
                "_at = _end",
            ]
        else:
            plan = self._module.plan("unpack_from", field.element.prefix)
            nbytes = struct.calcsize("<" + field.element.prefix)
            self._lines += [
                f"if {count} == 1:",  # by far the most common
                f"    _end = {start} + {nbytes} + {plan}(message, {start})[0]",
                f"    {name} = (message[{start} + {nbytes} : _end],)",
                "    _at = _end",
                f"elif {count} == 0:",
                f"    {name} = ()",
                f"    _at = {start}",
                "else:",
                f"    _at = {start}",
                f"    {name} = []",
                f"    for _ in range({count}):",
                f"        _end = _at + {nbytes} + {plan}(message, _at)[0]",
                f"        {name}.append(message[_at + {nbytes} : _end])",
                "        _at = _end",
                f"    {name} = tuple({name})",
            ]
        self._fixed = None

    def write(self, fields: tuple[Field, ...]) -> None:
        """Add the function to the module."""
        for field in fields:
            self._field(field)
        self._unpack_run()
        payload = fields[-1] if fields and isinstance(fields[-1], Payload) else None
        if payload is not None:
            wrong = f"_size != {self._at()} + {payload.length_field}"  # its bytes may lie elsewhere
        elif self._fixed is not None:
            wrong = f"_size != {self._fixed}"  # unpack_from has seen that so many bytes are there
        else:
            wrong = "_size != _at or _at > len(message)"  # slices do not notice the end
        self._module.add(
            f"def decode_{self._message.identifier}(message):",
            "    try:",
            *(f"        {line}" for line in self._lines),
            f"        if {wrong}:",
            "            raise error",
            "    except error:",
            f'        raise malformed("{self._message.name}", message) from None',
            f"    return {self._message.type}, tag, ({_joined(self._results)})",
        )


class _Encoder:
    """Writes the encoder of one message: one pack for a run of numbers, `+` between those and the strings."""

    def __init__(self, module: _Module, message: Message) -> None:
        self._module = module
        self._message = message
        self._lines: list[str] = []
        self._pieces: list[str] = []
        self._codes = _HEADER_CODES
        self._values = [_SIZE_MARK, str(message.type), "tag"]  # of the run
        self._head = ("", [""])  # the first run's codes and values
        self._variable: list[str] = []  # the parts of the size that depend on values

    def _pack_run(self) -> None:
        if not self._pieces:
            self._head = self._codes, self._values
        if self._codes:
            self._pieces.append(f"{self._module.plan('pack', self._codes)}({', '.join(self._values)})")
        self._codes, self._values = "", []

    def _field(self, field: Field) -> int:
        """Emit a field; returns how many bytes it surely takes."""
        if isinstance(field, Integer):
            self._codes += field.code
            self._values.append(field.name)
            return struct.calcsize("<" + field.code)
        if isinstance(field, Group):
            self._codes += field.codes
            self._values += _values(field)
            self._lines.append(f"{_joined(_values(field))} = {field.name}")
            return struct.calcsize("<" + field.codes)
        if isinstance(field, Payload):
            self._variable.append(field.length_field)
            return 0
        count = f"_n_{field.name}"
        self._codes += field.prefix
        self._values.append(count)
        self._lines.append(f"{count} = len({field.name})")
        self._pack_run()
        if isinstance(field, Text):
            self._pieces.append(field.name)
            self._variable.append(count)
        elif isinstance(field.element, Group):
            plan = self._module.plan("pack", field.element.codes)
            self._pieces.append(f'b"".join([{plan}(*_each) for _each in {field.name}])')
            self._variable.append(f"{struct.calcsize('<' + field.element.codes)} * {count}")
        else:
            plan = self._module.plan("pack", field.element.prefix)
            self._lines.append(f'_{field.name} = b"".join([{plan}(len(_each)) + _each for _each in {field.name}])')
            self._pieces.append(f"_{field.name}")
            self._variable.append(f"len(_{field.name})")
        return struct.calcsize("<" + field.prefix)

    def _shortcut(self, nbytes: int, last: Field | None) -> list[str]:
        """One pack for a message that ends in an array of one element, by far the most common number."""
        if not (isinstance(last, Array) and isinstance(last.element, Group) and len(self._pieces) == 2):
            return []
        codes, values = self._head
        size = nbytes + struct.calcsize("<" + last.element.codes)
        plan = self._module.plan("pack", codes + last.element.codes)
        return [
            f"if _n_{last.name} == 1:",
            f"    return {plan}({size}, {', '.join(values[1:])}, *{last.name}[0])",
        ]

    def write(self, fields: tuple[Field, ...]) -> None:
        """Add the function to the module."""
        nbytes = struct.calcsize("<" + _HEADER_CODES) + sum(self._field(field) for field in fields)
        self._pack_run()
        size = " + ".join([str(nbytes), *self._variable])  # known only now
        self._pieces[0] = self._pieces[0].replace(_SIZE_MARK, size)
        parameters = ", ".join(["tag", *(field.name for field in fields if not isinstance(field, Payload))])
        self._module.add(
            f"def encode_{self._message.identifier}({parameters}):",
            *(f"    {line}" for line in self._lines),
            *(f"    {line}" for line in self._shortcut(nbytes, fields[-1] if fields else None)),
            f"    return {' + '.join(self._pieces)}",
        )


def _write_entry_encoder(module: _Module, name: str, declaration: Declaration) -> None:
    """An encoder without a header, for what repeats inside of a payload."""
    codes, values, pieces = "", [], []
    fields = describe(declaration)
    for field in fields:
        if isinstance(field, Text):
            codes += field.prefix
            values.append(f"len({field.name})")
            pieces += [f"{module.plan('pack', codes)}({', '.join(values)})", field.name]
            codes, values = "", []
        elif isinstance(field, Integer | Group):
            codes += field.code if isinstance(field, Integer) else field.codes
            values.append(field.name if isinstance(field, Integer) else f"*{field.name}")
        else:
            raise TypeError(f"{name}: field {field.name} is neither numbers nor a string")
    if codes:
        pieces.append(f"{module.plan('pack', codes)}({', '.join(values)})")
    module.add(
        f"def encode_{name}({', '.join(field.name for field in fields)}):",
        f"    return {' + '.join(pieces)}",
    )


def generate(messages: Iterable[Message], entries: Mapping[str, Declaration]) -> str:
    """Write the Python source of a codec.

    Args:
        messages: Each gets a ``decode_NAME(message) -> (type, tag, fields)`` and an
            ``encode_NAME(tag, *fields) -> bytes``; the name is its `Message.identifier`.
        entries: Structs inside of payloads, by name; each gets an ``encode_NAME(*fields) -> bytes``.

    Returns:
        Source that needs the names which `load` provides. Equal for equal declarations.

    Raises:
        TypeError: A declaration cannot be lowered.
    """
    if [_integer_code(part.subcon) for part in HEADER.subcons] != list(_HEADER_CODES):
        raise TypeError("the header is not size[4] type[1] tag[2]")
    module = _Module()
    for message in messages:
        fields = describe(message.body)
        _Decoder(module, message).write(fields)
        _Encoder(module, message).write(fields)
    for name, declaration in entries.items():
        _write_entry_encoder(module, name, declaration)
    return module.source()


def _malformed(name: str, message: bytes) -> MessageError:
    """The error of a decoder; takes what it may from a message that can be anything."""
    size = int.from_bytes(message[:4], "little")
    return MessageError(f"malformed {name}: its size says {size}, {len(message)} bytes are there")


def load(source: str, name: str) -> dict[str, Any]:
    """Compile what `generate` wrote; returns the module's globals.

    Args:
        source: The source.
        name: What tracebacks and profiles show as its file, for example ``<9P codec>``. `linecache` is given the source
            under this name, so that they show its lines too.
    """
    namespace: dict[str, Any] = {"Struct": struct.Struct, "error": struct.error, "malformed": _malformed}
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), namespace)  # noqa: S102  # generated from our own declarations only
    return namespace
