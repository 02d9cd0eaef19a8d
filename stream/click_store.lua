-- Take up one batch of settled clicks of one partition and move its fence, or change nothing.
--
-- KEYS: fence, then one key a new click, then one key a conversion
-- ARGV: expected fence, new fence, ttl s, how many clicks are new, then one packed row a new click
-- Returns the fence that stands afterwards. A value is a packed row and a byte: 1 once it has converted.
local now = redis.call('GET', KEYS[1]) or '0'
if now ~= ARGV[1] then
  return now
end
local new = tonumber(ARGV[4])
for i = 1, new do
  redis.call('SET', KEYS[i + 1], ARGV[i + 4] .. '\0', 'EX', ARGV[3], 'NX')
end
for i = new + 2, #KEYS do
  local length = redis.call('STRLEN', KEYS[i])
  if length > 0 then
    redis.call('SETRANGE', KEYS[i], length - 1, '\1')
  end
end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
