-- Within one trace private data was read, untrusted content was read, and then something was sent out.
-- severity: critical
-- tags: OWASP ASI01, OWASP ASI02, ATLAS AML.T0051.001, ATLAS AML.T0086
-- on: tool_call, output
-- fires: at once
-- needs: authz.context.trust, data.classification, authz.effect
WITH untrusted AS (
    -- The first two of each trace and scope: one of them is not the step itself.
    SELECT u.trace_id, u.scope, u.seq, min(u.event_time) AS since,
           row_number() OVER (PARTITION BY u.trace_id, u.scope ORDER BY min(u.event_time), u.seq) AS nth
    FROM (
        SELECT e.trace_id, e.seq, e.event_time, unnest(scopes_of(e.tenant)) AS scope
        FROM events e
        WHERE json_as_text(e.attributes, 'authz.context.trust') = 'untrusted' AND e.trace_id IS NOT NULL
    ) u
    GROUP BY u.trace_id, u.scope, u.seq
), private AS (
    SELECT r.trace_id, r.scope, min(r.event_time) AS since, first_value(r.seq ORDER BY r.event_time, r.seq) AS seq
    FROM (
        SELECT e.trace_id, e.seq, e.event_time, unnest(scopes_of(e.tenant)) AS scope
        FROM events e
        WHERE e.classification IN ('private', 'confidential', 'restricted', 'secret', 'pii') AND e.kind IN ('context_retrieval', 'tool_call')
          AND e.trace_id IS NOT NULL
    ) r
    GROUP BY r.trace_id, r.scope
), sent AS (
    SELECT c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool, c.event_time, unnest(scopes_met(c.tenant)) AS scope
    FROM events c
    WHERE c.kind = 'output' OR (c.kind = 'tool_call' AND json_as_text(c.attributes, 'authz.effect') = 'external_send')
), leaked AS (
    SELECT c.seq, c.event_time, min(r.seq) AS private_seq
    FROM sent c
    JOIN private r ON r.trace_id = c.trace_id AND r.scope = c.scope AND r.since <= c.event_time
    GROUP BY c.seq, c.event_time
)
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('after private data and untrusted content were read, ', coalesce(c.tool, 'output'), ' sent something out') AS detail,
       make_array(min(u.seq), min(l.private_seq), c.seq) AS evidence
FROM sent c
JOIN leaked l ON l.seq = c.seq AND l.event_time = c.event_time
JOIN untrusted u ON u.trace_id = c.trace_id AND u.scope = c.scope AND u.nth <= 2 AND u.since <= c.event_time AND u.seq <> c.seq
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool
