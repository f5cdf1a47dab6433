-- A first grant comes from an issuer that is not among the trusted ones. Silent until some are named.
-- severity: high
-- tags: OWASP ASI03, OWASP ASI07
-- on: grant_issued
-- fires: at once
-- setting issuers: [] | who may issue grants
SELECT 'proven' AS verdict, g.issued_seq AS seq, e.trace_id, e.span_id, g.grant_id, g.subject AS agent_id,
       concat('issuer ', g.issuer, ' is not trusted') AS detail,
       make_array(g.issued_seq) AS evidence
FROM grants g
JOIN events e ON e.seq = g.issued_seq
WHERE e.kind = 'grant_issued' AND g.parent_grant_id IS NULL
  AND coalesce(cardinality(setting_list('issuers', e.workspace)), 0) > 0
  AND NOT array_has(setting_list('issuers', e.workspace), g.issuer)
