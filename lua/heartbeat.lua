-- A gateway process says that it lives.
-- KEYS [1] instance hash [2] alive zset [3] meta hash   ARGV [1] instance id [2] epoch
-- reply 1, or 0 when the process was reaped meanwhile: then it must register again, and this leaves no trace.
bind()
if ARGV[2] == '0' or call('HGET', KEYS[1], 'e') ~= ARGV[2] then
  return 0
end
local now_us, now_ms = clock(KEYS[3])
call('ZADD', KEYS[2], now_ms, ARGV[1])
clock_write(KEYS[3], now_us)
return 1
