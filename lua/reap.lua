-- Gives back the holds of a gateway process that died, or that leaves.
-- KEYS [1] instance hash [2] alive zset [3 ...] account hashes that its share fields name
-- ARGV [1] instance id [2] ttl_ms: what age of the heartbeat is death; -1: give back whatever its age
-- reply -1: it lives; else how many shares remain (of accounts that were not among KEYS)
-- Why the caller names the accounts: a script may touch only keys that it was given. It reads the share fields first; shares
-- that appeared in between remain and are counted in the reply.
local _, now_ms = clock()
local ttl_ms = tonumber(ARGV[2])
local beat = redis.call('ZSCORE', KEYS[2], ARGV[1])
if ttl_ms >= 0 and beat and now_ms - tonumber(beat) < ttl_ms then
  return -1
end
local given = {}
for k = 3, #KEYS do
  given[KEYS[k]] = true
end
local fields = redis.call('HGETALL', KEYS[1])
local accounts, remain, gone = {}, 0, {}
for f = 1, #fields, 2 do
  local cut = string.find(fields[f], '\0', 1, true)
  if cut then
    local key, metric = string.sub(fields[f], 1, cut - 1), string.sub(fields[f], cut + 1)
    if given[key] then
      local acc = accounts[key] or account_read(key)
      accounts[key] = acc
      local i = metric_at(acc.state, metric)
      if i then
        acc.state[i + 2] = acc.state[i + 2] - tonumber(fields[f + 1])
        acc.dirty = true
      end
      gone[#gone + 1] = fields[f]
    else
      remain = remain + 1
    end
  end
end
for _, acc in pairs(accounts) do
  account_write(acc)
end
for g = 1, #gone do
  redis.call('HDEL', KEYS[1], gone[g])
end
if remain == 0 then
  if #fields > 0 then
    redis.call('HINCRBY', KEYS[1], 'e', 1)
    redis.call('PEXPIRE', KEYS[1], 90000000)
  end
  redis.call('ZREM', KEYS[2], ARGV[1])
end
return remain
