-- title: What arrived late?
-- shows: Records that came to the ledger long after what they tell of happened: buffered, replayed or backdated.
-- param seconds number = 3600 | How late at least.
-- column seq | The record that shows it.
-- column record_hash | Its content commitment, hex.
-- column event_time | When, as the source says.
-- column ingest_time | When the ledger took it.
-- column late_seconds | The difference.
-- column kind | What kind of step.
-- column service | The service, by its own claim.
-- column submitter | Who sent it, as authenticated.
-- column trace_id | Trace.
SELECT seq, record_hash, event_time, ingest_time,
       (CAST(ingest_time AS BIGINT) - greatest(CAST(event_time AS BIGINT), 0)) / 1000000000 AS late_seconds, kind, service, submitter, trace_id
FROM events
WHERE (CAST(ingest_time AS BIGINT) - greatest(CAST(event_time AS BIGINT), 0)) / 1000000000 >= $seconds
ORDER BY late_seconds DESC, seq
