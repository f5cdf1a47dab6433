-- The grant, or one above it, needs a person's approval, and the call began without one, or after the newest decision was a rejection.
-- severity: high
-- tags: OWASP ASI09, OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: after grace
-- needs: authz.grant.approval.state
WITH named AS (
    SELECT c.seq, c.tool_call_id, CAST(c.event_time AS BIGINT) AS at, coalesce(c.tenant, g.tenant) AS whose, unnest(g.awaits) AS awaited
    FROM tool_calls c
    JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
), waits AS (
    -- What names no tenant is here of the one that it meets.
    SELECT n.seq, n.tool_call_id, n.at, coalesce(n.whose, g.tenant) AS tenant, g.grant_id, g.depth, g.issued_seq
    FROM named n
    JOIN grants g ON g.grant_id = n.awaited AND same_tenant(g.tenant, n.whose)
), decided AS (
    -- A person approves, anybody rejects; a question decides nothing, and a rejection may be of one call.
    SELECT a.seq, a.grant_id, a.tool_call_id, a.tenant, CAST(a.event_time AS BIGINT) AS at, lower(a.decision) = 'approved' AS approves
    FROM events a
    WHERE a.kind = 'approval' AND a.grant_id IS NOT NULL
      AND lower(a.decision) NOT IN ('pending', 'requested', 'required', 'not_required')
      AND (lower(a.decision) <> 'approved'
           OR (coalesce(cardinality(a.invalid_reasons), 0) = 0
               AND (a.decision = 'approved' OR json_as_text(a.attributes, 'authz.approval.by') IS NOT NULL)
               AND lower(coalesce(json_as_text(a.attributes, 'authz.approval.by_type'), 'human')) = 'human'))
), points AS (
    -- Each call beside what was decided of the grant, and of this very call.
    SELECT d.grant_id, unnest(scopes_of(d.tenant)) AS scope, CASE WHEN d.approves THEN '' ELSE coalesce('=' || d.tool_call_id, '') END AS what,
           d.at, 0 AS place, d.seq, CAST(NULL AS VARCHAR) AS tenant, 0 AS depth, d.seq AS issued_seq,
           CASE WHEN d.approves THEN d.at END AS approved_at, CASE WHEN NOT d.approves THEN d.at END AS rejected_at
    FROM decided d
    UNION ALL
    SELECT w.grant_id, unnest(scopes_met(w.tenant)) AS scope, CASE h.how WHEN 'any' THEN '' ELSE '=' || w.tool_call_id END AS what,
           w.at, 1 AS place, w.seq, w.tenant, w.depth, w.issued_seq,
           CAST(NULL AS BIGINT) AS approved_at, CAST(NULL AS BIGINT) AS rejected_at
    FROM waits w
    CROSS JOIN (VALUES ('any'), ('this')) AS h (how)
    WHERE h.how = 'any' OR w.tool_call_id IS NOT NULL
), seen AS (
    SELECT p.grant_id, p.seq, p.place, p.tenant, p.depth, p.issued_seq,
           max(p.approved_at) OVER so_far AS approved_at, max(p.rejected_at) OVER so_far AS rejected_at,
           last_value(CASE WHEN p.rejected_at IS NOT NULL THEN p.seq END) IGNORE NULLS OVER so_far AS rejected_seq
    FROM points p
    WINDOW so_far AS (PARTITION BY p.grant_id, p.scope, p.what ORDER BY p.at, p.place, p.seq ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
), latest AS (
    SELECT s.seq, s.grant_id, min(s.depth) AS depth, first_value(s.issued_seq ORDER BY s.depth, s.issued_seq) AS awaited_seq,
           max(s.approved_at) AS approved_at, max(s.rejected_at) AS rejected_at,
           last_value(s.rejected_seq ORDER BY s.rejected_at NULLS FIRST, s.rejected_seq) AS rejected_seq
    FROM seen s
    WHERE s.place = 1
    GROUP BY s.seq, s.grant_id, s.tenant
), missing AS (
    -- Of several that wait, the first of the chain.
    SELECT l.seq, first_value(l.grant_id ORDER BY l.depth, l.awaited_seq) AS grant_id,
           first_value(l.awaited_seq ORDER BY l.depth, l.awaited_seq) AS awaited_seq,
           first_value(l.rejected_seq ORDER BY l.depth, l.awaited_seq) AS rejected_seq
    FROM latest l
    WHERE l.approved_at IS NULL OR l.rejected_at >= l.approved_at
    GROUP BY l.seq
)
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('grant ', m.grant_id, ' needs an approval, and ',
              CASE WHEN m.rejected_seq IS NULL THEN 'none was given' ELSE 'the newest decision was a rejection' END, ' before the call') AS detail,
       CASE WHEN m.rejected_seq IS NULL THEN make_array(m.awaited_seq, c.seq) ELSE make_array(m.awaited_seq, m.rejected_seq, c.seq) END AS evidence
FROM tool_calls c
JOIN missing m ON m.seq = c.seq
