-- A gateway process as its home partition knows it, a string: msgpack values epoch (0: it was reaped), number of its last batch, units
-- that it holds in all, chain value of its entries ('': there is none yet), and then the reply to that batch.

-- What MGET read of a string; it reads nil of a key of another type too, which must not be taken for one that is absent.
local function string_read(key, value)
  if not value and call('TYPE', key).ok ~= 'none' then
    error('WRONGTYPE ' .. key .. ' is no string', 0)
  end
  return value
end

-- Returns epoch, number and units, where the reply begins, and the chain value.
local function instance_unpacked(packed)
  if not packed then
    return 0, 0, 0, -1, ''
  end
  local reply_at, epoch, seq, held, chain = mp_unpack_some(packed, 4)
  return epoch, seq, held, reply_at, chain
end

local function instance_packed(epoch, seq, held, chain, reply)
  return mp_pack(epoch, seq, held, chain) .. reply
end

local function instance_reply(packed, reply_at)
  return reply_at < 0 and '' or sub(packed, reply_at + 1)
end
