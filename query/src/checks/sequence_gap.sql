-- A source that numbers its records skipped a number. Only events are looked at: turn it on for sources all of
-- whose records become events.
-- severity: medium
-- tags: OWASP ASI07
-- on: any
-- fires: after grace
-- default: off
-- needs: event.sequence or metadata.sequence
WITH numbered AS (
    SELECT e.seq, e.trace_id, e.span_id, e.grant_id, e.agent_id, coalesce(e.service, '') AS service,
           coalesce(e.conversation_id, '') AS session,
           TRY_CAST(coalesce(json_as_text(e.attributes, 'event.sequence'), json_as_text(e.attributes, 'metadata.sequence')) AS BIGINT) AS number
    FROM events e
)
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat(c.service, ' numbered a record ', CAST(c.number AS VARCHAR), ', and the one before never came') AS detail,
       make_array(max(f.seq), c.seq) AS evidence
FROM numbered c
JOIN numbered f ON f.service = c.service AND f.session = c.session AND f.number < c.number
LEFT ANTI JOIN numbered b ON b.service = c.service AND b.session = c.session AND b.number = c.number - 1
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.service, c.number
