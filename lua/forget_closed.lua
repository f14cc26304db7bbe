-- Drops records of periods that are over and paid for.
-- KEYS [1] account hash [2] clock of its partition
-- ARGV [1] msgpack {start_ms, subscription, counter, ...} of each record, one after another
-- reply how many were dropped, or the error FORMAT
-- Why the caller does not write what it has kept: a period may have ended since it read them.
bind()
local _, _, format = clock(call('GET', KEYS[2]))
if format ~= FORMAT then
  return wrong_format(format)
end
local packed = call('HGET', KEYS[1], 'closed')
local closed, named = packed and mp_unpack(packed) or {}, mp_unpack(ARGV[1])

local function name_of(record, r)
  return string.format('%.0f', record[r]) .. '\0' .. record[r + 1] .. '\0' .. record[r + 2]
end

local forgotten, kept = {}, {}
for r = 1, #named, 3 do
  forgotten[name_of(named, r)] = true
end
for r = 1, #closed, 5 do
  if not forgotten[name_of(closed, r)] then
    local size = #kept
    for v = 0, 4 do
      kept[size + 1 + v] = closed[r + v]
    end
  end
end
if #kept == 0 then
  call('HDEL', KEYS[1], 'closed')
elseif #kept < #closed then
  call('HSET', KEYS[1], 'closed', mp_pack(kept))
end
return (#closed - #kept) / 5
