-- Requests with a body of SIZE bytes.
dofile(os.getenv("REPORT"))
wrk.method = "POST"
wrk.body = string.rep("x", tonumber(os.getenv("SIZE")))
