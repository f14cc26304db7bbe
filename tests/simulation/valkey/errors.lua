-- Errors of what is C in the real server: their text begins with the place in the script from which it was called.
local getinfo, error = debug.getinfo, error

-- Raises an error for a function of the file `source`, wherever in that file it happened.
return function(source, text)
  local level = 2
  local info = getinfo(level, 'Sl')
  while info and (info.source == source or info.what == 'tail') do
    level = level + 1
    info = getinfo(level, 'Sl')
  end
  if info and info.currentline > 0 then
    text = info.short_src .. ':' .. info.currentline .. ': ' .. text
  end
  error(text, 0)
end
