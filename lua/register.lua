-- A gateway process enters, or enters again after it was reaped.
-- KEYS [1] instance hash [2] alive zset [3] meta hash   ARGV [1] instance id [2] number of the home partition
-- reply {epoch, last batch number, generation}, or the error FORMAT
-- Why an epoch: holds taken before a reaping were given back by it; a settle that names an older epoch must not give them back twice.
-- No other instance ever has the same one, since shares are kept by epoch.
-- What the instance held in its former epoch is left to the reaper, as with a departed instance: in the new one it settles nothing of it.
bind()
local now_us, now_ms, format = clock(KEYS[3])
if format ~= FORMAT then
  return fail('FORMAT ' .. tostring(format) .. ', this release has ' .. FORMAT)
end
local former = call('HMGET', KEYS[1], 'e', 'q', 'h')
local generation = call('HGET', KEYS[3], 'generation')
-- Read for its type: of what follows, only the first command may be refused.
call('ZSCORE', KEYS[2], ARGV[1])
local epoch = call('HINCRBY', KEYS[3], 'epochs', 1) * PARTITIONS_MAX + ARGV[2]
call('ZADD', KEYS[2], now_ms, ARGV[1])
if number(former[3] or 0) > 0 then
  call('HSET', KEYS[3], 'departed:' .. former[1], former[3])
end
call('HSET', KEYS[1], 'e', epoch, 'h', 0)
call('PERSIST', KEYS[1])
clock_write(KEYS[3], now_us)
return {epoch, number(former[2] or 0), generation}
