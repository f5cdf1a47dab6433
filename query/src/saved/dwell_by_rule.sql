-- title: How long did incidents go unnoticed, by rule?
-- shows: Dwell time: from the earliest evidence to the first person who noticed; open alerts are counted as not yet ended, not left out.
-- column rule | The rule; null for all.
-- column alerts | Alerts that have such an interval.
-- column ended | Those that a person noticed.
-- column still_open | Those that nobody noticed so far.
-- column p50_seconds | Median, null if it is not reached.
-- column p50_low | Its 95 % interval, from.
-- column p50_high | Its 95 % interval, to.
-- column p90_seconds | 90th percentile.
SELECT rule, alerts, ended, still_open, p50_seconds, p50_low, p50_high, p90_seconds
FROM dwell_time
WHERE measure = 'dwell'
ORDER BY rule NULLS FIRST
