-- A person approved faster than anybody reads, or many at once.
-- severity: low
-- tags: OWASP ASI09
-- on: approval
-- fires: at once
-- setting seconds_min: 3 | what is faster than this was not read
-- setting bulk_min: 5 | how many within that time are many
WITH approved AS (
    SELECT a.seq, a.trace_id, a.span_id, a.grant_id, a.agent_id, a.workspace, a.tenant, a.event_time, a.tool_call_id,
           json_as_text(a.attributes, 'authz.approval.by') AS approver
    FROM events a WHERE a.kind = 'approval' AND a.decision = 'approved'
)
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat(c.approver, ' approved within ', CAST(min(seconds_between(p.event_time, c.event_time)) AS VARCHAR), ' s') AS detail,
       make_array(min(p.seq), c.seq) AS evidence
FROM approved c
JOIN events p ON p.kind = 'approval' AND p.decision = 'pending' AND p.trace_id = c.trace_id AND p.event_time <= c.event_time AND same_tenant(p.tenant, c.tenant)
             AND (p.tool_call_id = c.tool_call_id OR (c.tool_call_id IS NULL AND p.grant_id = c.grant_id))
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.approver, c.workspace
HAVING min(seconds_between(p.event_time, c.event_time)) < setting('seconds_min', c.workspace)
UNION ALL
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat(c.approver, ' approved ', CAST(count(*) AS VARCHAR), ' at once') AS detail,
       array_agg(b.seq) AS evidence
FROM approved c
JOIN approved b ON b.approver = c.approver AND (b.tenant IS NOT DISTINCT FROM c.tenant) AND b.seq <= c.seq
               AND abs(seconds_between(b.event_time, c.event_time)) < setting('seconds_min', c.workspace)
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.approver, c.workspace
HAVING count(*) >= setting('bulk_min', c.workspace)
