-- Lets one worker at a time run a suspect of a queue, because two that run at once may end two workers.
--
-- KEYS  1 unacked hash   2 suspect: the tag of the one that runs
-- ARGV  1 tag
-- Reply 1 if it may run; 0 if another one runs, which lasts until its message is settled or given back
--
-- This works over maxmemory, because Redis refuses only a script's first write, and the first one only removes.

local running = redis.call('GET', KEYS[2])
if running and running ~= ARGV[1] and redis.call('HGET', KEYS[1], running) then return 0 end
redis.call('DEL', KEYS[2])
redis.call('SETEX', KEYS[2], 86400, ARGV[1])  -- so that nothing is left of a queue that is no longer used
return 1
