-- Holds, settles and releases of one gateway process, as many as came up in one turn of its event loop.
--
-- keys  [1] instance  [2] clock of its home partition  [3] outbox stream  [4 5, 6 7, ...] state and hash of each account
-- args  [1] msgpack values: epoch, seq, origin, events, marks_ttl_ms, n_groups, {metric, ...}, {single, ...}, unpaid_interval_us,
--           unpaid_burst, {a, releases of answered requests, ...}, number of the last batch that the sender has a reply for, chain value
--           single   {a, known_version, metric, units, kind, digest, fingerprint, p, q, event, record}   what is not said is ''
--             kind 1 hold      p: most free repeats                     q: 1 refuses conflicts, 0 charges them
--                  2 settle    p, q: epoch and token of the hold        event
--                  3 release   p, q: the same
--                  4 replay    p: most free repeats                     event; record: of a spool of release 0.2; digest '': without a key
--       [2 ...] msgpack values of the groups, all one after another: a, known_version, m, settled, released, late, n, units ...
--           n > 0: so many holds of the units that follow; n < 0: so many holds, each with its own units; m: the metric's number
-- reply msgpack {registered, now_us, holds, singles, stepped}; see docs/ledger.md
-- Why values one after another: each array costs its table in here, and each of its values a look into it.
--
-- Why one script: the check, the debit and the usage event must be one atomic step, and one call for many requests is what makes
-- a call to Valkey cheaper than the request that causes it. Why it is numbered: a reply can be lost after the work was done,
-- and the repetition must get that reply, not a second debit.
--
-- It happens whole or not at all. `decide` reads everything and writes nothing; an account that cannot be read or charged makes
-- the whole batch an error ACCOUNT that names it, and the caller sends the rest again without it. What is written then is packed
-- before the first command that writes. That one may be refused (OOM, READONLY, NOREPLICAS, MISCONF, an outbox that is none), and
-- nothing has changed. The ones after it cannot: MSET takes keys of every type, and hashes are written only where they were read, which
-- proves their type; once a script has written, Valkey refuses it nothing for want of memory, replicas or a disk (scriptVerifyOOM and
-- scriptVerifyWriteCommandAllow in script.c), and it cannot be killed.
--
-- It runs as a function (FCALL), whose closures are made when it is loaded and not at every call. So what belongs to a
-- call is set at its beginning, for a call may have ended anywhere in an error; what outlives calls are only caches.

local GRANTED, CREDIT, RATE, DAILY, SUSPENDED, CLOSED, UNKNOWN, UNPRICED, UNREGISTERED, REPEAT = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
local UNPAID, MISMATCH, UNDER_WAY = 12, 13, 14      -- 10 and 11 are the client's own
local HOLD, SETTLE, RELEASE = 1, 2, 3               -- kinds of a single; the fourth is a replay
local PARTS_MAX = 3000           -- groups and singles: how long a call may take
local PART = 7                   -- values of a group before its units

-- Of the call.
local keys               -- as they came
local now_us, now_ms     -- the ledger's clock
local registered         -- whether the instance lives in the epoch that the batch names
local epoch, sequence
local held               -- units that the instance holds in all
local states             -- what was read: instance, clock, and the state of each account
local accounts           -- accounts that the batch touches, by their number in it
local current            -- the one that is worked on: whose fault an error is
local marks_of           -- by account: the fields of the idempotency keys to read
local marks_ttl_ms
local unpaid_interval, unpaid_burst      -- the interval is 0 where unpaid answers have no limit

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

-- Unpacks an account when the batch comes to it for the first time.
local function account_at(a)
  current = a
  local acc = accounts[a]
  if acc then
    return acc
  end
  local key = keys[3 + 2 * a]
  local state_key = keys[2 + 2 * a]
  acc = account_open(state_key, key, states[2 + a] or string_read(state_key, false), now_ms)
  if marks_of then
    acc.marks = {}
    local marks = marks_of[a]
    if marks then
      local fields = call('HMGET', key, values(marks))
      for m = 1, #marks do
        acc.marks[marks[m]] = fields[m]
      end
    end
    acc.changed_marks = false
  end
  if acc.now_ms >= acc.soonest_end_ms then
    account_roll(acc)
  end
  accounts[a] = acc
  return acc
end

-- Gives back `units` of what this instance holds, never more than its share.
local function give_back(acc, c, units)
  local s = share_at(acc, c, epoch)
  if s then
    local taken = share_take(acc, s, units)
    held, units = held - taken, units - taken
  end
  local state = acc.state
  if units > 0 and state[9] > 1 then
    -- The metric was held when another of the subscriptions had it.
    local name = state[acc.slow + SLOW * c + 1]
    for d = 1, state[10] do
      s = d ~= c and units > 0 and state[acc.slow + SLOW * d + 1] == name and share_at(acc, d, epoch)
      if s then
        local taken = share_take(acc, s, units)
        held, units = held - taken, units - taken
      end
    end
  end
end

local function counter_of(acc, name)
  return counter_named(acc, name) or counter_add(acc, 1, name)
end

-- What the account may still spend, -1 for no limit. Zero if a reload or late settles left it below.
local function account_remains(acc)
  local state = acc.state
  local ceiling = state[3]
  if not ceiling then
    return -1
  end
  acc.cost = acc.cost or account_cost(acc)
  return max(0, ceiling - acc.cost - (state[4] == 1 and state[8] or 0))
end

local function set_limits(acc, tat, day, day_count)
  local state, at = acc.state, acc.limits
  state[at], state[at + 2], state[at + 3] = tat, day, day_count
  acc.limits_packed = false
  acc.dirty = true
end

local function set_unpaid(acc, tat)
  acc.state[acc.limits + 1] = tat
  acc.limits_packed = false
  acc.dirty = true
end

-- The credit decision: grants units if the account can pay for them. Returns code, x, y. What it grants is in H; the share is the
-- caller's to change.
local function take(acc, c, units)
  local state = acc.state
  local i, j = acc.slow + SLOW * c, acc.hot + HOT * c
  local n, h = state[j], state[j + 1]
  local top, before, added = n + h + units, acc.cost, nil
  local lo = state[i + 3]
  if top <= state[i + 4] and n >= lo then
    -- All on one straight piece.
    local b = state[i + 6]
    added = b * units
    before = before or (state[10] == 1 and state[i + 5] + b * (n + h - lo) or account_cost(acc))
  else
    added = counter_worst(acc, c, h + units) - counter_worst(acc, c, h)
    before = before or account_cost(acc)
  end
  local cost, ceiling = before + added, state[3]
  if ceiling then
    if state[4] == 1 then
      ceiling = ceiling - state[8]
    end
    if cost > ceiling then
      acc.cost = before
      return CREDIT, max(-MAX_INT, ceiling - before), min(added, MAX_INT)
    end
  elseif cost > MAX_INT then
    acc.cost = before
    return CREDIT, 0, min(added, MAX_INT)
  end
  if top > MAX_INT then
    acc.cost = before
    return CREDIT, 0, min(added, MAX_INT)
  end
  state[j + 1] = h + units
  acc.cost = cost
  return GRANTED, ceiling and ceiling - cost or -1, added
end

-- Whether holds of a counter depend on credit alone.
local function is_plain(acc, c)
  local state = acc.state
  return registered and state[2] == 0 and state[5] <= 0 and state[7] <= 0 and state[1] ~= 0 and state[acc.limits + 1] <= now_us
    and counter_is_live(acc, c)
end

-- What a call's idempotency key decides: the code that it makes, or nil if the call is decided like any, and then whether the key is
-- the call's from now on.
local function key_decides(acc, mark, single)
  local until_ms, of, count, fingerprint = mark_read(acc, mark)
  if not until_ms then
    return nil, true
  end
  local refuses = single[9] == 1
  if fingerprint ~= single[7] then
    return refuses and MISMATCH or nil, false
  elseif of ~= 0 then
    return refuses and UNDER_WAY or nil, false
  end
  return count < single[8] and REPEAT or nil, false
end

-- Decides one hold. Returns code, x, y: what x and y mean depends on the code (docs/ledger.md). Under an idempotency key it has a
-- `mark` and a `single`, and the fourth value tells whether the key is the call's from now on.
local function hold(acc, c, units, mark, single)
  if not registered then
    return UNREGISTERED, 0, 0
  end
  local state, limits = acc.state, acc.limits
  if state[1] == 0 then
    return UNKNOWN, 0, 0
  end
  if state[2] ~= 0 then
    return state[2] == 1 and SUSPENDED or CLOSED, 0, 0
  end
  local decided, owns
  if mark then
    decided, owns = key_decides(acc, mark, single)
  end
  if decided ~= REPEAT and not counter_is_live(acc, c) then
    return UNPRICED, 0, 0
  end
  local interval, day_limit = state[5], state[7]
  local tat, unpaid_tat, day, day_count = state[limits], state[limits + 1], state[limits + 2], state[limits + 3]
  if day_limit > 0 then
    day, day_count = day_of(now_us, day, day_count)
    if day_count >= day_limit then
      return DAILY, (day + 1) * DAY_US - now_us, 0
    end
    day_count = day_count + 1
  end
  if interval > 0 then
    tat = tat_of(now_us, tat, interval, state[6]) + interval
    local wait = tat - interval * state[6] - now_us
    if wait > 0 then
      -- Who waits as long as that must pass then: the instant that it was cut down to counts from now on.
      if tat - interval < state[limits] then
        set_limits(acc, tat - interval, state[limits + 2], state[limits + 3])
      end
      return RATE, wait, 0
    end
  end
  if unpaid_interval > 0 and unpaid_tat > now_us then
    local cut = unpaid_tat_of(now_us, unpaid_tat, unpaid_interval, unpaid_burst)
    local wait = cut + unpaid_interval - unpaid_interval * unpaid_burst - now_us
    if wait > 0 then
      if cut < unpaid_tat then
        set_unpaid(acc, cut)
      end
      return UNPAID, wait, 0
    end
  end
  local code, x, y
  if decided == REPEAT then
    -- It costs nothing, but it is a request: one key must not open the API to any number of them.
    code, x, y = REPEAT, account_remains(acc), 0
  elseif decided then
    return decided, 0, 0
  else
    code, x, y = take(acc, c, units)
  end
  if code ~= CREDIT and (interval > 0 or day_limit > 0) then
    set_limits(acc, tat, day, day_count)
  end
  return code, x, y, owns
end

-- What the caller shows of the account beside the outcomes: the view if it does not know this version, and what the limits leave.
-- Nil if there is nothing of it to say.
local function account_summary(acc, known_version)
  local state = acc.state
  local version = state[1]
  if version == 0 or (version == known_version and state[5] <= 0 and state[7] <= 0) then
    return nil
  end
  local view = false
  if version ~= known_version then
    view = call('HGET', acc.key, 'view')
  end
  local rate_left, day_left = -1, -1
  local interval, burst, day_limit = state[5], state[6], state[7]
  if interval > 0 then
    local tat = tat_of(now_us, state[acc.limits], interval, burst)
    rate_left = max(0, floor((interval * burst - (tat - now_us)) / interval))
  end
  if day_limit > 0 then
    local _, count = day_of(now_us, state[acc.limits + 2], state[acc.limits + 3])
    day_left = max(0, day_limit - count)
  end
  return {view, rate_left, day_left, version}
end

-- Answers are put into one array: for each group with holds its summary or false, then code, x and y of each hold. Returns it, and
-- how many values it has.
local function do_groups(parts, starts, metrics)
  local replies, r = {}, 0
  for g = 1, #starts do
    local at = starts[g]
    local settled, released, late, n = parts[at + 3], parts[at + 4], parts[at + 5], parts[at + 6]
    local acc, metric = account_at(parts[at]), metrics[parts[at + 2]]
    local state = acc.state
    local c = state[9] == 1 and state[10] > 0 and state[acc.slow + SLOW + 1] == metric and 1 or counter_of(acc, metric)
    if settled + released + late > 0 then
      if registered and settled + released > 0 then
        give_back(acc, c, settled + released)
      end
      if settled + late > 0 then
        counter_charge(acc, c, settled + late)
      end
      acc.cost = false
    end
    if n ~= 0 then
      r = r + 1
      local summary_at, granted = r, 0
      local same, first = n > 0, at + PART
      local decide_one = is_plain(acc, c) and take or hold
      for u = 0, (same and n or -n) - 1 do
        local units = parts[same and first or first + u]
        local code, x, y = decide_one(acc, c, units)
        if code == GRANTED then
          granted = granted + units
        end
        replies[r + 1], replies[r + 2], replies[r + 3] = code, x, y
        r = r + 3
      end
      if granted > 0 then
        share_add(acc, c, epoch, granted)
        held = held + granted
      end
      local nothing_new = state[1] == parts[at + 1] and state[5] <= 0 and state[7] <= 0
      replies[summary_at] = not nothing_new and account_summary(acc, parts[at + 1]) or false
    end
  end
  return replies, r
end

-- Requests that the API answered, and whose answer costs nothing. They count whoever says so: it answered them.
local function count_unpaid(unpaid)
  for u = 1, #unpaid, 2 do
    local acc = account_at(unpaid[u])
    if acc.state[1] ~= 0 and unpaid_interval > 0 then
      local tat = unpaid_tat_of(now_us, acc.state[acc.limits + 1], unpaid_interval, unpaid_burst)
      set_unpaid(acc, tat + unpaid_interval * unpaid[u + 1])
    end
  end
end

-- Returns replies and the events of what was charged.
local function do_singles(singles)
  local replies, events = {}, {}
  for s = 1, #singles do
    local single = singles[s]
    local a, known_version, metric, units, kind, digest, fingerprint, p, q, event, record = values(single)
    local acc = account_at(a)
    local c = counter_of(acc, metric)
    local mark = digest == '' and '' or 'i' .. digest
    if kind == HOLD then
      local code, x, y, owns = hold(acc, c, units, mark, single)
      local token = 0
      if code == GRANTED then
        share_add(acc, c, epoch, units)
        held = held + units
        if owns then
          token = sequence * TOKENS + s
          mark_under_way(acc, mark, epoch, token, fingerprint, marks_ttl_ms)
        end
      elseif code == REPEAT then
        mark_repeated(acc, mark)
      end
      local reply = account_summary(acc, known_version) or {false, -1, -1, 0}
      reply[5], reply[6], reply[7], reply[8] = code, x, y, token
      replies[s] = reply
    else
      local code = GRANTED
      if kind == SETTLE or kind == RELEASE then
        if registered and p == epoch then
          give_back(acc, c, units)
        end
        if kind == RELEASE then
          mark_released(acc, mark, p, q)
        else
          mark_charged(acc, mark, p, q, fingerprint, marks_ttl_ms)
        end
      elseif not mark_replayed(acc, record == '' and '' or 'i' .. record, mark, fingerprint, p, marks_ttl_ms) then
        code = REPEAT
      end
      if kind ~= RELEASE and code == GRANTED then
        counter_charge(acc, c, units)
        events[#events + 1] = event
      end
      acc.cost = false
      replies[s] = {false, -1, -1, 0, code, 0, 0, 0}
    end
  end
  return replies, events
end

-- Which marks each account needs.
local function marks_to_read(singles)
  local by_account = {}
  for s = 1, #singles do
    local a, digest, record = singles[s][1], singles[s][6], singles[s][11]
    local of = by_account[a] or {}
    by_account[a] = of
    if digest ~= '' then
      of[#of + 1] = 'i' .. digest
    end
    if record ~= '' then
      of[#of + 1] = 'i' .. record
    end
  end
  return by_account
end

local function decide(parts, starts, metrics, singles, unpaid)
  if unpaid then
    count_unpaid(unpaid)
  end
  local group_replies, reply_count = do_groups(parts, starts, metrics)
  current = nil
  local single_replies, single_events = do_singles(singles)
  for a, acc in each(accounts) do
    current = a
    if marks_of then
      marks_pack(acc)
    end
    account_pack(acc)
  end
  -- The array that mp_pack would make of {registered, now_us, group_replies, single_replies, stepped}, for half of the cost.
  local reply = concat({
    '\149', mp_pack(registered and 1 or 0, now_us), array_head(reply_count), pack_values(group_replies, 1, reply_count),
    mp_pack(single_replies), mp_pack(stepped or false),
  })
  return reply, single_events
end

-- The time of an event is the entry's, but where the clock went back behind the beginning of the period that it was charged to.
local function other_times()
  local times
  for _, acc in each(accounts) do
    if acc.charged and acc.now_ms ~= now_ms then
      times = times or {}
      times[string.match(acc.key, '}:account:(.*)$')] = acc.now_ms
    end
  end
  return times and cjson.encode(times)
end

local function write(instance, clock_key, outbox, entry, answer)
  if entry then
    call('XADD', outbox, '*', values(entry))
  end
  local mset, count = {instance, answer, clock_key, clock_packed(now_us)}, 4
  for _, acc in each(accounts) do
    count = account_mset(acc, mset, count)
  end
  call('MSET', values(mset))
  for _, acc in each(accounts) do
    account_write(acc)
    if marks_of then    -- those of a batch without singles are of an earlier one
      marks_write(acc)
    end
  end
end

-- The keys to read: instance, clock, and the state of each account.
local function keys_to_read(call_keys)
  local some, count = {call_keys[1], call_keys[2]}, 2
  for k = 4, #call_keys, 2 do
    count = count + 1
    some[count] = call_keys[k]
  end
  return some
end

local function batch(call_keys, args)
  if not call then
    bind()
  end
  local seq, origin, events, n_groups, metrics, singles, unpaid, confirmed, link
  epoch, seq, origin, events, marks_ttl_ms, n_groups, metrics, singles, unpaid_interval, unpaid_burst, unpaid, confirmed, link =
    mp_unpack(args[1])
  sequence, unpaid_interval = seq, unpaid_interval or 0
  if n_groups + #singles > PARTS_MAX then
    return fail('LIMIT a batch of ' .. (n_groups + #singles) .. ' groups and singles, at most ' .. PARTS_MAX .. ' are taken')
  end
  if #singles > 0 and marks_ttl_ms < 1 then
    -- HPEXPIRE would refuse it after the first write.
    return fail('LIMIT idempotency keys that are kept for ' .. marks_ttl_ms .. ' ms')
  end
  keys, accounts, current = call_keys, {}, nil
  local parts = all_parts(args)
  local starts = group_starts(parts, n_groups)
  states = call('MGET', values(keys_to_read(call_keys)))
  local known_epoch, last_seq, reply_at, chain
  known_epoch, last_seq, held, reply_at, chain = instance_unpacked(string_read(call_keys[1], states[1]))
  if seq <= last_seq then
    if seq == last_seq then
      return instance_reply(states[1], reply_at)
    end
    return fail('STALE batch ' .. seq .. ' of ' .. origin .. ', the last one was ' .. last_seq)
  end
  if confirmed and last_seq < confirmed then
    return fail('LOST ' .. last_seq)
  end
  local format
  now_us, now_ms, format = clock(states[2])
  if format ~= FORMAT then
    return wrong_format(format)
  end
  registered = epoch ~= 0 and known_epoch == epoch   -- 0 is the epoch of one that departed, and of one that has yet to register
  marks_of = #singles > 0 and marks_to_read(singles) or nil

  local worked, reply, single_events = pcall(decide, parts, starts, metrics, singles, unpaid)
  if not worked then
    return refused_for(current, reply)
  end
  if #single_events > 0 then
    if #events > 0 then
      table.insert(single_events, 1, events)
    end
    events = concat(single_events, ',')
  end
  local entry
  if #events > 0 then
    entry = {'o', origin, 'q', seq, 't', now_ms, 'e', '[' .. events .. ']'}
    local times = other_times()
    if times then
      entry[9], entry[10] = 'a', times
    end
    if link and link ~= '' then
      chain = link
      entry[#entry + 1], entry[#entry + 2] = 'c', link
    end
  end

  write(call_keys[1], call_keys[2], call_keys[3], entry, instance_packed(known_epoch, seq, held, chain, reply))
  if known_epoch == 0 then
    call('PEXPIRE', call_keys[1], FORGET_MS)
  end
  return reply
end
