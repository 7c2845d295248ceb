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

-- Whether a worker that is gone has noted that user code worked on this message, and on nothing else.
local notes = {}
local function was_running(tag)
  local worker = string.match(tag, '^(.*):') or ''
  if not notes[worker] then
    local tags, count = {}, 0
    for noted in string.gmatch(redis.call('GET', ARGV[4] .. worker) or '', '%S+') do
      count = count + (tags[noted] and 0 or 1)
      tags[noted] = true
    end
    notes[worker] = {tags = tags, alone = count == 1}
  end
  local note = notes[worker]
  return note.tags[tag], note.tags[tag] and note.alone
end

-- The message's JSON is read here and not by cjson, which would write other numbers and empty lists than it has read.
-- Returns the position behind the value that begins at a position; nil if it does not end.
local function behind(text, at)
  local depth = 0
  repeat
    local char = string.sub(text, at, at)
    if char == '"' then
      at = string.match(text, '^[^"\\]*()', at + 1)
      while string.sub(text, at, at) == '\\' do at = string.match(text, '^[^"\\]*()', at + 2) end
      if at > #text then return nil end
      at = at + 1
    elseif char == '{' or char == '[' then
      depth, at = depth + 1, at + 1
    elseif char == '}' or char == ']' then
      depth, at = depth - 1, at + 1
    else
      at = string.match(text, '^[^%s%[%]{},:"]+()', at)
    end
    if not at or depth < 0 then return nil end
    if depth > 0 then at = string.match(text, '^[%s,:]*()', at) end
  until depth == 0
  return at
end

-- Returns the members of the object that begins at a position; nil if there is no object.
local function members(text, at)
  local found = {}
  at = string.match(text, '^{%s*()', at)
  while at and string.sub(text, at, at) == '"' do
    local colon = behind(text, at)
    local value = colon and string.match(text, '^%s*:%s*()', colon)
    local stop = value and behind(text, value)
    if not stop then return nil end
    local name = string.sub(text, at + 1, colon - 2)
    if string.find(name, '\\', 1, true) then
      local read, decoded = pcall(cjson.decode, '["' .. name .. '"]')
      name = read and decoded[1] or name
    end
    found[#found + 1] = {name = name, first = at, value = value, behind = stop}
    at = string.match(text, '^%s*,?%s*()', stop)
  end
  return at and string.sub(text, at, at) == '}' and found or nil
end

-- Returns the last of an object's members of that name, because Python's JSON takes the last one, too.
local function last(found, name)
  for place = #found, 1, -1 do
    if found[place].name == name then return found[place] end
  end
end

-- Tells a message's next reader, in the delivery_info of its properties, that it is redelivered, and how often it was
-- lost: "batchery_lost": [leases that ran out, of these while user code worked on it, of these on nothing else].
local function redelivered(message, is_lost, ran, alone)
  local whole = members(message, string.match(message, '^%s*()'))
  local properties = last(whole or {}, 'properties')
  local inside = properties and members(message, properties.value)
  if not inside then return message end
  local info = last(inside, 'delivery_info')
  local parts, lost = {}, {0, 0, 0}
  for _, member in ipairs(info and members(message, info.value) or {}) do
    if member.name == 'batchery_lost' then
      local text = string.sub(message, member.value, member.behind - 1)
      local counts = {string.match(text, '^%[%s*(%d+)%s*,%s*(%d+)%s*,%s*(%d+)%s*%]$')}
      for place = 1, 3 do lost[place] = math.min(tonumber(counts[place] or 0), 1000000) end
    elseif member.name ~= 'redelivered' then
      parts[#parts + 1] = string.sub(message, member.first, member.behind - 1)
    end
  end
  parts[#parts + 1] = '"redelivered": true'
  parts[#parts + 1] = string.format('"batchery_lost": [%d, %d, %d]',
    lost[1] + (is_lost and 1 or 0), lost[2] + (ran and 1 or 0), lost[3] + (alone and 1 or 0))
  local text = '{' .. table.concat(parts, ', ') .. '}'
  if info then return string.sub(message, 1, info.value - 1) .. text .. string.sub(message, info.behind) end
  local comma = #inside > 0 and ', ' or ''
  local rest = string.sub(message, properties.value + 1)
  return string.sub(message, 1, properties.value) .. '"delivery_info": ' .. text .. comma .. rest
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
    if rejected then message = redelivered(message) end
    if orphans then message = redelivered(message, true, was_running(tag)) end
    redis.call(rejected and 'LPUSH' or 'RPUSH', list, message)
    redis.call('HDEL', KEYS[1], tag)
    count = count + 1
  end
  seen = seen + 1
end
if ARGV[8] == '1' and seen == #ARGV - 8 then redis.call('ZREM', KEYS[2], ARGV[6]) end
return {seen, count}
