-- The call belongs to another task, process or workspace than its grant.
-- severity: high
-- tags: OWASP ASI01, OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: at once
-- needs: authz.task.id, authz.process.id or authz.workspace on both
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('the grant is for ', concat_ws('/', i.workspace, i.process_id, i.task_id), ', the call for ',
              concat_ws('/', c.workspace, c.process_id, c.task_id)) AS detail,
       make_array(g.issued_seq, c.seq) AS evidence
FROM events c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
JOIN events i ON i.seq = g.issued_seq
WHERE c.kind = 'tool_call' AND (c.task_id <> i.task_id OR c.process_id <> i.process_id OR c.workspace <> i.workspace)
