-- Refreshes leases, and the worker's place among the live workers.
--
-- KEYS  1 unacked_index   2 workers
-- ARGV  1 lease in seconds   2 worker, '' if it does not claim any more   then the tags
-- Reply how many of the tags are still held
--
-- This works over maxmemory, because Redis refuses only a script's first write, and the first one only removes.

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local expiry = string.format('%.6f', now + tonumber(ARGV[1]))

redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if ARGV[2] ~= '' then redis.call('ZADD', KEYS[2], expiry, ARGV[2]) end
local held = 0
for first = 3, #ARGV, 500 do
  local scores = {}
  for index = first, math.min(#ARGV, first + 499) do
    scores[#scores + 1] = expiry
    scores[#scores + 1] = ARGV[index]
  end
  held = held + redis.call('ZADD', KEYS[1], 'XX', 'CH', unpack(scores))
end
return held
