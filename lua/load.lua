-- Funds, prices, limits and period bounds of one account, from whoever knows them (an accounts file, the Lago reconciler).
-- KEYS [1] account hash [2] accounts index
-- ARGV [1] msgpack {expected_version, id, status, ceiling, count_k, rate_interval_us, burst, day_limit, prices, info,
--                   period_start_ms, period_end_ms, periods, K, digits, expected_digits}
-- reply {'OK', version} or {'CONFLICT', version, digits}
-- Why the expected version: digits and prices were computed from what the caller read; if another loader came between, it must read again.
-- N is never written but by closing a period, H never at all: the request path owns them.
local req = cmsgpack.unpack(ARGV[1])
local expected_version, id, status, ceiling, count_k, rate_interval_us, burst, day_limit, prices, info,
  period_start, period_end, periods, older_cost, digits, expected_digits = unpack(req)
local _, now_ms = clock()
local acc = account_read(KEYS[1])
local version = acc.terms and acc.terms[1] or 0
local stored_digits = tonumber(redis.call('HGET', KEYS[1], 'digits') or digits)
if version ~= expected_version or (version > 0 and stored_digits ~= expected_digits) then
  return {'CONFLICT', version, stored_digits}
end
if acc.terms then
  account_roll(acc, now_ms)
  if period_start > acc.state[2] then
    account_close_period(acc, period_start)
  end
end
local state = acc.state
if digits > stored_digits then
  local factor = 10 ^ (digits - stored_digits)
  if math.abs(state[1] * factor) >= MAX_INT then
    return redis.error_reply('OVERFLOW older cost ' .. string.format('%d', state[1]) .. ' of account ' .. id ..
      ' cannot be represented with ' .. digits .. ' decimals')
  end
  state[1] = state[1] * factor
end
if older_cost then
  state[1] = older_cost
end
-- An earlier start than the stored one means that the caller looked before a rollover; the period at hand stays.
if not acc.terms or period_start >= state[2] then
  state[2], state[3] = period_start, period_end
end
-- A metric that left the plan keeps its table until its period ends: what it has cost so far stays counted.
local old = account_prices(acc)
local gone = {}
local factor = digits > stored_digits and 10 ^ (digits - stored_digits) or 1
local function scaled(tbl)
  if factor == 1 then
    return tbl
  end
  local model, first, step = tbl[1], 2, 1
  if model == 'p' then
    first = 4
  elseif model ~= 's' then
    first, step = 3, 3
  end
  for i = first, #tbl, step do
    tbl[i] = tbl[i] * factor
    if step == 3 then
      tbl[i + 1] = tbl[i + 1] * factor
    end
  end
  return tbl
end
for i = HEAD + 1, #state, WIDTH do
  local name = state[i]
  state[i + 3], state[i + 4] = 1, 0
  if not prices[name] then
    local tbl = old[1][name] or old[2][name]
    if tbl then
      gone[name] = scaled(tbl)
    end
  end
end
for name in pairs(prices) do
  if not metric_at(state, name) then
    metric_add(state, name)
  end
end
version = version + 1
redis.call('HSET', KEYS[1],
  'terms', cmsgpack.pack({version, status, ceiling, count_k, rate_interval_us, burst, day_limit}),
  'state', cmsgpack.pack(state),
  'prices', cmsgpack.pack({prices, gone}),
  'periods', cmsgpack.pack(periods),
  'digits', digits,
  'info', (string.gsub(info, '"version":0', '"version":' .. version, 1)))
redis.call('ZADD', KEYS[2], 0, id)
return {'OK', version}
