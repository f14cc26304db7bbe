"""The scripts of the outbox. All keys of one call belong to one partition, so each call has one server on a cluster.

They run by EVAL: that is routed by its keys without asking the server, and its reply has one shape in all protocol
versions. Reading is left to plain XREADGROUP, since Lua would copy every event once more on the server's only thread.
"""

from __future__ import annotations

CREATE = b"""
-- KEYS [1] outbox
-- ARGV [1] group
-- reply 1 if the group was made, 0 if another publisher was faster
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if type(made) == 'table' and made.err then
  return string.find(made.err, 'BUSYGROUP', 1, true) and 0 or made
end
return 1
"""

FINISH = b"""
-- Entries of which every event was accepted or refused for good leave the outbox. Refused events become dead letters;
-- what was accepted is kept for a while in the tail.
--
-- KEYS [1] outbox [2] dead letters [3] tail
-- ARGV [1] group [2] msgpack {{id, name}, ...} [3] msgpack {{id, accepted, skip, {{field, value, ...}, ...}, name},
--      ...} [4] ms to keep, 0: nothing [5] most entries to keep
--      name: o.q.i of the entry; accepted: 0 if no event of it was; skip: the numbers of those that were not, or ''
-- reply {entries that left, dead letters written, entries of the tail that were dropped}
--
-- Why a script: letters must be written exactly when their entry goes, and so must the tail. The entry is looked up
-- first, so the repetition of a call whose reply was lost, or a second publisher with the same entry, writes nothing
-- twice. Nor does another entry leave that has the id by now, since the server's data and clock went back. Letters come
-- before the removal: should the server refuse them, for want of memory say, then nothing is lost.
local group, parts, with_dead_letters = ARGV[1], cmsgpack.unpack(ARGV[2]), cmsgpack.unpack(ARGV[3])
local keep_ms, keep_max = tonumber(ARGV[4]), ARGV[5]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local keeping = keep_ms > 0
local KEPT = {o = true, q = true, t = true, e = true, i = true, a = true, c = true}

-- The tail only serves the audit. A server without memory for it needs its memory for the ledger, which refuses every
-- hold without. The audit reports what it would have needed the tail for.
local dropped = 0
local function drop_tail()
  keeping = false
  dropped = redis.call('XLEN', KEYS[3])
  redis.call('UNLINK', KEYS[3])
end

local function keep(fields, skip)
  if #fields > 12 then
    -- No gateway wrote that, and Lua cannot pass thousands of values on.
    local known = {}
    for i = 1, #fields, 2 do
      if KEPT[fields[i]] then
        known[#known + 1] = fields[i]
        known[#known + 1] = fields[i + 1]
      end
    end
    fields = known
  end
  if skip ~= '' then
    fields[#fields + 1] = 'x'
    fields[#fields + 1] = skip
  end
  -- It must be the first command that writes: after one, Valkey lets a script write without memory.
  local added = redis.pcall('XADD', KEYS[3], '*', unpack(fields))
  if type(added) == 'table' and added.err then
    drop_tail()
  end
end

-- One with a chain value stays also if all of its events were refused: the entry after it proves that it was there.
local function is_chained(fields)
  for i = 1, #fields, 2 do
    if fields[i] == 'c' then
      return true
    end
  end
  return false
end

local function is_named(fields, name)
  local o, q, i = '', '', ''
  for k = 1, #fields, 2 do
    if fields[k] == 'o' then o = fields[k + 1] elseif fields[k] == 'q' then q = fields[k + 1]
    elseif fields[k] == 'i' then i = fields[k + 1] end
  end
  return o .. '.' .. q .. '.' .. i == name
end

local left, letters = 0, 0
if #parts > 0 then
  -- One look finds most, as what leaves together was mostly written together.
  local found, ids = {}, {}
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], parts[1][1], parts[#parts][1], 'COUNT', #parts)) do
    found[entry[1]] = entry[2]
  end
  for n = 1, #parts do
    local id, name = parts[n][1], parts[n][2]
    local fields = found[id]
    if not fields then
      local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
      fields = entry and entry[2]
    end
    if not fields or is_named(fields, name) then
      ids[#ids + 1] = id
      if keeping and fields then
        keep(fields, '')
      end
    end
  end
  if #ids > 0 then
    redis.call('XACK', KEYS[1], group, unpack(ids))
    left = redis.call('XDEL', KEYS[1], unpack(ids))
  end
end
for _, item in ipairs(with_dead_letters) do
  local id, accepted, skip, name = item[1], item[2], item[3], item[5]
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  if entry and is_named(entry[2], name) then
    for _, letter in ipairs(item[4]) do
      redis.call('XADD', KEYS[2], '*', 'dead-at-ms', string.format('%.0f', now_ms), 'dead-entry', id, unpack(letter))
      letters = letters + 1
    end
    if keeping and (accepted == 1 or (skip ~= '' and is_chained(entry[2]))) then
      keep(entry[2], skip)
    end
  end
  if not entry or is_named(entry[2], name) then
    redis.call('XACK', KEYS[1], group, id)
    left = left + redis.call('XDEL', KEYS[1], id)
  end
end
if keeping then
  redis.call('XTRIM', KEYS[3], 'MAXLEN', '~', keep_max)
  redis.call('XTRIM', KEYS[3], 'MINID', '~', string.format('%.0f', now_ms - keep_ms))
end
return {left, letters, dropped}
"""

KEEP = b"""
-- A publisher that is still at work on entries restarts the time after which another may take them over.
--
-- KEYS [1] outbox
-- ARGV [1] group [2] consumer [3] msgpack {id, ...}
-- reply how many are still its own
--
-- Why the owner is looked up: XCLAIM would take an entry back from the publisher that has meanwhile taken it over.
local mine = {}
for _, id in ipairs(cmsgpack.unpack(ARGV[3])) do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 1 then
    mine[#mine + 1] = id
  end
end
local kept = #mine
if kept > 0 then
  mine[kept + 1] = 'JUSTID'
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(mine))
end
return kept
"""

FORGET = b"""
-- Removes consumers that have been silent for long and owe nothing.
--
-- KEYS [1] outbox
-- ARGV [1] group [2] this consumer, which stays [3] ms of silence
-- reply how many were removed
--
-- Why a script: XGROUP DELCONSUMER drops what is pending, for good. Look and removal must be one step.
local removed = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local at = {}
  for i = 1, #info, 2 do
    at[info[i]] = info[i + 1]
  end
  if at.name ~= ARGV[2] and at.pending == 0 and at.idle >= tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], at.name)
    removed = removed + 1
  end
end
return removed
"""

LEAVE = b"""
-- A publisher goes: what it has not delivered may be taken over at once, and if there is nothing, its name goes too.
--
-- KEYS [1] outbox
-- ARGV [1] group [2] consumer
-- reply how many entries it leaves
local left, start = 0, '-'
while true do
  local ids = {}
  for n, item in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], start, '+', 500, ARGV[2])) do
    ids[n] = item[1]
  end
  if #ids == 0 then
    break
  end
  left = left + #ids
  start = '(' .. ids[#ids]
  -- A day of silence is more than anyone waits for.
  for _, option in ipairs({'IDLE', '86400000', 'JUSTID'}) do
    ids[#ids + 1] = option
  end
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(ids))
end
if left == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
return left
"""

TRIM = b"""
-- The tail ends by itself where nothing is sent any more, and where nothing is to be kept any more.
--
-- KEYS [1] tail
-- ARGV [1] ms to keep, 0: nothing
-- reply how many entries went
if tonumber(ARGV[1]) == 0 then
  return redis.call('UNLINK', KEYS[1])
end
local time = redis.call('TIME')
local before_ms = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[1]
return redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', before_ms))
"""

DROP = b"""
-- The tail makes room where Valkey runs out of memory.
--
-- KEYS [1] tail
-- ARGV [1] 1: the older half goes, 0: all
-- reply how many entries went
local entries = redis.call('XLEN', KEYS[1])
if ARGV[1] == '1' and entries > 1 then
  return redis.call('XTRIM', KEYS[1], 'MAXLEN', math.floor(entries / 2))
end
redis.call('UNLINK', KEYS[1])
return entries
"""

OLDEST = b"""
-- KEYS [1] stream
-- ARGV [1] how many
-- reply {entries, ids of the oldest}
local ids = {}
for n, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[1])) do
  ids[n] = entry[1]
end
return {redis.call('XLEN', KEYS[1]), ids}
"""

MEASURE = b"""
-- KEYS [1] outbox [2] dead letters [3] tail [4] refused settles
-- reply {entries, ms since the oldest was written or -1, dead letters, entries of the tail, of the refused settles}
local age_ms = -1
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if oldest then
  local time = redis.call('TIME')
  age_ms = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(string.match(oldest[1], '^%d+'))
  age_ms = math.max(0, age_ms)
end
local lengths = {}
for k = 1, 4 do
  lengths[k] = redis.call('XLEN', KEYS[k])
end
return {lengths[1], age_ms, lengths[2], lengths[3], lengths[4]}
"""

REQUEUE = b"""
-- Dead letters go back into the outbox, with the fields and thereby the event ids that they had.
--
-- KEYS [1] outbox [2] dead letters
-- ARGV ids of letters
-- reply how many went
local moved = 0
for _, id in ipairs(ARGV) do
  local letter = redis.call('XRANGE', KEYS[2], id, id)[1]
  if letter then
    local fields = {}
    for i = 1, #letter[2], 2 do
      if string.sub(letter[2][i], 1, 5) ~= 'dead-' then
        fields[#fields + 1] = letter[2][i]
        fields[#fields + 1] = letter[2][i + 1]
      end
    end
    redis.call('XADD', KEYS[1], '*', unpack(fields))
    redis.call('XDEL', KEYS[2], id)
    moved = moved + 1
  end
end
return moved
"""
