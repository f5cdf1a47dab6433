-- One credential or service account is used by a second agent. Told once for each further agent.
-- severity: high
-- tags: OWASP ASI03, OWASP ASI07, ATLAS AML.T0091.000
-- on: any
-- fires: at once
-- needs: authz.credential.id or service-account-id
-- setting window_seconds: 3600 | how far back it looks
WITH used AS (
    SELECT e.seq, e.trace_id, e.span_id, e.grant_id, e.agent_id, e.workspace, e.tenant, e.event_time,
           coalesce(json_as_text(e.attributes, 'authz.credential.id'), json_as_text(e.attributes, 'service-account-id')) AS credential
    FROM events e
    WHERE e.agent_id IS NOT NULL
      AND (json_as_text(e.attributes, 'authz.credential.id') IS NOT NULL OR json_as_text(e.attributes, 'service-account-id') IS NOT NULL)
), points AS (
    -- Each as one that others meet, and as one that meets those before it.
    SELECT u.*, unnest(scopes_of(u.tenant)) AS scope, 1 AS met FROM used u
    UNION ALL
    SELECT u.*, unnest(scopes_met(u.tenant)) AS scope, 0 AS met FROM used u
), seen AS (
    -- Each credential when the agent comes with it: how often it had, and what was its user before.
    SELECT p.*, sum(p.met) OVER own AS known,
           last_value(CASE WHEN p.met = 1 THEN p.seq END) IGNORE NULLS OVER so_far AS before_seq,
           last_value(CASE WHEN p.met = 1 THEN p.agent_id END) IGNORE NULLS OVER so_far AS before_agent,
           last_value(CASE WHEN p.met = 1 THEN p.event_time END) IGNORE NULLS OVER so_far AS before_time
    FROM points p
    WINDOW own AS (PARTITION BY p.agent_id, p.credential, p.scope ORDER BY p.seq, p.met ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW),
           so_far AS (PARTITION BY p.credential, p.scope ORDER BY p.seq, p.met ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
), firsts AS (
    SELECT s.seq, s.trace_id, s.span_id, s.grant_id, s.agent_id, s.workspace, s.event_time, s.credential, max(s.before_seq) AS before_seq,
           last_value(s.before_agent ORDER BY s.before_seq NULLS FIRST) AS before_agent,
           last_value(s.before_time ORDER BY s.before_seq NULLS FIRST) AS before_time
    FROM seen s
    WHERE s.met = 0
    GROUP BY s.seq, s.trace_id, s.span_id, s.grant_id, s.agent_id, s.workspace, s.event_time, s.credential
    HAVING sum(s.known) = 0
)
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('credential ', c.credential, ' of agent ', min(c.before_agent), ' is used by agent ', c.agent_id) AS detail,
       make_array(min(c.before_seq), c.seq) AS evidence
FROM firsts c
WHERE c.before_seq < c.seq
  AND abs(seconds_between(c.before_time, c.event_time)) <= setting('window_seconds', c.workspace)
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.credential
