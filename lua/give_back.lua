-- Takes the shares of departed instances out of the holds of accounts.
-- KEYS [1] meta hash [2 ...] account hashes
-- reply units that departed instances hold of other accounts, or the error ACCOUNT of one that cannot be read; then nothing is changed
-- Why by epoch and not by instance: an account knows who holds how much of it, and nobody keeps a list of accounts for each instance,
-- which would cost every hold and settle a write. Who calls goes through all accounts, until nothing remains.
bind()
local now_us, now_ms = clock(KEYS[1])
local departed, given, remain = {}, {}, 0
local fields = call('HGETALL', KEYS[1])
for f = 1, #fields, 2 do
  local epoch = string.match(fields[f], '^departed:(%d+)$')
  if epoch then
    departed[number(epoch)] = number(fields[f + 1])
  end
end
local accounts, current = {}, 0
local function take_out()
  for k = 2, #KEYS do
    current = k - 1
    local acc = account_open(KEYS[k], call('HGET', KEYS[k], 's'), now_ms)
    account_roll(acc)
    shares_of_epochs(acc, departed, given)
    account_pack(acc)
    accounts[current] = acc
  end
end
local worked, problem = pcall(take_out)
if not worked then
  return refused_for(current, problem)
end
for _, acc in each(accounts) do
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
clock_write(KEYS[1], now_us)
return remain
