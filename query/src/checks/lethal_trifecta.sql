-- Within one trace private data was read, untrusted content was read, and then something was sent out.
-- severity: critical
-- tags: OWASP ASI01, OWASP ASI02, ATLAS AML.T0051.001, ATLAS AML.T0086
-- on: tool_call, output
-- fires: at once
-- needs: authz.context.trust, data.classification, authz.effect
WITH untrusted AS (
    -- The first two of each trace: one of them is not the step itself.
    SELECT u.trace_id, u.seq, u.since, row_number() OVER (PARTITION BY u.trace_id ORDER BY u.since, u.seq) AS nth
    FROM (
        SELECT e.trace_id, e.seq, min(e.event_time) AS since
        FROM events e
        WHERE json_as_text(e.attributes, 'authz.context.trust') = 'untrusted' AND e.trace_id IS NOT NULL
        GROUP BY e.trace_id, e.seq
    ) u
), private AS (
    SELECT r.trace_id, min(r.event_time) AS since, first_value(r.seq ORDER BY r.event_time, r.seq) AS seq
    FROM events r
    WHERE r.classification IN ('private', 'confidential', 'restricted', 'secret', 'pii') AND r.kind IN ('context_retrieval', 'tool_call')
      AND r.trace_id IS NOT NULL
    GROUP BY r.trace_id
)
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('after private data and untrusted content were read, ', coalesce(c.tool, 'output'), ' sent something out') AS detail,
       make_array(min(u.seq), min(r.seq), c.seq) AS evidence
FROM events c
JOIN private r ON r.trace_id = c.trace_id AND r.since <= c.event_time
JOIN untrusted u ON u.trace_id = c.trace_id AND u.nth <= 2 AND u.since <= c.event_time AND u.seq <> c.seq
WHERE c.kind = 'output' OR (c.kind = 'tool_call' AND json_as_text(c.attributes, 'authz.effect') = 'external_send')
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool
