"""Asks one worker whether it can serve: `python -m batchery.worker.health`, for probes and health checks.

A worker answers once its models are loaded, not before. The user's app and torch are not imported here: a probe that
runs every few seconds must not cost seconds of CPU, as `celery -A app inspect ping` does where the app imports torch.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import redis
from celery import Celery
from celery.utils.nodenames import default_nodename, host_format
from kombu.exceptions import OperationalError
from kombu.utils.url import maybe_sanitize_url

from .broker.retry import is_transient

_DEFAULT_BROKER = "redis://localhost:6379/0"
#: Seconds without Redis after which a worker is not alive although the probe can use Redis: longer than a failover.
_ALIVE_WITHOUT_REDIS_S = 60


class BrokerAway(Exception):
    """The broker cannot be used now, so nobody knows about the worker."""


def check(broker: str, node: str, timeout: float, transport_options: Mapping[str, Any], *, alive: bool) -> str | None:
    """Return None if the worker called `node` can serve, or if it is `alive`; else why not, in one line.

    `timeout` is in seconds, for connecting and for the answer each; `transport_options` are the app's.

    Raises:
        BrokerAway: the broker cannot be reached, or it takes no writes.
    """
    timeouts = {"socket_connect_timeout": timeout, "socket_timeout": timeout}
    with Celery(broker=broker, set_as_current=False) as app:
        app.conf.broker_transport_options = {**transport_options, **timeouts}
        with app.connection_for_write() as connection:
            try:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=timeout)
                _check_takes_writes(connection.default_channel, node)
                inspect = app.control.inspect(destination=[node], timeout=timeout, connection=connection)
                answer = (inspect.stats() or {}).get(node)
            except (OperationalError, redis.RedisError, OSError) as exc:
                raise BrokerAway(f"{exc}") from exc
    if answer is None:
        return f"{node} did not answer in {timeout:g} s: it does not run, is loading its models, or stands still."
    return problem_of(node, answer.get("batchery"), alive=alive)


def _check_takes_writes(channel: Any, node: str) -> None:
    """Write a key that expires at once, because only a master that is not full takes it."""
    try:
        channel.client.set(f"batchery:health:{node}", 1, px=1)
    except redis.ResponseError as exc:
        if is_transient(exc):
            raise
        # Another kind of refusal, such as missing rights, says nothing about the worker.


def problem_of(node: str, figures: object, *, alive: bool) -> str | None:
    """Return what a worker's own figures say against it, in one line; None if nothing."""
    if figures == "starting":
        return f"{node} is loading its models."
    if not isinstance(figures, dict):
        return None
    if figures.get("hung"):
        return f"{node} hangs: its model or a hook has worked on a batch for longer than batch_time_limit_s."
    if (seconds := figures.get("redis_away_s", 0)) > (_ALIVE_WITHOUT_REDIS_S if alive else 0):
        return f"{node} cannot use Redis, for {seconds:g} s now: {figures.get('redis_error')}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line, and return 0 if the worker can serve, else 1."""
    parser = argparse.ArgumentParser(prog="python -m batchery.worker.health", description="Is this worker ready?")
    broker = os.environ.get("CELERY_BROKER_URL", _DEFAULT_BROKER)
    # The default is not formatted into the help, because the variable may hold a password.
    parser.add_argument("--broker", default=broker, help=f"default: CELERY_BROKER_URL, else {_DEFAULT_BROKER}")
    parser.add_argument("--node", default="celery@%h", help="the worker's name, as in its -n; default: %(default)s")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds to wait for an answer; default: 3")
    parser.add_argument("--key-prefix", default="", help="the app's global_keyprefix, if it has one")
    parser.add_argument(
        "--transport-options",
        default="{}",
        type=json.loads,
        metavar="JSON",
        help='more of the app\'s broker_transport_options, such as \'{"master_name": "mymaster"}\' for Sentinel',
    )
    parser.add_argument(
        "--alive", action="store_true", help="for liveness probes: pass while the broker cannot be used"
    )
    options = parser.parse_args(argv)
    node = host_format(default_nodename(options.node))
    try:
        transport_options = {"global_keyprefix": options.key_prefix, **options.transport_options}
        problem = check(options.broker, node, options.timeout, transport_options, alive=options.alive)
    except BrokerAway as exc:
        problem = f"{maybe_sanitize_url(options.broker)} cannot be used: {exc}."
        if options.alive:
            sys.stdout.write(f"{problem} {node} may well be alive.\n")
            return 0
    sys.stdout.write(f"{problem or f'{node} is ready.'}\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
