-- A gateway process says that it lives.
-- KEYS [1] instance [2] clock [3] alive zset   ARGV [1] instance id [2] epoch
-- reply 1, or 0 when the process was reaped meanwhile: then it must register again, and this leaves no trace.
bind()
local read = call('MGET', KEYS[1], KEYS[2])
if ARGV[2] == '0' or instance_unpacked(string_read(KEYS[1], read[1])) ~= number(ARGV[2]) then
  return 0
end
local now_us, now_ms = clock(read[2])
call('ZADD', KEYS[3], now_ms, ARGV[1])
call('SET', KEYS[2], clock_packed(now_us))
return 1
