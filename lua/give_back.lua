-- Takes the shares of departed instances out of the holds of accounts.
-- KEYS [1] meta hash [2] clock [3 4, 5 6, ...] state and hash of each account
-- reply units that departed instances hold of other accounts, or the error ACCOUNT of one that cannot be read; then nothing is changed
-- Why by epoch and not by instance: an account knows who holds how much of it, and nobody keeps a list of accounts for each instance,
-- which would cost every hold and settle a write. Who calls goes through all accounts, until nothing remains.
bind()
local names = {KEYS[2]}
for k = 3, #KEYS, 2 do
  names[#names + 1] = KEYS[k]
end
local read = call('MGET', values(names))
local now_us, now_ms, format = clock(read[1])
if format ~= FORMAT then
  return wrong_format(format)
end
local departed, given, remain = {}, {}, 0
local fields = call('HGETALL', KEYS[1])
for f = 1, #fields, 2 do
  local epoch = string.match(fields[f], '^departed:(%d+)$')
  if epoch then
    departed[number(epoch)] = number(fields[f + 1])
  end
end
local accounts, changed, current = {}, {}, 0
local function take_out()
  for n = 2, #read do
    current = n - 1
    if accounts[names[n]] then
      error('it is named twice')
    end
    accounts[names[n]] = true
    if string_read(names[n], read[n]) then
      local acc = account_open(names[n], KEYS[2 * n], read[n], now_ms)
      if acc.now_ms >= acc.soonest_end_ms then
        account_roll(acc)
      end
      shares_of_epochs(acc, departed, given)
      if acc.dirty then
        account_pack(acc)
        changed[#changed + 1] = acc
      end
    end
  end
end
local worked, problem = pcall(take_out)
if not worked then
  return refused_for(current, problem)
end
local mset, count = {KEYS[2], clock_packed(now_us)}, 2
for _, acc in ipairs(changed) do
  count = account_mset(acc, mset, count)
end
call('MSET', values(mset))
for _, acc in ipairs(changed) do
  account_write(acc)
end
for epoch, units in each(departed) do
  local left = units - (given[epoch] or 0)
  if left <= 0 then
    call('HDEL', KEYS[1], string.format('departed:%.0f', epoch))
  elseif left < units then
    call('HSET', KEYS[1], string.format('departed:%.0f', epoch), left)
  end
  remain = remain + max(0, left)
end
return remain
