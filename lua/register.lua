-- A gateway process enters, or enters again after it was reaped.
-- KEYS [1] instance hash [2] alive zset   ARGV [1] instance id
-- reply {epoch, last batch number}
-- Why an epoch: holds taken before a reaping were given back by it; a settle that names an older epoch must not give them back twice.
local _, now_ms = clock()
local epoch = redis.call('HINCRBY', KEYS[1], 'e', 1)
redis.call('PERSIST', KEYS[1])
redis.call('ZADD', KEYS[2], now_ms, ARGV[1])
return {epoch, tonumber(redis.call('HGET', KEYS[1], 'q') or 0)}
