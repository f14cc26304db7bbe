-- What a script finds around it (src/script_lua.c, src/eval.c, src/function_lua.c). One state of Lua serves all simulated servers
-- of a process; each has tables of its own, made by `new_server`.
-- args [1] dispatch(command, argument ...): does a command of the running script, for the server that is current, and
--          returns kind and values: 0 and one value, 1 and the values of an array, 2 and a table, 3 and an error's text, 4
--          and a status
--      [2] sha1hex(text) [3] register(name, function, flags) [4] clock_s() [5] cmsgpack [6] cjson
local dispatch, sha1hex, register, clock_s, cmsgpack, cjson = ...
local raw_pcall, type, error, tostring, select = pcall, type, error, tostring, select
local getinfo, setfenv, setmetatable, rawget = debug.getinfo, setfenv, setmetatable, rawget
local find, match, gsub, sub = string.find, string.match, string.gsub, string.sub
local HERE = {['@sandbox'] = true, ['@errors'] = true, ['@cmsgpack'] = true, ['@cjson'] = true}

local function status_or_error(kind, text)
  if kind == 3 then
    return {err = text, ignore_error_stats_update = true}
  end
  return {ok = text}
end

local function given(kind, first, ...)
  if kind == 0 or kind == 2 then
    return first
  elseif kind == 1 then
    return {first, ...}
  end
  return status_or_error(kind, first)
end

local function given_or_raised(kind, first, ...)
  if kind == 0 or kind == 2 then
    return first
  elseif kind == 1 then
    return {first, ...}
  end
  local reply = status_or_error(kind, first)
  if kind == 3 then
    error(reply, 0)
  end
  return reply
end

-- No tail call: the place of an error is looked for from here outwards.
local function call(...)
  local reply = given_or_raised(dispatch(...))
  return reply
end

local function pcall_command(...)
  return given(dispatch(...))
end

local function error_reply(...)
  local text = ...
  if select('#', ...) ~= 1 or type(text) ~= 'string' then
    return {err = 'ERR wrong number or type of arguments'}
  end
  if sub(text, 1, 1) == '-' then
    text = sub(text, 2)
  end
  if not find(text, ' ', 1, true) then
    text = 'ERR ' .. text
  end
  return {err = gsub(gsub(text, '^[\r\n]+', ''), '[\r\n]+$', '')}
end

local function status_reply(...)
  local text = ...
  if select('#', ...) ~= 1 or type(text) ~= 'string' then
    return {err = 'ERR wrong number or type of arguments'}
  end
  return {ok = text}
end

-- An error of a command is a table; for the sake of older scripts pcall gives its text.
local function caught(worked, problem, ...)
  if not worked and type(problem) == 'table' and (type(problem.err) == 'string' or type(problem.err) == 'number') then
    return false, problem.err
  end
  return worked, problem, ...
end

local function missing(_, name)
  error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
end

local function locked()
  error('Attempt to modify a readonly table', 2)
end

-- Adds where it happened to an error that nobody caught.
local function handler(problem)
  local level = 2
  local info = getinfo(level, 'Sl')
  while info and (info.what == 'C' or info.what == 'tail' or HERE[info.source]) do
    level = level + 1
    info = getinfo(level, 'Sl')
  end
  if type(problem) ~= 'table' then
    problem = {err = 'ERR ' .. tostring(problem)}
  end
  if info then
    problem.source, problem.line = info.source, info.currentline
  end
  return problem
end

local libraries = {
  string = string, table = table, math = math, cmsgpack = cmsgpack, cjson = cjson, os = {clock = clock_s}, coroutine = coroutine,
  tostring = tostring, tonumber = tonumber, type = type, pairs = pairs, ipairs = ipairs, next = next, select = select,
  unpack = unpack, error = error, assert = assert, rawget = rawget, rawset = rawset, rawequal = rawequal,
  setmetatable = setmetatable, getmetatable = getmetatable, loadstring = loadstring, load = load, xpcall = xpcall,
  setfenv = setfenv, getfenv = getfenv, collectgarbage = collectgarbage, gcinfo = gcinfo, newproxy = newproxy, _VERSION = _VERSION,
  pcall = function(...) return caught(raw_pcall(...)) end,
}
libraries.string.dump = nil

local function versions(into, valkey, redis)
  into.REDIS_VERSION, into.REDIS_VERSION_NUM = redis[1], redis[2]
  into.SERVER_NAME = valkey and 'valkey' or nil
  if valkey then
    into.VALKEY_VERSION, into.VALKEY_VERSION_NUM = valkey[1], valkey[2]
  end
  into.log = function() end
  into.LOG_DEBUG, into.LOG_VERBOSE, into.LOG_NOTICE, into.LOG_WARNING = 0, 1, 2, 3
  return into
end

-- Globals of one server: {for scripts, for functions, what functions find while their library is loaded and afterwards}.
local function new_server(valkey, redis)
  local api = versions({
    call = call, pcall = pcall_command, error_reply = error_reply, status_reply = status_reply, sha1hex = sha1hex,
    setresp = function(version)
      if version ~= 2 then
        error({err = 'ERR RESP version must be 2 here'}, 0)
      end
    end,
    set_repl = function() end, REPL_NONE = 0, REPL_AOF = 1, REPL_SLAVE = 2, REPL_REPLICA = 2, REPL_ALL = 3,
    replicate_commands = function() return true end,
  }, valkey, redis)
  local globals = setmetatable({redis = api, server = valkey and api or nil}, {__index = setmetatable({}, {__index = missing})})
  for name, value in pairs(libraries) do
    globals[name] = value
  end
  local load_api = setmetatable(versions({register_function = register}, valkey, redis), {__index = missing})
  local loading = setmetatable({redis = load_api, server = valkey and load_api or nil}, {__index = missing})
  local of_functions = {__index = globals, __newindex = locked}
  return {
    script = setmetatable({}, {__index = globals, __newindex = locked}),
    globals = globals, of_functions = of_functions, loading = loading, library = setmetatable({}, of_functions),
  }
end

-- Returns true and the result, or false and the error's text, source and line.
local function outcome(worked, result)
  if worked then
    return true, result
  end
  local text = result.err
  return false, (type(text) == 'string' or type(text) == 'number') and tostring(text) or nil, result.source, result.line
end

local function run_script(server, chunk, keys, arguments)
  local globals = server.globals
  globals.KEYS, globals.ARGV = keys, arguments
  setfenv(chunk, server.script)
  return outcome(xpcall(chunk, handler))
end

local function run_function(chunk, keys, arguments)
  return outcome(xpcall(function() return chunk(keys, arguments) end, handler))
end

-- Runs the text of a library, which registers its functions. Returns true, or false and the error's text.
local function load_library(server, chunk)
  server.of_functions.__index = server.loading
  setfenv(chunk, server.library)
  local worked, problem = raw_pcall(chunk)
  server.of_functions.__index = server.globals
  if worked then
    return true
  end
  return false, type(problem) == 'table' and problem.err or 'ERR ' .. tostring(problem)
end

-- The kind of what a script returned, and what there is to know of a table: 'err' or 'ok' with the text, or 'array' with
-- its values as far as the first nil.
local function result_table(t)
  local text = rawget(t, 'err')
  if type(text) == 'string' then
    return 'err', text
  end
  text = rawget(t, 'ok')
  if type(text) == 'string' then
    return 'ok', text
  end
  local count = 0
  while rawget(t, count + 1) ~= nil do
    count = count + 1
  end
  return 'array', count
end

return {
  new_server = new_server, run_script = run_script, run_function = run_function, load_library = load_library,
  result_table = result_table, compile = loadstring,
}
