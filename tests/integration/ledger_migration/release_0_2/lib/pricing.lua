-- Prices. A table is one of
--   {"s", amount}
--   {"g", to, unit, flat, to, unit, flat, ...}     graduated
--   {"v", to, unit, flat, ...}                     volume
--   {"p", size, free, amount}                      package
-- with scaled integer amounts >= 0 and inclusive `to`, the last of which is MAX_INT.
--
-- All arithmetic is on doubles that hold integers, and every intermediate value lies between zero and the result. So a
-- cost below 2^53 is exact, and one that would reach 2^53 comes out as at least that; a hold that asks for it is refused.
local MAX_INT = 9007199254740991

-- The straight piece of the table that covers n: returns lo, hi, a, b so that cost(x) = a + b*(x - lo) for every integer
-- x in lo..hi. Counting from lo keeps a and b*(x - lo) below the cost; from zero, b*x could pass 2^53 where the cost does not.
local function price_piece(tbl, n)
  local model = tbl[1]
  if model == 's' then
    return 0, MAX_INT, 0, tbl[2]
  elseif model == 'g' then
    local below, cost = 0, 0
    for i = 2, #tbl, 3 do
      local to, unit, flat = tbl[i], tbl[i + 1], tbl[i + 2]
      if n <= to then
        if below == 0 then
          return 0, to, flat, unit
        end
        return below + 1, to, cost + flat + unit, unit
      end
      cost = cost + (to - below) * unit + flat
      below = to
    end
  elseif model == 'v' then
    local below = -1
    for i = 2, #tbl, 3 do
      local to = tbl[i]
      if n <= to then
        return below + 1, to, tbl[i + 2] + tbl[i + 1] * (below + 1), tbl[i + 1]
      end
      below = to
    end
  elseif model == 'p' then
    local size, free, amount = tbl[2], tbl[3], tbl[4]
    if n <= free then
      return 0, free, 0, 0
    end
    -- fmod is exact; a rounded quotient need not be.
    local before = n - free - 1
    local part = math.fmod(before, size)
    local lo = n - part
    return lo, math.min(lo + (size - 1), MAX_INT), ((before - part) / size + 1) * amount, 0
  end
  error('price table of an unknown model: ' .. tostring(model))
end

local function price_cost(tbl, n)
  local lo, _, a, b = price_piece(tbl, n)
  return a + b * (n - lo)
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
