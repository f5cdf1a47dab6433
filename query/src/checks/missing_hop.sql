-- A call reached a service that requires a proxy's decision, and there is none.
-- severity: high
-- tags: OWASP ASI03, OWASP ASI07
-- on: tool_call
-- fires: after grace
-- default: off
-- setting services: [] | the services that are called through a proxy only
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('service ', c.service, ' was called, and no decision about it is in the trace') AS detail,
       make_array(c.seq) AS evidence
FROM tool_calls c
LEFT ANTI JOIN events p ON p.trace_id = c.trace_id AND p.kind IN ('policy_evaluation', 'executor_decision')
                       AND p.decision IN ('allow', 'approved') AND p.service <> c.service AND p.event_time <= c.event_time
WHERE array_has(setting_list('services', c.workspace), c.service)
