"""Celery's consumer, except that whoever sent a message that it drops is told, and that the message is kept."""

from celery.exceptions import InvalidTaskError
from celery.worker.consumer import Consumer
from kombu import Message

from .bridge import CeleryBridge


class RefusingConsumer(Consumer):
    """What Celery calls for messages that it drops. On the hub's thread."""

    _bridge: CeleryBridge

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Tell the caller what is wrong with its message; Celery would drop it and leave the caller waiting."""
        self._bridge.refuse(message.delivery_tag, exc)
        super().on_invalid_task(body, message, exc)

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Do as `on_invalid_task` does."""
        self._bridge.refuse(message.delivery_tag, exc)
        super().on_decode_error(message, exc)

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Do as `on_invalid_task` does."""
        self._bridge.refuse(message.delivery_tag, InvalidTaskError("a message that is no task's"))
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Keep the message, because another version of the app may know the task; Celery tells the caller."""
        if self._bridge.dead_letters.keep_unknown(message.delivery_tag):
            super().on_unknown_task(body, message, exc)
