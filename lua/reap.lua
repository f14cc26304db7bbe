-- A gateway process departs: it died, or it leaves. What it holds is noted for give_back.lua.
-- KEYS [1] instance hash [2] alive zset [3] meta hash
-- ARGV [1] instance id [2] ttl_ms: what age of the heartbeat is death; -1: whatever its age
-- reply -1: it lives; else how many units it holds
-- Why its epoch ends at once: a process that wakes later must not settle against holds that are being given back.
bind()
local now_us, now_ms = clock(KEYS[3])
local of_instance = call('HMGET', KEYS[1], 'e', 'h')
local beat = call('ZSCORE', KEYS[2], ARGV[1])
local ttl_ms = number(ARGV[2])
if ttl_ms >= 0 and beat then
  local counted = heartbeat_of(now_ms, number(beat))
  if now_ms - counted < ttl_ms then
    if counted ~= number(beat) then
      call('ZADD', KEYS[2], counted, ARGV[1])
      clock_write(KEYS[3], now_us)
    end
    return -1
  end
end
local held = number(of_instance[2] or 0)
if held > 0 then
  call('HSET', KEYS[3], 'departed:' .. of_instance[1], held)
end
if of_instance[1] then
  call('HSET', KEYS[1], 'e', 0, 'h', 0)
  call('PEXPIRE', KEYS[1], FORGET_MS)
end
call('ZREM', KEYS[2], ARGV[1])
clock_write(KEYS[3], now_us)
return held
