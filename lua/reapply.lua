-- Charges settles that an account could not take when they were made (refuse.lua), now that it can.
-- KEYS [1] clock [2] outbox [3] refused stream, all of the partition that has the settles [4] state and [5] hash of the account
-- ARGV [1] msgpack {id, marks_ttl_ms, origin, seq, {{number, metric, units, event, record, digest, fingerprint, p, q}, ...}} of the
--          entry: what the caller has read. number: the event's in its batch, from 0; event: JSON; record: of a spool; digest, fingerprint: of the caller's
--          idempotency key; p, q: with a record the most free repeats and 0, else epoch and token of the hold. What there is not is ''
-- reply {'OK', units, events that were charged, events that had been charged before} or {'GONE'}: the entry is not there any more; the
-- errors ACCOUNT and FORMAT; then nothing is changed
-- Why the entry goes in the same step: whoever repeats this, or does it at the same time, finds it gone and charges nothing twice.
-- Why the events keep their numbers: their ids are fixed, so that OpenMeter counts each once, whatever happens to it later.
bind()
local id, marks_ttl_ms, origin, seq, events = values(mp_unpack(ARGV[1]), 1, 5)
if marks_ttl_ms < 1 then
  return fail('LIMIT idempotency keys that are kept for ' .. marks_ttl_ms .. ' ms')
end
local read = call('MGET', KEYS[4], KEYS[1])
local now_us, now_ms, format = clock(read[2])
if format ~= FORMAT then
  return wrong_format(format)
end
if #call('XRANGE', KEYS[3], id, id) == 0 then
  return {'GONE'}
end
local acc, units, runs, next_number = nil, 0, {}, -1

local function mark_of(digest)
  return digest == '' and '' or 'i' .. digest
end

local function read_marks()
  local names = {'view'}     -- one of no mark proves the type of the hash
  for n = 1, #events do
    for at = 5, 6 do
      if events[n][at] ~= '' then
        names[#names + 1] = mark_of(events[n][at])
      end
    end
  end
  local found = call('HMGET', KEYS[5], values(names))
  acc.marks = {}
  for n = 2, #names do
    acc.marks[names[n]] = found[n]
  end
end

-- A call under an idempotency key was served and is charged. Only what a spool recorded may have been charged before, or be a repeat.
local function is_charged_now(record, digest, fingerprint, p, q)
  if record ~= '' then
    return mark_replayed(acc, mark_of(record), mark_of(digest), fingerprint, p, marks_ttl_ms)
  end
  if digest ~= '' then
    mark_charged(acc, mark_of(digest), p, q, fingerprint, marks_ttl_ms)
  end
  return true
end

local function charge_all()
  acc = account_open(KEYS[4], KEYS[5], string_read(KEYS[4], read[1]), now_ms)
  read_marks()
  if acc.now_ms >= acc.soonest_end_ms then
    account_roll(acc)
  end
  for n = 1, #events do
    local event_number, metric, event_units, event, record, digest, fingerprint, p, q = values(events[n], 1, 9)
    if is_charged_now(record, digest, fingerprint, p, q) then
      counter_charge(acc, counter_named(acc, metric) or counter_add(acc, 1, metric), event_units)
      units = units + event_units
      if event_number ~= next_number then
        runs[#runs + 1] = {event_number, {}}
      end
      local run = runs[#runs][2]
      run[#run + 1] = event
      next_number = event_number + 1
    end
  end
  marks_pack(acc)
  account_pack(acc)
end

local worked, problem = pcall(charge_all)
if not worked then
  return refused_for(1, problem)
end
local charged = 0
for _, run in ipairs(runs) do
  local entry = {'o', origin, 'q', seq, 't', acc.now_ms, 'e', '[' .. concat(run[2], ',') .. ']'}
  if run[1] > 0 then
    entry[9], entry[10] = 'i', run[1]
  end
  call('XADD', KEYS[2], '*', values(entry))
  charged = charged + #run[2]
end
local mset, count = {KEYS[1], clock_packed(now_us)}, 2
account_mset(acc, mset, count)
call('MSET', values(mset))
account_write(acc)
marks_write(acc)
call('XDEL', KEYS[3], id)
return {'OK', units, charged, #events - charged}
