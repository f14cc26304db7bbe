-- One account in memory: read once, changed in place, written once. Nothing is written before account_write, so a script that
-- ends in an error before that has changed nothing.
--
-- The fields of its hash (docs/ledger.md, "Fields of an account"); msgpack unless said otherwise:
--   s         the state: all that a request needs
--   prices    for each subscription two maps from counter to price table: of the plan, and of what the plan lacks by now
--   periods   for each subscription the ends of the following periods, ms
--   closed    start_ms, subscription, counter, units, cost of each period that is over, one after another in one array
--   h<day>    hour of the day, subscription, counter, units of each hour that is over, one after another without an array
--   i<digest> an idempotency key that was charged; text: until when it counts, ms
--   view, about, digits, fence: the loader's
--
-- The state is one array:
--   1 version  2 status  3 ceiling  4 counts_unsettled  5 rate_interval_us  6 burst  7 day_limit     the loader's; version 0: no account
--   8 K  9 tat_us  10 unpaid_tat_us  11 day  12 day_count  13 subscriptions  14 counters
--   of each subscription   0 name  1 start_ms  2 end_ms
--   of each counter        0 subscription  1 name  2 adjusted  3 lo  4 hi  5 a  6 b  7 hour  8 N  9 H  10 units of that hour
--   of each share          0 epoch  1 counter  2 units
-- K: the unsettled cost of earlier periods; N: settled units of this period, of them `adjusted` by an operator; H: held units, the
-- sum of the counter's shares; lo, hi, a, b: the straight piece of the price that was used last (pricing.lua).
local HEAD = 14
local SUBSCRIPTION = 3
local COUNTER = 11
local SHARE = 3

-- A function's variables outlive the call, so an account that was read or written before need not be unpacked anew while its
-- state is, byte for byte, what it was then. What a call has taken out counts for nothing until the call has written it.
local KNOWN_MAX = 1024
local known, known_count = {}, 0

-- An array of msgpack, without the cost of an array: its values go from the stack straight into a table. The stack has no
-- room for 8,000; longer arrays go the usual way.
local VALUES_MAX = 4095

local function mp_values(packed)
  local lead, high = byte(packed, 1, 2)
  if lead < 0x90 or lead > 0x9f and (lead ~= 0xdc or high > floor(VALUES_MAX / 256)) then
    return mp_unpack(packed)
  end
  local values_read = {mp_unpack(sub(packed, lead == 0xdc and 4 or 2))}
  if #values_read ~= (lead == 0xdc and high * 256 + byte(packed, 3) or lead - 0x90) then
    error('an array of msgpack that is longer or shorter than it says')
  end
  return values_read
end

local packed_heads = {}

local function array_head(count)
  local head = packed_heads[count]
  if not head then
    head = count < 16 and char(0x90 + count) or char(0xdc, floor(count / 256), count % 256)
    packed_heads[count] = head
  end
  return head
end

-- Where the parts of the state are, and between which instants nothing ends.
local function account_lay_out(acc)
  local state = acc.state
  local first = HEAD + SUBSCRIPTION * state[13]
  local shares = first + COUNTER * state[14]
  local size = #state
  if size < shares or (size - shares) % SHARE ~= 0 then
    error('a state of ' .. size .. ' values, with ' .. state[13] .. ' subscriptions and ' .. state[14] .. ' counters')
  end
  acc.first, acc.shares, acc.size = first, shares, size
  local latest, soonest = 0, MAX_INT
  for s = HEAD + 1, first, SUBSCRIPTION do
    latest, soonest = max(latest, state[s + 1]), min(soonest, state[s + 2])
  end
  acc.latest_start_ms, acc.soonest_end_ms = latest, soonest
end

-- `packed`: its field `s` as read, or false. `now_ms`: the ledger's.
local function account_open(key, packed, now_ms)
  local acc = known[key]
  if not acc then
    acc = {key = key}
    if known_count == KNOWN_MAX then
      known, known_count = {}, 0
    end
    known[key] = acc
    known_count = known_count + 1
  end
  if not packed or acc.packed ~= packed then
    acc.packed = nil
    acc.state = packed and mp_values(packed) or {0, 0, false, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, '', 0, MAX_INT}
    acc.policy, acc.limits, acc.subscriptions, acc.slow = nil, nil, nil, {}
    account_lay_out(acc)
  end
  -- Until it is written again: a call may end in an error at any place.
  acc.packed, acc.packed_read = nil, packed
  acc.now_ms = account_now(now_ms, acc.latest_start_ms)
  acc.dirty, acc.cost, acc.prices, acc.closed, acc.hours, acc.set = false, nil, nil, nil, nil, nil
  acc.prices_dirty, acc.closed_dirty = nil, nil
  return acc
end

-- The state is packed piece by piece, and an account keeps the pieces that did not change: `policy`, `limits`, `subscriptions`, and
-- of each counter `slow`, what precedes N. It is the same array that mp_pack would make, for a third of the cost.
local function state_packed(acc)
  local state, slow = acc.state, acc.slow
  if not acc.policy then
    acc.policy = mp_pack(values(state, 1, 7))
  end
  if not acc.limits then
    acc.limits = mp_pack(state[8], state[9], state[10], state[11], state[12])
  end
  if not acc.subscriptions then
    acc.subscriptions = mp_pack(values(state, 13, acc.first))
  end
  local pieces, p = {array_head(acc.size), acc.policy, acc.limits, acc.subscriptions}, 4
  for i = acc.first + 1, acc.shares, COUNTER do
    local piece = slow[i]
    if not piece then
      piece = mp_pack(values(state, i, i + 7))
      slow[i] = piece
    end
    pieces[p + 1], pieces[p + 2] = piece, mp_pack(state[i + 8], state[i + 9], state[i + 10])
    p = p + 2
  end
  for s = acc.shares + 1, acc.size, SHARE do
    p = p + 1
    pieces[p] = mp_pack(state[s], state[s + 1], state[s + 2])
  end
  return concat(pieces)
end

local function set_later(acc, field, value)
  local set = acc.set or {}
  acc.set = set
  set[#set + 1] = field
  set[#set + 1] = value
  acc.dirty = true
end

-- All that can fail of writing; account_write does the rest.
local function account_pack(acc)
  if acc.prices_dirty then
    set_later(acc, 'prices', mp_pack(acc.prices))
  end
  if acc.closed_dirty then
    set_later(acc, 'closed', mp_pack(acc.closed))
  end
  if acc.hours then
    for field, text in each(acc.hours) do
      set_later(acc, field, text)
    end
  end
  acc.packed_next = acc.dirty and state_packed(acc) or acc.packed_read
end

local function account_write(acc)
  if acc.dirty then
    if acc.set then
      call('HSET', acc.key, 's', acc.packed_next, values(acc.set))
    else
      call('HSET', acc.key, 's', acc.packed_next)
    end
  end
  acc.packed = acc.packed_next
end

-- Subscriptions and counters

local function account_prices(acc)
  if not acc.prices then
    local packed = call('HGET', acc.key, 'prices')
    acc.prices = packed and mp_unpack(packed) or {}
  end
  return acc.prices
end

-- The table by which the counter at position i is rated, and whether it still takes holds.
local function counter_table(acc, i)
  local prices = account_prices(acc)
  local state = acc.state
  local live, gone = prices[2 * state[i] - 1], prices[2 * state[i]]
  local tbl = live and live[state[i + 1]]
  if tbl then
    return tbl, true
  end
  return gone and gone[state[i + 1]], false
end

local function counter_is_live(acc, i)
  local state = acc.state
  if state[i + 3] <= state[i + 4] then
    return true
  end
  local _, live = counter_table(acc, i)
  return live
end

-- Position of a counter's values, or nil. Of several subscriptions the first one that has a price for it counts, else the first one
-- that had one, else the first. A counter alone, without a price, decides nothing: a refused hold may leave one.
local function counter_at(acc, name)
  local state, former, first = acc.state, nil, nil
  for i = acc.first + 1, acc.shares, COUNTER do
    if state[i + 1] == name then
      if state[13] == 1 or counter_is_live(acc, i) then
        return i
      end
      former = former or (counter_table(acc, i) and i)
      first = first or (state[i] == 1 and i or nil)
    end
  end
  return former or first
end

local function counter_of_subscription(acc, subscription, name)
  local state = acc.state
  for i = acc.first + 1, acc.shares, COUNTER do
    if state[i] == subscription and state[i + 1] == name then
      return i
    end
  end
  return nil
end

local function counter_add(acc, subscription, name)
  local state, i = acc.state, acc.shares + 1
  for s = acc.size, i, -1 do
    state[s + COUNTER] = state[s]
  end
  state[i], state[i + 1], state[i + 2] = subscription, name, 0
  state[i + 3], state[i + 4], state[i + 5], state[i + 6] = 1, 0, 0, 0
  state[i + 7], state[i + 8], state[i + 9], state[i + 10] = 0, 0, 0, 0
  state[14] = state[14] + 1
  acc.shares, acc.size = acc.shares + COUNTER, acc.size + COUNTER
  acc.subscriptions = nil
  return i
end

-- Shares

-- Position of the share of an epoch in the counter at position i, or nil.
local function share_at(acc, i, epoch)
  local state, c = acc.state, (i - acc.first - 1) / COUNTER + 1
  for s = acc.shares + 1, acc.size, SHARE do
    if state[s] == epoch and state[s + 1] == c then
      return s
    end
  end
  return nil
end

local function share_add(acc, i, epoch, units)
  local state = acc.state
  local s = share_at(acc, i, epoch)
  if s then
    state[s + 2] = state[s + 2] + units
  else
    s = acc.size + 1
    state[s], state[s + 1], state[s + 2] = epoch, (i - acc.first - 1) / COUNTER + 1, units
    acc.size = acc.size + SHARE
  end
  state[i + 9] = state[i + 9] + units
  acc.dirty = true
end

-- Takes at most `units` out of a share and out of H. Returns how many.
local function share_take(acc, i, s, units)
  local state = acc.state
  local left = state[s + 2] - units
  if left > 0 then
    state[s + 2] = left
  else
    units = state[s + 2]
    local last = acc.size - SHARE
    state[s], state[s + 1], state[s + 2] = state[last + 1], state[last + 2], state[last + 3]
    state[last + 1], state[last + 2], state[last + 3] = nil, nil, nil
    acc.size = last
  end
  state[i + 9] = state[i + 9] - units
  acc.dirty = true
  return units
end

-- Takes every share of these epochs out. `given`: epoch to units, which grows.
local function shares_of_epochs(acc, epochs, given)
  local state, s = acc.state, acc.shares + 1
  while s < acc.size do
    local epoch = state[s]
    if epochs[epoch] then
      given[epoch] = (given[epoch] or 0) + share_take(acc, acc.first + (state[s + 1] - 1) * COUNTER + 1, s, MAX_INT)
    else
      s = s + SHARE
    end
  end
end

-- Money

-- worst(N, h) of the counter at position i. Keeps the straight piece that it found, unless the counter is gone from the
-- plan (a kept piece would let holds through), has no price, which costs nothing, or the piece begins beyond 2^53.
local function counter_worst(acc, i, h)
  local state = acc.state
  local n = state[i + 8]
  local top = n + h
  local lo = state[i + 3]
  if top <= state[i + 4] and n >= lo then
    return state[i + 5] + state[i + 6] * (top - lo)
  end
  local tbl, live = counter_table(acc, i)
  if not tbl then
    return 0
  end
  if live then
    local hi, a, b
    lo, hi, a, b = price_piece(tbl, top)
    if a <= MAX_INT then
      state[i + 3], state[i + 4], state[i + 5], state[i + 6] = lo, hi, a, b
      acc.slow[i] = nil
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
  local state, total = acc.state, 0
  for i = acc.first + 1, acc.shares, COUNTER do
    total = total + counter_worst(acc, i, state[i + 9])
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
local function hour_close(acc, i)
  local state = acc.state
  local hour, units = state[i + 7], state[i + 10]
  if units ~= 0 then
    local field = 'h' .. floor(hour / 24)
    local hours = acc.hours or {}
    acc.hours = hours
    local subscription = state[HEAD + 1 + (state[i] - 1) * SUBSCRIPTION]
    hours[field] = (hours[field] or call('HGET', acc.key, field) or '') ..
      mp_pack(hour % 24, subscription, state[i + 1], units)
    state[i + 10] = 0
    acc.dirty = true
  end
end

-- Settled units grow here only, and so do the hour's.
local function counter_charge(acc, i, units)
  local state = acc.state
  local hour = floor(acc.now_ms / HOUR_MS)
  if hour ~= state[i + 7] then
    hour_close(acc, i)
    state[i + 7] = hour
    acc.slow[i] = nil
  end
  local n, of_hour = state[i + 8] + units, state[i + 10] + units
  if n > MAX_INT or of_hour > MAX_INT then
    error('the settled units of ' .. state[i + 1] .. ' would exceed 2^53')
  end
  state[i + 8], state[i + 10] = n, of_hour
  acc.dirty = true
end

-- Periods

local function closed_add(acc, start_ms, subscription, name, units, cost)
  local closed = acc.closed
  if not closed then
    local packed = call('HGET', acc.key, 'closed')
    closed = packed and mp_unpack(packed) or {}
    acc.closed = closed
  end
  local n = #closed
  closed[n + 1], closed[n + 2], closed[n + 3], closed[n + 4], closed[n + 5] = start_ms, subscription, name, units, cost
  acc.closed_dirty = true
end

-- Removes counters that have no price any more, and nothing held.
local function counters_drop(acc, gone)
  local state = acc.state
  local kept, number_of, count = {values(state, 1, acc.first)}, {}, 0
  for i = acc.first + 1, acc.shares, COUNTER do
    if gone[i] then
      hour_close(acc, i)
    else
      count = count + 1
      number_of[(i - acc.first - 1) / COUNTER + 1] = count
      for v = i, i + COUNTER - 1 do
        kept[#kept + 1] = state[v]
      end
    end
  end
  for s = acc.shares + 1, acc.size, SHARE do
    local size = #kept
    kept[size + 1], kept[size + 2], kept[size + 3] = state[s], number_of[state[s + 1]], state[s + 2]
  end
  kept[14] = count
  acc.state = kept
  acc.slow, acc.subscriptions = {}, nil
  account_lay_out(acc)
end

-- Ends the period of subscription number k at `new_start_ms`: its cost moves into K, every N restarts at 0, holds stay.
local function subscription_close_period(acc, k, new_start_ms)
  local state, prices = acc.state, account_prices(acc)
  local at = HEAD + 1 + (k - 1) * SUBSCRIPTION
  local gone, some_gone = {}, false
  for i = acc.first + 1, acc.shares, COUNTER do
    if state[i] == k then
      local name, n = state[i + 1], state[i + 8]
      local tbl, live = counter_table(acc, i)
      local cost = bounded(tbl and price_cost(tbl, n) or 0)
      if n ~= 0 or cost > 0 then
        closed_add(acc, state[at + 1], state[at], name, n, cost)
      end
      state[8] = bounded(state[8] + cost)
      state[i + 2], state[i + 3], state[i + 4], state[i + 5], state[i + 6] = 0, 1, 0, 0, 0
      state[i + 8] = 0
      if not live and state[i + 9] == 0 then
        gone[i], some_gone = true, true
        if tbl then
          prices[2 * k][name] = nil
          acc.prices_dirty = true
        end
      end
    end
  end
  state[at + 1] = new_start_ms
  acc.limits, acc.subscriptions, acc.slow = nil, nil, {}
  acc.dirty = true
  if some_gone then
    counters_drop(acc, gone)
  end
end

-- Skips `count` whole periods in which nothing was used; only what a first tier's flat fee makes due at zero units is added.
local function subscription_skip_periods(acc, k, count, length)
  local state = acc.state
  local at = HEAD + 1 + (k - 1) * SUBSCRIPTION
  for i = acc.first + 1, acc.shares, COUNTER do
    if state[i] == k then
      local tbl = counter_table(acc, i)
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

-- Closes every period of subscription number k that has ended. Returns the ends that are still to come.
local function subscription_roll(acc, k, ends)
  local at, next_end = HEAD + 1 + (k - 1) * SUBSCRIPTION, 1
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

-- Closes every period that has ended. Costs one comparison when none has.
local function account_roll(acc)
  if acc.now_ms < acc.soonest_end_ms then
    return
  end
  local packed = call('HGET', acc.key, 'periods')
  local periods = packed and mp_unpack(packed) or {}
  for k = 1, acc.state[13] do
    local at = HEAD + 1 + (k - 1) * SUBSCRIPTION
    periods[k] = periods[k] or {}
    if acc.now_ms >= acc.state[at + 2] then
      periods[k] = subscription_roll(acc, k, periods[k])
    end
  end
  set_later(acc, 'periods', mp_pack(periods))
  account_lay_out(acc)
end
