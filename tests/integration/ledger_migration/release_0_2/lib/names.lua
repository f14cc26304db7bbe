-- What is used of Lua and of Valkey, as locals: a function finds a global only by way of two tables, at every use.
-- While a library is loaded most of it is not there yet, so `bind` is called by scripts at their beginning, and by a function in
-- its first call.
local call, mp_pack, mp_unpack, floor, max, min, concat, byte, char, sub, values, number, each

local function bind()
  call = redis.call
  mp_pack, mp_unpack = cmsgpack.pack, cmsgpack.unpack
  floor, max, min = math.floor, math.max, math.min
  concat, byte, char, sub = table.concat, string.byte, string.char, string.sub
  values, number, each = unpack, tonumber, pairs
end
