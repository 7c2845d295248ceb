-- Gives messages back to the front of their queue, in claim order.
--
-- KEYS  1 unacked hash   2 unacked_index   then the queue's lists, by priority
-- ARGV  1 length of the envelope's end   2 the priorities, joined by ','
--       3 '' to give back the tags that follow; else how many orphans, whose lease has run out, at most
--       4 bytes of orphans at most, but one whatever its size   then the tags
-- Reply how many were given back; a tag that is no longer held is passed over
--
-- Over maxmemory this still works: Redis refuses only a script's first write, and the first is a ZREM of nothing.

local function list_of(tag)
  local priority = string.match(tag, '%.(%d+)$')
  local place = 1
  for step in string.gmatch(ARGV[2], '%d+') do
    if step == priority then return KEYS[2 + place] end
    place = place + 1
  end
  return KEYS[3]
end

-- Celery reads this flag from the delivery_info of a message's properties, which kombu writes behind the headers: the
-- last one. A quote inside a JSON string is escaped, so that no match is part of one.
local function redelivered(message)
  local first, last
  local from = 1
  while true do
    local start, finish = string.find(message, '"delivery_info": ?{', from)
    if not start then break end
    first, last, from = start, finish, finish + 1
  end
  local inner = first and string.match(message, '^[^{}]*}', last + 1)
  if not inner then return message end
  local before, behind = string.sub(message, 1, last), string.sub(message, last + 1 + #inner)
  local said, flags = string.gsub(inner, '("redelivered": ?)%a+', '%1true')
  if flags > 0 then return before .. said .. behind end
  local comma = string.match(inner, '^%s*}') and '' or ', '
  return before .. '"redelivered": true' .. comma .. inner .. behind
end

local tags, orphans = {}, ARGV[3] ~= ''
if orphans then
  local clock = redis.call('TIME')
  local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
  -- The newest first: what a later sweep gives back then comes before it.
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
    redis.call('RPUSH', list_of(tag), orphans and redelivered(message) or message)
    redis.call('HDEL', KEYS[1], tag)
    count = count + 1
  end
  redis.call('ZREM', KEYS[2], tag)
end
return count
