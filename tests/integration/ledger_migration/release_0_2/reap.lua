-- Gives back the holds of a gateway process that died, or that leaves.
-- KEYS [1] instance hash [2] alive zset [3 ...] account hashes that its share fields name
-- ARGV [1] instance id [2] ttl_ms: what age of the heartbeat is death; -1: give back whatever its age
-- reply -1: it lives; else how many shares remain (of accounts that were not among KEYS)
-- Why the caller names the accounts: a script may touch only keys that it was given. It reads the share fields first; shares
-- that appeared in between remain and are counted in the reply, and it calls again.
-- Why the epoch moves even if shares remain: a process that wakes between two calls must not settle, against holds that it took
-- since, what was already given back.
bind()
local _, now_ms = clock()
local ttl_ms = number(ARGV[2])
local beat = call('ZSCORE', KEYS[2], ARGV[1])
if ttl_ms >= 0 and beat and now_ms - number(beat) < ttl_ms then
  return -1
end
local remain, fields = shares_return(KEYS, now_ms)
if fields > 0 then
  call('HINCRBY', KEYS[1], 'e', 1)
end
if remain == 0 then
  call('PEXPIRE', KEYS[1], 90000000)
  call('ZREM', KEYS[2], ARGV[1])
end
return remain
