"""Checks an answer as a stranger would: Python's JSON reader, jsonschema, and formats by other means."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import re
import urllib.parse
import uuid
from decimal import Decimal
from typing import Any

import jsonschema
from guided_schemas import Schema

FORMATS = jsonschema.FormatChecker(formats=())


@FORMATS.checks("date", raises=ValueError)
def _date(value: object) -> bool:
    return not isinstance(value, str) or (bool(datetime.date.fromisoformat(value)) and len(value) == 10)


@FORMATS.checks("time", raises=ValueError)
def _time(value: object) -> bool:
    if not isinstance(value, str):
        return True
    return datetime.time.fromisoformat(value).tzinfo is not None and value.count(":") >= 2


@FORMATS.checks("date-time", raises=ValueError)
def _date_time(value: object) -> bool:
    if not isinstance(value, str):
        return True
    return datetime.datetime.fromisoformat(value).tzinfo is not None and value[10] == "T"


@FORMATS.checks("duration")
def _duration(value: object) -> bool:
    if not isinstance(value, str):
        return True
    found = re.fullmatch(r"P(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(\d+H)?(\d+M)?(\d+S)?)?)", value)
    return found is not None and value[-1] not in "PT"


@FORMATS.checks("email")
def _email(value: object) -> bool:
    if not isinstance(value, str):
        return True
    local, _, domain = value.partition("@")
    return 0 < len(local) <= 64 and "." in domain and _hostname(domain) and "@" not in domain


@FORMATS.checks("hostname")
def _hostname(value: object) -> bool:
    if not isinstance(value, str):
        return True
    labels = value.split(".")
    fine = [
        0 < len(x) < 64 and x[0] != "-" and x[-1] != "-" and x.replace("-", "a").isalnum() for x in labels
    ]
    return all(fine) and value.isascii() and len(value) < 254


@FORMATS.checks("ipv4", raises=ValueError)
def _ipv4(value: object) -> bool:
    return not isinstance(value, str) or bool(ipaddress.IPv4Address(value))


@FORMATS.checks("ipv6", raises=ValueError)
def _ipv6(value: object) -> bool:
    return not isinstance(value, str) or ipaddress.IPv6Address(value) is not None


@FORMATS.checks("uuid", raises=ValueError)
def _uuid(value: object) -> bool:
    return not isinstance(value, str) or str(uuid.UUID(value)) == value.lower()


@FORMATS.checks("uri", raises=ValueError)
def _uri(value: object) -> bool:
    if not isinstance(value, str):
        return True
    parts = urllib.parse.urlsplit(value)
    assert parts.port is None or parts.port > 0
    return bool(parts.scheme) and bool(
        re.fullmatch(r"([A-Za-z0-9._~:/?#@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+", value)
    )


@FORMATS.checks("json-pointer")
def _pointer(value: object) -> bool:
    if not isinstance(value, str):
        return True
    return value == "" or (value[0] == "/" and not re.search(r"~(?![01])", value))


@FORMATS.checks("byte", raises=ValueError)
def _byte(value: object) -> bool:
    return not isinstance(value, str) or base64.b64decode(value, validate=True) is not None


@FORMATS.checks("int32")
def _int32(value: object) -> bool:
    return not isinstance(value, int) or -(2**31) <= value < 2**31


@FORMATS.checks("int64")
def _int64(value: object) -> bool:
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def check(schema: Schema, answer: str) -> None:
    """Fails unless the answer is JSON that the schema holds for.

    With a fractional `multipleOf` numbers are compared as the decimals that they are: in binary 4.35 is no
    multiple of 0.01, whoever wrote it.
    """
    if '"multipleOf": 0.' in json.dumps(schema):
        value: Any = json.loads(answer, parse_float=Decimal)
        schema = json.loads(json.dumps(schema), parse_float=Decimal)
    else:
        value = json.loads(answer)
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(json.loads(json.dumps(schema, default=float)))
    kind(schema, format_checker=FORMATS).validate(value)
