-- Keeps the settles that an account cannot take, for `sidecar ledger refused`: they were served, so they are owed.
-- KEYS [1] instance [2] clock of its home partition [3] refused stream
-- ARGV [1] msgpack {epoch, seq, origin, account, reason, events, marks, confirmed}    confirmed: as in batch.lua; events: JSON array; marks: JSON, of each event null
--          or [record, digest, fingerprint, p, q] as reapply.lua takes them, digests in hex
-- reply as of batch.lua. It is numbered as a batch is, so a repetition keeps nothing twice.
bind()
local epoch, seq, origin, account, reason, events, marks, confirmed = values(mp_unpack(ARGV[1]), 1, 8)
local read = call('MGET', KEYS[1], KEYS[2])
local known_epoch, last_seq, held, reply_at, chain = instance_unpacked(string_read(KEYS[1], read[1]))
if seq <= last_seq then
  if seq == last_seq then
    return instance_reply(read[1], reply_at)
  end
  return fail('STALE batch ' .. seq .. ' of ' .. origin .. ', the last one was ' .. last_seq)
end
if confirmed and last_seq < confirmed then
  return fail('LOST ' .. last_seq)
end
local now_us, now_ms, format = clock(read[2])
if format ~= FORMAT then
  return wrong_format(format)
end
local registered = known_epoch == epoch
local reply = mp_pack({registered and 1 or 0, now_us, {}, {}, stepped or false})
call('XADD', KEYS[3], '*', 'o', origin, 'q', seq, 't', now_ms, 'account', account, 'reason', reason, 'e', events, 'marks', marks)
call('MSET', KEYS[1], instance_packed(known_epoch, seq, held, chain, reply), KEYS[2], clock_packed(now_us))
if known_epoch == 0 then
  call('PEXPIRE', KEYS[1], FORGET_MS)
end
return reply
