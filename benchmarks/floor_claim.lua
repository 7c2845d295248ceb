-- Takes ready messages and puts them under a lease in one atomic step, in kombu's own format.
-- KEYS  1 the queue, 2 the hash of leased messages, 3 the sorted set of their times
-- ARGV  1 the largest number of messages, 2 the prefix of the tags, unique to this claim, 3 the queue's name as JSON
-- Reply the messages, oldest first; message i has the tag prefix .. i
local messages = redis.call('RPOP', KEYS[1], ARGV[1])
if not messages then return {} end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local leased, index = {}, {}
for i, message in ipairs(messages) do
  local tag = ARGV[2] .. i
  leased[2 * i - 1], leased[2 * i] = tag, '[' .. message .. ',"",' .. ARGV[3] .. ']'
  index[2 * i - 1], index[2 * i] = now, tag
end
redis.call('HSET', KEYS[2], unpack(leased))
redis.call('ZADD', KEYS[3], unpack(index))
return messages
