-- Removes an account that is closed.
-- KEYS [1] state and [2] hash of the account [3] accounts index [4] clock of its partition
-- ARGV [1] account id [2] 1: although it owes something
-- reply {'OK', its state as it was}; the errors INVALID, that says what is in the way, and FORMAT; then nothing is changed
-- Why held units are in the way: their settles would make a new account without a price.
bind()
local read = call('MGET', KEYS[1], KEYS[4])
local now_us, now_ms, format = clock(read[2])
if format ~= FORMAT then
  return wrong_format(format)
end
local id, although = ARGV[1], ARGV[2] == '1'
call('HLEN', KEYS[2])
call('ZSCORE', KEYS[3], id)
if not string_read(KEYS[1], read[1]) then
  return fail('INVALID there is no account ' .. id)
end
local is_read, acc = pcall(account_open, KEYS[1], KEYS[2], read[1], now_ms)
if is_read then
  local state, owed = acc.state, acc.state[8] ~= 0
  if state[1] > 0 and state[2] ~= 2 then
    return fail('INVALID account ' .. id .. ' is not closed')
  end
  for c = 1, state[10] do
    local j = acc.hot + HOT * c
    if state[j + 1] > 0 then
      return fail('INVALID account ' .. id .. ' still holds units')
    end
    owed = owed or state[j] ~= 0
  end
  if owed and not although then
    return fail('INVALID account ' .. id .. ' has units or cost that no invoice has billed')
  end
elseif not although then
  return fail('INVALID account ' .. id .. ' cannot be read: ' .. tostring(acc))
end
call('DEL', KEYS[1], KEYS[2])
call('ZREM', KEYS[3], id)
call('SET', KEYS[4], clock_packed(now_us))
return {'OK', read[1]}
