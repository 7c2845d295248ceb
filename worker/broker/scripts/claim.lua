-- Claims messages: takes them out of their queues and puts them under our lease, all in one step.
--
-- KEYS  for each of n queues: unacked hash, workers; then the lists, by priority and then by queue
-- ARGV  1 tag prefix   2 first sequence number   3 worker   4 messages at most   5 bytes at most
--       6 n   then for each queue: end of its envelope, messages of it that this worker holds, messages of it at most
--       then the priorities
-- Reply {time, messages left behind because they are other workers' share,
--        for each list how many were taken, each message taken (oldest first, list by list)}
--       or {} if this worker's lease in one of the queues has run out: nothing is claimed, because it would be an orphan
--
-- A message's tag is prefix .. 12-digit sequence number .. '.' .. priority. So sorted tags are in claim order, and a
-- tag alone tells to which list its message goes back.
-- This works over maxmemory, because RPOP frees memory and Redis refuses only a script's first write.

local CHUNK = 16  -- messages popped at once, at most

local prefix, sequence, worker = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local limit, bytes, queues = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local priorities = #ARGV - 6 - 3 * queues

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
for queue = 1, queues do
  if tonumber(redis.call('ZSCORE', KEYS[2 * queue], worker) or 0) <= now then return {} end
end

local function list_key(priority, queue)
  return KEYS[2 * queues + (priority - 1) * queues + queue]
end

-- A worker holds at most its share of the messages that wait or are held, so that no other worker is left idle.
local share, withheld = {}, 0
for queue = 1, queues do
  local backlog = 0
  for priority = 1, priorities do
    backlog = backlog + redis.call('LLEN', list_key(priority, queue))
  end
  share[queue] = 0
  if backlog > 0 then
    local held = redis.call('HLEN', KEYS[2 * queue - 1])
    local live = math.max(1, redis.call('ZCOUNT', KEYS[2 * queue], now, '+inf'))
    local mine = tonumber(ARGV[5 + 3 * queue])
    share[queue] = math.max(0, math.ceil((backlog + held) / live) - mine)
    withheld = withheld + math.max(0, backlog - share[queue])
    share[queue] = math.min(share[queue], tonumber(ARGV[6 + 3 * queue]))
  end
end

local counts, messages = {}, {}
local taken_bytes, largest, full = 0, 0, false

-- Pops as many as fit if they are like those seen so far, because a row of huge messages must not fill Lua's memory.
local function chunk()
  if largest == 0 then return 1 end
  return math.max(1, math.min(CHUNK, math.floor((bytes - taken_bytes) / largest)))
end

local function lease_messages(queue, priority, popped)
  local fields = {}
  local envelope_end = ARGV[4 + 3 * queue]
  local suffix = '.' .. ARGV[6 + 3 * queues + priority]
  for index = 1, #popped do
    local tag = prefix .. string.format('%012d', sequence) .. suffix
    sequence = sequence + 1
    fields[2 * index - 1], fields[2 * index] = tag, '[' .. popped[index] .. envelope_end
    messages[#messages + 1] = popped[index]
  end
  if #popped > 0 then redis.call('HSET', KEYS[2 * queue - 1], unpack(fields)) end
end

for priority = 1, priorities do
  for queue = 1, queues do
    local count = 0
    while not full and math.min(limit, share[queue]) > 0 do
      local key = list_key(priority, queue)
      local popped = redis.call('RPOP', key, math.min(limit, share[queue], chunk()))
      if not popped then break end
      local kept = 0
      for index = 1, #popped do
        taken_bytes = taken_bytes + #popped[index]
        largest = math.max(largest, #popped[index])
        full = taken_bytes > bytes
        if full and #messages + kept > 0 then break end
        kept = index
      end
      for _ = kept + 1, #popped do redis.call('RPUSH', key, table.remove(popped)) end
      lease_messages(queue, priority, popped)
      count, limit, share[queue] = count + kept, limit - kept, share[queue] - kept
    end
    counts[#counts + 1] = count
  end
end

local reply = {tostring(now), withheld}
for index = 1, #counts do reply[#reply + 1] = counts[index] end
for index = 1, #messages do reply[#reply + 1] = messages[index] end
return reply
