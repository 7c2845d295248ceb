"""The worker's tuning constants in one place, each with its unit and the reason for its value."""

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

#: Outcomes after which the settle thread adds no more to one step: what one settle script may take.
SETTLE_TOGETHER = 500

#: Seconds that a drain waits for jobs whose preparation has begun, so that all jobs go back together and in order.
GIVE_BACK_TOGETHER_S = 1.0
