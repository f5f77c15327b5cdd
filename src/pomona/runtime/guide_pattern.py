"""Regular expressions and formats of JSON schemas, in the dialect of llguidance (Rust's).

A schema's `pattern` is ECMAScript, is checked by most people with Python, and would be read here by Rust. The
three differ: in what \\d, \\w, \\s and their opposites mean beyond ASCII, in `.`, in `[[:x:]]`, `&&` and `--`
inside of brackets. `translate` writes what matches no more than all of them do, and refuses the rest.

`FORMATS` are narrower than their standards where a checker might differ or a small model would never end: no
29 February, no leap second, bounded lengths.
"""

from __future__ import annotations

import re
import warnings

from pomona.errors import PomonaError

# Inside of brackets. The smaller set is for what may come, the larger one for what [^...] leaves out.
_SMALLER = {
    "d": "0-9",
    "w": "0-9A-Za-z_",
    "s": r"\t\n\x0B\x0C\r\x20",
    "D": r"[^\p{Nd}]",
    "W": r"[^\p{L}\p{N}\p{M}\p{Pc}]",
    "S": r"[^\s\x1C-\x1F\x{FEFF}]",
}
_LARGER = {
    "d": r"\p{Nd}",
    "w": r"\p{L}\p{N}\p{M}\p{Pc}",
    "s": r"\s\x1C-\x1F\x{FEFF}",
    "D": "[^0-9]",
    "W": "[^0-9A-Za-z_]",
    "S": r"[^\t\n\x0B\x0C\r\x20]",
}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_SPECIAL = frozenset(r"\.+*?()|[]{}^$-&~#/")
_COUNT = re.compile(r"\{[0-9]+(,[0-9]*)?\}")
LONGEST_EXAMPLE = 200
_PROPERTY = re.compile(r"[pP]\{[A-Za-z_=]+\}")


def translate(pattern: str, where: str) -> tuple[str, str]:
    """The pattern as llguidance reads it, and a short text that probably matches.

    Raises PomonaError that names `where` for what cannot be expressed.
    """
    translator = _Translator(pattern, where)
    return translator.run(), translator.example


class _Translator:
    def __init__(self, pattern: str, where: str) -> None:
        self._text = pattern
        self._where = where
        self._at = 0
        # Of every open group the alternatives, of each the examples of its atoms.
        self._groups: list[list[list[str]]] = [[[]]]

    @property
    def example(self) -> str:
        return min(("".join(atoms) for atoms in self._groups[0]), key=len)

    def run(self) -> str:
        out: list[str] = []
        while self._at < len(self._text):
            start, char = self._at, self._take()
            if char == "\\":
                out.append(self._escape())
                self._atom(_sample(self._text[start : self._at]))
            elif char == "[":
                out.append(self._brackets())
                self._atom(_sample(self._text[start : self._at]))
            elif char == "(":
                out.append(self._group())
                self._groups.append([[]])
            elif char == ")":
                out.append(char)
                if len(self._groups) == 1:
                    raise self._refused("a group is closed that was not opened")
                self._atom(min(("".join(atoms) for atoms in self._groups.pop()), key=len))
            elif char == "|":
                out.append(char)
                self._groups[-1].append([])
            elif char == ".":
                out.append(r"[^\n\r\x{2028}\x{2029}]")
                self._atom("a")
            elif char in "*+?" or (char == "{" and _COUNT.match(self._text, self._at - 1)):
                out.append(self._repeat(char))
            elif char == "{" and self._text.startswith(",", self._at):
                raise self._refused("{,n} means different things to different readers; write {0,n}")
            elif char in "^$":
                out.append(char)
                self._atom("")
            else:
                out.append(_literal(char))
                self._atom(char)
        if len(self._groups) > 1:
            raise self._refused("a group is not closed")
        return "".join(out)

    def _atom(self, example: str) -> None:
        self._groups[-1][-1].append(example[:LONGEST_EXAMPLE])

    def _take(self) -> str:
        if self._at == len(self._text):
            raise self._refused("ends in the middle of an expression")
        self._at += 1
        return self._text[self._at - 1]

    def _refused(self, reason: str) -> PomonaError:
        return PomonaError(f"{self._where}: the pattern {self._text[:60]!r} cannot be used: {reason}")

    def _group(self) -> str:
        if not self._text.startswith("?", self._at):
            return "("
        for opening in (r"\?:", r"\?P?<[A-Za-z_][A-Za-z0-9_]*>"):
            if found := re.compile(opening).match(self._text, self._at):
                self._at = found.end()
                return "(?:"
        raise self._refused("it looks around or sets flags")

    def _repeat(self, char: str) -> str:
        text = char
        if char == "{":
            found = _COUNT.match(self._text, self._at - 1)
            assert found is not None
            text, self._at = found.group(), found.end()
        if atoms := self._groups[-1][-1]:
            least = int(text.strip("{}").split(",")[0]) if char == "{" else int(char == "+")
            atoms[-1] = (atoms[-1] * min(least, LONGEST_EXAMPLE))[:LONGEST_EXAMPLE]
        if self._text.startswith("?", self._at):  # a lazy repetition matches the same texts
            self._at += 1
        if self._text.startswith(("+", "*", "?"), self._at):
            raise self._refused("a repetition is repeated")
        return text

    def _escape(self) -> str:
        """After a backslash, outside of brackets."""
        char = self._peek()
        if char in _SMALLER:
            self._at += 1
            return f"[{_SMALLER[char]}]"
        return self._property() or _literal(self._character())

    def _property(self) -> str | None:
        if found := _PROPERTY.match(self._text, self._at):
            self._at = found.end()
            return "\\" + found.group()
        return None

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _character(self) -> str:
        """The character that an escape stands for."""
        char = self._take()
        if char in _CONTROLS and not (char == "0" and self._peek().isdigit()):
            return _CONTROLS[char]
        if char in "xu":
            digits = self._text[self._at : self._at + (2 if char == "x" else 4)]
            if len(digits) == (2 if char == "x" else 4) and re.fullmatch("[0-9A-Fa-f]+", digits):
                self._at += len(digits)
                code = int(digits, 16)
                if not 0xD800 <= code < 0xE000:
                    return chr(code)
        elif not char.isalnum():
            return char
        raise self._refused(f"\\{char} is not supported")

    def _brackets(self) -> str:
        negated = self._peek() == "^"
        self._at += negated
        if self._peek() == "]":
            raise self._refused("brackets that begin with ]; escape it")
        sets, out = _LARGER if negated else _SMALLER, ["[^" if negated else "["]
        while (low := self._member(sets)) is not None:
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                if low in sets.values() or low.startswith(r"\p"):
                    raise self._refused("a range of brackets begins with a class")
                self._at += 1
                high = self._member(sets)
                if high is None or high in sets.values() or high.startswith(r"\p"):
                    raise self._refused("a range of brackets ends with a class")
                low = f"{low}-{high}"
            out.append(low)
        return "".join(out) + "]"

    def _member(self, sets: dict[str, str]) -> str | None:
        char = self._take()
        if char == "]":
            return None
        if char != "\\":
            return _literal(char)
        if self._peek() == "b":  # a backspace here
            raise self._refused(r"\b is not supported")
        if self._peek() in sets and self._peek():
            return sets[self._take()]
        return self._property() or _literal(self._character())


def _sample(expression: str) -> str:
    """A character that an escape or a pair of brackets matches, if Python reads it."""
    candidates = "a0A -_./:@" + expression.replace("\\", "") + "".join(_CONTROLS.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python asks whether [a&&b] is meant to be what it may become
        try:
            return next((char for char in candidates if re.fullmatch(expression, char)), "a")
        except re.error:
            return "a"


def _literal(char: str) -> str:
    if char in _SPECIAL:
        return "\\" + char
    return char if " " <= char <= "~" or ord(char) > 0xA0 else f"\\x{{{ord(char):X}}}"


_DATE = (
    r"[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_N = "[0-9]{1,4}"
_DAYS = f"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"
_HOURS = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,20}[A-Za-z0-9])?"
_NAME = "[A-Za-z0-9_+-]{1,30}"
_SCHEME = "[a-z][a-z0-9+.-]{1,12}"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HEX = "[0-9A-Fa-f]{1,4}"
_URI_CHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_TAIL = rf"(?:/{_URI_CHAR}{{0,40}}){{0,6}}(?:\?(?:{_URI_CHAR}|/){{0,80}})?(?:\#{_URI_CHAR}{{0,40}})?"


def _compressed(left: int) -> str:
    """IPv6 with :: after `left` groups, and as many groups behind it as there may be."""
    before = f"(?:{_HEX}:){{{left - 1}}}{_HEX}" if left else ""
    return f"{before}::" + (f"(?:(?:{_HEX}:){{0,{6 - left}}}{_HEX})?" if left < 7 else "")


_IPV6 = "|".join([f"(?:{_HEX}:){{7}}{_HEX}", *map(_compressed, range(8))])

# format -> what it matches whole, in Rust's dialect.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"(?:{_DATE})T(?:{_TIME})",
    "duration": f"P(?:{_N}W|{_DAYS}(?:{_HOURS})?|{_HOURS})",
    "email": rf"{_NAME}(?:\.{_NAME})?@{_LABEL}(?:\.{_LABEL}){{0,2}}\.[A-Za-z]{{2,10}}",
    "hostname": _HOST,
    "ipv4": rf"(?:{_BYTE}\.){{3}}{_BYTE}",
    "ipv6": _IPV6,
    "uuid": "[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}",
    "uri": rf"{_SCHEME}://{_HOST}(?::[1-9][0-9]{{0,3}})?{_TAIL}|(?:mailto|urn|tel):{_URI_CHAR}{{1,60}}",
    "json-pointer": "(?:/(?:[^~/]|~[01]){0,40}){0,8}",
    "byte": "(?:[A-Za-z0-9+/]{4}){0,64}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
}
