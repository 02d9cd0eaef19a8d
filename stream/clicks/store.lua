-- Store one batch of clicks and conversions of one partition and move its fence forward, or change nothing.
--
-- KEYS: fence, then one key a new click, then one key a conversion, in their order
-- ARGV: expected fence, new fence, ttl s, how many clicks are new, then one packed row a new click, then the packed
--       time of each conversion
-- Returns the fence that stands afterwards. A value is a packed row, and behind it the times of its conversions.
local now = redis.call('GET', KEYS[1]) or '0'
if now ~= ARGV[1] or tonumber(ARGV[2]) < tonumber(now) then
  return now
end
local new = tonumber(ARGV[4])
for i = 1, new do
  redis.call('SET', KEYS[i + 1], ARGV[i + 4], 'EX', ARGV[3], 'NX')
end
for i = new + 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('APPEND', KEYS[i], ARGV[i + 3])
  end
end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
