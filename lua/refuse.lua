-- Keeps the settles that an account cannot take, for `sidecar ledger refused`: they were served, so they are owed.
-- KEYS [1] instance hash [2] meta hash of its home partition [3] refused stream
-- ARGV [1] msgpack {epoch, seq, origin, account, reason, events, marks}    events: JSON array; marks: JSON, of each event the idempotency
--          key's digest in hex, or null
-- reply as of batch.lua. It is numbered as a batch is, so a repetition keeps nothing twice.
bind()
local epoch, seq, origin, account, reason, events, marks = values(mp_unpack(ARGV[1]), 1, 7)
local of_instance = call('HMGET', KEYS[1], 'e', 'q')
local last_seq = number(of_instance[2] or 0)
if seq <= last_seq then
  if seq == last_seq then
    return call('HGET', KEYS[1], 'r')
  end
  return fail('STALE batch ' .. seq .. ' of ' .. origin .. ', the last one was ' .. last_seq)
end
local now_us, now_ms, format = clock(KEYS[2])
if format ~= FORMAT then
  return fail('FORMAT ' .. tostring(format) .. ', this release has ' .. FORMAT)
end
local registered = number(of_instance[1] or -1) == epoch
local reply = mp_pack({registered and 1 or 0, now_us, {}, {}, stepped or false})
call('XADD', KEYS[3], '*', 'o', origin, 'q', seq, 't', now_ms, 'account', account, 'reason', reason, 'e', events, 'marks', marks)
call('HSET', KEYS[1], 'q', seq, 'r', reply)
if not registered and not of_instance[1] then
  call('PEXPIRE', KEYS[1], FORGET_MS)
end
clock_write(KEYS[2], now_us)
return reply
