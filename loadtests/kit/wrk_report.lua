-- Makes wrk print one line of JSON when it is done. Times come in microseconds.
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"seconds":%.6f,"answers":%d,"refused":%d,"broken":%d,"p50_ms":%.4f,"p99_ms":%.4f}\n',
    summary.duration / 1e6, summary.requests, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
