-- The server's clock, the only one that decides anything.
local function server_time_us()
  local t = call('TIME')
  return t[1] * 1000000 + t[2]
end
