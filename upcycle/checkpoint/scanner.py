"""Reads a JSON object member by member, so that a hostile one costs the memory of one member, not of all.

`json` turns a document into Python objects at once. Those of a hostile header take 22 to 27 times its bytes (`[],[],`,
`"a":{},`; measured), 2.7 GB for the 100 MB that safetensors allows and that upcycle itself may write; those of a sound
one take 7 to 12 times its bytes, where this takes 2 to 4. A safetensors header is one object of flat ones: its members
are cut out by regular expressions, and each is handed to `json` by itself.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from upcycle.checkpoint.strict_json import parse_json
from upcycle.errors import CheckpointError

MAX_MEMBER = 16384
"""Bytes of a key, and of a flat object: 64 dimensions of 20 digits, generously indented."""

_CHUNK = 65536
_SPACE = re.compile(rb"[ \t\n\r]*+")
_PLAIN = rb'[^"\\\x00-\x1f]*+'
_ESCAPE = (
    rb'\\(?:["\\/bfnrt]'
    rb"|u[0-9abcefABCEF][0-9a-fA-F]{3}|u[dD][0-7][0-9a-fA-F]{2}"  # RFC 8259, section 7: a pair for what is beyond
    rb"|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
_STRING = re.compile(rb'"' + _PLAIN + rb"(?:" + _ESCAPE + _PLAIN + rb')*+"')
_FLAT = re.compile(rb"\{[^{}]{0,%d}\}" % MAX_MEMBER)


class Scanner:
    """A position in JSON; every method raises CheckpointError naming `where` when something else is there."""

    def __init__(self, data: bytes | bytearray, position: int, where: Path) -> None:
        """Start at `position` of `data`, all of which after it must be UTF-8."""
        self.data = data
        self.position = position
        self.where = where
        self._check_encoding()

    def members(self) -> Iterator[str]:
        """Yield every key of the object that starts here; the caller takes its value before asking for the next."""
        self._expect(b"{")
        if self._skip(b"}"):
            return
        while True:
            key = self._key()
            self._expect(b":")
            self._skip_space()
            yield key
            if not self._skip(b","):
                break
        self._expect(b"}")

    def flat(self) -> Any:
        """Take an object without objects in it and return it; where something else is, take nothing, return None."""
        matched = _FLAT.match(self.data, self.position)
        if matched is None:
            return None
        self.position = matched.end()
        return parse_json(bytes(matched[0]), self.where)

    def skip_string(self) -> bool:
        """Pass over a string of any length; return whether there was one."""
        matched = _STRING.match(self.data, self.position)
        self.position = matched.end() if matched else self.position
        return matched is not None

    def at_object(self) -> bool:
        """Whether an object starts right here."""
        return self.data[self.position : self.position + 1] == b"{"

    def end(self) -> None:
        """Be at the end of the data, but for space."""
        self._skip_space()
        if self.position < len(self.data):
            self._fail("the end of the object")

    def _key(self) -> str:
        self._skip_space()
        start = self.position
        if not self.skip_string() or self.position - start > MAX_MEMBER:
            self.position = start
            self._fail(f"a key of at most {MAX_MEMBER} bytes")
        return str(parse_json(bytes(self.data[start : self.position]), self.where))

    def _expect(self, character: bytes) -> None:
        if not self._skip(character):
            self._fail(repr(character.decode()))

    def _skip(self, character: bytes) -> bool:
        self._skip_space()
        found = self.data[self.position : self.position + 1] == character
        self.position += found
        return found

    def _skip_space(self) -> None:
        if matched := _SPACE.match(self.data, self.position):
            self.position = matched.end()

    def _check_encoding(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for start in range(self.position, len(self.data), _CHUNK):
                decoder.decode(self.data[start : start + _CHUNK])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise CheckpointError(f"not valid JSON ({error.reason} in UTF-8)", where=self.where) from None

    def _fail(self, expected: str) -> NoReturn:
        found = self.data[self.position : self.position + 20].decode("utf-8", "replace")
        raise CheckpointError(
            f"not valid JSON (byte {self.position} of the file)",
            where=self.where,
            found=ascii(found) if found else "nothing",
            expected=expected,
        )
