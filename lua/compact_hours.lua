-- The hours of days that are over become one count of each counter and day; days that nobody asks for any more go.
-- KEYS [1] account hash [2] clock of its partition
-- ARGV [1] msgpack {day, ...} to make one count of [2] msgpack {day, ...} to drop    days since the Unix epoch
-- reply {days that were made one count, days that were dropped}, or the error FORMAT, or INVALID for a day that is not to be touched
--       yet; then nothing is changed
-- Why by the ledger's clock too: the caller's may be wrong, and a running hour that was written twice would be counted twice.
-- A count of hour 24 is that of a whole day. What an account settled last in a day leaves its state with its next charge, so an
-- hour may follow the count of its day; the units of the day are the sum.
bind()
local KEPT_DAYS = 9              -- the audit's look-back, at least
local WHOLE_DAY = 24
local VALUES_AT_ONCE = 4000      -- the stack has no room for 8,000

local now_us, _, format = clock(call('GET', KEYS[2]))
if format ~= FORMAT then
  return wrong_format(format)
end
local today = floor(now_us / DAY_US)
local compact, drop = mp_unpack(ARGV[1]), mp_unpack(ARGV[2])

local function field_of(day)
  return string.format('h%.0f', day)
end

-- The counts of a day, one of each counter in the order of their first hours; nil where nothing is to be done: there is one of each
-- already, or a sum is beyond 2^53.
local function day_packed(packed)
  local order, sums, found, offset = {}, {}, 0, 0
  while offset >= 0 do
    local some = {mp_unpack_some(packed, VALUES_AT_ONCE, offset)}
    offset = some[1]
    for v = 2, #some, 4 do
      local subscription, counter, units = some[v + 1], some[v + 2], some[v + 3]
      local name = subscription .. '\0' .. counter
      local sum = sums[name]
      if not sum then
        sum = {WHOLE_DAY, subscription, counter, 0}
        sums[name] = sum
        order[#order + 1] = sum
      end
      sum[4] = sum[4] + units
      if sum[4] > MAX_INT then
        return nil
      end
      found = found + (some[v] == WHOLE_DAY and 0 or 1)
    end
  end
  if found == 0 then
    return nil
  end
  local pieces = {}
  for n, sum in ipairs(order) do
    pieces[n] = mp_pack(sum[1], sum[2], sum[3], sum[4])
  end
  return concat(pieces)
end

local set, gone = {}, {}
for _, day in ipairs(compact) do
  if day >= today then
    return fail('INVALID day ' .. string.format('%.0f', day) .. ' is not over')
  end
  local packed = call('HGET', KEYS[1], field_of(day))
  local whole = packed and day_packed(packed)
  if whole then
    set[#set + 1] = field_of(day)
    set[#set + 1] = whole
  end
end
for _, day in ipairs(drop) do
  if day >= today - KEPT_DAYS then
    return fail('INVALID day ' .. string.format('%.0f', day) .. ' is younger than ' .. KEPT_DAYS .. ' days')
  end
  gone[#gone + 1] = field_of(day)
end
-- What makes room comes first: it is refused nothing for want of memory.
local dropped = #gone > 0 and call('HDEL', KEYS[1], values(gone)) or 0
if #set > 0 then
  call('HSET', KEYS[1], values(set))
end
return {#set / 2, dropped}
