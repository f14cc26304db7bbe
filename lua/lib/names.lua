-- What is used of Lua and of Valkey, as locals: a function finds a global only by way of two tables, at every use.
-- While a library is loaded most of it is not there yet, so `bind` is called by scripts at their beginning, and by a function in
-- its first call.
local FORMAT = 2               -- of what is stored: docs/ledger.md, "Format"
local MAX_INT = 9007199254740991 -- 2^53 - 1: doubles hold every integer up to here, and msgpack and JSON carry it

local PARTITIONS_MAX = 1024      -- an epoch is a number times this, and the home partition's number
local FORGET_MS = 2592000000     -- 30 d: how long the last number of an instance that is gone stays known: a spool of its may come late

local call, mp_pack, mp_unpack, mp_unpack_some, floor, max, min, concat, byte, char, sub, values, number, each, fail
local expires_fields             -- whether this server can let a field of a hash expire

local function version_of_valkey()
  return server.VALKEY_VERSION_NUM
end

local function bind()
  call = redis.call
  mp_pack, mp_unpack, mp_unpack_some = cmsgpack.pack, cmsgpack.unpack, cmsgpack.unpack_limit
  floor, max, min = math.floor, math.max, math.min
  concat, byte, char, sub = table.concat, string.byte, string.char, string.sub
  values, number, each, fail = unpack, tonumber, pairs, redis.error_reply
  -- HPEXPIRE: Valkey 9.0, Redis 7.4. Valkey calls itself Redis 7.2.4, and its own version is in a global that Redis lacks.
  local is_valkey, version = pcall(version_of_valkey)
  expires_fields = is_valkey and version ~= nil and version >= 0x00090000 or redis.REDIS_VERSION_NUM >= 0x00070400
end

-- The error reply for what went wrong with account number `current`, or with the call if there is none. `problem`: what pcall caught.
local function refused_for(current, problem)
  local text = problem
  if type(problem) == 'table' then
    text = problem.err
    if string.match(text, '^%-?(%u+)') ~= 'WRONGTYPE' then
      return problem
    end
  end
  return fail((current and 'ACCOUNT ' .. current .. ' ' or 'BATCH ') .. text)
end
