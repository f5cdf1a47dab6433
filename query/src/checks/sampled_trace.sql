-- A span comes from a trace of which only a part is sent: its tracestate names a sampling threshold.
-- severity: informational
-- tags: OWASP ASI07
-- on: span
-- fires: at once
-- default: off
-- needs: W3C tracestate
SELECT 'proven' AS verdict, s.seq, s.trace_id, s.span_id, CAST(NULL AS VARCHAR) AS grant_id, CAST(NULL AS VARCHAR) AS agent_id,
       concat('trace ', s.trace_id, ' is sampled: ', s.trace_state) AS detail,
       make_array(s.seq) AS evidence
FROM spans s
WHERE regexp_like(s.trace_state, 'ot=([^,]*;)?th:[1-9a-f]') AND s.parent_span_id IS NULL
