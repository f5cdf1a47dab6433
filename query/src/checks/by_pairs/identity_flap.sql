-- An agent changed its credential without a change of authority that says so. Told once for each further credential.
-- severity: medium
-- tags: OWASP ASI03, ATLAS AML.T0012
-- on: any
-- fires: after grace
-- needs: authz.credential.id or service-account-id
-- setting window_seconds: 3600 | how far back it looks
WITH used AS (
    SELECT e.seq, e.trace_id, e.span_id, e.grant_id, e.agent_id, e.workspace, e.tenant, e.event_time,
           coalesce(json_as_text(e.attributes, 'authz.credential.id'), json_as_text(e.attributes, 'service-account-id')) AS credential
    FROM events e
    WHERE e.agent_id IS NOT NULL
      AND (json_as_text(e.attributes, 'authz.credential.id') IS NOT NULL OR json_as_text(e.attributes, 'service-account-id') IS NOT NULL)
)
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('agent ', c.agent_id, ' came with credential ', min(b.credential), ' and now with ', c.credential) AS detail,
       make_array(min(b.seq), c.seq) AS evidence
FROM used c
LEFT ANTI JOIN used f ON f.agent_id = c.agent_id AND f.credential = c.credential AND f.seq < c.seq AND same_tenant(f.tenant, c.tenant)
JOIN used b ON b.agent_id = c.agent_id AND b.credential <> c.credential AND b.seq < c.seq AND same_tenant(b.tenant, c.tenant)
LEFT ANTI JOIN events r ON r.kind = 'authority_change' AND r.agent_id = c.agent_id AND same_tenant(r.tenant, c.tenant) AND r.event_time > b.event_time AND r.event_time <= c.event_time
WHERE abs(seconds_between(b.event_time, c.event_time)) <= setting('window_seconds', c.workspace)
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.credential
