-- The ledger's clock, and what must never go back with it.
--
-- A server's clock can be set back, and a replica that takes over has another one. The ledger's clock is the server's, with
-- these rules:
-- * While the server is at most CLOCK_HOLDS_US behind the latest instant that the partition has seen, the clock stands.
-- * Further back it follows the server; the caller is told both instants, for an alert.
-- * Even then an account goes back neither a period nor a day (account_now, day_of), no rate limit waits for an instant that
--   was written by the other clock (tat_of, unpaid_tat_of), and a heartbeat from the future counts as one of now (heartbeat_of).
-- The latest instant is in the partition's clock, a string: msgpack values format, latest in µs, and if the clock was ever set back
-- further, the two instants of the last time. `stepped` is set by the call: {latest, server's}.
local CLOCK_HOLDS_US = 5000000
local DAY_US = 86400000000
local UNPAID_DEBT_US = 60000000
local HOUR_MS = 3600000

local stepped, stepped_before

-- Now in µs and in ms, and the format that the partition has. `packed`: its clock as read, or false.
local function clock(packed)
  local us = server_time_us()
  local format, latest, step_latest, step_server
  if packed then
    format, latest, step_latest, step_server = mp_unpack(packed)
  end
  stepped, stepped_before = nil, step_latest and {step_latest, step_server}
  if latest and us < latest then
    if latest - us <= CLOCK_HOLDS_US then
      us = latest
    else
      stepped = {latest, us}
    end
  end
  return us, floor(us / 1000), format
end

-- The clock's new value: now is seen.
local function clock_packed(us)
  local step = stepped or stepped_before
  if step then
    return mp_pack(FORMAT, us, step[1], step[2])
  end
  return mp_pack(FORMAT, us)
end

local function wrong_format(format)
  return fail('FORMAT ' .. tostring(format) .. ', this release has ' .. FORMAT)
end

-- The instant at which a change of the account happens: not before its current period began. It is the time of the event too, so an
-- event lies in the period that it is charged to.
local function account_now(now_ms, latest_start_ms)
  return now_ms >= latest_start_ms and now_ms or latest_start_ms
end

-- The day that counts, and how many requests of it were counted.
local function day_of(now_us, day, day_count)
  local today = floor(now_us / DAY_US)
  if today > day then
    return today, 0
  end
  return day, day_count
end

-- A theoretical arrival time (GCRA) is never further away than a full burst makes it.
local function tat_of(now_us, tat, interval, burst)
  if tat <= now_us then
    return now_us
  end
  return min(tat, now_us + interval * burst)
end

-- The same of unpaid answers. Those under way when the burst is used up must be waited for too, so it may be further away; but nobody
-- waits longer than UNPAID_DEBT_US because of it.
local function unpaid_tat_of(now_us, tat, interval, burst)
  if tat <= now_us then
    return now_us
  end
  return min(tat, now_us + interval * burst + UNPAID_DEBT_US)
end

local function heartbeat_of(now_ms, beat_ms)
  return min(beat_ms, now_ms)
end
