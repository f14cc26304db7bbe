-- One account in memory: read once, changed in place, written once. Nothing is written before account_write, so a script that
-- ends in an error before that has changed nothing.
--
-- Its state is a string: what a request needs, and what it changes. All else is in a hash (docs/ledger.md, "An account");
-- msgpack unless said otherwise:
--   prices    for each subscription two maps from counter to price table: of the plan, and of what the plan lacks by now
--   periods   for each subscription the ends of the following periods: first end in ms, unit in ms, steps in units from end to end
--   closed    start_ms, subscription, counter, units, cost of each period that is over, one after another in one array
--   h<day>    hour of the day, subscription, counter, units of each hour that is over, one after another without an array
--   i<digest> an idempotency key, see marks.lua
--   taken     start_ms, subscription, counter, units of what was counted elsewhere and came with a load; no hour has it
--   view, about, digits, fence: the loader's
-- Why a string: MGET and MSET read and write many of them for half of what a command for each costs.
--
-- The state has two parts, each msgpack values one after another; three bytes before them tell the length of the first.
--   what seldom changes
--     1 version  2 status  3 ceiling  4 counts_unsettled  5 rate_interval_us  6 burst  7 day_limit     the loader's; version 0: no account
--     8 K  9 subscriptions  10 counters
--     of each subscription   0 name  1 start_ms  2 end_ms
--     of each counter        0 subscription  1 name  2 adjusted  3 lo  4 hi  5 a  6 b  7 hour
--   what every request changes
--     0 tat_us  1 unpaid_tat_us  2 day  3 day_count
--     of each counter        0 N  1 H  2 units of the hour
--     of each share          0 epoch  1 counter  2 units
-- K: the unsettled cost of earlier periods; N: settled units of this period, of them `adjusted` by an operator; H: held units, the
-- sum of the counter's shares; lo, hi, a, b: the straight piece of the price that was used last (pricing.lua).
--
-- In memory all values are one table. `acc.slow + SLOW * c` and `acc.hot + HOT * c` are where counter number c begins in each part.
local HEAD = 10
local SUBSCRIPTION = 3
local SLOW = 8
local HOT = 3
local SHARE = 3

-- A function's variables outlive the call, so an account that was read or written before need not be unpacked anew while its
-- state is, byte for byte, what it was then. What a call has taken out counts for nothing until the call has written it.
local KNOWN_MAX = 1500           -- well below a power of two: a table that is full is made anew at every exchange of a key
local known = {}                 -- by key
local ring, ring_at = {}, 0      -- the same, in the order in which they came; the oldest goes first

-- Lua takes fewer than 8,000 values from its stack at once.
local VALUES_MAX = 4000

local function unpack_state(packed)
  if #packed <= VALUES_MAX then
    return {mp_unpack(sub(packed, 4))}
  end
  local state, at, offset = {}, 0, 3
  while offset >= 0 do
    local some = {mp_unpack_some(packed, VALUES_MAX, offset)}
    offset = some[1]
    for n = 2, #some do
      state[at + n - 1] = some[n]
    end
    at = at + #some - 1
  end
  return state
end

-- The head of an array of msgpack of so many values.
local function array_head(count)
  return count < 16 and char(0x90 + count) or char(0xdc, floor(count / 256), count % 256)
end

-- The part that seldom changes, with its length.
local function front_of(packed)
  local high, middle, low = byte(packed, 1, 3)
  return sub(packed, 1, 3 + 65536 * high + 256 * middle + low)
end

local function pack_values(state, first, last)
  if last < first then
    return ''
  end
  if last - first < VALUES_MAX then
    return mp_pack(values(state, first, last))
  end
  local pieces = {}
  for from = first, last, VALUES_MAX do
    pieces[#pieces + 1] = mp_pack(values(state, from, min(last, from + VALUES_MAX - 1)))
  end
  return concat(pieces)
end

-- Where the parts of the state are, and between which instants nothing ends.
local function account_lay_out(acc)
  local state = acc.state
  local first = HEAD + SUBSCRIPTION * state[9]
  local counters, size = state[10], #state
  local limits = first + SLOW * counters + 1
  local shares = limits + 3 + HOT * counters
  if size < shares or (size - shares) % SHARE ~= 0 then
    error('a state of ' .. size .. ' values, with ' .. state[9] .. ' subscriptions and ' .. counters .. ' counters')
  end
  acc.slow, acc.limits, acc.hot, acc.shares, acc.size = first + 1 - SLOW, limits, limits + 4 - HOT, shares, size
  local latest, soonest = state[HEAD + 2], state[HEAD + 3]
  for s = HEAD + 1 + SUBSCRIPTION, first, SUBSCRIPTION do
    latest, soonest = max(latest, state[s + 1]), min(soonest, state[s + 2])
  end
  acc.latest_start_ms, acc.soonest_end_ms = latest, soonest
end

-- A place in memory for an account that has none. `ms`: of the call; what it uses already is not taken from it.
local function account_place(key, now_ms)
  local acc
  if #ring < KNOWN_MAX then
    ring_at = #ring + 1
  else
    ring_at = ring_at % KNOWN_MAX + 1
    acc = ring[ring_at]
    known[acc.key] = nil
    if acc.in_call == now_ms then
      acc = nil
    end
  end
  if not acc then
    -- All of its fields at once: a table that grows field by field costs as much as all else of an account.
    acc = {
      state_key = false, key = false, packed = false, packed_read = false, packed_next = false, state = false, front = false,
      limits_packed = false, slow = 0, limits = 0, hot = 0, shares = 0, size = 0, latest_start_ms = 0, soonest_end_ms = 0,
      now_ms = 0, in_call = 0, dirty = false, cost = false, prices = false, prices_dirty = false, closed = false,
      hours = false, set = false, used_hash = false, charged = false, marks = false, changed_marks = false,
    }
    ring[ring_at] = acc
  end
  known[key] = acc
  return acc
end

-- `packed`: its state as read, or false. `now_ms`: the ledger's.
local function account_open(state_key, key, packed, now_ms)
  local acc = known[key]
  if not acc then
    acc = account_place(key, now_ms)
    acc.state_key, acc.key, acc.packed = state_key, key, false
  end
  if not packed or acc.packed ~= packed then
    acc.packed = false    -- first: what follows may end in an error
    acc.state = packed and unpack_state(packed) or {0, 0, false, 0, 0, 0, 0, 0, 1, 0, '', 0, MAX_INT, 0, 0, 0, 0}
    acc.front = packed and front_of(packed)
    acc.limits_packed = false
    account_lay_out(acc)
  end
  -- Until it is written again: a call may end in an error at any place.
  acc.packed, acc.packed_read = false, packed
  local latest_start_ms = acc.latest_start_ms
  acc.now_ms = now_ms >= latest_start_ms and now_ms or account_now(now_ms, latest_start_ms)
  acc.in_call = now_ms
  acc.dirty, acc.cost, acc.charged = false, false, false
  if acc.used_hash then
    acc.prices, acc.closed, acc.hours, acc.set, acc.used_hash = false, false, false, false, false
  end
  return acc
end

-- The parts that did not change stay as they were packed: `front`, and the limits.
local function state_packed(acc)
  local state, limits, size = acc.state, acc.limits, acc.size
  local front, limits_packed = acc.front, acc.limits_packed
  if not front then
    front = pack_values(state, 1, limits - 1)
    local length = #front
    front = char(floor(length / 65536), floor(length / 256) % 256, length % 256) .. front
    acc.front = front
  end
  if not limits_packed then
    limits_packed = mp_pack(state[limits], state[limits + 1], state[limits + 2], state[limits + 3])
    acc.limits_packed = limits_packed
  end
  local first = limits + 4
  if first > size then
    return front .. limits_packed
  elseif size - first > VALUES_MAX then
    return front .. limits_packed .. pack_values(state, first, size)
  end
  return front .. limits_packed .. mp_pack(values(state, first, size))
end

local function set_later(acc, field, value)
  local set = acc.set or {}
  acc.set, acc.used_hash = set, true
  set[#set + 1] = field
  set[#set + 1] = value
  acc.dirty = true
end

-- All that can fail of writing; account_write does the rest.
local function account_pack(acc)
  if acc.prices and acc.prices_dirty then
    set_later(acc, 'prices', mp_pack(acc.prices))
  end
  if acc.closed then
    set_later(acc, 'closed', mp_pack(acc.closed))
  end
  if acc.hours then
    for field, text in each(acc.hours) do
      set_later(acc, field, text)
    end
  end
  acc.packed_next = acc.dirty and state_packed(acc) or acc.packed_read
end

-- Adds what is to be written to the arguments of an MSET.
local function account_mset(acc, mset, count)
  if acc.dirty then
    mset[count + 1], mset[count + 2] = acc.state_key, acc.packed_next
    count = count + 2
  end
  return count
end

-- The rest, after the MSET.
local function account_write(acc)
  local set = acc.set
  if set then
    for first = 1, #set, VALUES_MAX do
      call('HSET', acc.key, values(set, first, min(#set, first + VALUES_MAX - 1)))
    end
  end
  acc.packed = acc.packed_next
end

-- Subscriptions and counters

local function account_prices(acc)
  if not acc.prices then
    local packed = call('HGET', acc.key, 'prices')
    acc.prices, acc.prices_dirty, acc.used_hash = packed and mp_unpack(packed) or {}, false, true
  end
  return acc.prices
end

-- The table by which counter number c is rated, and whether it still takes holds.
local function counter_table(acc, c)
  local prices, state, i = account_prices(acc), acc.state, acc.slow + SLOW * c
  local live, gone = prices[2 * state[i] - 1], prices[2 * state[i]]
  local tbl = live and live[state[i + 1]]
  if tbl then
    return tbl, true
  end
  return gone and gone[state[i + 1]], false
end

local function counter_is_live(acc, c)
  local state, i = acc.state, acc.slow + SLOW * c
  if state[i + 3] <= state[i + 4] then
    return true
  end
  local _, live = counter_table(acc, c)
  return live
end

-- Number of a counter, or nil. Of several subscriptions the first one that has a price for it counts, else the first one that had one,
-- else the first. A counter alone, without a price, decides nothing: a refused hold may leave one.
local function counter_named(acc, name)
  local state, at, former, first = acc.state, acc.slow + 1, nil, nil
  for c = 1, state[10] do
    if state[at + SLOW * c] == name then
      if state[9] == 1 or counter_is_live(acc, c) then
        return c
      end
      former = former or (counter_table(acc, c) and c)
      first = first or (state[at + SLOW * c - 1] == 1 and c or nil)
    end
  end
  return former or first
end

-- Puts `some` into the state at `at`, and moves what is there.
local function insert_values(state, at, size, some)
  local count = #some
  for v = size, at, -1 do
    state[v + count] = state[v]
  end
  for v = 1, count do
    state[at + v - 1] = some[v]
  end
end

local function counter_add(acc, subscription, name)
  local state = acc.state
  local c = state[10] + 1
  insert_values(state, acc.shares + 1, acc.size, {0, 0, 0})
  insert_values(state, acc.limits, acc.size + HOT, {subscription, name, 0, 1, 0, 0, 0, 0})
  state[10] = c
  acc.front = false
  account_lay_out(acc)
  return c
end

-- Shares

-- Position of the share of an epoch in counter number c, or nil.
local function share_at(acc, c, epoch)
  local state = acc.state
  for s = acc.shares + 1, acc.size, SHARE do
    if state[s] == epoch and state[s + 1] == c then
      return s
    end
  end
  return nil
end

-- H is the caller's to change.
local function share_add(acc, c, epoch, units)
  local state, s = acc.state, share_at(acc, c, epoch)
  if s then
    state[s + 2] = state[s + 2] + units
  else
    s = acc.size + 1
    state[s], state[s + 1], state[s + 2] = epoch, c, units
    acc.size = acc.size + SHARE
  end
  acc.dirty = true
end

-- Takes at most `units` out of the share at s and out of H. Returns how many.
local function share_take(acc, s, units)
  local state = acc.state
  local h, left = acc.hot + HOT * state[s + 1] + 1, state[s + 2] - units
  if left > 0 then
    state[s + 2] = left
  else
    units = state[s + 2]
    local last = acc.size - SHARE
    state[s], state[s + 1], state[s + 2] = state[last + 1], state[last + 2], state[last + 3]
    state[last + 1], state[last + 2], state[last + 3] = nil, nil, nil
    acc.size = last
  end
  state[h] = state[h] - units
  acc.dirty = true
  return units
end

local function holds_something(acc, epoch)
  local state = acc.state
  for s = acc.shares + 1, acc.size, SHARE do
    if state[s] == epoch then
      return true
    end
  end
  return false
end

-- Takes every share of these epochs out. `given`: epoch to units, which grows.
local function shares_of_epochs(acc, epochs, given)
  local state, s = acc.state, acc.shares + 1
  while s < acc.size do
    local epoch = state[s]
    if epochs[epoch] then
      given[epoch] = (given[epoch] or 0) + share_take(acc, s, MAX_INT)
    else
      s = s + SHARE
    end
  end
end

-- Money

-- worst(N, h) of counter number c. Keeps the straight piece that it found, unless the counter is gone from the
-- plan (a kept piece would let holds through), has no price, which costs nothing, or the piece begins beyond 2^53.
local function counter_worst(acc, c, h)
  local state, i = acc.state, acc.slow + SLOW * c
  local n = state[acc.hot + HOT * c]
  local top = n + h
  local lo = state[i + 3]
  if top <= state[i + 4] and n >= lo then
    return state[i + 5] + state[i + 6] * (top - lo)
  end
  local tbl, live = counter_table(acc, c)
  if not tbl then
    return 0
  end
  if live then
    local hi, a, b
    lo, hi, a, b = price_piece(tbl, top)
    if a <= MAX_INT then
      state[i + 3], state[i + 4], state[i + 5], state[i + 6] = lo, hi, a, b
      acc.front = false
      acc.dirty = true
    end
    if n >= lo then
      return a + b * (top - lo)
    end
  end
  return price_worst(tbl, n, h)
end

-- Sum of worst cases over all counters.
local function account_cost(acc)
  local state, total, at = acc.state, 0, acc.hot + 1
  for c = 1, state[10] do
    total = total + counter_worst(acc, c, state[at + HOT * c])
  end
  return total
end

-- Money that late settles drove beyond what can be represented stays at the bound, where it refuses every hold.
local function bounded(money)
  return money > MAX_INT and MAX_INT or money
end

-- Counts

-- The counts of the hour that was counted last leave the state. An hour that the clock comes back to is written twice; its
-- units are the sum.
local function hour_close(acc, c)
  local state, i, u = acc.state, acc.slow + SLOW * c, acc.hot + HOT * c + 2
  local hour, units = state[i + 7], state[u]
  if units ~= 0 then
    local field = 'h' .. floor(hour / 24)
    local hours = acc.hours or {}
    acc.hours, acc.used_hash = hours, true
    local subscription = state[HEAD + 1 + (state[i] - 1) * SUBSCRIPTION]
    hours[field] = (hours[field] or call('HGET', acc.key, field) or '') ..
      mp_pack(hour % 24, subscription, state[i + 1], units)
    state[u] = 0
    acc.dirty = true
  end
end

-- Settled units grow here only, and so do the hour's.
local function counter_charge(acc, c, units)
  local state, i, j = acc.state, acc.slow + SLOW * c, acc.hot + HOT * c
  local hour = floor(acc.now_ms / HOUR_MS)
  if hour ~= state[i + 7] then
    hour_close(acc, c)
    state[i + 7] = hour
    acc.front = false
  end
  local n, of_hour = state[j] + units, state[j + 2] + units
  if n > MAX_INT or of_hour > MAX_INT then
    error('the settled units of ' .. state[i + 1] .. ' would exceed 2^53')
  end
  state[j], state[j + 2] = n, of_hour
  acc.dirty = true
  acc.charged = true
end

-- Periods

local function closed_add(acc, start_ms, subscription, name, units, cost)
  local closed = acc.closed
  if not closed then
    local packed = call('HGET', acc.key, 'closed')
    closed = packed and mp_unpack(packed) or {}
    acc.closed, acc.used_hash = closed, true
  end
  local n = #closed
  closed[n + 1], closed[n + 2], closed[n + 3], closed[n + 4], closed[n + 5] = start_ms, subscription, name, units, cost
end

-- Makes the state of its parts. `counters`: {slow ..., N, H, units} of each; `number_of`: old number of a counter to new one.
local function account_rebuild(acc, front, counters, number_of)
  local state, new = acc.state, front
  local function add(value)
    new[#new + 1] = value
  end
  new[10] = #counters
  for _, counter in ipairs(counters) do
    for v = 1, SLOW do
      add(counter[v])
    end
  end
  for v = acc.limits, acc.limits + 3 do
    add(state[v])
  end
  for _, counter in ipairs(counters) do
    for v = SLOW + 1, SLOW + HOT do
      add(counter[v])
    end
  end
  for s = acc.shares + 1, acc.size, SHARE do
    add(state[s])
    add(number_of[state[s + 1]])
    add(state[s + 2])
  end
  acc.state, acc.front = new, false
  acc.dirty = true
  account_lay_out(acc)
end

-- All values of counter number c.
local function counter_values(acc, c)
  local state, i, j = acc.state, acc.slow + SLOW * c, acc.hot + HOT * c
  local counter = {values(state, i, i + SLOW - 1)}
  for v = 0, HOT - 1 do
    counter[SLOW + 1 + v] = state[j + v]
  end
  return counter
end

-- Removes counters that have no price any more, and nothing held.
local function counters_drop(acc, gone)
  local kept, number_of = {}, {}
  for c = 1, acc.state[10] do
    if gone[c] then
      hour_close(acc, c)
    else
      kept[#kept + 1] = counter_values(acc, c)
      number_of[c] = #kept
    end
  end
  account_rebuild(acc, {values(acc.state, 1, acc.slow + SLOW - 1)}, kept, number_of)
end

-- Where subscription number k begins.
local function subscription_at(k)
  return HEAD + 1 + (k - 1) * SUBSCRIPTION
end

-- Ends the period of subscription number k at `new_start_ms`: its cost moves into K, every N restarts at 0, holds stay.
local function subscription_close_period(acc, k, new_start_ms)
  local state, prices, at = acc.state, account_prices(acc), subscription_at(k)
  local gone, some_gone = {}, false
  for c = 1, state[10] do
    local i, j = acc.slow + SLOW * c, acc.hot + HOT * c
    if state[i] == k then
      local name, n = state[i + 1], state[j]
      local tbl, live = counter_table(acc, c)
      local cost = bounded(tbl and price_cost(tbl, n) or 0)
      if n ~= 0 or cost > 0 then
        closed_add(acc, state[at + 1], state[at], name, n, cost)
      end
      state[8] = bounded(state[8] + cost)
      state[i + 2], state[i + 3], state[i + 4], state[i + 5], state[i + 6] = 0, 1, 0, 0, 0
      state[j] = 0
      if not live and state[j + 1] == 0 then
        gone[c], some_gone = true, true
        if tbl then
          prices[2 * k][name] = nil
          acc.prices_dirty = true
        end
      end
    end
  end
  state[at + 1] = new_start_ms
  acc.front = false
  acc.dirty = true
  if some_gone then
    counters_drop(acc, gone)
  end
end

-- Skips `count` whole periods in which nothing was used; only what a first tier's flat fee makes due at zero units is added.
local function subscription_skip_periods(acc, k, count, length)
  local state, at = acc.state, subscription_at(k)
  for c = 1, state[10] do
    local i = acc.slow + SLOW * c
    if state[i] == k then
      local tbl = counter_table(acc, c)
      local cost = bounded(tbl and price_cost(tbl, 0) * count or 0)
      if cost > 0 then
        closed_add(acc, state[at + 1], state[at], state[i + 1], 0, cost)
        state[8] = bounded(state[8] + cost)
      end
    end
  end
  state[at + 1] = state[at + 1] + count * length
  state[at + 2] = state[at + 2] + count * length
end

-- The ends of periods as they are stored: years of months in a few bytes, so that the hash of an account stays a small one.
local function ends_packed(ends)
  local unit = 0
  for n = 2, #ends do
    local rest, other = unit, math.abs(ends[n] - ends[n - 1])
    while other > 0 do
      rest, other = other, math.fmod(rest, other)
    end
    unit = rest
  end
  if unit == 0 then
    return {ends[1]}
  end
  local some = {ends[1], unit}
  for n = 2, #ends do
    some[n + 1] = (ends[n] - ends[n - 1]) / unit
  end
  return some
end

local function ends_unpacked(some)
  local ends = {some[1]}
  for n = 3, #some do
    ends[n - 1] = ends[n - 2] + some[n] * some[2]
  end
  return ends
end

-- Closes every period of subscription number k that has ended. Returns the ends that are still to come.
local function subscription_roll(acc, k, ends)
  local at, next_end = subscription_at(k), 1
  while acc.now_ms >= acc.state[at + 2] do
    local start_ms, end_ms = acc.state[at + 1], acc.state[at + 2]
    subscription_close_period(acc, k, end_ms)
    while ends[next_end] and ends[next_end] <= end_ms do
      next_end = next_end + 1
    end
    if ends[next_end] then
      acc.state[at + 2] = ends[next_end]
    else
      -- The loader gave no more ends: the last length repeats, in one step however long the account slept.
      local length = end_ms - start_ms
      acc.state[at + 2] = end_ms + length
      local missed = floor((acc.now_ms - end_ms) / length)
      if missed > 0 then
        subscription_skip_periods(acc, k, missed, length)
      end
    end
  end
  return {values(ends, next_end + (ends[next_end] and 1 or 0))}
end

-- Closes every period that has ended. Its caller looks first whether one has.
local function account_roll(acc)
  local packed = call('HGET', acc.key, 'periods')
  local periods = packed and mp_unpack(packed) or {}
  for k = 1, acc.state[9] do
    periods[k] = periods[k] or {}
    if acc.now_ms >= acc.state[subscription_at(k) + 2] then
      periods[k] = ends_packed(subscription_roll(acc, k, ends_unpacked(periods[k])))
    end
  end
  set_later(acc, 'periods', mp_pack(periods))
  account_lay_out(acc)
end
