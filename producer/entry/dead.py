"""`celery -A app dead`: dead letters, as a command of Celery's own. Celery finds it by its entry point.

Celery's command line imports this whatever it is to do, so the rest is imported when the command is called.
"""

import importlib
import json
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

_in_queue = click.option("-Q", "--queue", help="Look at this queue only; all queues take longer on a large server.")
_ids = click.argument("ids", nargs=-1, metavar="ID...")
_all = click.option("--all", "everything", is_flag=True, help="Take all of the queue, or of all queues.")


@click.group()
def dead() -> None:
    """List, show, requeue or drop calls that workers gave up."""


@dead.command("list", cls=CeleryCommand)
@_in_queue
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_context
@handle_preload_options
def list_letters(ctx: click.Context, queue: str | None, as_json: bool) -> None:
    """List dead letters, the oldest first, without their arguments."""
    with _letters(ctx, queue) as (_, found):
        told = list(map(_told, found))
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for letter in told:
        click.echo(
            "{at}  {id}  {task}  queue {queue}  {deaths} deaths of {lost} lost leases  {reason}".format(**letter)
        )
    click.echo(f"{len(told)} dead letters.", err=True)


@dead.command("show", cls=CeleryCommand)
@click.argument("letter_id", metavar="ID")
@_in_queue
@click.pass_context
@handle_preload_options
def show_letter(ctx: click.Context, letter_id: str, queue: str | None) -> None:
    """Show a dead letter as JSON, with its message and its arguments."""
    with _letters(ctx, queue) as (letters, found):
        for letter in _chosen(found, [letter_id]):
            message = letters.message(letter) or b""
            click.echo(json.dumps({**_told(letter), **_content(message)}, indent=2))


@dead.command("requeue", cls=CeleryCommand)
@_ids
@_all
@_in_queue
@click.pass_context
@handle_preload_options
def requeue_letters(ctx: click.Context, ids: Sequence[str], everything: bool, queue: str | None) -> None:
    """Put calls at the end of their queues, as if no worker had died of them."""
    with _letters(ctx, queue) as (letters, found):
        count = _each(letters.requeue, found, ids, everything=everything)
    click.echo(f"{count} calls are in their queues again.")


@dead.command("drop", cls=CeleryCommand)
@_ids
@_all
@_in_queue
@click.pass_context
@handle_preload_options
def drop_letters(ctx: click.Context, ids: Sequence[str], everything: bool, queue: str | None) -> None:
    """Forget dead letters, with their messages, for ever."""
    with _letters(ctx, queue) as (letters, found):
        count = _each(letters.drop, found, ids, everything=everything)
    click.echo(f"{count} dead letters are dropped.")


@contextmanager
def _letters(ctx: click.Context, queue: str | None) -> Iterator[tuple[Any, list[Any]]]:
    """Yield the app's dead letters, and a list of those of one queue or of all, the oldest first."""
    broker, redis = importlib.import_module("batchery.worker.broker"), importlib.import_module("redis")
    with ctx.obj.app.connection_for_write() as connection:
        if connection.transport.driver_type != "redis":
            raise click.UsageError(
                f"Dead letters are kept on Redis or Valkey, but the broker is {connection.as_uri()}."
            )
        channel = connection.default_channel

        def keys(name: str) -> Any:
            return broker.Queue(name, channel.global_keyprefix, tuple(channel.priority_steps), channel.sep)

        # kombu's own pool, because it knows TLS and Sentinel.
        letters = broker.DeadLetters(redis.Redis(connection_pool=channel.pool), keys)
        found = [letter for name in ([queue] if queue else letters.queues()) for letter in letters.letters(name)]
        yield letters, sorted(found, key=lambda letter: letter.at)


def _chosen(found: Sequence[Any], ids: Sequence[str]) -> list[Any]:
    """Return the letters of these ids; an id that has none ends the command before anything is done."""
    if missing := set(ids) - {letter.id for letter in found}:
        raise click.ClickException(f"There is no dead letter {', '.join(sorted(missing))}. `dead list` shows all ids.")
    return [letter for letter in found if letter.id in ids]


def _each(take: Callable[[Any], bool], found: Sequence[Any], ids: Sequence[str], *, everything: bool) -> int:
    """Take letters; return how many there were, because somebody else may have taken some meanwhile."""
    if bool(ids) == everything:
        raise click.UsageError("Name the ids of dead letters, or give --all.")
    return sum(map(take, found if everything else _chosen(found, ids)))


def _told(letter: Any) -> dict[str, Any]:
    at = datetime.fromtimestamp(letter.at, UTC).isoformat(timespec="seconds")
    return {**{name: getattr(letter, name) for name in letter.__struct_fields__}, "at": at}


def _content(message: bytes) -> dict[str, Any]:
    """Return what a message holds: decoded as far as it is JSON with a body in base64."""
    text = message.decode(errors="backslashreplace")
    try:
        decoded = json.loads(text)
        return {"message": decoded, "body": b64decode(decoded["body"]).decode(errors="backslashreplace")}
    except Exception:  # whatever an odd message raises
        return {"message": text}
