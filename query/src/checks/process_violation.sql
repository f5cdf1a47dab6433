-- A step was taken that its process does not have, or before the step that must come first. Silent until processes are described.
-- severity: high
-- tags: OWASP ASI02, OWASP ASI08, ATLAS AML.T0053
-- on: tool_call
-- fires: after grace
-- needs: authz.process.id
-- setting processes: [] | the steps of each process: "PROCESS: STEP, STEP" in any order, or "PROCESS: STEP > STEP" in this order within a trace; * stands for any characters
WITH steps AS (
    -- The first two of each action and scope: one of them is not the step itself.
    SELECT b.*, row_number() OVER (PARTITION BY b.trace_id, b.scope, b.process_id, b.action ORDER BY b.event_time, b.seq) AS nth
    FROM (
        SELECT b.trace_id, b.process_id, b.action, b.seq, b.event_time, unnest(scopes_of(b.tenant)) AS scope
        FROM events b
        WHERE b.kind = 'tool_call' AND (b.status IS DISTINCT FROM 'error') AND b.process_id IS NOT NULL AND b.trace_id IS NOT NULL AND b.action IS NOT NULL
    ) b
), before AS (
    SELECT c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.workspace, c.process_id, c.action,
           process_breach(setting_list('processes', c.workspace), c.process_id, c.action,
                          array_agg(DISTINCT b.action) FILTER (WHERE b.action IS NOT NULL)) AS breach
    FROM (
        SELECT c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.workspace, c.process_id, c.action, c.event_time,
               unnest(scopes_met(c.tenant)) AS scope
        FROM events c
        WHERE c.kind = 'tool_call' AND c.process_id IS NOT NULL AND cardinality(setting_list('processes', c.workspace)) > 0
    ) c
    LEFT JOIN steps b ON b.trace_id = c.trace_id AND b.scope = c.scope AND b.process_id = c.process_id AND b.nth <= 2 AND b.event_time <= c.event_time AND b.seq <> c.seq
    GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.workspace, c.process_id, c.action
)
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       c.breach AS detail, make_array(c.seq) AS evidence
FROM before c
WHERE c.breach IS NOT NULL
