-- Gives messages back to the front of their queue, in claim order, or to its end if their task has rejected them.
--
-- KEYS  1 unacked hash   2 unacked_index   then the queue's lists, one for each priority
-- ARGV  1 length of the envelope's end   2 the priorities, joined by ','
--       3 '' to give back the tags that follow, 'rejected' to give them back to the end and mark them as redelivered;
--       else how many orphans, whose lease has run out, at most
--       4 bytes of orphans at most, except that the first may be larger
--       5 beginning of the keys of running notes, to which the worker's part of a tag is added   then the tags
-- Reply how many were given back; a tag that is no longer held is ignored
--
-- This works over maxmemory, because Redis refuses only a script's first write, and the first one removes nothing.

local list_of, place = {}, 3
for priority in string.gmatch(ARGV[2], '%d+') do
  list_of[priority], place = KEYS[place], place + 1
end

-- Whether a worker that is gone has noted that this message was running.
local notes = {}
local function was_running(tag)
  local worker = string.match(tag, '^(.*):') or ''
  if not notes[worker] then
    notes[worker] = {}
    for noted in string.gmatch(redis.call('GET', ARGV[5] .. worker) or '', '%S+') do notes[worker][noted] = true end
  end
  return notes[worker][tag]
end

-- Celery reads this flag from the delivery_info of a message's properties. kombu writes the properties behind the
-- headers, so it is the last delivery_info. No match is part of a JSON string, because a quote is escaped there.
-- The flag is the number of workers that died while they ran the message, or true if none did; both are true to Celery.
local function redelivered(message, died)
  local before, info, behind = string.match(message, '^(.*"delivery_info": ?)({[^{}]*)(}.*)$')
  if not info or string.find(behind, '"delivery_info": ?{') then return message end
  local name, value = string.match(info, '([{,]%s*"redelivered": ?)([%w.+-]+)')
  local deaths = (tonumber(string.match(value or '', '^%d+$')) or 0) + (died and 1 or 0)
  local flag = deaths > 0 and string.format('%.0f', deaths) or 'true'
  if name then return before .. string.gsub(info, '([{,]%s*"redelivered": ?)[%w.+-]+', '%1' .. flag, 1) .. behind end
  -- It is added at the end, because the last of two equal names counts.
  return before .. info .. (string.find(info, '^{%s*$') and '' or ', ') .. '"redelivered": ' .. flag .. behind
end

local tags, rejected = {}, ARGV[3] == 'rejected'
local orphans = ARGV[3] ~= '' and not rejected
if orphans then
  local clock = redis.call('TIME')
  local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
  -- The newest come first, because what a later sweep gives back is put before them.
  tags = redis.call('ZRANGE', KEYS[2], now, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, ARGV[3])
else
  for index = 6, #ARGV do tags[#tags + 1] = ARGV[index] end
end

redis.call('ZREM', KEYS[2], '')
-- What is pushed last is the first to be claimed at the front, and the last at the end.
table.sort(tags, function(one, other)
  if rejected then return one < other end
  return one > other
end)
local count, left = 0, orphans and tonumber(ARGV[4]) or math.huge
for _, tag in ipairs(tags) do
  local envelope = redis.call('HGET', KEYS[1], tag)
  left = left - (envelope and #envelope or 0)
  if left < 0 and count > 0 then break end
  if envelope then
    local message = string.sub(envelope, 2, -1 - tonumber(ARGV[1]))
    local list = list_of[string.match(tag, '%.(%d+)$')] or KEYS[3]
    if orphans then message = redelivered(message, was_running(tag)) end
    if rejected then message = redelivered(message, false) end
    redis.call(rejected and 'LPUSH' or 'RPUSH', list, message)
    redis.call('HDEL', KEYS[1], tag)
    count = count + 1
  end
  redis.call('ZREM', KEYS[2], tag)
end
return count
