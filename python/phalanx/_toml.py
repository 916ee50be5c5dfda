"""Python values as TOML, for files that are made in a program. Standard library only."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")


def dumps(document: Mapping[str, Any]) -> str:
    """A TOML document. Keys without a value (``None``) are left out."""
    return "".join(_table(document, ()))


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    # Plain keys come before tables, or they would belong to those.
    tables = []
    for key, value in table.items():
        if value is None:
            continue
        if isinstance(value, Mapping) and len(path) < 1:
            tables.append((key, value))
        elif _is_tables(value) and len(path) < 1:
            tables.append((key, value))
        else:
            yield f"{_key(key)} = {_value(value)}\n"
    for key, value in tables:
        head = ".".join(_key(part) for part in (*path, key))
        if isinstance(value, Mapping):
            yield f"[{head}]\n"
            yield from _table(value, (*path, key))
        else:
            for one in value:
                yield f"[[{head}]]\n"
                yield from _table(one, (*path, key))


def _is_tables(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key of TOML is text, not {type(key).__name__}")
    return key if _BARE.match(key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if hasattr(value, "__index__"):
        return str(value.__index__())
    if hasattr(value, "__float__"):
        return _float(float(value))
    raise TypeError(f"TOML has no form for {type(value).__name__}")


def _float(value: float) -> str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return repr(value)


def _text(text: str) -> str:
    # JSON's escapes are TOML's; the one control character that JSON lets stand is added.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
