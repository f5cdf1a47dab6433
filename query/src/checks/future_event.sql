-- A step says that it happened after the ledger was told.
-- severity: medium
-- tags: OWASP ASI07
-- on: any
-- fires: at once
-- setting limit_seconds: 300 | how far ahead a clock may be
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('it came ', CAST(seconds_between(c.ingest_time, c.event_time) AS VARCHAR), ' s before it happened') AS detail,
       make_array(c.seq) AS evidence
FROM events c
WHERE seconds_between(c.ingest_time, c.event_time) > setting('limit_seconds', c.workspace)
