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
)
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('credential ', c.credential, ' of agent ', min(b.agent_id), ' is used by agent ', c.agent_id) AS detail,
       make_array(min(b.seq), c.seq) AS evidence
FROM used c
LEFT ANTI JOIN used f ON f.agent_id = c.agent_id AND f.credential = c.credential AND f.seq < c.seq AND same_tenant(f.tenant, c.tenant)
JOIN used b ON b.credential = c.credential AND b.agent_id <> c.agent_id AND b.seq < c.seq AND same_tenant(b.tenant, c.tenant)
WHERE abs(seconds_between(b.event_time, c.event_time)) <= setting('window_seconds', c.workspace)
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.credential
