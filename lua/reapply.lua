-- Charges settles that an account could not take when they were made (refuse.lua), now that it can.
-- KEYS [1] clock [2] outbox [3] refused stream, all of the partition that has the settles [4] state and [5] hash of the account
-- ARGV [1] msgpack {id, marks_ttl_ms, origin, seq, {{number, metric, units, event, digest}, ...}} of the entry: what the caller has read
--          number: the event's in its batch, from 0; event: JSON; digest: 16 bytes of its idempotency key, or false
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
local acc, units, known_marks, new_marks, runs, next_number = nil, 0, {}, {}, {}, -1

local function read_marks()
  local names = {'view'}     -- one of no mark proves the type of the hash
  for n = 1, #events do
    if events[n][5] then
      names[#names + 1] = 'i' .. events[n][5]
    end
  end
  local found = call('HMGET', KEYS[5], values(names))
  for n = 2, #names do
    known_marks[names[n]] = found[n] and number(found[n]) > now_ms or nil
  end
end

local function charge_all()
  acc = account_open(KEYS[4], KEYS[5], string_read(KEYS[4], read[1]), now_ms)
  read_marks()
  if acc.now_ms >= acc.soonest_end_ms then
    account_roll(acc)
  end
  local until_ms = string.format('%.0f', now_ms + marks_ttl_ms)
  for n = 1, #events do
    local event_number, metric, event_units, event, digest = values(events[n], 1, 5)
    local mark = digest and 'i' .. digest
    if not (mark and known_marks[mark]) then
      counter_charge(acc, counter_named(acc, metric) or counter_add(acc, 1, metric), event_units)
      units = units + event_units
      if mark then
        known_marks[mark] = true
        new_marks[#new_marks + 1] = mark
        set_later(acc, mark, until_ms)
      end
      if event_number ~= next_number then
        runs[#runs + 1] = {event_number, {}}
      end
      local run = runs[#runs][2]
      run[#run + 1] = event
      next_number = event_number + 1
    end
  end
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
if #new_marks > 0 and expires_fields then
  call('HPEXPIRE', KEYS[5], marks_ttl_ms, 'FIELDS', #new_marks, values(new_marks))
end
call('XDEL', KEYS[3], id)
return {'OK', units, charged, #events - charged}
