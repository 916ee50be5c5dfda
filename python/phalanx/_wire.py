"""The messages and methods of ``phalanx.v1``, made from the descriptors that the service itself is built with.

There is no generated code: it would have to match the installed protobuf's version, and to be kept up to date.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Optional

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

#: Written by `cargo xtask proto`, imports included and before those that import them.
_DESCRIPTORS = os.path.join(os.path.dirname(__file__), "phalanx.v1.bin")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _load() -> descriptor_pool.DescriptorPool:
    with open(_DESCRIPTORS, "rb") as file:
        files = descriptor_pb2.FileDescriptorSet.FromString(file.read())
    # A pool of its own: another package's phalanx.v1 would be no problem.
    pool = descriptor_pool.DescriptorPool()
    for one in files.file:
        pool.AddSerializedFile(one.SerializeToString())
    return pool


_POOL = _load()


def message(name: str) -> Callable[..., Any]:
    """The class of a message of ``phalanx.v1``."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"phalanx.v1.{name}"))


def methods(channel: Any, service: str) -> dict[str, Callable[..., Any]]:
    """Every method of a service by its name, as grpcio calls them: ``method(request, timeout=…, metadata=…)``."""
    found = {}
    for method in _POOL.FindServiceByName(f"phalanx.v1.{service}").methods:
        request = message_factory.GetMessageClass(method.input_type)
        answer = message_factory.GetMessageClass(method.output_type)
        kind = channel.unary_stream if method.server_streaming else channel.unary_unary
        found[method.name] = kind(
            f"/phalanx.v1.{service}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
    return found


def optional(message: Any, name: str) -> Any:
    """A field's value, or None where it is not set."""
    return getattr(message, name) if message.HasField(name) else None


def enum(message: Any, name: str) -> str:
    """The name of an enum field's value."""
    values = message.DESCRIPTOR.fields_by_name[name].enum_type.values_by_number
    number = getattr(message, name)
    # A newer service may have states that these descriptors have not.
    return str(values[number].name) if number in values else str(number)


def time(message: Any, name: str) -> Optional[datetime]:
    """A point in time in UTC, or None where it is not set."""
    found = optional(message, name)
    return None if found is None else _EPOCH + timedelta(seconds=found.seconds, microseconds=found.nanos // 1000)


def plain(struct: Any) -> dict[str, Any]:
    """A ``google.protobuf.Struct`` as a dict; whole numbers are ints, as the wire knows only one kind of number."""
    return {name: _plain(value) for name, value in sorted(struct.fields.items())}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return plain(value.struct_value)
    if kind == "list_value":
        return [_plain(one) for one in value.list_value.values]
    if kind in (None, "null_value"):
        return None
    found = getattr(value, kind)
    return int(found) if kind == "number_value" and float(found).is_integer() else found
