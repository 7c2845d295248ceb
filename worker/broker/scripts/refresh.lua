-- Refreshes a worker's lease in each of its queues. The lease covers everything that the worker holds there.
--
-- KEYS  workers of each queue
-- ARGV  1 lease in seconds   2 worker   3 '1' to begin a new lease where the old one is over, '' to leave it over
-- Reply for each queue 1 if the lease had not run out, else 0: then other workers may have taken what it covered
--
-- This works over maxmemory, because Redis refuses only a script's first write, and the first one removes nothing.

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local expiry = string.format('%.6f', now + tonumber(ARGV[1]))

local reply = {}
redis.call('ZREM', KEYS[1], '')
for index, key in ipairs(KEYS) do
  local ends = redis.call('ZSCORE', key, ARGV[2])
  reply[index] = ends and tonumber(ends) > now and 1 or 0
  if reply[index] == 1 or ARGV[3] == '1' then redis.call('ZADD', key, expiry, ARGV[2]) end
end
return reply
