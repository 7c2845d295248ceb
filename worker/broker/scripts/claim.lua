-- Claims messages: takes them out of their queues and puts them under our lease, all in one step.
--
-- KEYS  for each of n queues: unacked hash, workers; then the lists, by priority and then by queue; then
--       for each queue the hash of what workers hold aside
-- ARGV  1 tag prefix   2 first sequence number   3 worker   4 messages at most   5 bytes at most
--       6 n   7 number of priorities   then the priorities
--       then for each queue: end of its envelope, messages of it at most, messages of it that this worker holds aside
--       ('' if it has told that before), then for each priority the jobs of it that this worker holds
-- Reply {time, messages left behind because they are other workers' share,
--        for each list how many were taken, each message taken (oldest first, list by list)}; {time, 0} if there is none
--       or {} if this worker's lease in one of the queues has run out: nothing is claimed, because it would be an orphan
--
-- A message's tag is prefix .. 12-digit sequence number .. '.' .. priority. So sorted tags are in claim order, and a
-- tag alone tells to which list its message goes back.
-- This works over maxmemory, because RPOP frees memory and Redis refuses only a script's first write.

local CHUNK = 16  -- messages popped at once, at most
local CLAIMS_NO_MORE = 'claims no more'  -- instead of the number of messages held aside
local PART = 16  -- a list of a lower priority gets at least this part of a claim

local prefix, sequence, worker = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local limit, bytes, queues = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local priorities = tonumber(ARGV[7])

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

local first_list, first_aside = 2 * queues, 2 * queues + priorities * queues

local function list_key(priority, queue)
  return KEYS[first_list + (priority - 1) * queues + queue]
end

local function argument(queue, place)
  return ARGV[7 + priorities + (queue - 1) * (3 + priorities) + place]
end

local function jobs_held(queue, priority)
  return tonumber(argument(queue, 3 + priority))
end

-- What a worker holds aside is no work: messages that wait for their ETA or a rate limit, and those of plain tasks.
for queue = 1, queues do
  local aside = argument(queue, 3)
  -- An error does no harm, because others then only take less than their share.
  if aside == '0' then
    redis.pcall('HDEL', KEYS[first_aside + queue], worker)
  elseif aside ~= '' then
    redis.pcall('HSET', KEYS[first_aside + queue], worker, aside)
  end
end

local function is_empty()
  for first = first_list + 1, first_aside, 1000 do
    if redis.call('EXISTS', unpack(KEYS, first, math.min(first + 999, first_aside))) > 0 then return false end
  end
  return true
end

-- One queue's lists are looked at below anyway.
if queues > 1 and is_empty() then return {tostring(now), 0} end

-- Returns how many messages live workers hold aside, and how many of these workers claim no more.
local function held_aside(queue)
  local count, leaving, told = 0, 0, redis.call('HGETALL', KEYS[first_aside + queue])
  for index = 1, #told, 2 do
    if tonumber(redis.call('ZSCORE', KEYS[2 * queue], told[index]) or 0) <= now then
      redis.call('HDEL', KEYS[first_aside + queue], told[index])
    elseif told[index + 1] == CLAIMS_NO_MORE then
      leaving = leaving + 1
    else
      count = count + tonumber(told[index + 1])
    end
  end
  return count, leaving
end

-- A worker holds at most its share of the jobs that wait or are held, so that no other worker is left idle. A worker
-- without jobs has a share in every backlog, so that nothing waits for a worker that does not come.
local share, mine, waiting, withheld = {}, {}, {}, 0
local highest = priorities  -- of the lists that have messages
for queue = 1, queues do
  if tonumber(redis.call('ZSCORE', KEYS[2 * queue], worker) or 0) <= now then return {} end
  local backlog = 0
  share[queue], mine[queue], waiting[queue] = 0, 0, {}
  for priority = 1, priorities do
    local length = redis.call('LLEN', list_key(priority, queue))
    if length > 0 then highest = math.min(highest, priority) end
    waiting[queue][priority] = length
    backlog = backlog + length
    mine[queue] = mine[queue] + jobs_held(queue, priority)
  end
  if backlog > 0 then
    local aside, leaving = held_aside(queue)
    local held = math.max(mine[queue], redis.call('HLEN', KEYS[2 * queue - 1]) - aside)
    local live = math.max(1, redis.call('ZCOUNT', KEYS[2 * queue], now, '+inf') - leaving)
    share[queue] = math.max(0, math.ceil((backlog + held) / live) - mine[queue])
    withheld = withheld + math.max(0, backlog - share[queue])
    share[queue] = math.min(share[queue], tonumber(argument(queue, 2)))
  end
end

local taken = {}  -- messages, for each list
local total, taken_bytes, largest, full = 0, 0, 0, false

-- Pops as many as fit if they are like those seen so far, because a row of huge messages must not fill Lua's memory.
local function chunk()
  if largest == 0 then return 1 end
  return math.max(1, math.min(CHUNK, math.floor((bytes - taken_bytes) / largest)))
end

local function take(priority, queue, most)
  local key = list_key(priority, queue)
  taken[key] = taken[key] or {}
  most = math.min(most, limit, share[queue])
  while not full and most > 0 do
    local popped = redis.call('RPOP', key, math.min(most, chunk()))
    if not popped then break end
    local kept = 0
    for index = 1, #popped do
      taken_bytes = taken_bytes + #popped[index]
      largest = math.max(largest, #popped[index])
      full = taken_bytes > bytes
      if full and total > 0 then break end
      kept, total = index, total + 1
      table.insert(taken[key], popped[index])
    end
    for index = #popped, kept + 1, -1 do redis.call('RPUSH', key, popped[index]) end
    most, limit, share[queue] = most - kept, limit - kept, share[queue] - kept
  end
end

-- First a small part for each lower list, so that no flood of a higher priority keeps it waiting for ever. A worker
-- holds no more than this part of them, because jobs of a lower priority must not fill the room of higher ones.
for priority = highest + 1, priorities do
  for queue = 1, queues do
    if waiting[queue][priority] > 0 then
      local part = math.floor((tonumber(argument(queue, 2)) + mine[queue]) / PART)
      take(priority, queue, math.max(1, part) - jobs_held(queue, priority))
    end
  end
end
for priority = highest, priorities do
  for queue = 1, queues do take(priority, queue, limit) end
end

local reply = {tostring(now), withheld}
local messages = {}
for priority = 1, priorities do
  for queue = 1, queues do
    local popped = taken[list_key(priority, queue)] or {}
    local envelope_end, suffix = argument(queue, 1), '.' .. ARGV[7 + priority]
    for first = 1, #popped, CHUNK do
      local fields = {}
      for index = first, math.min(#popped, first + CHUNK - 1) do
        local tag = prefix .. string.format('%012d', sequence) .. suffix
        sequence = sequence + 1
        fields[#fields + 1], fields[#fields + 2] = tag, '[' .. popped[index] .. envelope_end
        messages[#messages + 1] = popped[index]
      end
      redis.call('HSET', KEYS[2 * queue - 1], unpack(fields))
    end
    reply[#reply + 1] = #popped
  end
end
for index = 1, #messages do reply[#reply + 1] = messages[index] end
return reply
