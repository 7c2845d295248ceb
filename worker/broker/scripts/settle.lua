-- Settles jobs: stores each result, announces it to its callers, and acknowledges its message, if we still hold it.
-- A result whose lease is lost is stored where no other is, and nothing is acknowledged for it.
--
-- KEYS  1 unacked hash   then for each job: its result key, or the first key again if it is only acknowledged (an empty
--       name would be a key that access rules forbid)
--       then for each chord: parts, added to its size, size, parts known, saved group, state (Celery's
--       .j .t .s .d '' .c)
-- ARGV  1 broker's db number   2 results' db number   3 seconds that results are kept, 0: for ever   4 number of jobs
--       then for each job: tag, result
--       then, if any job is part of a chord: 1 if chords are in order, seconds that parts are kept, and the group
--       then for each part: number of its job, number of its chord, task id, its place in the chord, its result
-- Reply for each job 1 if it was settled; 0 if its lease was lost and it had an answer; 3 if its lease was lost and its
--       result is stored all the same; 2 if it completes a chord, so that Celery has to settle it and send the callback:
--       nothing was done for it
--
-- Why a result without a lease is stored: the server may have lost the message with its data, and then nobody else will
-- answer. If the message waits or runs elsewhere instead, its other run stores an equal result later. A result that
-- exists, of whatever state, is never replaced. A part of a chord counts once, because the chord knows its parts.
--
-- This works over maxmemory, because Redis refuses only a script's first write, and the first one removes nothing.
-- Any other error (such as a write that access rules forbid) comes before the acknowledgement, so nothing is lost.

local jobs = tonumber(ARGV[4])
local tags, reply = {}, {}
for job = 1, jobs do
  tags[job] = ARGV[3 + 2 * job]
  reply[job] = redis.call('HEXISTS', KEYS[1], tags[job])
end

redis.call('HDEL', KEYS[1], '')
if ARGV[1] ~= ARGV[2] then redis.call('SELECT', ARGV[2]) end

-- Parts are added as Celery's own script adds them. A chord's size is not known until its last message is sent, so only
-- a part that finds the size can complete the chord, and that part is left to Celery.
local first_part, chords = 5 + 2 * jobs, {}
local ordered, expires, group_expires = ARGV[first_part] == '1', ARGV[first_part + 1], ARGV[first_part + 2]

local function chord_of(first_key)
  local chord = chords[first_key]
  if not chord then
    local parts, added, size, known, group, state = unpack(KEYS, first_key, first_key + 5)
    local total = redis.call('GET', size)
    chord = {
      parts = parts, known = known,
      over = redis.call('GET', state) == 'done',
      total = total and tonumber(total) + tonumber(redis.call('GET', added) or 0) or math.huge,
      count = ordered and redis.call('ZCOUNT', parts, '-inf', '+inf') or redis.call('LLEN', parts),
    }
    chords[first_key] = chord
  end
  return chord
end

for place = first_part + 3, #ARGV, 5 do
  local job, chord = tonumber(ARGV[place]), chord_of(2 + jobs + 6 * (tonumber(ARGV[place + 1]) - 1))
  local member, value = ARGV[place + 2] .. ':' .. ARGV[place + 3], ARGV[place + 4]
  local is_new = redis.call('SISMEMBER', chord.known, member) == 0
  if not chord.over and (is_new or reply[job] == 1) then
    if chord.count + (is_new and 1 or 0) >= chord.total then
      reply[job] = 2
    elseif is_new then
      if ordered then
        redis.call('ZADD', chord.parts, ARGV[place + 3], value)
      else
        redis.call('RPUSH', chord.parts, value)
      end
      -- Last, because a part that is known is taken for added when the same jobs are settled again after an error.
      redis.call('SADD', chord.known, member)
      chord.count = chord.count + 1
    end
  end
end
for first_key, chord in pairs(chords) do
  for key = first_key, first_key + 3 do
    if expires ~= '0' then redis.call('EXPIRE', KEYS[key], expires) end
  end
  if group_expires ~= '0' then redis.call('EXPIRE', KEYS[first_key + 4], group_expires) end
end

local settled = {}
for job = 1, jobs do
  local key, result = KEYS[1 + job], ARGV[4 + 2 * job]
  local stores = key ~= KEYS[1] and (reply[job] == 1 or reply[job] == 0 and redis.call('EXISTS', key) == 0)
  if reply[job] == 1 then settled[#settled + 1] = tags[job] end
  if stores then
    if ARGV[3] == '0' then
      redis.call('SET', key, result)
    else
      redis.call('SETEX', key, ARGV[3], result)
    end
    redis.call('PUBLISH', key, result)
    if reply[job] == 0 then reply[job] = 3 end
  end
end
if ARGV[1] ~= ARGV[2] then redis.call('SELECT', ARGV[1]) end
if #settled > 0 then redis.call('HDEL', KEYS[1], unpack(settled)) end
return reply
