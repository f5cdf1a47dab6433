-- A policy evaluation refused what the grant had allowed, before the call and with nothing after it that allows it.
-- severity: high
-- tags: OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: after grace
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('policy ', min(p.policy_id), ' refused it at ', CAST(min(p.event_time) AS VARCHAR), ', after the grant was issued') AS detail,
       make_array(g.issued_seq, min(p.seq), c.seq) AS evidence
FROM tool_calls c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
JOIN events p ON p.kind = 'policy_evaluation' AND p.decision = 'deny' AND p.agent_id = c.agent_id
             AND same_tenant(p.tenant, c.tenant) AND p.event_time > g.issued_time AND p.event_time <= c.event_time
             AND (p.action = c.action OR p.grant_id = c.grant_id) AND (p.resource IS NULL OR p.resource = c.resource)
LEFT ANTI JOIN events q ON q.kind = 'policy_evaluation' AND q.decision = 'allow' AND q.agent_id = c.agent_id
                       AND same_tenant(q.tenant, c.tenant) AND q.event_time > p.event_time AND q.event_time <= c.event_time
                       AND (q.action = c.action OR q.grant_id = c.grant_id) AND coalesce(cardinality(q.invalid_reasons), 0) = 0
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, g.issued_seq
