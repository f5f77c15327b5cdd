"""Whether calls are the wanted ones, by the rules of the Berkeley function-calling leaderboard.

    right(calls, wanted, functions)

The rules are those of BFCL's abstract-syntax-tree evaluation (Patil et al., "The Berkeley Function Calling
Leaderboard", ICML 2025; gorilla.cs.berkeley.edu, file ast_checker.py of bfcl_eval), written anew:

- as many calls as wanted ones, in any order; each wanted one takes the first call that fits it;
- the function's name; every required argument, and none that is not declared or not in the answer;
- an argument has its declared type: a float may be given as an int, nothing else for another type. An
  accepted value of another type (a text that stands for a variable) admits that type as well;
- texts are compared without case, spaces and the marks , . / - _ * ^, with ' as "; in lists and in
  dictionaries too. Everything else is compared as it is;
- of a dictionary each key has its own accepted values; a list of them is compared in order;
- an argument may be left out if "" is among its accepted values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pomona.adapters.tasks.tools import tool_name

Wanted = Mapping[str, Mapping[str, Sequence[Any]]]  # {function: {argument: accepted values}}
_MARKS = re.compile(r"[ ,./\-_*^]")
_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}


def right(
    calls: Sequence[Mapping[str, Any]], wanted: Sequence[Wanted], functions: Sequence[Mapping[str, Any]]
) -> bool:
    """calls: [{"name", "arguments"}], names as our runtime writes them (dots are underscores)."""
    if len(calls) != len(wanted):
        return False
    left = list(calls)
    for one in wanted:
        [(name, accepted)] = one.items()
        described = next((function for function in functions if function["name"] == name), None)
        fits = [call for call in left if described and fitting(call, described, accepted)]
        if not fits:
            return False
        left.remove(fits[0])
    return True


def fitting(
    call: Mapping[str, Any], function: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]]
) -> bool:
    """One call against one wanted call of this function."""
    given = call["arguments"]
    parameters = function.get("parameters") or {}
    declared = parameters.get("properties") or {}
    if call["name"] != tool_name(str(function["name"])):
        return False
    if any(name not in given for name in parameters.get("required") or ()):
        return False
    if any(name not in declared or name not in accepted for name in given):
        return False
    if any(name not in given and "" not in values for name, values in accepted.items()):
        return False
    return all(_argument(value, declared[name], accepted[name]) for name, value in given.items())


def _argument(value: Any, declared: Mapping[str, Any], accepted: Sequence[Any]) -> bool:
    kind = str(declared.get("type"))
    wanted: type | None = _TYPES.get(kind)
    if wanted is float and type(value) is int:
        value = float(value)
    # A value that stands for a variable is a text, or whatever else the answer's first value is.
    first = next((type(one) for one in accepted if one != ""), None)
    inner = _TYPES.get(str((declared.get("items") or {}).get("type"))) if wanted is list else None
    if type(value) is not wanted or not _inner_types(value, inner, accepted):
        return first is not None and type(value) is first and _among(value, accepted)
    if first is not None and first is not wanted:
        return _among(value, accepted)
    if isinstance(value, dict):
        return any(_dictionary(value, one) for one in accepted if isinstance(one, dict))
    if isinstance(value, list) and inner is dict:
        return any(_dictionaries(value, one) for one in accepted if isinstance(one, list))
    if isinstance(value, list):
        return any(_plain(value) == _plain(one) for one in accepted if isinstance(one, list))
    if isinstance(value, str):
        return any(_text(value) == _text(one) for one in accepted if isinstance(one, str))
    return _among(value, accepted)


def _inner_types(value: Any, inner: type | None, accepted: Sequence[Any]) -> bool:
    """Whether the elements of a list are of their declared type, or of that of an accepted list's."""
    if inner is None:
        return True
    for one in accepted:
        if not isinstance(one, list):
            return True  # as the leaderboard: an accepted value that is no list says nothing of elements
        other = next((type(item) for item in one if item != ""), None)
        if all(type(item) is inner or (other is not None and type(item) is other) for item in value):
            return True
    return False


def _dictionary(value: Any, accepted: Mapping[str, Any]) -> bool:
    if not isinstance(value, dict) or any(key not in accepted for key in value):
        return False
    if any(key not in value and "" not in values for key, values in accepted.items()):
        return False
    return all(_among(_text(item), [_text(one) for one in accepted[key]]) for key, item in value.items())


def _dictionaries(value: Sequence[Any], accepted: Sequence[Any]) -> bool:
    return len(value) == len(accepted) and all(
        isinstance(other, dict) and _dictionary(one, other)
        for one, other in zip(value, accepted, strict=True)
    )


def _among(value: Any, accepted: Sequence[Any]) -> bool:
    return value in accepted


def _plain(values: Sequence[Any]) -> list[Any]:
    return [_text(one) for one in values]


def _text(value: Any) -> Any:
    """A text as it is compared; anything else as it is."""
    return _MARKS.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
