-- Apply one step of session state of one partition and move its fence forward, or change nothing.
--
-- KEYS: fence, sequence, change list, then one key a state: users, own counters, shared counters
-- ARGV: expected fence, new fence, own ttl s, shared ttl s, how many keys are users', how many counters are own,
--       key prefix of counters, bytes of a user's state, of a counter's, the packed states of users, of counters
-- Returns the fence that stands afterwards.
local current = redis.call('GET', KEYS[1]) or '0'
if current ~= ARGV[1] or tonumber(ARGV[2]) < tonumber(current) then
  return current
end
local HEAD = 3  -- keys before the states
local MOST = 1000  -- values a call: Lua's stack has room for some 8000
local users, own = tonumber(ARGV[5]), tonumber(ARGV[6])
local prefix = #ARGV[7]

local function write(first, last, packed, size, offset, ttl)
  for i = first, last do
    local at = (i - offset) * size
    redis.call('SET', KEYS[HEAD + i], string.sub(packed, at - size + 1, at), 'EX', ttl)
  end
end

local states = #KEYS - HEAD
local user_size, counter_size = tonumber(ARGV[8]), tonumber(ARGV[9])
write(1, users, ARGV[10], user_size, 0, ARGV[3])
write(users + 1, users + own, ARGV[11], counter_size, users, ARGV[3])
write(users + own + 1, states, ARGV[11], counter_size, users, ARGV[4])

if states > users + own then
  -- All states of one step share a sequence number: a reader asks for what is above the last one it saw.
  local sequence = redis.call('INCR', KEYS[2])
  local changes = {}
  for i = users + own + 1, states do
    changes[#changes + 1] = sequence
    changes[#changes + 1] = string.sub(KEYS[HEAD + i], prefix + 1)
    if #changes == MOST or i == states then
      redis.call('ZADD', KEYS[3], unpack(changes))
      changes = {}
    end
  end
  -- The least recently changed entries are the first whose states expire; a few a step keep the list as short as they.
  for _, member in ipairs(redis.call('ZRANGE', KEYS[3], 0, 3)) do
    if redis.call('EXISTS', ARGV[7] .. member) == 0 then
      redis.call('ZREM', KEYS[3], member)
    end
  end
end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
