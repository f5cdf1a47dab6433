-- A person approved faster than anybody reads, or many at once.
-- severity: low
-- tags: OWASP ASI09
-- on: approval
-- fires: at once
-- setting seconds_min: 3 | what is faster than this was not read
-- setting bulk_min: 5 | how many within that time are many
WITH approved AS (
    SELECT a.seq, a.trace_id, a.span_id, a.grant_id, a.agent_id, a.workspace, a.tenant, a.event_time, a.tool_call_id,
           json_as_text(a.attributes, 'authz.approval.by') AS approver,
           coalesce('call ' || a.tool_call_id, 'grant ' || a.grant_id) AS about,
           CAST(a.event_time AS BIGINT) AS at,
           CAST(least(setting('seconds_min', a.workspace), 4e9) * 1e9 AS BIGINT) AS width
    FROM events a WHERE a.kind = 'approval' AND a.decision = 'approved'
), asked AS (
    -- About its call, for approvals that name one, and about its grant, for those that do not.
    SELECT p.seq, p.trace_id, p.tenant, p.event_time, CASE w.how WHEN 'call' THEN 'call ' || p.tool_call_id ELSE 'grant ' || p.grant_id END AS about
    FROM events p CROSS JOIN (VALUES ('call'), ('grant')) AS w (how)
    WHERE p.kind = 'approval' AND p.decision = 'pending'
), numbered AS (
    SELECT a.*, row_number() OVER (PARTITION BY a.approver, a.tenant ORDER BY a.at, a.seq) AS place
    FROM approved a WHERE a.approver IS NOT NULL
), points AS (
    SELECT n.seq, n.approver, n.tenant, n.at, 1 AS sign FROM numbered n
    UNION ALL
    SELECT n.seq, n.approver, n.tenant, CASE WHEN n.at > 9223372036854775807 - n.width THEN 9223372036854775807 ELSE n.at + n.width END AS at, -1 AS sign FROM numbered n
), counted AS (
    -- How many count at each, for each tenant: by running sums, without comparing each with each.
    SELECT p.seq, p.sign,
           sum(p.sign) OVER (PARTITION BY p.approver, p.tenant ORDER BY p.at, p.sign, p.seq ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS at_once
    FROM points p
), bulk AS (
    SELECT n.*, k.at_once, n.place / 100 AS hundred
    FROM numbered n
    JOIN counted k ON k.seq = n.seq AND k.sign > 0
    WHERE k.at_once >= setting('bulk_min', n.workspace)
), cited AS (
    SELECT n.seq, n.approver, n.tenant, n.at, n.place, n.place / 100 + e.next AS hundred
    FROM numbered n CROSS JOIN (VALUES (0), (1)) AS e (next)
)
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat(c.approver, ' approved within ', CAST(min(seconds_between(p.event_time, c.event_time)) AS VARCHAR), ' s') AS detail,
       make_array(last_value(p.seq ORDER BY p.event_time, p.seq), c.seq) AS evidence
FROM approved c
JOIN asked p ON p.trace_id = c.trace_id AND same_tenant(p.tenant, c.tenant) AND p.about = c.about AND p.event_time <= c.event_time
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.approver, c.workspace
HAVING min(seconds_between(p.event_time, c.event_time)) < setting('seconds_min', c.workspace)
UNION ALL
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat(c.approver, ' approved ', CAST(c.at_once AS VARCHAR), ' at once') AS detail,
       array_agg(b.seq) AS evidence
FROM bulk c
JOIN cited b ON b.approver = c.approver AND coalesce('=' || b.tenant, '') = coalesce('=' || c.tenant, '') AND b.hundred = c.hundred AND b.place <= c.place AND b.place > c.place - 100 AND b.at > c.at - c.width
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.approver, c.at_once
