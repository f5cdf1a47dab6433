-- A step was taken that its process does not have, or before the step that must come first. Silent until processes are described.
-- severity: high
-- tags: OWASP ASI02, OWASP ASI08, ATLAS AML.T0053
-- on: tool_call
-- fires: after grace
-- needs: authz.process.id
-- setting processes: [] | the steps of each process: "PROCESS: STEP, STEP" in any order, or "PROCESS: STEP > STEP" in this order within a trace; * stands for any characters
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       process_breach(setting_list('processes', c.workspace), c.process_id, c.action,
                      array_agg(b.action) FILTER (WHERE b.action IS NOT NULL)) AS detail,
       make_array(c.seq) AS evidence
FROM events c
LEFT JOIN events b ON b.trace_id = c.trace_id AND b.process_id = c.process_id AND b.event_time <= c.event_time AND b.seq <> c.seq AND same_tenant(b.tenant, c.tenant)
                  AND b.kind = 'tool_call' AND b.status IS DISTINCT FROM 'error'
WHERE c.kind = 'tool_call' AND c.process_id IS NOT NULL
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.workspace, c.process_id, c.action
HAVING process_breach(setting_list('processes', c.workspace), c.process_id, c.action,
                      array_agg(b.action) FILTER (WHERE b.action IS NOT NULL)) IS NOT NULL
