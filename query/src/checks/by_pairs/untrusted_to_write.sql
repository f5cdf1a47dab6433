-- After untrusted content was read, something was written, and no person approved it in between.
-- severity: medium
-- tags: OWASP ASI01, ATLAS AML.T0051.001
-- on: tool_call
-- fires: after grace
-- needs: authz.context.trust, authz.effect
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('after untrusted content was read, tool ', c.tool, ' wrote') AS detail,
       make_array(min(u.seq), c.seq) AS evidence
FROM events c
JOIN events u ON u.trace_id = c.trace_id AND u.event_time <= c.event_time AND json_as_text(u.attributes, 'authz.context.trust') = 'untrusted' AND u.seq <> c.seq AND same_tenant(u.tenant, c.tenant)
LEFT ANTI JOIN events a ON a.trace_id = c.trace_id AND a.kind = 'approval' AND a.decision = 'approved' AND coalesce(cardinality(a.invalid_reasons), 0) = 0
                       AND a.event_time >= u.event_time AND a.event_time <= c.event_time AND same_tenant(a.tenant, c.tenant)
WHERE c.kind = 'tool_call' AND json_as_text(c.attributes, 'authz.effect') = 'write'
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool
