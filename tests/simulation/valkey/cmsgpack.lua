-- cmsgpack as Valkey has it (deps/lua/src/lua_cmsgpack.c): the smallest form of each number, integers where a double is
-- one, tables without gaps as arrays, and several values one after another.
-- args: fail (errors.lua), pack_double(number) -> bytes, unpack_double(bytes of 4 or 8) -> number
local fail, pack_double, unpack_double = ...
local byte, char, sub, concat, floor = string.byte, string.char, string.sub, table.concat, math.floor
local type, next, select, tostring, unpack = type, next, select, tostring, unpack
local HERE = '@cmsgpack'
local NESTING_MAX = 16
local VALUES_MAX = 7990          -- what the stack of Lua takes at once

local small = {}
for n = 0, 127 do
  small[n] = char(n)
end

local function uint32(n)
  return char(floor(n / 16777216), floor(n / 65536) % 256, floor(n / 256) % 256, n % 256)
end

local function packed_number(n)
  if n >= 0 and n < 128 and n % 1 == 0 then
    return small[n]
  elseif n ~= n or n % 1 ~= 0 or n >= 9223372036854775808 or n < -9223372036854775808 then
    return pack_double(n)
  elseif n >= 0 then
    if n < 256 then
      return char(0xcc, n)
    elseif n < 65536 then
      return char(0xcd, floor(n / 256), n % 256)
    elseif n < 4294967296 then
      return '\206' .. uint32(n)
    end
    return '\207' .. uint32(floor(n / 4294967296)) .. uint32(n % 4294967296)
  elseif n >= -32 then
    return char(n + 256)
  elseif n >= -128 then
    return char(0xd0, n + 256)
  elseif n >= -32768 then
    n = n + 65536
    return char(0xd1, floor(n / 256), n % 256)
  elseif n >= -2147483648 then
    return '\210' .. uint32(n + 4294967296)
  end
  return '\211' .. uint32(floor(n / 4294967296) + 4294967296) .. uint32(n % 4294967296)
end

local function head(count, few, few_max, form16, form32)
  if count <= few_max then
    return char(few + count)
  elseif count < 65536 then
    return char(form16, floor(count / 256), count % 256)
  end
  return char(form32) .. uint32(count)
end

local function packed_string(s)
  local length = #s
  if length < 32 then
    return char(0xa0 + length) .. s
  elseif length < 256 then
    return char(0xd9, length) .. s
  end
  return head(length, 0, -1, 0xda, 0xdb) .. s
end

local packed

-- The number of values of a table that is an array, else nil.
local function array_length(t)
  local count, most = 0, 0
  for key in next, t do
    if type(key) ~= 'number' or key <= 0 or key % 1 ~= 0 then
      return nil
    end
    count = count + 1
    if key > most then
      most = key
    end
  end
  return most == count and count or nil
end

local function packed_table(t, level)
  if level == NESTING_MAX then
    return '\192'
  end
  local count = array_length(t)
  if count then
    local parts = {head(count, 0x90, 15, 0xdc, 0xdd)}
    for n = 1, count do
      parts[n + 1] = packed(t[n], level + 1)
    end
    return concat(parts)
  end
  local parts, at = {''}, 1
  for key, value in next, t do
    parts[at + 1], parts[at + 2] = packed(key, level + 1), packed(value, level + 1)
    at = at + 2
  end
  parts[1] = head((at - 1) / 2, 0x80, 15, 0xde, 0xdf)
  return concat(parts)
end

function packed(value, level)
  local kind = type(value)
  if kind == 'number' then
    return small[value] or packed_number(value)
  elseif kind == 'string' then
    return packed_string(value)
  elseif kind == 'boolean' then
    return value and '\195' or '\194'
  elseif kind == 'table' then
    return packed_table(value, level)
  end
  return '\192'
end

local function pack(...)
  local count = select('#', ...)
  if count == 0 then
    fail(HERE, "bad argument #0 to 'pack' (MessagePack pack needs input.)")
  end
  local some = {...}
  for n = 1, count do
    some[n] = packed(some[n], 0)
  end
  return concat(some)
end

-- Reading. Each function gets the text and a position, and returns the value and the position after it.

local read

local function need(s, at, count)
  if at + count - 1 > #s then
    fail(HERE, 'Missing bytes in input.')
  end
end

local function string_of(s, at, length)
  need(s, at, length)
  return sub(s, at, at + length - 1), at + length
end

local function array_of(s, at, count)
  local t = {}
  for n = 1, count do
    t[n], at = read(s, at)
  end
  return t, at
end

local function map_of(s, at, count)
  local t = {}
  for _ = 1, count do
    local key, value
    key, at = read(s, at)
    value, at = read(s, at)
    t[key] = value
  end
  return t, at
end

local function number16(s, at)
  need(s, at, 2)
  local a, b = byte(s, at, at + 1)
  return a * 256 + b
end

local function number32(s, at)
  need(s, at, 4)
  local a, b, c, d = byte(s, at, at + 3)
  return a * 16777216 + b * 65536 + c * 256 + d
end

local readers = {
  [0xc0] = function(_, at) return nil, at end,
  [0xc2] = function(_, at) return false, at end,
  [0xc3] = function(_, at) return true, at end,
  [0xca] = function(s, at) return unpack_double((string_of(s, at, 4))), at + 4 end,
  [0xcb] = function(s, at) return unpack_double((string_of(s, at, 8))), at + 8 end,
  [0xcc] = function(s, at) need(s, at, 1) return byte(s, at), at + 1 end,
  [0xcd] = function(s, at) return number16(s, at), at + 2 end,
  [0xce] = function(s, at) return number32(s, at), at + 4 end,
  [0xd9] = function(s, at) need(s, at, 1) return string_of(s, at + 1, byte(s, at)) end,
  [0xda] = function(s, at) return string_of(s, at + 2, number16(s, at)) end,
  [0xdb] = function(s, at) return string_of(s, at + 4, number32(s, at)) end,
  [0xdc] = function(s, at) return array_of(s, at + 2, number16(s, at)) end,
  [0xdd] = function(s, at) return array_of(s, at + 4, number32(s, at)) end,
  [0xde] = function(s, at) return map_of(s, at + 2, number16(s, at)) end,
  [0xdf] = function(s, at) return map_of(s, at + 4, number32(s, at)) end,
}

readers[0xd0] = function(s, at)
  need(s, at, 1)
  local n = byte(s, at)
  return n < 128 and n or n - 256, at + 1
end

readers[0xd1] = function(s, at)
  local n = number16(s, at)
  return n < 32768 and n or n - 65536, at + 2
end

readers[0xd2] = function(s, at)
  local n = number32(s, at)
  return n < 2147483648 and n or n - 4294967296, at + 4
end

-- A number of 2^63 and more comes out below zero, as there.
readers[0xcf] = function(s, at)
  need(s, at, 8)
  local high, low = number32(s, at), number32(s, at + 4)
  if high >= 2147483648 then
    high = high - 4294967296
  end
  return high * 4294967296 + low, at + 8
end
readers[0xd3] = readers[0xcf]

for first = 0x80, 0x8f do
  readers[first] = function(s, at) return map_of(s, at, first - 0x80) end
end
for first = 0x90, 0x9f do
  readers[first] = function(s, at) return array_of(s, at, first - 0x90) end
end
for first = 0xa0, 0xbf do
  readers[first] = function(s, at) return string_of(s, at, first - 0xa0) end
end

function read(s, at)
  local first = byte(s, at)
  if not first then
    fail(HERE, 'Missing bytes in input.')
  elseif first < 128 then
    return first, at + 1
  elseif first >= 0xe0 then
    return first - 256, at + 1
  end
  local reader = readers[first]
  if not reader then
    fail(HERE, 'Bad data format in input.')
  end
  return reader(s, at + 1)
end

-- Reads at most `limit` values from `at`; returns a table of them, their number and the position after them.
local function read_some(s, at, limit)
  if type(s) == 'number' then
    s = tostring(s)
  elseif type(s) ~= 'string' then
    fail(HERE, "bad argument #1 to 'unpack' (string expected, got " .. (s == nil and 'no value' or type(s)) .. ')')
  end
  local some, count, size = {}, 0, #s
  while at <= size and count < limit do
    count = count + 1
    local first = byte(s, at)
    if first < 128 then
      some[count], at = first, at + 1
    else
      some[count], at = read(s, at)
    end
  end
  return some, count, at
end

local function unpack_all(s)
  local some, count = read_some(s, 1, math.huge)
  if count > VALUES_MAX then
    fail(HERE, 'stack overflow (too many return values at once; use unpack_one or unpack_limit instead.)')
  end
  return unpack(some, 1, count)
end

local function unpack_limit(s, limit, offset)
  offset = offset or 0
  if limit < 0 or offset < 0 then
    fail(HERE, string.format('Invalid request to unpack with offset of %d and limit of %d.', offset, #s))
  elseif offset > #s then
    fail(HERE, string.format('Start offset %d greater than input length %d.', offset, #s))
  elseif limit == 0 and offset == 0 then
    return unpack_all(s)
  end
  local some, count, at = read_some(s, offset + 1, limit)
  return at > #s and -1 or at - 1, unpack(some, 1, count)
end

return {
  pack = pack,
  unpack = unpack_all,
  unpack_limit = unpack_limit,
  unpack_one = function(s, offset) return unpack_limit(s, 1, offset) end,
}
