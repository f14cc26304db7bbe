-- A gateway process enters, or enters again after it was reaped.
-- KEYS [1] instance [2] clock [3] alive zset [4] meta hash   ARGV [1] instance id [2] number of the home partition
-- reply {epoch, last batch number, generation}, or the error FORMAT
-- Why an epoch: holds taken before a reaping were given back by it; a settle that names an older epoch must not give them back twice.
-- No other instance ever has the same one, since shares are kept by epoch. So it is no less than the time: a server whose data went
-- back must not give one again that a process, or a replica which takes over, has from before.
-- What the instance held in its former epoch is left to the reaper, as with a departed instance: in the new one it settles nothing of it.
bind()
local read = call('MGET', KEYS[1], KEYS[2])
local former, seq, held, reply_at, chain = instance_unpacked(string_read(KEYS[1], read[1]))
local now_us, now_ms, format = clock(read[2])
if format ~= FORMAT then
  return wrong_format(format)
end
local generation = call('HGET', KEYS[4], 'generation')
-- Read for its type: of what follows, only the first command may be refused.
call('ZSCORE', KEYS[3], ARGV[1])
local count = call('HINCRBY', KEYS[4], 'epochs', 1)
if count < now_ms then
  count = now_ms
  call('HSET', KEYS[4], 'epochs', string.format('%.0f', count))
end
local epoch = count * PARTITIONS_MAX + ARGV[2]
call('ZADD', KEYS[3], now_ms, ARGV[1])
if held > 0 then
  call('HSET', KEYS[4], string.format('departed:%.0f', former), held)
end
local reply = read[1] and instance_reply(read[1], reply_at) or ''
call('MSET', KEYS[1], instance_packed(epoch, seq, 0, chain, reply), KEYS[2], clock_packed(now_us))
return {epoch, seq, generation}
