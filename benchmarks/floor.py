"""The floor: a bare loop that only claims, decodes, answers, encodes and settles, and so bounds every worker's rate.

For each message the loop does what no correct worker can leave out. It claims the message into a lease in one atomic
step, reads Celery's message format and writes Celery's result format. Only the holder of the lease stores, publishes
and acknowledges a result. The loop has one thread and no task options, error handling or shutdown. It is as fast as a
simple loop can be, and it must not be changed, because later measurements would otherwise not be comparable.

    python -m benchmarks.floor URL QUEUE COUNT [small|vector|large]     answers COUNT messages, prints tasks/s as JSON
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import redis

CLAIM_AT_MOST = 256
RESULT_EXPIRES_S = 86_400  # Celery's default
UNACKED, UNACKED_INDEX = "floor:unacked", "floor:unacked_index"

VECTOR = [index / 384 for index in range(384)]
MODELS: dict[str, Any] = {
    "small": lambda values: values,
    "vector": lambda values: [VECTOR for _ in values],
    "large": lambda values: [len(value) for value in values],
}


class Headers(msgspec.Struct):
    id: str
    task: str


class Message(msgspec.Struct):
    body: bytes  # msgspec decodes the base64
    headers: Headers


class Result(msgspec.Struct):
    status: str
    result: Any
    traceback: None
    children: list[Any]
    date_done: str
    task_id: str


decode_message = msgspec.json.Decoder(Message).decode
decode_body = msgspec.json.Decoder(tuple[list[Any], dict[str, Any], Any]).decode
encode = msgspec.json.Encoder().encode


def main(url: str, queue: str, count: int, payload: str = "small") -> None:
    client: redis.Redis = redis.Redis.from_url(url, socket_timeout=None)
    claim = client.register_script(Path(__file__).with_name("floor_claim.lua").read_text())
    settle = client.register_script(Path(__file__).with_name("floor_settle.lua").read_text())
    model, queue_json, done = MODELS[payload], json.dumps(queue), 0
    print("ready", flush=True)
    busy_s = 0.0
    while done < count:
        start, prefix = time.perf_counter(), f"{uuid.uuid4()}:"
        messages = claim(keys=[queue, UNACKED, UNACKED_INDEX], args=[CLAIM_AT_MOST, prefix, queue_json])
        if not messages:
            client.blmove(queue, queue, 1, "RIGHT", "RIGHT")
            continue
        jobs = [decode_message(message) for message in messages]
        outputs = model([decode_body(job.body)[0][0] for job in jobs])
        now = datetime.now(UTC).isoformat()
        arguments: list[Any] = [RESULT_EXPIRES_S]
        for index, (job, output) in enumerate(zip(jobs, outputs, strict=True), 1):
            task_id = job.headers.id
            result = encode(Result("SUCCESS", output, None, [], now, task_id))
            arguments += (prefix + str(index), "celery-task-meta-" + task_id, result)
        done += settle(keys=[UNACKED, UNACKED_INDEX], args=arguments)
        busy_s += time.perf_counter() - start
    print(json.dumps({"tasks": done, "tasks_per_s": done / busy_s}), flush=True)


if __name__ == "__main__":
    url, queue, count, *payload = sys.argv[1:]
    main(url, queue, int(count), *payload)
