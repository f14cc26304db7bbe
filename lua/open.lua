-- Reads what a partition says of itself, and makes a new one say it.
-- KEYS [1] meta hash [2] clock [3] outbox stream [4] accounts and [5] alive of format 1
-- ARGV [1] partitions [2] generation of a new ledger, or '' where none may be made
-- reply {format, partitions, generation, 1 if it was made now}; format '1': there is data of release 0.2; '': there is nothing
-- Why keys of format 1 are taken: a gateway of release 0.2 finds a key of the wrong type there and says so, instead of an empty ledger.
bind()
local stored = call('HMGET', KEYS[1], 'format', 'partitions', 'generation')
if stored[1] then
  return {stored[1], stored[2], stored[3], 0}
end
for k = 4, 5 do
  if call('TYPE', KEYS[k]).ok == 'zset' then
    return {'1', '', '', 0}
  end
end
if ARGV[2] == '' then
  return {'', '', '', 0}
end
local outbox = call('TYPE', KEYS[3]).ok
if outbox ~= 'none' and outbox ~= 'stream' then
  return fail('WRONGTYPE the outbox is no stream')
end
local text = tostring(FORMAT)
call('HSET', KEYS[1], 'format', text, 'partitions', ARGV[1], 'generation', ARGV[2])
call('MSET', KEYS[2], mp_pack(FORMAT, server_time_us()), KEYS[4], 'format ' .. text, KEYS[5], 'format ' .. text)
if outbox == 'none' then
  -- A call whose keys all exist is answered while a slot moves to another server.
  call('XDEL', KEYS[3], call('XADD', KEYS[3], '*', 'o', ''))
end
return {text, ARGV[1], ARGV[2], 1}
