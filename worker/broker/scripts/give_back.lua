-- Gives messages back to the front of their queue, in claim order, or to its end if their task has rejected them.
--
-- KEYS  1 unacked hash   2 workers   then the queue's lists, one for each priority
-- ARGV  1 length of the envelope's end   2 the priorities, joined by ','   3 bytes at most, but one message in any case
--       4 beginning of the keys of running notes, to which the worker's part of a tag is added
--       5 '1' if the messages were left by a worker that died or hung: they are flagged, and deaths are counted;
--         'rejected' if their task has rejected them: they are flagged, and go to the end; else ''
--       6 that worker, if its lease must be over, else ''   7 the end of its lease, as it was read
--       8 '1' if that worker holds nothing else: then it leaves the workers
--       then the tags, the newest first, because each message is put before those of earlier tags; those of rejected
--       messages the oldest first
-- Reply {how many of the tags were looked at, how many messages were given back}; a tag that is no longer held is passed
--       over. {0, 0} if that worker has refreshed its lease meanwhile, so that everything it holds is its own
--
-- This works over maxmemory, because Redis refuses only a script's first write, and the first one removes nothing.

redis.call('ZREM', KEYS[2], '')
if ARGV[6] ~= '' and tonumber(redis.call('ZSCORE', KEYS[2], ARGV[6]) or 0) ~= tonumber(ARGV[7]) then return {0, 0} end

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
    for noted in string.gmatch(redis.call('GET', ARGV[4] .. worker) or '', '%S+') do notes[worker][noted] = true end
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

local orphans, rejected, left = ARGV[5] == '1', ARGV[5] == 'rejected', tonumber(ARGV[3])
local seen, count = 0, 0
for index = 9, #ARGV do
  local tag = ARGV[index]
  local envelope = redis.call('HGET', KEYS[1], tag)
  left = left - (envelope and #envelope or 0)
  if left < 0 and count > 0 then break end
  if envelope then
    local message = string.sub(envelope, 2, -1 - tonumber(ARGV[1]))
    local list = list_of[string.match(tag, '%.(%d+)$')] or KEYS[3]
    if orphans or rejected then message = redelivered(message, orphans and was_running(tag)) end
    redis.call(rejected and 'LPUSH' or 'RPUSH', list, message)
    redis.call('HDEL', KEYS[1], tag)
    count = count + 1
  end
  seen = seen + 1
end
if ARGV[8] == '1' and seen == #ARGV - 8 then redis.call('ZREM', KEYS[2], ARGV[6]) end
return {seen, count}
