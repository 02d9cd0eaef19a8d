-- Apply one batch of session state of one partition and move its fence, or change nothing.
--
-- KEYS: fence, sequence, change list, then one key a state: users and own counters first, shared counters last
-- ARGV: expected fence, new fence, own ttl s, shared ttl s, how many keys are own, key prefix of counters,
--       then one packed state a key
-- Returns the fence that stands afterwards.
local now = redis.call('GET', KEYS[1]) or '0:0'
if now ~= ARGV[1] then
  return now
end
local own = tonumber(ARGV[5])
for i = 1, #KEYS - 3 do
  redis.call('SET', KEYS[i + 3], ARGV[i + 6], 'EX', i <= own and ARGV[3] or ARGV[4])
end
if #KEYS - 3 > own then
  -- All states of one batch share a sequence number: a reader asks for what is above the last one it saw.
  local sequence = redis.call('INCR', KEYS[2])
  for i = own + 1, #KEYS - 3 do
    redis.call('ZADD', KEYS[3], sequence, string.sub(KEYS[i + 3], #ARGV[6] + 1))
  end
  -- The least recently changed entries are the first whose states expire; a few a batch keep the list as short as they.
  for _, member in ipairs(redis.call('ZRANGE', KEYS[3], 0, 3)) do
    if redis.call('EXISTS', ARGV[6] .. member) == 0 then
      redis.call('ZREM', KEYS[3], member)
    end
  end
end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
