-- Prices. A table is one of
--   {"s", amount}
--   {"g", to, unit, flat, to, unit, flat, ...}     graduated
--   {"v", to, unit, flat, ...}                     volume
--   {"p", size, free, amount}                      package
-- with scaled integer amounts >= 0 and inclusive `to`, the last of which is MAX_INT.
--
-- All arithmetic is on doubles that hold integers. It is exact below 2^53; the loader refuses tables whose
-- constants come near that, and a cost that would reach it is refused when a hold asks for it.
local MAX_INT = 9007199254740991

-- The straight piece of the table that covers n: returns lo, hi, a, b so that cost(x) = a + b*x for every integer x in lo..hi.
local function price_piece(tbl, n)
  local model = tbl[1]
  if model == 's' then
    return 0, MAX_INT, 0, tbl[2]
  elseif model == 'g' then
    local below, cost = 0, 0
    for i = 2, #tbl, 3 do
      local to, unit, flat = tbl[i], tbl[i + 1], tbl[i + 2]
      if n <= to then
        return (below == 0) and 0 or below + 1, to, cost + flat - unit * below, unit
      end
      cost = cost + (to - below) * unit + flat
      below = to
    end
  elseif model == 'v' then
    local below = -1
    for i = 2, #tbl, 3 do
      local to = tbl[i]
      if n <= to then
        return below + 1, to, tbl[i + 2], tbl[i + 1]
      end
      below = to
    end
  elseif model == 'p' then
    local size, free, amount = tbl[2], tbl[3], tbl[4]
    if n <= free then
      return 0, free, 0, 0
    end
    -- fmod is exact; a rounded quotient need not be.
    local over = n - free
    local part = math.fmod(over, size)
    local packages = (over - part) / size
    if part > 0 then
      packages = packages + 1
    end
    local hi = free + packages * size
    return hi - size + 1, hi, packages * amount, 0
  end
  error('price table of an unknown model: ' .. tostring(model))
end

local function price_cost(tbl, n)
  local _, _, a, b = price_piece(tbl, n)
  return a + b * n
end

-- max cost(x) for n <= x <= n + h. Only volume prices can fall; their peaks are the ends of tiers.
local function price_worst(tbl, n, h)
  local worst = price_cost(tbl, n + h)
  if tbl[1] == 'v' then
    for i = 2, #tbl, 3 do
      local to = tbl[i]
      if to >= n and to < n + h then
        local cost = tbl[i + 2] + tbl[i + 1] * to
        if cost > worst then
          worst = cost
        end
      end
    end
  end
  return worst
end
