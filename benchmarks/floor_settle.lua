-- Stores results and acknowledges their messages, except for messages whose lease now belongs to another worker.
-- KEYS  1 the hash of leased messages, 2 the sorted set of their times
-- ARGV  1 seconds until a result expires, then for each message: tag, result key, result
-- Reply the number of messages that were ours
local tags = {}
for i = 2, #ARGV, 3 do
  if redis.call('HDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('SETEX', ARGV[i + 1], ARGV[1], ARGV[i + 2])
    redis.call('PUBLISH', ARGV[i + 1], ARGV[i + 2])
    tags[#tags + 1] = ARGV[i]
  end
end
if #tags > 0 then redis.call('ZREM', KEYS[2], unpack(tags)) end
return #tags
