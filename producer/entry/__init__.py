"""Where kombu finds the serializer in a process that imports nothing of Batchery, by its entry point.

It installs as a package by itself, `batchery_kombu`: kombu asks for its serializers while it is being imported, and
whatever is in `batchery` needs a kombu that is whole. So the rest is imported when there is something to serialize.
"""

from typing import Any


def dumps(value: Any) -> bytes:
    """See `batchery.producer.codec.serializer.dumps`."""
    from batchery.producer.codec.serializer import dumps

    return dumps(value)


def loads(payload: Any) -> Any:
    """See `batchery.producer.codec.serializer.loads`."""
    from batchery.producer.codec.serializer import loads

    return loads(payload)


#: What `kombu.serialization.register` takes after the name.
serializer = (dumps, loads, "application/x-batchery", "binary")
