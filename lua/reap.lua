-- A gateway process departs: it died, or it leaves. What it holds is noted for give_back.lua.
-- KEYS [1] instance [2] clock [3] alive zset [4] meta hash
-- ARGV [1] instance id [2] ttl_ms: what age of the heartbeat is death; -1: whatever its age
--      [3] its chain value now; absent or '': the ledger keeps the one that it has
-- reply -1: it lives; else how many units it holds
-- Why its epoch ends at once: a process that wakes later must not settle against holds that are being given back.
bind()
local read = call('MGET', KEYS[1], KEYS[2])
local epoch, seq, held, reply_at, chain = instance_unpacked(string_read(KEYS[1], read[1]))
local now_us, now_ms, format = clock(read[2])
if format ~= FORMAT then
  return wrong_format(format)
end
local beat, ttl_ms = call('ZSCORE', KEYS[3], ARGV[1]), number(ARGV[2])
if ttl_ms >= 0 and beat then
  local counted = heartbeat_of(now_ms, number(beat))
  if now_ms - counted < ttl_ms then
    if counted ~= number(beat) then
      call('ZADD', KEYS[3], counted, ARGV[1])
      call('SET', KEYS[2], clock_packed(now_us))
    end
    return -1
  end
end
call('HGET', KEYS[4], 'format')
if held > 0 then
  call('HSET', KEYS[4], string.format('departed:%.0f', epoch), held)
end
call('ZREM', KEYS[3], ARGV[1])
if ARGV[3] and ARGV[3] ~= '' then
  chain = ARGV[3]
end
if read[1] then
  call('SET', KEYS[1], instance_packed(0, seq, 0, chain, instance_reply(read[1], reply_at)), 'PX', FORGET_MS)
end
call('SET', KEYS[2], clock_packed(now_us))
return held
