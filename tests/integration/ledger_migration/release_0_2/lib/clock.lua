-- Valkey's clock, the only one that decides anything.
local function clock()
  local t = call('TIME')
  local us = t[1] * 1000000 + t[2]
  return us, floor(us / 1000)
end
