-- Each request with the API key of the next of ACCOUNTS accounts.
dofile(os.getenv("REPORT"))
local count, at = tonumber(os.getenv("ACCOUNTS")), 0
local path, key = os.getenv("TARGET"), os.getenv("KEY")
local fields = {["User-Agent"] = "loadtest", ["Accept"] = "*/*"}

function request()
  fields["X-API-Key"] = string.format(key, at)
  at = at + 1
  if at == count then
    at = 0
  end
  return wrk.format("GET", path, fields)
end
