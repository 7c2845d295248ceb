-- Gives messages back to the front of their queue, in claim order.
--
-- KEYS  1 unacked hash   2 unacked_index   then the queue's lists, one for each priority
-- ARGV  1 length of the envelope's end   2 the priorities, joined by ','
--       3 '' to give back the tags that follow; else how many orphans, whose lease has run out, at most
--       4 bytes of orphans at most, except that the first may be larger   then the tags
-- Reply how many were given back; a tag that is no longer held is ignored
--
-- This works over maxmemory, because Redis refuses only a script's first write, and the first one removes nothing.

local list_of, place = {}, 3
for priority in string.gmatch(ARGV[2], '%d+') do
  list_of[priority], place = KEYS[place], place + 1
end

-- Celery reads this flag from the delivery_info of a message's properties. kombu writes the properties behind the
-- headers, so it is the last delivery_info. No match is part of a JSON string, because a quote is escaped there.
local function redelivered(message)
  local before, info, behind = string.match(message, '^(.*"delivery_info": ?{)([^{}]*)(}.*)$')
  if not info or string.find(behind, '"delivery_info": ?{') then return message end
  local flagged, flags = string.gsub(info, '("redelivered": ?)%a+', '%1true')
  if flags > 0 then return before .. flagged .. behind end
  local comma = string.find(info, '^%s*$') and '' or ', '
  return before .. '"redelivered": true' .. comma .. info .. behind
end

local tags, orphans = {}, ARGV[3] ~= ''
if orphans then
  local clock = redis.call('TIME')
  local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
  -- The newest come first, because what a later sweep gives back is put before them.
  tags = redis.call('ZRANGE', KEYS[2], now, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, ARGV[3])
else
  for index = 5, #ARGV do tags[#tags + 1] = ARGV[index] end
end

redis.call('ZREM', KEYS[2], '')
table.sort(tags, function(one, other) return one > other end)
local count, left = 0, orphans and tonumber(ARGV[4]) or math.huge
for _, tag in ipairs(tags) do
  local envelope = redis.call('HGET', KEYS[1], tag)
  left = left - (envelope and #envelope or 0)
  if left < 0 and count > 0 then break end
  if envelope then
    local message = string.sub(envelope, 2, -1 - tonumber(ARGV[1]))
    local list = list_of[string.match(tag, '%.(%d+)$')] or KEYS[3]
    redis.call('RPUSH', list, orphans and redelivered(message) or message)
    redis.call('HDEL', KEYS[1], tag)
    count = count + 1
  end
  redis.call('ZREM', KEYS[2], tag)
end
return count
