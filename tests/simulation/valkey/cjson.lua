-- cjson as Valkey has it, as far as scripts use it: numbers with 14 digits, a table with keys 1 ... n as an array.
-- args: fail (errors.lua)
local fail = ...
local HERE = '@cjson'
local byte, char, sub, format, concat, floor = string.byte, string.char, string.sub, string.format, table.concat, math.floor
local null = {}                  -- stands for cjson.null
local NESTING_MAX = 1000
local SPARSE_RATIO, SPARSE_SAFE = 2, 10

local escapes = {['"'] = '\\"', ['\\'] = '\\\\', ['/'] = '\\/', ['\b'] = '\\b', ['\f'] = '\\f', ['\n'] = '\\n', ['\r'] = '\\r',
  ['\t'] = '\\t', ['\127'] = '\\u007f'}
for n = 0, 31 do
  escapes[char(n)] = escapes[char(n)] or format('\\u%04x', n)
end

local function encoded_string(s)
  return '"' .. s:gsub('[%c"\\/\127]', escapes) .. '"'
end

-- Length of a table that is an array, else nil.
local function array_length(t)
  local most, count = 0, 0
  for key in next, t do
    if type(key) ~= 'number' or key < 1 or key % 1 ~= 0 then
      return nil
    end
    if key > most then
      most = key
    end
    count = count + 1
  end
  if most > SPARSE_SAFE and most > count * SPARSE_RATIO then
    fail(HERE, 'Cannot serialise table: excessively sparse array')
  end
  return most
end

local encoded

local function encoded_table(t, depth)
  if depth > NESTING_MAX then
    fail(HERE, 'Cannot serialise, excessive depth (' .. depth .. ')')
  end
  local count = next(t) ~= nil and array_length(t)
  local parts = {}
  if count then
    for n = 1, count do
      parts[n] = encoded(t[n], depth + 1)
    end
    return '[' .. concat(parts, ',') .. ']'
  end
  for key, value in next, t do
    local name
    if type(key) == 'string' then
      name = encoded_string(key)
    elseif type(key) == 'number' then
      name = '"' .. format('%.14g', key) .. '"'
    else
      fail(HERE, 'Cannot serialise ' .. type(key) .. ': table key must be a number or string')
    end
    parts[#parts + 1] = name .. ':' .. encoded(value, depth + 1)
  end
  return '{' .. concat(parts, ',') .. '}'
end

function encoded(value, depth)
  local kind = type(value)
  if value == nil or value == null then
    return 'null'
  elseif kind == 'string' then
    return encoded_string(value)
  elseif kind == 'number' then
    if value ~= value or value == math.huge or value == -math.huge then
      fail(HERE, 'Cannot serialise number: must not be NaN or Inf')
    end
    return format('%.14g', value)
  elseif kind == 'boolean' then
    return tostring(value)
  elseif kind == 'table' then
    return encoded_table(value, depth)
  end
  fail(HERE, 'Cannot serialise ' .. kind .. ': type not supported')
end

-- Reading

local function failed(what, at)
  fail(HERE, 'Expected ' .. what .. ' at character ' .. at)
end

local function utf8(code)
  if code < 128 then
    return char(code)
  elseif code < 2048 then
    return char(192 + floor(code / 64), 128 + code % 64)
  elseif code < 65536 then
    return char(224 + floor(code / 4096), 128 + floor(code / 64) % 64, 128 + code % 64)
  end
  return char(240 + floor(code / 262144), 128 + floor(code / 4096) % 64, 128 + floor(code / 64) % 64, 128 + code % 64)
end

local plain = {b = '\b', f = '\f', n = '\n', r = '\r', t = '\t', ['"'] = '"', ['\\'] = '\\', ['/'] = '/'}

local function read_string(s, at)
  local parts = {}
  while true do
    local stop = s:find('["\\]', at)
    if not stop then
      failed('string end', #s)
    end
    parts[#parts + 1] = sub(s, at, stop - 1)
    if byte(s, stop) == 34 then
      return concat(parts), stop + 1
    end
    local code = sub(s, stop + 1, stop + 1)
    at = stop + 2
    if code == 'u' then
      local number = tonumber(sub(s, at, at + 3), 16) or failed('valid escape', at)
      at = at + 4
      if number >= 0xd800 and number < 0xdc00 and sub(s, at, at + 1) == '\\u' then
        number = 0x10000 + (number - 0xd800) * 1024 + tonumber(sub(s, at + 2, at + 5), 16) - 0xdc00
        at = at + 6
      end
      parts[#parts + 1] = utf8(number)
    else
      parts[#parts + 1] = plain[code] or failed('valid escape', at)
    end
  end
end

local read

local function read_array(s, at)
  local t, count = {}, 0
  at = s:find('%S', at) or #s + 1
  if byte(s, at) == 93 then
    return t, at + 1
  end
  while true do
    count = count + 1
    t[count], at = read(s, at)
    at = s:find('%S', at) or #s + 1
    local next_byte = byte(s, at)
    at = at + 1
    if next_byte == 93 then
      return t, at
    elseif next_byte ~= 44 then
      failed('comma or array end', at - 1)
    end
  end
end

local function read_object(s, at)
  local t = {}
  at = s:find('%S', at) or #s + 1
  if byte(s, at) == 125 then
    return t, at + 1
  end
  while true do
    at = s:find('%S', at) or #s + 1
    if byte(s, at) ~= 34 then
      failed('object key string', at)
    end
    local key
    key, at = read_string(s, at + 1)
    at = s:find('%S', at) or #s + 1
    if byte(s, at) ~= 58 then
      failed('colon', at)
    end
    t[key], at = read(s, at + 1)
    at = s:find('%S', at) or #s + 1
    local next_byte = byte(s, at)
    at = at + 1
    if next_byte == 125 then
      return t, at
    elseif next_byte ~= 44 then
      failed('comma or object end', at - 1)
    end
  end
end

function read(s, at)
  at = s:find('%S', at) or #s + 1
  local first = byte(s, at)
  if first == 34 then
    return read_string(s, at + 1)
  elseif first == 123 then
    return read_object(s, at + 1)
  elseif first == 91 then
    return read_array(s, at + 1)
  end
  local word = s:match('^%a+', at)
  if word == 'true' or word == 'false' then
    return word == 'true', at + #word
  elseif word == 'null' then
    return null, at + 4
  end
  local text = s:match('^-?%d[%d.eE+-]*', at)
  local number = text and tonumber(text)
  if not number then
    failed('value', at)
  end
  return number, at + #text
end

local function decode(s)
  local value, at = read(s, 1)
  if s:find('%S', at) then
    failed('the end', at)
  end
  return value
end

return {encode = function(value) return encoded(value, 0) end, decode = decode, null = null}
