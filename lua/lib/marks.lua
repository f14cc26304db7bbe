-- Idempotency keys of an account. Each is a field i<digest> of its hash, msgpack values one after another:
--   until_ms, epoch, token, fingerprint      a call under it is under way: a hold of this epoch, and `token` tells which
--   until_ms, 0, repeats, fingerprint        a call under it was charged, and so many repeats of it were free
--   until_ms                                 a record of a spool (not a caller's key) that was charged
-- Why a call under way counts only while its epoch holds something of the account: whoever takes the shares of a departed instance
-- out ends its marks too, without a look at them.
-- acc.marks: what the call has read and changed, by field, false if there is none. acc.changed_marks: for how many ms what was
-- changed stays, false: it goes. A mark that is missing, over or cannot be read makes a call cost what any call costs.
local MARKS_MAX = 10000          -- fields of an account beyond which a new idempotency key drives out an old one
local SWEPT = 8                  -- fields that are looked at for one that can go
local TOKENS = 4096              -- more than singles in a batch: a token is the batch's number times this, and the single's place in it

local function mark_unpacked(packed)
  -- An instant in ms is a 64-bit integer.
  if packed and #packed >= 9 and byte(packed) == 207 then
    local is_read, until_ms, epoch, count, fingerprint = pcall(mp_unpack, packed)
    if is_read then
      return until_ms, epoch, count, fingerprint
    end
  end
  return nil
end

-- The values of a mark that counts, or nil.
local function mark_read(acc, mark)
  local until_ms, epoch, count, fingerprint = mark_unpacked(acc.marks[mark])
  if not until_ms or until_ms <= acc.in_call then
    return nil
  end
  if epoch and epoch ~= 0 and not holds_something(acc, epoch) then
    return nil
  end
  return until_ms, epoch, count, fingerprint
end

local function changed_marks(acc)
  local changed = acc.changed_marks or {}
  acc.changed_marks = changed
  return changed
end

-- Forgets a mark where there is no other way for it to go, or too many of them.
local function mark_drive_out(acc)
  local crowded = call('HLEN', acc.key) >= MARKS_MAX
  if not crowded and expires_fields then
    return
  end
  local oldest, oldest_ms = nil, crowded and MAX_INT or acc.in_call
  local some = call('HRANDFIELD', acc.key, SWEPT, 'WITHVALUES')
  for f = 1, #some, 2 do
    if byte(some[f]) == 105 and #some[f] == 17 then
      local ms = mark_unpacked(some[f + 1]) or 0
      if ms < oldest_ms then
        oldest, oldest_ms = some[f], ms
      end
    end
  end
  if oldest and not acc.marks[oldest] then
    changed_marks(acc)[oldest] = false
  end
end

local function mark_set(acc, mark, packed, left_ms)
  local is_new = not acc.marks[mark]
  acc.marks[mark] = packed
  changed_marks(acc)[mark] = left_ms
  if is_new then
    mark_drive_out(acc)
  end
end

local function mark_under_way(acc, mark, epoch, token, fingerprint, ttl_ms)
  mark_set(acc, mark, mp_pack(acc.in_call + ttl_ms, epoch, token, fingerprint), ttl_ms)
end

-- One more repeat of a charged call was free. It does not prolong the mark.
local function mark_repeated(acc, mark)
  local until_ms, _, count, fingerprint = mark_unpacked(acc.marks[mark])
  mark_set(acc, mark, mp_pack(until_ms, 0, count + 1, fingerprint), until_ms - acc.in_call)
end

-- A call was charged whose hold had the mark under way: it is charged now, unless it is another call's by now.
local function mark_charged(acc, mark, epoch, token, fingerprint, ttl_ms)
  local until_ms, of, count = mark_read(acc, mark)
  if not until_ms or (of == epoch and count == token) then
    mark_set(acc, mark, mp_pack(acc.in_call + ttl_ms, 0, 0, fingerprint), ttl_ms)
  end
end

-- A hold was given back that had the mark under way: nothing is, unless it is another call's by now.
local function mark_released(acc, mark, epoch, token)
  local until_ms, of, count = mark_unpacked(acc.marks[mark])
  if until_ms and of == epoch and count == token then
    acc.marks[mark] = false
    changed_marks(acc)[mark] = false
  end
end

-- Whether a charge without a hold is to be made: its record was not charged before, and it is no free repeat. `record`, `mark`: the fields
-- of the record and of the caller's key, '' without one.
local function mark_replayed(acc, record, mark, fingerprint, repeats_max, ttl_ms)
  if record ~= '' then
    if mark_read(acc, record) then
      return false
    end
    mark_set(acc, record, mp_pack(acc.in_call + ttl_ms), ttl_ms)
  end
  if mark == '' then
    return true
  end
  local until_ms, of, count, known = mark_read(acc, mark)
  if not until_ms or of ~= 0 then
    -- What is under way may be this very call's own hold, which nobody waited for any more, and is about to be given back.
    mark_set(acc, mark, mp_pack(acc.in_call + ttl_ms, 0, 0, fingerprint), ttl_ms)
  elseif known == fingerprint and count < repeats_max then
    mark_repeated(acc, mark)
    return false
  end
  return true
end

-- Before account_pack.
local function marks_pack(acc)
  if acc.changed_marks then
    for mark, left_ms in each(acc.changed_marks) do
      if left_ms then
        set_later(acc, mark, acc.marks[mark])
      end
    end
  end
end

-- After account_write.
local function marks_write(acc)
  if not acc.changed_marks then
    return
  end
  local gone, staying = {}, {}
  for mark, left_ms in each(acc.changed_marks) do
    if not left_ms then
      gone[#gone + 1] = mark
    elseif expires_fields then
      local some = staying[left_ms] or {}
      staying[left_ms] = some
      some[#some + 1] = mark
    end
  end
  if #gone > 0 then
    call('HDEL', acc.key, values(gone))
  end
  for left_ms, some in each(staying) do
    call('HPEXPIRE', acc.key, left_ms, 'FIELDS', #some, values(some))
  end
end
