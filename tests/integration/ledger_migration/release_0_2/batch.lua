-- Holds, settles and releases of one gateway process, as many as came up in one turn of its event loop.
--
-- keys  [1] instance hash  [2] outbox stream  [3 ...] account hashes, then idempotency keys
-- args  [1] msgpack values: epoch, seq, origin, n_accounts, events, idem_ttl_ms, n_groups, {metric, ...}, {single, ...}
--           single   {a, known_version, metric, units, k, kind, event}            kind: 1 hold, 2 settle, 3 late settle
--       [2 ...] msgpack values of the groups, all one after another: a, known_version, m, settled, released, late, n, units ...
--           n > 0: so many holds of the units that follow; n < 0: so many holds, each with its own units; m: the metric's number
-- It also writes <home>hour:<hour>, which the keys cannot name since the clock is read here. It has the outbox's tag, so it lies in
-- the outbox's slot.
-- reply msgpack {registered, now_us, holds, singles}; see docs/ledger.md
-- Why values one after another: each array costs its table in here, and each of its values a look into it.
--
-- Why one script: the check, the debit and the usage event must be one atomic step, and one call for many requests is what makes
-- a call to Valkey cheaper than the request that causes it. Why it is numbered: a reply can be lost after the work was done,
-- and the repetition must get that reply, not a second debit.
--
-- It runs as a function (FCALL), whose closures are made when it is loaded and not at every call. So what belongs to a
-- call is set at its beginning, for a call may have ended anywhere in an error; what outlives calls are only caches.

local GRANTED, CREDIT, RATE, DAILY, SUSPENDED, CLOSED, UNKNOWN, UNPRICED, UNREGISTERED, REPEAT = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
local DAY_US = 86400000000
local PARTS_MAX = 3000           -- groups and singles: Lua passes at most 8,000 values to a command, and a share is two
local PART = 7                   -- values of a group before its units
local FORGET_MS = 90000000       -- 25 h: how long the last reply to an instance that is gone stays known

-- Of the call.
local keys               -- as they came
local now_us, now_ms     -- Valkey's clock
local registered         -- whether the instance lives in the epoch that the batch names
local share_fields       -- what to read of the instance: its epoch, its last batch, and its share of the holds on every
local share_at           -- metric that this batch touches; and where in it each share is
local shares             -- what was read
local share_now          -- shares that this batch changed
local accounts           -- accounts that it touched, by their number in the batch
local charged            -- what it charges, by the field of the share

local function want_share(a, metric)
  local field = keys[2 + a] .. '\0' .. metric
  if not share_at[field] then
    share_fields[#share_fields + 1] = field
    share_at[field] = #share_fields
  end
  return field
end

-- The groups' values of all arguments in one table; from 8,000 values on Lua would not take them from the stack.
local function all_parts(args)
  if #args < 3 then
    return args[2] and {mp_unpack(args[2])} or {}
  end
  local parts, count = {}, 0
  for n = 2, #args do
    local some = {mp_unpack(args[n])}
    for i = 1, #some do
      parts[count + i] = some[i]
    end
    count = count + #some
  end
  return parts
end

-- Where in `parts` each group begins. Values without arrays do not say where they end, so the number of groups must.
local function group_starts(parts, count)
  local starts, at = {}, 1
  for g = 1, count do
    starts[g] = at
    local n = parts[at + 6]
    at = n and at + PART + (n > 0 and 1 or -n) or MAX_INT
  end
  if at ~= #parts + 1 then
    error('a batch of ' .. count .. ' groups whose values are more or fewer')
  end
  return starts
end

local function share_get(field)
  return share_now[field] or number(shares[share_at[field]] or 0)
end

local function account_at(a)
  local acc = accounts[a]
  if not acc then
    acc = account_read(keys[2 + a])
    account_roll(acc, now_ms)
    accounts[a] = acc
  end
  return acc
end

-- Gives back `units` of what this instance holds, never more than its share.
local function give_back(acc, i, field, units)
  local share = share_get(field)
  if units > share then
    units = share
  end
  if units > 0 then
    metric_unhold(acc, i, units)
    share_now[field] = share - units
  end
end

-- Settled units grow here only, and so do the hour's counts.
local function charge(acc, i, field, units)
  acc.state[i + 1] = acc.state[i + 1] + units
  acc.dirty = true
  charged[field] = (charged[field] or 0) + units
end

local function metric_of(acc, name)
  local i = metric_at(acc.state, name)
  if not i then
    i = metric_add(acc.state, name)
  end
  return i
end

-- What the account may still spend, -1 for no limit. Zero if a reload or late settles left it below.
local function account_remains(acc)
  local ceiling = acc.policy[3]
  if not ceiling then
    return -1
  end
  acc.cost = acc.cost or account_cost(acc)
  return max(0, ceiling - acc.cost - (acc.policy[4] == 1 and acc.state[1] or 0))
end

local function set_limits(acc, tat, day, day_count)
  local state = acc.state
  state[4], state[5], state[6] = tat, day, day_count
  acc.head = nil
end

-- Decides one hold and takes it if granted. Returns code, x, y: what x and y mean depends on the code (docs/ledger.md). `idem`: the key of a call that is charged only once, or nil.
local function hold(acc, i, field, units, idem)
  if not registered then
    return UNREGISTERED, 0, 0
  end
  local policy = acc.policy
  if not policy then
    return UNKNOWN, 0, 0
  end
  if policy[2] ~= 0 then
    return policy[2] == 1 and SUSPENDED or CLOSED, 0, 0
  end
  local repeated = idem and call('EXISTS', idem) == 1
  if not repeated and not metric_is_live(acc, i) then
    return UNPRICED, 0, 0
  end
  local state = acc.state
  local day_limit, day, day_count = policy[7], state[5], state[6]
  if day_limit > 0 then
    local today = floor(now_us / DAY_US)
    if today ~= day then
      day, day_count = today, 0
    end
    if day_count >= day_limit then
      return DAILY, (today + 1) * DAY_US - now_us, 0
    end
  end
  local interval, tat = policy[5], state[4]
  if interval > 0 then
    tat = (tat > now_us and tat or now_us) + interval
    local wait = tat - interval * policy[6] - now_us
    if wait > 0 then
      return RATE, wait, 0
    end
  end
  if day_limit > 0 then
    day_count = day_count + 1
  end
  if repeated then
    -- It costs nothing, but it is a request: one key must not open the API to any number of them.
    if day_limit > 0 or interval > 0 then
      set_limits(acc, tat, day, day_count)
      acc.dirty = true
    end
    return REPEAT, account_remains(acc), 0
  end
  if not acc.cost then
    acc.cost = account_cost(acc)
  end
  local h = state[i + 2]
  local added = metric_worst(acc, i, h + units) - metric_worst(acc, i, h)
  local cost = acc.cost + added
  local ceiling = policy[3]
  if ceiling then
    if policy[4] == 1 then
      ceiling = ceiling - state[1]
    end
    if cost > ceiling then
      return CREDIT, max(-MAX_INT, ceiling - acc.cost), min(added, MAX_INT)
    end
  elseif cost > MAX_INT then
    return CREDIT, 0, min(added, MAX_INT)
  end
  state[i + 2] = h + units
  if interval > 0 or day_limit > 0 then
    set_limits(acc, tat, day, day_count)
  end
  share_now[field] = share_get(field) + units
  acc.cost = cost
  acc.dirty = true
  return GRANTED, ceiling and ceiling - cost or -1, added
end

-- What the caller shows of the account beside the outcomes: info if it does not know this version, and what the limits leave.
-- Nil if there is nothing of it to say.
local function account_summary(acc, known_version)
  local policy, state = acc.policy, acc.state
  if not policy or (policy[1] == known_version and policy[5] <= 0 and policy[7] <= 0) then
    return nil
  end
  local info = false
  if policy[1] ~= known_version then
    info = call('HGET', acc.key, 'info')
  end
  local rate_left, day_left = -1, -1
  if policy[5] > 0 then
    local tat = state[4] > now_us and state[4] or now_us
    rate_left = max(0, floor((policy[5] * policy[6] - (tat - now_us)) / policy[5]))
  end
  if policy[7] > 0 then
    local count = state[5] == floor(now_us / DAY_US) and state[6] or 0
    day_left = policy[7] > count and policy[7] - count or 0
  end
  return {info, rate_left, day_left}
end

-- Answers are put into one array: for each group with holds its summary or false, then code, x and y of each hold.
local function do_groups(parts, starts, fields, metrics)
  local replies, r = {}, 0
  for g = 1, #starts do
    local at = starts[g]
    local settled, released, late, n = parts[at + 3], parts[at + 4], parts[at + 5], parts[at + 6]
    local field = fields[g]
    local acc = account_at(parts[at])
    local i = metric_of(acc, metrics[parts[at + 2]])
    if registered and settled + released > 0 then
      give_back(acc, i, field, settled + released)
    end
    if settled + late > 0 then
      charge(acc, i, field, settled + late)
    end
    if settled + released + late > 0 then
      acc.cost = nil
    end
    if n ~= 0 then
      r = r + 1
      local summary_at = r
      local first = at + PART
      for u = 1, n > 0 and n or -n do
        replies[r + 1], replies[r + 2], replies[r + 3] = hold(acc, i, field, parts[n > 0 and first or first + u - 1])
        r = r + 3
      end
      replies[summary_at] = account_summary(acc, parts[at + 1]) or false
    end
  end
  return replies
end

-- Returns replies and the events of what was charged.
local function do_singles(singles, fields, n_accounts, origin, idem_ttl_ms)
  local replies, events = {}, {}
  for s = 1, #singles do
    local a, known_version, metric, units, k, kind, event = values(singles[s])
    local field = fields[s]
    local acc = account_at(a)
    local i = metric_of(acc, metric)
    local idem = keys[2 + n_accounts + k]
    if kind == 1 then
      local code, x, y = hold(acc, i, field, units, idem)
      local reply = account_summary(acc, known_version) or {false, -1, -1}
      reply[4], reply[5], reply[6] = code, x, y
      replies[s] = reply
    else
      local code = REPEAT
      if registered and kind == 2 then
        give_back(acc, i, field, units)
      end
      if call('SET', idem, origin, 'NX', 'PX', idem_ttl_ms) then
        charge(acc, i, field, units)
        events[#events + 1] = event
        code = GRANTED
      end
      acc.cost = nil
      replies[s] = {false, -1, -1, code, 0, 0}
    end
  end
  return replies, events
end

local function batch(call_keys, args)
  if not call then
    bind()
  end
  local epoch, seq, origin, n_accounts, events, idem_ttl_ms, n_groups, metrics, singles = mp_unpack(args[1])
  local instance, outbox = call_keys[1], call_keys[2]
  if n_groups + #singles > PARTS_MAX then
    return redis.error_reply('LIMIT a batch of ' .. (n_groups + #singles) .. ' groups and singles, at most ' .. PARTS_MAX .. ' are taken')
  end
  keys = call_keys
  share_fields, share_at, share_now = {'e', 'q'}, {}, {}
  accounts, charged = {}, {}
  local parts = all_parts(args)
  local starts = group_starts(parts, n_groups)
  local group_fields, single_fields = {}, {}
  for g = 1, n_groups do
    local at = starts[g]
    group_fields[g] = want_share(parts[at], metrics[parts[at + 2]])
  end
  for s = 1, #singles do
    single_fields[s] = want_share(singles[s][1], singles[s][3])
  end
  shares = call('HMGET', instance, values(share_fields))
  local last_seq = number(shares[2] or 0)
  if seq <= last_seq then
    if seq == last_seq then
      return call('HGET', instance, 'r')
    end
    return redis.error_reply('STALE batch ' .. seq .. ' of ' .. origin .. ', the last one was ' .. last_seq)
  end
  registered = number(shares[1] or -1) == epoch
  now_us, now_ms = clock()

  local group_replies = do_groups(parts, starts, group_fields, metrics)
  local single_replies, single_events = do_singles(singles, single_fields, n_accounts, origin, idem_ttl_ms)
  for _, acc in each(accounts) do
    account_write(acc)
  end
  if #single_events > 0 then
    if #events > 0 then
      table.insert(single_events, 1, events)
    end
    events = concat(single_events, ',')
  end
  if #events > 0 then
    call('XADD', outbox, '*', 'o', origin, 'q', seq, 't', now_ms, 'e', '[' .. events .. ']')
  end
  count_hour(outbox, now_ms, charged)
  local reply = mp_pack({registered and 1 or 0, now_us, group_replies, single_replies})
  local set, gone = {'q', seq, 'r', reply}, {}
  for field, units in each(share_now) do
    if units > 0 then
      set[#set + 1] = field
      set[#set + 1] = units
    else
      gone[#gone + 1] = field
    end
  end
  call('HSET', instance, values(set))
  if #gone > 0 then
    call('HDEL', instance, values(gone))
  end
  if not registered then
    if not shares[1] then
      call('PEXPIRE', instance, FORGET_MS)
    else
      -- XX: one that was reaped is forgotten later; one that lives on in a newer epoch must not be forgotten with its holds.
      call('PEXPIRE', instance, FORGET_MS, 'XX')
    end
  end
  return reply
end
