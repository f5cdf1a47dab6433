-- Authority was refused for this agent, action and resource, or for this very call, or for another call of the
-- agent that did the same; nothing was granted (by a chain that leads to a root) or allowed afterwards that covers it, and yet the call was made.
-- severity: critical
-- tags: OWASP ASI01, OWASP ASI02, ATLAS AML.T0051.001, ATLAS AML.T0053
-- on: tool_call
-- fires: after grace
SELECT 'proven' AS verdict, h.seq, h.trace_id, h.span_id, h.grant_id, h.agent_id,
       concat('tool ', h.tool, CASE WHEN h.resource IS NULL THEN '' ELSE concat(' on ', h.resource) END,
              ' was executed although refused: ', min(h.reason)) AS detail,
       array_append(array_agg(h.denial_seq), h.seq) AS evidence
FROM (
    SELECT c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool, c.action, c.resource, coalesce(c.tenant, d.tenant) AS tenant, c.event_time,
           d.seq AS denial_seq, d.event_time AS denied_time, d.reason
    FROM tool_calls c
    JOIN denials d ON same_tenant(d.tenant, c.tenant) AND d.tool_call_id = c.tool_call_id
                  AND (d.trace_id = c.trace_id OR (d.trace_id IS NULL AND d.agent_id = c.agent_id))
    WHERE d.event_time <= c.event_time
    UNION ALL
    SELECT c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool, c.action, c.resource, coalesce(c.tenant, d.tenant) AS tenant, c.event_time,
           d.seq AS denial_seq, d.event_time AS denied_time, d.reason
    FROM tool_calls c
    JOIN denials d ON same_tenant(d.tenant, c.tenant) AND d.agent_id = c.agent_id
    WHERE d.event_time <= c.event_time AND d.tool_call_id IS NULL
      AND authority_covers(d.actions, c.action)
      AND (d.resources IS NULL OR (c.resource IS NOT NULL AND authority_covers(d.resources, c.resource)))
    UNION ALL
    SELECT c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool, c.action, c.resource, coalesce(c.tenant, d.tenant) AS tenant, c.event_time,
           d.seq AS denial_seq, d.event_time AS denied_time, d.reason
    FROM tool_calls c
    JOIN denials d ON same_tenant(d.tenant, c.tenant) AND d.agent_id = c.agent_id AND d.tool_call_id <> c.tool_call_id
    LEFT ANTI JOIN events x ON x.tool_call_id = c.tool_call_id AND x.trace_id = c.trace_id AND same_tenant(x.tenant, coalesce(c.tenant, d.tenant))
                           AND x.kind IN ('executor_decision', 'approval') AND x.decision IN ('allow', 'approved')
    WHERE d.event_time <= c.event_time AND authority_covers(d.actions, c.action)
      AND d.resources IS NOT NULL AND c.resource IS NOT NULL AND authority_covers(d.resources, c.resource)
) h
LEFT ANTI JOIN grants g
    ON g.subject = h.agent_id AND same_tenant(g.tenant, h.tenant)
   AND g.state NOT IN ('denied', 'invalid') AND g.lineage = 'ok'
   AND g.issued_time > h.denied_time AND g.issued_time <= h.event_time
   AND authority_covers(g.actions, h.action)
   AND (g.resources IS NULL OR h.resource IS NULL OR authority_covers(g.resources, h.resource))
GROUP BY h.seq, h.trace_id, h.span_id, h.grant_id, h.agent_id, h.tool, h.resource, h.event_time
