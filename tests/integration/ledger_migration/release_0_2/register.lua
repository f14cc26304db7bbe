-- A gateway process enters, or enters again after it was reaped.
-- KEYS [1] instance hash [2] alive zset [3 ...] account hashes that its share fields name, usually none   ARGV [1] instance id
-- reply {epoch, last batch number}, or the error HELD if it still has shares of accounts that are not among KEYS
-- Why an epoch: holds taken before a reaping were given back by it; a settle that names an older epoch must not give them back twice.
-- Why shares matter here too: a process that restarts under its old id before it was reaped is alive again, so nobody would ever
-- reap what it held, and in its new epoch it settles nothing of it. HELD is no heartbeat: the reaper goes on until nothing remains.
bind()
local _, now_ms = clock()
local epoch = call('HINCRBY', KEYS[1], 'e', 1)
call('PERSIST', KEYS[1])
local remain = shares_return(KEYS, now_ms)
if remain > 0 then
  call('ZADD', KEYS[2], 'NX', 0, ARGV[1])
  return redis.error_reply('HELD instance ' .. ARGV[1] .. ' still holds units of accounts that were not named, shares: ' .. remain)
end
call('ZADD', KEYS[2], now_ms, ARGV[1])
return {epoch, number(call('HGET', KEYS[1], 'q') or 0)}
