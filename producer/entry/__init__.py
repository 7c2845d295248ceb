"""Where kombu finds the serializer in a process that imports nothing of Batchery, by its entry point.

This installs as a package by itself, `batchery_kombu`, because kombu asks for its serializers while it is being
imported, and `batchery` needs a kombu that is complete. So the rest is imported when there is something to serialize.
"""

import importlib
from collections.abc import Callable
from typing import Any


def _imported_later(name: str) -> Callable[[Any], Any]:
    return lambda value: getattr(importlib.import_module("batchery.producer.codec.serializer"), name)(value)


#: What `kombu.serialization.register` takes after the name.
serializer = (_imported_later("dumps"), _imported_later("loads"), "application/x-batchery", "binary")
