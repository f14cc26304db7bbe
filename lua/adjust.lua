-- An operator adds settled units to a metric of an account, or takes some away, with an event that says so.
-- KEYS [1] state and [2] hash of the account [3] clock [4] outbox [5] meta hash of its partition
-- ARGV [1] msgpack {account, metric, units, event, digest, origin}    units: may be negative; digest: 16 bytes, of this adjustment
-- reply {'OK', settled units before, after, number of the event} or {'REPEAT'}: it was made before; the errors INVALID, ACCOUNT and
-- FORMAT; then nothing is changed
-- Why a digest: a reply can be lost after the work was done, and the repetition must not adjust twice.
local REPEAT_KNOWN_MS = 86400000
bind()
local account, metric, units, event, digest, origin = values(mp_unpack(ARGV[1]), 1, 6)
local mark = 'i' .. digest
local read = call('MGET', KEYS[1], KEYS[3])
local now_us, now_ms, format = clock(read[2])
if format ~= FORMAT then
  return wrong_format(format)
end
local marks = call('HMGET', KEYS[2], mark)
local number_of_event = number(call('HGET', KEYS[5], 'adjustments') or 0) + 1
if marks[1] then
  return {'REPEAT'}
end
local acc, before, after
local function decide()
  acc = account_open(KEYS[1], KEYS[2], string_read(KEYS[1], read[1]), now_ms)
  if acc.state[1] == 0 then
    return 'there is no account ' .. account
  end
  if acc.now_ms >= acc.soonest_end_ms then
    account_roll(acc)
  end
  local c = counter_named(acc, metric)
  if not c or not counter_table(acc, c) then
    return 'account ' .. account .. ' has no price for ' .. metric
  end
  before = acc.state[acc.hot + HOT * c]
  after = before + units
  if after < 0 then
    return string.format('account %s has %.0f settled units of %s in this period, %.0f cannot be taken away', account, before,
      metric, -units)
  end
  counter_charge(acc, c, units)
  local adjusted = acc.slow + SLOW * c + 2
  acc.state[adjusted] = acc.state[adjusted] + units
  acc.front = false
  set_later(acc, mark, string.format('%.0f', now_ms + REPEAT_KNOWN_MS))
  account_pack(acc)
  return nil
end
local worked, problem = pcall(decide)
if not worked then
  return refused_for(1, problem)
elseif problem then
  return fail('INVALID ' .. problem)
end
call('XADD', KEYS[4], '*', 'o', origin, 'q', number_of_event, 't', acc.now_ms, 'e', '[' .. event .. ']')
local mset, count = {KEYS[3], clock_packed(now_us)}, 2
account_mset(acc, mset, count)
call('MSET', values(mset))
account_write(acc)
if expires_fields then
  call('HPEXPIRE', KEYS[2], REPEAT_KNOWN_MS, 'FIELDS', 1, mark)
end
call('HSET', KEYS[5], 'adjustments', string.format('%.0f', number_of_event))
return {'OK', before, after, number_of_event}
