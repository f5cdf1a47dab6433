-- A policy evaluation refused what the grant had allowed, before the call and with nothing after it that allows it.
-- severity: high
-- tags: OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: after grace
WITH refused AS (
    SELECT p.seq, p.agent_id, p.action, p.grant_id, p.resource, p.policy_id, p.tenant, CAST(p.event_time AS BIGINT) AS at
    FROM events p
    WHERE p.kind = 'policy_evaluation' AND p.decision = 'deny' AND p.agent_id IS NOT NULL
), allowed AS (
    SELECT q.agent_id, q.action, q.grant_id, q.tenant, CAST(q.event_time AS BIGINT) AS at
    FROM events q
    LEFT SEMI JOIN refused p ON p.agent_id = q.agent_id
    WHERE q.kind = 'policy_evaluation' AND q.decision = 'allow' AND coalesce(cardinality(q.invalid_reasons), 0) = 0
), calls AS (
    SELECT c.seq, c.agent_id, c.action, c.grant_id, c.resource, c.tenant, CAST(c.event_time AS BIGINT) AS at
    FROM tool_calls c
    LEFT SEMI JOIN refused p ON p.agent_id = c.agent_id
), points AS (
    -- Refusals by what they are about, and each call beside those that may be about it: the last one before it counts.
    SELECT p.agent_id, unnest(scopes_of(p.tenant)) AS scope, w.how, CASE w.how WHEN 'action' THEN p.action ELSE p.grant_id END AS value,
           coalesce('=' || p.resource, '') AS about, p.at, 0 AS call, p.seq, p.policy_id, p.at AS refused_at, CAST(NULL AS BIGINT) AS allowed_at
    FROM refused p CROSS JOIN (VALUES ('action'), ('grant')) AS w (how)
    UNION ALL
    SELECT q.agent_id, unnest(scopes_of(q.tenant)) AS scope, w.how, CASE w.how WHEN 'action' THEN q.action ELSE q.grant_id END AS value,
           'allowed' AS about, q.at, 0 AS call, CAST(NULL AS BIGINT UNSIGNED) AS seq, CAST(NULL AS VARCHAR) AS policy_id, CAST(NULL AS BIGINT) AS refused_at, q.at AS allowed_at
    FROM allowed q CROSS JOIN (VALUES ('action'), ('grant')) AS w (how)
    UNION ALL
    SELECT c.agent_id, unnest(scopes_met(c.tenant)) AS scope, w.how, CASE w.how WHEN 'action' THEN c.action ELSE c.grant_id END AS value,
           CASE w.what WHEN 'this' THEN '=' || c.resource WHEN 'any' THEN '' ELSE 'allowed' END AS about,
           c.at, 1 AS call, c.seq, CAST(NULL AS VARCHAR) AS policy_id, CAST(NULL AS BIGINT) AS refused_at, CAST(NULL AS BIGINT) AS allowed_at
    FROM calls c
    CROSS JOIN (VALUES ('action', 'this'), ('action', 'any'), ('action', 'allowed'), ('grant', 'this'), ('grant', 'any'), ('grant', 'allowed')) AS w (how, what)
    WHERE w.what <> 'this' OR c.resource IS NOT NULL
), seen AS (
    SELECT p.seq, p.call,
           max(p.refused_at) OVER so_far AS refused_at,
           last_value(CASE WHEN p.call = 0 THEN p.seq END) IGNORE NULLS OVER so_far AS refused_seq,
           last_value(p.policy_id) IGNORE NULLS OVER so_far AS policy_id,
           max(p.allowed_at) OVER so_far AS allowed_at
    FROM points p
    WHERE p.value IS NOT NULL
    WINDOW so_far AS (PARTITION BY p.agent_id, p.scope, p.how, p.value, p.about ORDER BY p.at, p.call, p.seq ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
), latest AS (
    SELECT s.seq, max(s.refused_at) AS refused_at, max(s.allowed_at) AS allowed_at,
           last_value(s.refused_seq ORDER BY s.refused_at NULLS FIRST, s.refused_seq) AS refused_seq,
           last_value(s.policy_id ORDER BY s.refused_at NULLS FIRST, s.refused_seq) AS policy_id
    FROM seen s
    WHERE s.call = 1
    GROUP BY s.seq
)
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('policy ', min(l.policy_id), ' refused it at ', CAST(to_timestamp_nanos(min(l.refused_at)) AS VARCHAR), ', after the grant was issued') AS detail,
       make_array(g.issued_seq, min(l.refused_seq), c.seq) AS evidence
FROM tool_calls c
JOIN latest l ON l.seq = c.seq
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
WHERE l.refused_at > CAST(g.issued_time AS BIGINT) AND (l.allowed_at IS NULL OR l.allowed_at <= l.refused_at)
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, g.issued_seq
