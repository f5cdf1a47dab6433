-- A step happened long before the ledger was told. Imports do that, too: turn it on where nothing is imported.
-- severity: medium
-- tags: OWASP ASI07
-- on: any
-- fires: at once
-- default: off
-- setting limit_seconds: 86400 | how late a record may come
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('it came ', CAST(seconds_between(c.event_time, c.ingest_time) AS VARCHAR), ' s after it happened') AS detail,
       make_array(c.seq) AS evidence
FROM events c
WHERE seconds_between(c.event_time, c.ingest_time) > setting('limit_seconds', c.workspace)
