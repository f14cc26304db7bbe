-- Takes a unit from an account's balance, or ends the request: 401 unknown caller, 402 out of credit, 503 no Valkey.
-- DECRBY is atomic, so a balance is never spent twice; one that falls below zero is given back. Nothing is held: what the API
-- then refuses stays debited, and a worker that dies between the two commands leaves the balance one too low.
local redis = require "nginx.redis"

local _M = { socket = nil, accounts = {} }

local function fail(red, err)
  ngx.log(ngx.ERR, "no debit: ", err)
  return ngx.exit(503)
end

function _M.take(with_event)
  local account = _M.accounts[ngx.var.http_x_api_key]
  if not account then
    return ngx.exit(401)
  end
  local red = redis:new()
  red:set_timeout(1000)
  local ok, err = red:connect(_M.socket)
  if not ok then
    return fail(red, err)
  end
  local balance = "compare:balance:" .. account
  local left
  if with_event then
    red:init_pipeline(2)
    red:decrby(balance, 1)
    red:xadd("compare:events", "*", "account", account, "metric", "api_calls", "units", 1, "method",
      ngx.req.get_method(), "endpoint", ngx.var.uri, "time", ngx.now())
    local replies
    replies, err = red:commit_pipeline()
    if not replies then
      return fail(red, err)
    end
    left = replies[1]
  else
    left, err = red:decrby(balance, 1)
    if not left then
      return fail(red, err)
    end
  end
  if left < 0 then
    red:incrby(balance, 1)
    red:set_keepalive(300000, 512)
    return ngx.exit(402)
  end
  red:set_keepalive(300000, 512)
  -- The same fields as the gateway's.
  local header = ngx.header
  header["X-Credits-Remaining"] = left
  header["X-Credits-Charged"] = "1"
  header["X-Credits-Currency"] = "GBP"
  header["RateLimit-Policy"] = '"credit";q=1000000000000'
  header["RateLimit"] = '"credit";r=' .. left
end

return _M
