-- Funds, prices, limits and period bounds of one account, from whoever knows them (an accounts file, the Lago reconciler).
-- KEYS [1] account hash [2] accounts index
-- ARGV [1] msgpack {expected_version, id, status, ceiling, counts_unsettled, rate_interval_us, burst, day_limit, prices, info,
--                   period_start_ms, period_end_ms, periods, unsettled, digits, expected_digits, expected_start_ms, fence, counted}
-- reply {'OK', version}, {'CONFLICT', version, digits} or {'FENCED', fence}, or an error that says what cannot be taken; then
-- nothing is changed
-- Why the expected version: digits and prices were computed from what the caller read; if another loader came between, it must read again.
-- Why the expected start: the caller computed the unsettled cost from the periods that had ended when it read; if another one has
-- ended since, writing that sum would give back what it cost.
-- Why the fence: a reconciler that stood still since it read Lago must not write old funds over those of its successor.
-- Settled units are only written by closing a period, held units never: the request path owns them. Only an account that the ledger has
-- never had, or has lost, takes over what was counted elsewhere in its period (`counted`, metric to units).
bind()
local req = mp_unpack(ARGV[1])
local expected_version, id, status, ceiling, counts_unsettled, rate_interval_us, burst, day_limit, prices, info,
  period_start, period_end, periods, unsettled, digits, expected_digits, expected_start, fence, counted = values(req, 1, 19)
local _, now_ms = clock()
local acc = account_read(KEYS[1])
local version = acc.policy and acc.policy[1] or 0
local stored_digits = number(call('HGET', KEYS[1], 'digits') or digits)
if version ~= expected_version or (version > 0 and stored_digits ~= expected_digits) then
  return {'CONFLICT', version, stored_digits}
end
if fence then
  local highest = number(call('HGET', KEYS[1], 'fence') or 0)
  if fence < highest then
    return {'FENCED', highest}
  end
end
if period_end <= period_start then
  return redis.error_reply('INVALID the period of account ' .. id .. ' does not end after its start')
end
if digits < stored_digits then
  return redis.error_reply('INVALID account ' .. id .. ' has ' .. stored_digits .. ' decimals, which can only grow, not ' .. digits)
end

-- The clock's rollover comes first, by the old prices.
if acc.policy then
  account_roll(acc, now_ms)
  if unsettled and expected_start and expected_start ~= acc.state[2] then
    account_write(acc)
    return {'CONFLICT', version, stored_digits}
  end
end
-- An earlier start than the stored one means that the caller looked before a rollover: the current period stays, and the unsettled cost, unless
-- the caller says that it knew of this period.
local behind = acc.policy and period_start < acc.state[2]
local older, closed = acc.state[1], 0
if acc.policy and period_start > acc.state[2] then
  account_close_period(acc, period_start)
  closed = acc.state[1] - older
end
local state = acc.state
if not behind then
  state[2], state[3] = period_start, period_end
end

local factor = 10 ^ (digits - stored_digits)
older = older * factor
if unsettled and (expected_start or not behind) then
  older = unsettled
end
state[1] = older + closed * factor
if math.abs(state[1]) > MAX_INT then
  return redis.error_reply('OVERFLOW the unsettled cost of account ' .. id .. ' cannot be represented with ' .. digits .. ' decimals')
end

-- A metric that left the plan keeps its table until its period ends: what it has cost so far stays counted.
local function scaled(tbl)
  local model = tbl[1]
  local first, step = 3, 3      -- graduated and volume: to, unit, flat
  if model == 's' then
    first, step = 2, 1
  elseif model == 'p' then
    first, step = 4, 1
  end
  local fits = true
  for i = first, #tbl, step do
    for j = i, i + (step == 3 and 1 or 0) do
      tbl[j] = tbl[j] * factor
      fits = fits and tbl[j] <= MAX_INT
    end
  end
  return tbl, fits
end
local old, gone = account_prices(acc), {}
for i = HEAD + 1, #state, WIDTH do
  local name = state[i]
  state[i + 3], state[i + 4] = 1, 0
  local tbl = not prices[name] and (old[1][name] or old[2][name])
  if tbl then
    local fits
    gone[name], fits = scaled(tbl)
    if not fits then
      return redis.error_reply('OVERFLOW the former price of ' .. name .. ' of account ' .. id .. ' cannot be represented with ' ..
        digits .. ' decimals')
    end
  end
end
for name in each(prices) do
  if not metric_at(state, name) then
    metric_add(state, name)
  end
end

if version == 0 and counted then
  for name, units in each(counted) do
    local i = metric_at(state, name) or metric_add(state, name)
    state[i + 1] = max(state[i + 1], units)
  end
end

version = version + 1
account_write_pending(acc)
-- Records of periods that are over are money of the account too.
if factor > 1 then
  local fields = call('HGETALL', KEYS[1])
  for f = 1, #fields, 2 do
    local units, cost = string.match(fields[f + 1], '^(%d+) (%d+)$')
    if units and sub(fields[f], 1, 7) == 'closed:' then
      call('HSET', KEYS[1], fields[f], string.format('%s %d', units, bounded(cost * factor)))
    end
  end
end
if fence then
  call('HSET', KEYS[1], 'fence', fence)
end
call('HSET', KEYS[1],
  'policy', mp_pack({version, status, ceiling, counts_unsettled, rate_interval_us, burst, day_limit}),
  'state', mp_pack(state),
  'prices', mp_pack({prices, gone}),
  'periods', mp_pack(periods),
  'digits', digits,
  'info', (string.gsub(info, '"version":0', '"version":' .. version, 1)))
call('ZADD', KEYS[2], 0, id)
return {'OK', version}
