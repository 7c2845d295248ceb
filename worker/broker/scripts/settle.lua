-- Settles jobs: stores each result, wakes whoever waits for it, and acknowledges its message, if we still hold it.
--
-- KEYS  1 unacked hash   2 unacked_index   then for each job: its result key, or the first key again where only to
--       acknowledge (an empty name would be a key that access rules forbid)
-- ARGV  1 broker's db number   2 results' db number   3 seconds that results are kept, 0: for ever
--       then for each job: tag, result
-- Reply for each job 1 if it was settled, 0 if its lease was lost: somebody else answers that one
--
-- Over maxmemory this still works: Redis refuses only a script's first write, and the first is a HDEL of nothing.
-- Whatever else fails (a write that an ACL forbids, say) fails before the acknowledgement: nothing is lost by it.

local jobs = #KEYS - 2
local tags = {}
for job = 1, jobs do tags[job] = ARGV[2 + 2 * job] end
local held = redis.call('ZMSCORE', KEYS[2], unpack(tags))

redis.call('HDEL', KEYS[1], '')
if ARGV[1] ~= ARGV[2] then redis.call('SELECT', ARGV[2]) end
local settled, reply = {}, {}
for job = 1, jobs do
  reply[job] = 0
  if held[job] then
    reply[job] = 1
    settled[#settled + 1] = tags[job]
    local key, result = KEYS[2 + job], ARGV[3 + 2 * job]
    if key ~= KEYS[1] then
      if ARGV[3] == '0' then
        redis.call('SET', key, result)
      else
        redis.call('SETEX', key, ARGV[3], result)
      end
      redis.call('PUBLISH', key, result)
    end
  end
end
if ARGV[1] ~= ARGV[2] then redis.call('SELECT', ARGV[1]) end
if #settled > 0 then
  redis.call('HDEL', KEYS[1], unpack(settled))
  redis.call('ZREM', KEYS[2], unpack(settled))
end
return reply
