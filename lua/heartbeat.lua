-- A gateway process says that it lives, and hears what the ledger knows of it.
-- KEYS [1] instance [2] clock [3] alive zset [4] meta hash   ARGV [1] instance id [2] epoch [3] its chain value now, '' without one
-- reply {1, number of its last batch, generation}; {0, number, generation} when the process was reaped meanwhile: then it must register
--       again, and this leaves no trace.
-- Why number and generation: they only grow. If the number is lower than what the process has a reply for, or the generation is
-- another one, the server's data went back, and the process must know before it goes on.
bind()
local read = call('MGET', KEYS[1], KEYS[2])
local epoch, seq, held, reply_at, chain = instance_unpacked(string_read(KEYS[1], read[1]))
local generation = call('HGET', KEYS[4], 'generation') or ''
if ARGV[2] == '0' or epoch ~= number(ARGV[2]) then
  return {0, seq, generation}
end
local now_us, now_ms = clock(read[2])
call('ZADD', KEYS[3], now_ms, ARGV[1])
if ARGV[3] == chain then
  call('SET', KEYS[2], clock_packed(now_us))
else
  call('MSET', KEYS[2], clock_packed(now_us), KEYS[1], instance_packed(epoch, seq, held, ARGV[3], instance_reply(read[1], reply_at)))
end
return {1, seq, generation}
