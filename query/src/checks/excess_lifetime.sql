-- A grant lives longer than grants should.
-- severity: low
-- tags: OWASP ASI03
-- on: grant_issued, grant_derived
-- fires: at once
-- setting lifetime_seconds: 2592000 | how long a grant may live
SELECT 'proven' AS verdict, g.issued_seq AS seq, e.trace_id, e.span_id, g.grant_id, g.subject AS agent_id,
       concat('grant ', g.grant_id, ' lives until ', CAST(g.expires_at AS VARCHAR)) AS detail,
       make_array(g.issued_seq) AS evidence
FROM grants g
JOIN events e ON e.seq = g.issued_seq
WHERE g.state <> 'denied'
  AND seconds_between(coalesce(g.not_before, g.issued_time), g.expires_at) > setting('lifetime_seconds', e.workspace)
