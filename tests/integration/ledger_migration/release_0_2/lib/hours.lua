-- What was charged in each hour of Valkey's clock, by account and metric: for audits. In the outbox's slot.
local HOUR_MS = 3600000
local HOUR_KEPT_MS = 777600000   -- 9 days: what an audit may look back, and some
local TABLE_AT = 32              -- counts of an hour: Valkey searches a hash of up to 512 short fields from end to end, which would
                                 -- cost a charge more than all the rest; one value of more than 64 bytes makes it a table

local hour_known, hour_stream, hour_key  -- the key of this hour's counts, which is another only once an hour
local function count_hour(stream, now_ms, charged)
  local hour = floor(now_ms / HOUR_MS)
  if hour ~= hour_known or stream ~= hour_stream then
    hour_known, hour_stream = hour, stream
    hour_key = sub(stream, 1, -#'outbox' - 1) .. 'hour:' .. hour
  end
  local fields, count = {}, 0
  for field, units in each(charged) do
    if units > 0 then
      count = count + 1
      fields[count] = field
    end
  end
  if count == 0 then
    return
  end
  local fresh = 0
  if count == 1 then
    local units = charged[fields[1]]
    if call('HINCRBY', hour_key, fields[1], units) == units then
      fresh = 1
    end
  else
    -- Two commands for all instead of one for each, since a command costs as much as ten values in one.
    local before = call('HMGET', hour_key, values(fields))
    local set = {}
    for n = 1, count do
      local units = before[n]
      if not units then
        fresh = fresh + 1
      end
      set[2 * n - 1], set[2 * n] = fields[n], (units and number(units) or 0) + charged[fields[n]]
    end
    call('HSET', hour_key, values(set))
  end
  if fresh > 0 then
    call('PEXPIRE', hour_key, HOUR_KEPT_MS)
    local length = call('HLEN', hour_key)
    if length >= TABLE_AT and length - fresh < TABLE_AT then
      call('HSET', hour_key, 'table', string.rep(' ', 65))
    end
  end
end
