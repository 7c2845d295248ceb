-- Keeps a claimed message as a dead letter, because its job is given up. The message stays claimed.
--
-- KEYS  1 unacked hash   2 letters: hash, id to what is known, and '' to the bytes of all   3 hash, id to message
--       4 index: sorted set, id by Redis TIME
-- ARGV  1 tag   2 length of the envelope's end   3 id   4 what is known of the letter
--       5 letters at most   6 bytes at most, except that the newest letter may be larger   7 seconds that letters are kept
-- Reply 1 if it is kept; 0 if its lease was lost, so that another worker decides
--
-- This works over maxmemory, because Redis refuses only a script's first write, and the first one only removes.

local envelope = redis.call('HGET', KEYS[1], ARGV[1])
if not envelope then return 0 end

local function drop(id)
  local size = redis.call('HSTRLEN', KEYS[2], id) + redis.call('HSTRLEN', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
  redis.call('HDEL', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
  if size > 0 then redis.call('HINCRBY', KEYS[2], '', -size) end
end

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local id, message = ARGV[3], string.sub(envelope, 2, -1 - tonumber(ARGV[2]))
drop(id)
redis.call('HSET', KEYS[2], id, ARGV[4])
redis.call('HSET', KEYS[3], id, message)
redis.call('ZADD', KEYS[4], string.format('%.6f', now), id)
local bytes = redis.call('HINCRBY', KEYS[2], '', #ARGV[4] + #message)

for _ = 1, 1000 do  -- more go with the next letter, so that no script takes long
  local oldest = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')
  local fits = redis.call('ZCARD', KEYS[4]) <= tonumber(ARGV[5]) and bytes <= tonumber(ARGV[6])
  if oldest[1] == id or (fits and tonumber(oldest[2]) >= now - tonumber(ARGV[7])) then break end
  drop(oldest[1])
  bytes = tonumber(redis.call('HGET', KEYS[2], ''))
end
for key = 2, 4 do redis.call('EXPIRE', KEYS[key], ARGV[7]) end
return 1
