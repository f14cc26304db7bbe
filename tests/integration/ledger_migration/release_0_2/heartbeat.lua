-- A gateway process says that it lives.
-- KEYS [1] instance hash [2] alive zset   ARGV [1] instance id [2] epoch
-- reply 1, or 0 when the process was reaped meanwhile: then it must register again, and this leaves no trace.
bind()
if call('HGET', KEYS[1], 'e') ~= ARGV[2] then
  return 0
end
local _, now_ms = clock()
call('ZADD', KEYS[2], now_ms, ARGV[1])
return 1
