-- One credential or service account is used by a second agent. Told once for each further agent.
-- severity: high
-- tags: OWASP ASI03, OWASP ASI07, ATLAS AML.T0091.000
-- on: any
-- fires: at once
-- needs: authz.credential.id or service-account-id
-- setting window_seconds: 3600 | how far back it looks
WITH used AS (
    SELECT e.seq, e.trace_id, e.span_id, e.grant_id, e.agent_id, e.workspace, e.event_time,
           coalesce(json_as_text(e.attributes, 'authz.credential.id'), json_as_text(e.attributes, 'service-account-id')) AS credential
    FROM events e
    WHERE e.agent_id IS NOT NULL
      AND (json_as_text(e.attributes, 'authz.credential.id') IS NOT NULL OR json_as_text(e.attributes, 'service-account-id') IS NOT NULL)
), firsts AS (
    -- Each credential when the agent first came with it, and what was its user before.
    SELECT u.*, row_number() OVER own AS nth,
           lag(u.seq) OVER before AS before_seq, lag(u.agent_id) OVER before AS before_agent, lag(u.event_time) OVER before AS before_time
    FROM used u
    WINDOW own AS (PARTITION BY u.agent_id, u.credential ORDER BY u.seq), before AS (PARTITION BY u.credential ORDER BY u.seq)
)
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('credential ', c.credential, ' of agent ', min(c.before_agent), ' is used by agent ', c.agent_id) AS detail,
       make_array(min(c.before_seq), c.seq) AS evidence
FROM firsts c
WHERE c.nth = 1 AND c.before_agent <> c.agent_id AND c.before_seq < c.seq
  AND abs(seconds_between(c.before_time, c.event_time)) <= setting('window_seconds', c.workspace)
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.credential
