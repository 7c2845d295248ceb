"""Asks one worker whether it can serve: `python -m batchery.worker.health`, for probes and health checks.

A worker answers once its models are loaded, not before. The user's app and torch are not imported here: a probe that
runs every few seconds must not cost seconds of CPU, as `celery -A app inspect ping` does where the app imports torch.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from celery import Celery
from celery.utils.nodenames import default_nodename, host_format
from kombu.exceptions import OperationalError
from kombu.utils.url import maybe_sanitize_url

_DEFAULT_BROKER = "redis://localhost:6379/0"


def check(broker: str, node: str, timeout: float, key_prefix: str) -> str | None:
    """Return None if the worker called `node` can serve, else why not, in one line.

    `timeout` is in seconds, for connecting and for the answer each; `key_prefix` is the app's `global_keyprefix`.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
    timeouts = {"socket_connect_timeout": timeout, "socket_timeout": timeout}
    with Celery(broker=broker, set_as_current=False) as app:
        app.conf.broker_transport_options = {**timeouts, "global_keyprefix": key_prefix}
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=timeout)
            inspect = app.control.inspect(destination=[node], timeout=timeout, connection=connection)
            answer = (inspect.stats() or {}).get(node)
    if answer is None:
        return f"{node} did not answer in {timeout:g} s: it does not run, is loading its models, or stands still."
    figures = answer.get("batchery")
    if figures == "starting":
        return f"{node} is loading its models."
    if isinstance(figures, dict) and figures.get("hung"):
        return f"{node} hangs: its model or a hook has worked on a batch for longer than batch_time_limit_s."
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
    parser.add_argument("--alive", action="store_true", help="for liveness probes: pass while the broker is away")
    options = parser.parse_args(argv)
    node = host_format(default_nodename(options.node))
    try:
        problem = check(options.broker, node, options.timeout, options.key_prefix)
    except OperationalError as exc:
        problem = f"{maybe_sanitize_url(options.broker)} cannot be reached: {exc}"
        if options.alive:
            sys.stdout.write(f"{problem} {node} may well be alive.\n")
            return 0
    sys.stdout.write(f"{problem or f'{node} is ready.'}\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
