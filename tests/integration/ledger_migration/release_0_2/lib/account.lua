-- One account in memory: read once, changed in place, written once. Nothing is written before account_write, so that a script
-- that ends in an error has changed nothing.
--
-- policy {version, status, ceiling, counts_unsettled, rate_interval_us, burst, day_limit}
-- state  {K, period_start_ms, period_end_ms, tat_us, day, day_count, [name, N, H, lo, hi, a, b] ...}
--        K: the unsettled cost of earlier periods; N: a metric's settled units of this period; H: its held units
-- prices {tables, gone}: maps from metric to price table; `gone` are those that the current plan lacks.
local HEAD = 6   -- state values before the first metric
local WIDTH = 7  -- state values a metric

-- A function's variables outlive the call, so an account that was read or written before need not be unpacked anew while its
-- fields are, byte for byte, what they were then. What a call has taken out counts for nothing until the call has written it.
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

-- A state is packed piece by piece, and an account keeps the pieces that did not change: what precedes the first metric (head),
-- and what follows N and H of each (tails). It is the same array that mp_pack would make, for a third of the cost.
local KEPT_NUMBERS = 1024
local packed_numbers, packed_heads = {}, {}

local function pack_number(n)
  local packed = packed_numbers[n]
  if not packed then
    packed = mp_pack(n)
    if n >= 0 and n < KEPT_NUMBERS then
      packed_numbers[n] = packed
    end
  end
  return packed
end

local function array_head(count)
  local head = packed_heads[count]
  if not head then
    head = count < 16 and char(0x90 + count) or char(0xdc, floor(count / 256), count % 256)
    packed_heads[count] = head
  end
  return head
end

local function state_packed(acc)
  local state, tails = acc.state, acc.tails
  local count = #state
  if count > VALUES_MAX then
    return mp_pack(state)
  end
  if not acc.head then
    acc.head = mp_pack(state[1], state[2], state[3], state[4], state[5], state[6])
  end
  if count == HEAD then
    return array_head(count) .. acc.head
  end
  local pieces, p = {array_head(count), acc.head}, 2
  for i = HEAD + 1, count, WIDTH do
    local tail = tails[i]
    if not tail then
      tail = mp_pack(state[i + 3], state[i + 4], state[i + 5], state[i + 6])
      tails[i] = tail
    end
    pieces[p + 1], pieces[p + 2], pieces[p + 3] = mp_pack(state[i]), pack_number(state[i + 1]), pack_number(state[i + 2])
    pieces[p + 4] = tail
    p = p + 4
  end
  return concat(pieces)
end

local function account_read(key)
  local fields = call('HMGET', key, 'policy', 'state')
  local policy, state = fields[1], fields[2]
  local acc = known[key]
  if not acc then
    acc = {key = key}
    if known_count == KNOWN_MAX then
      known, known_count = {}, 0
    end
    known[key] = acc
    known_count = known_count + 1
  end
  if acc.policy_packed ~= policy then
    acc.policy_packed, acc.policy = policy, policy and mp_values(policy) or nil
  end
  if not state then
    acc.state = {0, 0, MAX_INT, 0, 0, 0}
    acc.head, acc.tails = nil, {}
  elseif acc.state_packed ~= state then
    acc.state = mp_values(state)
    acc.head, acc.tails = nil, {}
  end
  acc.state_read, acc.state_packed = state, nil
  acc.dirty, acc.cost, acc.prices, acc.prices_dirty, acc.pending = false, nil, nil, nil, nil
  return acc
end

local function account_prices(acc)
  if not acc.prices then
    local packed = call('HGET', acc.key, 'prices')
    acc.prices = packed and mp_unpack(packed) or {{}, {}}
  end
  return acc.prices
end

-- The table by which a metric is rated and whether it still takes holds.
local function account_table(acc, name)
  local prices = account_prices(acc)
  local tbl = prices[1][name]
  if tbl then
    return tbl, true
  end
  return prices[2][name], false
end

-- Position of a metric's values in the state, or nil.
local function metric_at(state, name)
  for i = HEAD + 1, #state, WIDTH do
    if state[i] == name then
      return i
    end
  end
  return nil
end

local function metric_add(state, name)
  local i = #state + 1
  state[i], state[i + 1], state[i + 2] = name, 0, 0
  state[i + 3], state[i + 4], state[i + 5], state[i + 6] = 1, 0, 0, 0
  return i
end

-- Gives back held units. H cannot fall below zero, as it would where an account lost its data and the instances did not.
local function metric_unhold(acc, i, units)
  local h = acc.state[i + 2] - units
  acc.state[i + 2] = h > 0 and h or 0
  acc.dirty = true
end

-- worst(N, h) of the metric at position i. Keeps the straight piece that it found, unless the metric is gone from the
-- plan (a kept piece would let holds through), has no price, which costs nothing, or the piece begins beyond 2^53.
local function metric_worst(acc, i, h)
  local state = acc.state
  local n = state[i + 1]
  local top = n + h
  local lo = state[i + 3]
  if top <= state[i + 4] and n >= lo then
    return state[i + 5] + state[i + 6] * (top - lo)
  end
  local tbl, live = account_table(acc, state[i])
  if not tbl then
    return 0
  end
  if live then
    local hi, a, b
    lo, hi, a, b = price_piece(tbl, top)
    if a <= MAX_INT then
      state[i + 3], state[i + 4], state[i + 5], state[i + 6] = lo, hi, a, b
      acc.tails[i] = nil
      acc.dirty = true
    end
    if n >= lo then
      return a + b * (top - lo)
    end
  end
  return price_worst(tbl, n, h)
end

local function metric_is_live(acc, i)
  local state = acc.state
  if state[i + 3] <= state[i + 4] then
    return true
  end
  local _, live = account_table(acc, state[i])
  return live
end

-- Sum of worst cases over all metrics.
local function account_cost(acc)
  local state, total = acc.state, 0
  for i = HEAD + 1, #state, WIDTH do
    total = total + metric_worst(acc, i, state[i + 2])
  end
  return total
end

-- Money that late settles drove beyond what can be represented stays at the bound, where it refuses every hold.
local function bounded(money)
  return money > MAX_INT and MAX_INT or money
end

local function account_set_later(acc, field, value)
  local pending = acc.pending or {}
  acc.pending = pending
  pending[#pending + 1] = field
  pending[#pending + 1] = value
end

-- Ends the period at `new_start`: its cost moves into K, every N restarts at 0, holds stay.
local function account_close_period(acc, new_start)
  local state = acc.state
  local kept = {state[1], new_start, state[3], state[4], state[5], state[6]}
  local prices = account_prices(acc)
  for i = HEAD + 1, #state, WIDTH do
    local name, n, h = state[i], state[i + 1], state[i + 2]
    local tbl, live = account_table(acc, name)
    local cost = bounded(tbl and price_cost(tbl, n) or 0)
    if n > 0 or cost > 0 then
      account_set_later(acc, string.format('closed:%d:%s', state[2], name), string.format('%d %d', n, cost))
    end
    kept[1] = bounded(kept[1] + cost)
    if live or h > 0 then
      local at = metric_add(kept, name)
      kept[at + 2] = h
    end
    if not live and prices[2][name] and h == 0 then
      prices[2][name] = nil
      acc.prices_dirty = true
    end
  end
  acc.state = kept
  acc.head, acc.tails = nil, {}
  acc.dirty = true
end

-- Skips `count` whole periods in which nothing was used; only what a first tier's flat fee makes due at zero units is added.
local function account_skip_periods(acc, count, length)
  local state = acc.state
  for i = HEAD + 1, #state, WIDTH do
    local tbl = account_table(acc, state[i])
    local cost = bounded(tbl and price_cost(tbl, 0) * count or 0)
    if cost > 0 then
      account_set_later(acc, string.format('closed:%d:%s', state[2], state[i]), string.format('0 %d', cost))
      state[1] = bounded(state[1] + cost)
    end
  end
  state[2] = state[2] + count * length
  state[3] = state[3] + count * length
  acc.head = nil
end

-- Closes every period that has ended. Costs one comparison when none has.
local function account_roll(acc, now_ms)
  if now_ms < acc.state[3] then
    return
  end
  local packed = call('HGET', acc.key, 'periods')
  local periods = packed and mp_unpack(packed) or {}
  local at = 1
  while now_ms >= acc.state[3] do
    local start, ending = acc.state[2], acc.state[3]
    account_close_period(acc, ending)
    while periods[at] and periods[at] <= ending do
      at = at + 1
    end
    if periods[at] then
      acc.state[3] = periods[at]
    else
      -- The loader gave no more ends: the last length repeats, in one step however long the account slept.
      local length = ending - start
      acc.state[3] = ending + length
      local missed = floor((now_ms - ending) / length)
      if missed > 0 then
        account_skip_periods(acc, missed, length)
      end
    end
  end
  local rest = {}
  for i = at + 1, #periods do
    rest[#rest + 1] = periods[i]
  end
  account_set_later(acc, 'periods', mp_pack(rest))
end

local function account_write_pending(acc)
  local pending = acc.pending
  if pending then
    for p = 1, #pending, 2 do
      call('HSET', acc.key, pending[p], pending[p + 1])
    end
  end
end

local function account_write(acc)
  account_write_pending(acc)
  if acc.prices_dirty then
    call('HSET', acc.key, 'prices', mp_pack(acc.prices))
  end
  local packed = acc.state_read
  if acc.dirty then
    packed = state_packed(acc)
    call('HSET', acc.key, 'state', packed)
  end
  acc.state_packed = packed
end

-- Takes the shares of the instance keys[1] out of the holds of the accounts keys[3 ...].
-- Returns how many shares of other accounts remain, and how many fields the instance had.
local function shares_return(keys, now_ms)
  local given, accounts, gone, remain = {}, {}, {}, 0
  for k = 3, #keys do
    given[keys[k]] = true
  end
  local fields = call('HGETALL', keys[1])
  for f = 1, #fields, 2 do
    local cut = string.find(fields[f], '\0', 1, true)
    if cut then
      local key, metric = sub(fields[f], 1, cut - 1), sub(fields[f], cut + 1)
      if given[key] then
        local acc = accounts[key]
        if not acc then
          acc = account_read(key)
          account_roll(acc, now_ms)
          accounts[key] = acc
        end
        local i = metric_at(acc.state, metric)
        if i then
          metric_unhold(acc, i, number(fields[f + 1]))
        end
        gone[#gone + 1] = fields[f]
      else
        remain = remain + 1
      end
    end
  end
  for _, acc in each(accounts) do
    account_write(acc)
  end
  for g = 1, #gone do
    call('HDEL', keys[1], gone[g])
  end
  return remain, #fields / 2
end
