-- Funds, prices, limits and period bounds of one account, from whoever knows them (an accounts file, the Lago reconciler).
-- KEYS [1] state and [2] hash of the account [3] accounts index [4] clock of its partition
-- ARGV [1] msgpack {expected_version, id, status, ceiling, counts_unsettled, rate_interval_us, burst, day_limit, view, about, unsettled,
--                   digits, expected_digits, fence, subscriptions}
--          a subscription is {name, start_ms, end_ms, following ends, {counter: price table}, expected_start_ms, {counter: units}}
-- reply {'OK', version}, {'CONFLICT', version, digits} or {'FENCED', fence}, or an error that says what cannot be taken; then
-- nothing is changed
-- Why the expected version: digits and prices were computed from what the caller read; if another loader came between, it must read again.
-- Why the expected start: the caller computed the unsettled cost from the periods that had ended when it read; if another one has
-- ended since, writing that sum would give back what it cost.
-- Why the fence: a reconciler that stood still since it read Lago must not write old funds over those of its successor.
-- Settled units are only written by closing a period, held units never: the request path owns them. Only an account that the ledger has
-- never had, or has lost, takes over what was counted elsewhere in its period (the units by counter).
bind()
local expected_version, id, status, ceiling, counts_unsettled, rate_interval_us, burst, day_limit, view, about, unsettled,
  digits, expected_digits, fence, subscriptions = values(mp_unpack(ARGV[1]), 1, 15)
local read = call('MGET', KEYS[1], KEYS[4])
local now_us, now_ms, format = clock(read[2])
if format ~= FORMAT then
  return wrong_format(format)
end
local stored = call('HMGET', KEYS[2], 'digits', 'fence')
local is_listed = call('ZSCORE', KEYS[3], id)
local is_read, acc = pcall(function() return account_open(KEYS[1], KEYS[2], string_read(KEYS[1], read[1]), now_ms) end)
if not is_read then
  return refused_for(1, acc)
end
local version = acc.state[1]
local is_known = version > 0
local stored_digits = number(stored[1] or digits)
if version ~= expected_version or (is_known and stored_digits ~= expected_digits) then
  return {'CONFLICT', version, stored_digits}
end
if fence and fence < number(stored[2] or 0) then
  return {'FENCED', number(stored[2])}
end
local named = {}
for n = 1, max(#subscriptions, 1) do
  local loaded = subscriptions[n]
  if not loaded or named[loaded[1]] then
    return fail('INVALID account ' .. id .. ' has no subscription, or two of one name')
  elseif loaded[3] <= loaded[2] then
    return fail('INVALID the period of account ' .. id .. ' does not end after its start')
  end
  named[loaded[1]] = true
end


local function number_of(name)
  for k = 1, acc.state[9] do
    if acc.state[subscription_at(k)] == name then
      return k
    end
  end
  return nil
end

local function write_account()
  account_pack(acc)
  local mset, count = {KEYS[4], clock_packed(now_us)}, 2
  count = account_mset(acc, mset, count)
  call('MSET', values(mset))
  account_write(acc)
end

-- The clock's rollover comes first, by the old prices.
if is_known then
  local starts, moved = {}, false
  for k = 1, acc.state[9] do
    starts[k] = acc.state[subscription_at(k) + 1]
  end
  if acc.now_ms >= acc.soonest_end_ms then
    account_roll(acc)
  end
  for k = 1, acc.state[9] do
    -- What the load lacks ends now, and the periods of it that have just ended must be in the caller's sum too.
    local at = subscription_at(k)
    moved = moved or not named[acc.state[at]] and starts[k] ~= acc.state[at + 1]
  end
  if unsettled and moved then
    write_account()
    return {'CONFLICT', version, stored_digits}
  end
  for _, loaded in ipairs(subscriptions) do
    local k = number_of(loaded[1])
    if unsettled and loaded[6] and k and loaded[6] ~= acc.state[subscription_at(k) + 1] then
      write_account()
      return {'CONFLICT', version, stored_digits}
    end
  end
end

-- Money by the new number of decimals, and whether it can be told by them.
local exact = true
local function scaled(money)
  if digits >= stored_digits then
    return money * 10 ^ (digits - stored_digits)
  end
  local divisor = 10 ^ (stored_digits - digits)
  exact = exact and math.fmod(money, divisor) == 0
  return money / divisor
end

-- A counter that left the plan keeps its table until its period ends: what it has cost so far stays counted.
local function scaled_table(tbl)
  local model, scaled_one, fits = tbl[1], {values(tbl)}, true
  local first, step = 3, 3      -- graduated and volume: to, unit, flat
  if model == 's' then
    first, step = 2, 1
  elseif model == 'p' then
    first, step = 4, 1
  end
  for v = first, #tbl, step do
    for w = v, v + (step == 3 and 1 or 0) do
      scaled_one[w] = scaled(tbl[w])
      fits = fits and scaled_one[w] <= MAX_INT
    end
  end
  return scaled_one, fits
end

-- Periods. One that began later by the load ends first; a subscription that the load lacks ends now.
local before, behind = acc.state[8], false
local stays = {}                -- numbers of the stored subscriptions that the load has
for _, loaded in ipairs(subscriptions) do
  local k = is_known and number_of(loaded[1])
  if k then
    stays[k] = true
    local start_ms = acc.state[subscription_at(k) + 1]
    if loaded[2] > start_ms then
      subscription_close_period(acc, k, loaded[2])
    elseif loaded[2] < start_ms then
      -- The caller looked before a rollover: the current period stays, and the unsettled cost, unless the caller says that it
      -- knew of this period.
      behind = behind or not loaded[6]
      loaded[2], loaded[3] = start_ms, acc.state[subscription_at(k) + 2]
    end
  end
end
local prices = account_prices(acc)
local held_beyond = {}          -- numbers of those that it lacks, while something of them is held
if is_known then
  for k = 1, acc.state[9] do
    if not stays[k] then
      for name, tbl in each(prices[2 * k - 1] or {}) do
        prices[2 * k] = prices[2 * k] or {}
        prices[2 * k][name] = tbl
      end
      prices[2 * k - 1] = {}
      subscription_close_period(acc, k, max(now_ms, acc.state[subscription_at(k) + 1] + 1))
    end
  end
  for c = 1, acc.state[10] do
    local k = acc.state[acc.slow + SLOW * c]
    if not stays[k] and not held_beyond[k] then
      held_beyond[k] = true
      subscriptions[#subscriptions + 1] = {acc.state[subscription_at(k)], acc.state[subscription_at(k) + 1], MAX_INT, {}, {}, false, false}
    end
  end
end

-- The new state.
local state = acc.state
local older = scaled(before) + scaled(state[8] - before)
if unsettled and not behind then
  exact = true
  older = unsettled + scaled(state[8] - before)
end
if math.abs(older) > MAX_INT then
  return fail('OVERFLOW the unsettled cost of account ' .. id .. ' cannot be represented with ' .. digits .. ' decimals')
end
version = version + 1
local front = {version, status, ceiling, counts_unsettled, rate_interval_us, burst, day_limit, older, #subscriptions, 0}
local new_prices, periods, counters, moved_to, taken = {}, {}, {}, {}, {}
for n, loaded in ipairs(subscriptions) do
  local name, start_ms, end_ms, following, live, _, counted = values(loaded, 1, 7)
  local at = #front
  front[at + 1], front[at + 2], front[at + 3] = name, start_ms, end_ms
  -- An account that lost its policy kept its counts in the first one, whatever its name was.
  local k = is_known and number_of(name) or (not is_known and n == 1 and 1)
  local gone, of_name = {}, {}
  for c = 1, state[10] do
    if state[acc.slow + SLOW * c] == k then
      local counter = counter_values(acc, c)
      counter[1], counter[4], counter[5] = n, 1, 0
      counters[#counters + 1] = counter
      of_name[counter[2]] = counter
      moved_to[c] = #counters
      local tbl = not live[counter[2]] and counter_table(acc, c)
      if tbl then
        local fits
        gone[counter[2]], fits = scaled_table(tbl)
        if not fits then
          return fail('OVERFLOW the former price of ' .. counter[2] .. ' of account ' .. id .. ' cannot be represented with ' ..
            digits .. ' decimals')
        end
      end
    end
  end
  local function counter_of(counter_name)
    if not of_name[counter_name] then
      counters[#counters + 1] = {n, counter_name, 0, 1, 0, 0, 0, 0, 0, 0, 0}
      of_name[counter_name] = counters[#counters]
    end
    return of_name[counter_name]
  end
  for counter_name in each(live) do
    counter_of(counter_name)
  end
  if not is_known and counted then
    for counter_name, units in each(counted) do
      local counter = counter_of(counter_name)
      local added, at_end = units - counter[SLOW + 1], #taken
      if added > 0 then
        counter[SLOW + 1] = units
        taken[at_end + 1], taken[at_end + 2], taken[at_end + 3], taken[at_end + 4] = start_ms, name, counter_name, added
      end
    end
  end
  new_prices[2 * n - 1], new_prices[2 * n] = live, gone
  periods[n] = ends_packed(following)
end

-- Records of periods that are over are money of the account too.
if digits ~= stored_digits then
  local packed = call('HGET', KEYS[2], 'closed')
  acc.closed = acc.closed or packed and mp_unpack(packed) or {}
  for c = 5, #acc.closed, 5 do
    acc.closed[c] = bounded(scaled(acc.closed[c]))
  end
end
if not exact then
  return {'INEXACT', version - 1, stored_digits}
end

account_rebuild(acc, front, counters, moved_to)
acc.prices, acc.prices_dirty = new_prices, true
set_later(acc, 'periods', mp_pack(periods))
if #taken > 0 then
  set_later(acc, 'taken', mp_pack(taken))
end
set_later(acc, 'digits', digits)
set_later(acc, 'view', view)
set_later(acc, 'about', about)
if fence then
  set_later(acc, 'fence', fence)
end
write_account()
if not is_listed then
  call('ZADD', KEYS[3], 0, id)
end
return {'OK', version}
