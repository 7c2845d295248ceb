"""Constants that tune the worker, each with its unit and the reason for its value. Users' settings are in `configs`."""

# -- Broker ------------------------------------------------------------------------------------------------------------

#: Seconds without an answer after which a connection counts as lost, if the app sets no limit. A full settle of large
#: results takes far less.
SOCKET_TIMEOUT_S = 10.0
#: Seconds without an answer after which a wait on a watcher's connection ends, because its commands take no time.
WATCHER_TIMEOUT_S = 3.0
#: Seconds of silence after which a connection is asked whether it still works, before a command goes over it, and the
#: seconds that the answer may take. A firewall that drops an idle connection tells neither end.
HEALTH_CHECK_S = 5.0
HEALTH_ANSWER_S = 1.0
#: Seconds of silence after which it is looked at whether the server has closed the connection: too seldom to cost time.
CLOSED_CHECK_S = 1.0

#: Seconds between two questions to Sentinel who is master, because a worker's old master may still answer it, and the
#: seconds that each Sentinel's answer may take.
SENTINEL_CHECK_S, SENTINEL_TIMEOUT_S = 2.0, 1.0

#: Jobs in one settle script: far fewer than Lua can unpack, and a few ms of the server's time.
SETTLE_MAX_JOBS = 500
#: Bytes of results in one settle script, except that one result may be larger: a server closes the connection of a
#: client that sends more than 1 GB at once.
SETTLE_MAX_BYTES = 32 * 1024 * 1024

#: Bytes of one result: the limit that Redis and Valkey have by default (`proto-max-bulk-len`). A server closes the
#: connection of a client that sends more.
MAX_RESULT_BYTES = 512 * 1024 * 1024

#: Messages that one script puts back, and their bytes: about 100 ms of the server's time at most.
SWEEP_MAX_JOBS = 200
SWEEP_MAX_BYTES = 32 * 1024 * 1024
#: Orphans of one worker that a sweep gives back, at most: the sweeping worker's own lease must not run out meanwhile.
SWEEP_MOST = 10_000
#: Tags that the server is asked for at once: less than a ms of its time.
SCAN_COUNT = 1000
#: Leases between two looks for messages that are held for nobody: seldom, because all that is held is looked at.
MEND_LEASES = 10

#: Refreshes within the length of one lease: two of them may fail and the lease still does not run out.
REFRESHES_PER_LEASE = 3
#: Seconds between two turns of the lease thread at most: orphans of a dead worker wait no longer to be noticed.
LEASE_TURN_S = 2.0

#: Seconds between two looks at whether all messages have owners, at least: in one second a message is through its way
#: from one owner to the next, unless an error has ended that way.
CHECK_OWNERS_S = 1.0

#: Leases for which a running note outlives the time limit of a batch: one until the lease has run out, and two until
#: another worker, which may have to start first, finds the orphan.
NOTE_LEASES = 3
#: Steps of user code during which the note of one batch holds, each as long as the time limit: a suspect is prepared,
#: run and postprocessed under one note.
NOTE_STEPS = 3
#: Answers to notes that may be unread. Half of them are read in one go, because each look at a socket costs the GIL;
#: the server is then never so far behind that the device would have to wait.
NOTE_ANSWERS = 64
#: Seconds after which a note first looks whether its connection is still there: too seldom to cost anything.
NOTE_IDLE_S = 1.0
#: Seconds that the device waits to connect again, or for a server that does not read, before a batch runs without note.
NOTE_TIMEOUT_S = 1.0

#: Seconds of a single wait on a socket at most: an interrupted wait ends within this time.
WAIT_SLICE_S = 0.2
#: Seconds beyond its wait for which a worker counts as the watcher: if it dies, nobody else watches for that long.
WATCHER_GRACE_S = 1.0
#: Seconds after which a wake token that no worker took is dropped: longer than an idle worker's wait, and an old token
#: only makes a worker look at its queues in vain.
WAKE_TOKEN_EXPIRES_S = 10

#: Seconds between two tries of what Redis refused. The first pause is short, because a cut connection is soon back; it
#: doubles up to the longest, so that a server that is away is not flooded.
RETRY_FIRST_PAUSE_S = 0.1
RETRY_LONGEST_PAUSE_S = 2.0
#: Doublings after which the pause is the longest for sure: more of them are no number that a float can hold.
RETRY_MOST_DOUBLINGS = 16
#: Seconds for which something has to fail for Redis to count as away: longer than a new connection takes.
OUTAGE_S = 1.0
#: Seconds after which the log says again that Redis cannot be used.
OUTAGE_LOG_S = 60.0

# -- Engine ------------------------------------------------------------------------------------------------------------

#: Seconds that a batch must be expected to run for another thread to put the next one together meanwhile. Waking the
#: thread for a shorter run costs more than it saves.
WORTH_COLLATING_AHEAD_S = 0.005

#: Back-pressure: no batch starts while the results of at least this many batches with at least this many jobs wait to
#: be stored. So results pile up nowhere while the store is slow or away.
MAX_UNSETTLED_BATCHES, MAX_UNSETTLED_JOBS = 2, 64

#: Seconds that the last settle may have taken for the device thread to do the next one by itself while no job waits.
#: Waking the settle thread costs a lone job a twentieth of its latency.
QUICK_SETTLE_S = 0.002

#: A batch of at least so many jobs that ran for less than so many seconds is settled by the device thread, because
#: waking the settle thread costs more than the device could do meanwhile: no-op tasks gain a tenth.
INSTANT_RUN_S, INSTANT_RUN_JOBS = 0.001, 64
#: Seconds that the last settle may have taken for each of its outcomes: in bulk it is a tenth of this, one by one it is
#: several times as much.
QUICK_SETTLE_EACH_S = 0.0005

#: Outcomes after which the settle thread adds no more to one step: what one settle script may take.
SETTLE_TOGETHER = 500

#: Deaths of workers after which a job that ran meanwhile does not run again, and how many of them must have come while
#: it ran alone. After its first death it runs alone, so the second is its own or a coincidence, and the third is proof.
MAX_DEATHS, MAX_LONE_DEATHS = 3, 2
#: Seconds after which a worker asks again whether its suspect may run, while another worker runs one.
SUSPECT_PAUSE_S = 0.25

#: Seconds that a drain waits for jobs whose preparation has begun, so that all jobs go back together and in order.
GIVE_BACK_TOGETHER_S = 1.0

# -- Consumer ----------------------------------------------------------------------------------------------------------

#: Tries to tell Celery an outcome while the broker takes writes but another server does not: about 8 s. After them the
#: job runs again after the length of a lease, because all other outcomes wait meanwhile.
REPLAY_TRIES = 8

#: What Celery's own backends do in a worker while their server is away, unless the app says otherwise: about 20 s.
RESULT_RETRIES = {
    "result_backend_always_retry": True,
    "result_backend_max_retries": 40,
    "result_backend_max_sleep_between_retries_ms": 1_000,
}

#: Messages that one claim takes at most, unless a batch may be larger: about 5 ms of the server's time, for which
#: results have to wait.
CLAIM_MAX_JOBS = 256

#: Seconds that one wait for a message lasts at most. The worker looks at the queues then, whatever it was told.
ARRIVAL_WAIT_S = 1.0
#: Seconds until the worker looks again at capacity that was used up, or at messages that were other workers' share.
CAPACITY_WAIT_S = 0.05

#: Seconds that the jobs of a small claim get as a head start before the claim thread does anything else, because all
#: that it does competes with them for the GIL; and the bytes of the messages of a small claim at most.
SMALL_CLAIM_HEAD_START_S, SMALL_CLAIM_MAX_BYTES = 0.001, 65_536

#: Seconds between two runs of the calls that wait for Celery's hub, because each turn of the hub costs the other
#: threads the GIL.
HUB_PAUSE_S = 0.01

#: Bytes of a message's decompressed body at most. What is decoded from it may take about twenty times as much memory,
#: if it is JSON of many small lists.
MAX_BODY_BYTES = 64 * 2**20

#: The part of `held_max_bytes` that messages in Celery's hands may take; messages with an ETA take half of it at most.
CELERY_PART, ETA_PART = 1 / 4, 1 / 2
#: Bytes that Celery's own objects for one message take: 10,000 small ETA messages made a worker grow by 100 MB.
CELERY_OBJECTS_BYTES = 10_000
#: Seconds before its ETA at which the bytes of a parked message are fetched: longer than an idle claim thread waits.
#: And seconds until a parked message that had no room is tried again.
FETCH_AHEAD_S, PARK_AGAIN_S = 3.0, 1.0
#: Parked messages that are fetched at once, at most.
FETCH_MAX_JOBS = 256
#: Seconds after which a worker whose pool of plain tasks is full looks at the queues of plain tasks again, and how many
#: messages it claims then: the calls of batch tasks among them run, and the others go back.
PROBE_S, PROBE_MAX_JOBS = 5.0, 64

#: Bytes of the jobs that were claimed and that Celery's hub has not seen yet, as a part of `held_max_bytes`, and what
#: each takes besides its message. No more is claimed meanwhile, because a plain task in a solo pool blocks the hub.
HUB_PART, HUB_JOB_BYTES = 1 / 8, 4096

#: New objects after which Python's garbage collector looks at the new ones. Each job makes about ten objects that live
#: until it is settled, so that Python's own threshold of 700 would be passed every few ms.
GC_THRESHOLD = 20_000
#: Bytes of a decompressed body that count as large, and of such bodies together after which garbage is collected.
LARGE_BODY_BYTES, COLLECT_AFTER_BYTES = 2**20, 2**27

#: Seconds for which the broadcast calls are kept that a worker has received and not claimed, until a worker with the
#: same node name starts: as long as Celery keeps results.
BROADCAST_EXPIRES_S = 86_400

#: Seconds beyond `drain_timeout_s` after which a hung worker that shuts down ends at once, whatever it waits for.
EXIT_GRACE_S = 30.0

#: Seconds beyond `drain_timeout_s` after which a worker that stops ends at once, whatever it waits for: less than the
#: supervisors of the documents wait beyond it.
STOP_GRACE_S = 10.0

#: A task whose last batch ran for fewer seconds runs its next one without a note at the server, because the note would
#: cost a lone call a tenth of its latency. Jobs of a worker that has died are noted however quick they are.
QUICK_RUN_S = 0.001
